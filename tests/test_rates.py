"""Learning rates that are tried: each as a training of its own, the best at base classes stays, and is told as such."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from faults import paths, trained, training
from safetensors import safe_open
from safetensors.torch import load_file

from crnet.audit.ledger import Check
from crnet.audit.rates import _one
from crnet.config import study
from crnet.config.layout import Layout
from crnet.config.rates import best
from crnet.config.resolve import training_name
from crnet.errors import CrnetError
from crnet.planning import stages
from crnet.planning.disk import DataSet
from crnet.report.page.rates import render_rates
from crnet.report.runs import collect
from crnet.runtime.files import canonical, read_csv, read_json
from crnet.runtime.limits import NONE
from crnet.training import loop, rates

RATES = [1e-4, 3e-3]


def test_the_rate_that_knows_base_classes_best_stays(tiny, tmp_path):
    spec = tiny.training(train={"lr": RATES})
    where = paths(tiny, tmp_path)
    rates.train(spec, where, "cpu", 1)
    alone = {rate: trained(tiny, tmp_path / f"{rate}", tiny.training(train={"lr": rate})) for rate in RATES}
    reached = {rate: float(read_csv(out / "log.csv")[-1]["base_miou"]) for rate, out in alone.items()}
    about, chosen = read_json(where.out / "train.json"), max(reached, key=reached.get)
    assert about["trials"] == [{"lr": rate, "base_miou": miou} for rate, miou in reached.items()]
    assert about["choice"] == {"lr": chosen, "edge_lr": "lowest" if chosen == RATES[0] else "highest"}
    assert (about["run"], about["spec"]) == ("run", spec)
    kept, expected = (load_file(out / "model.safetensors") for out in (where.out, alone[chosen]))
    assert all(torch.equal(kept[name], expected[name]) for name in expected)
    with safe_open(where.out / "model.safetensors", "np") as stream:
        assert stream.metadata()["spec"] == canonical(spec)
    assert [path.name for path in tmp_path.glob("run*")] == ["run"], "neither state nor trials are left"


def test_a_killed_job_goes_on_with_the_rate_it_was_at(tiny, tmp_path, monkeypatch):
    spec, where = tiny.training(train={"lr": RATES}), paths(tiny, tmp_path)
    job = subprocess.Popen([sys.executable, "-m", "crnet", *training(spec, where, "--checkpoint-seconds", 0)])
    second = where.state.with_suffix(".rates") / f"{RATES[1]:g}"
    while not second.is_dir():
        assert job.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    job.kill()
    job.wait()
    trained_again, original = [], loop.train

    def noted(spec, *rest, **more):
        trained_again.append(spec["train"]["lr"])
        original(spec, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train", noted)
        rates.train(spec, where, "cpu", 1)
    assert trained_again == [RATES[1]]
    fresh = paths(tiny, tmp_path / "fresh")
    rates.train(spec, fresh, "cpu", 1)
    one, other = (load_file(each.out / "model.safetensors") for each in (where, fresh))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_state_of_the_rate_before_is_in_nobody_s_way(tiny, tmp_path):
    """As a kill leaves it between the last byte of one rate and the removal of its state."""
    spec, where = tiny.training(train={"lr": RATES}), paths(tiny, tmp_path)
    first = replace(where, out=where.state.with_suffix(".rates") / f"{RATES[0]:g}")
    partly = loop.Training(rates.with_rate(spec, RATES[0]), first, torch.device("cpu"), 1, 0, 0.0)
    partly._save()
    shutil.copytree(trained(tiny, tmp_path / "x", tiny.training(train={"lr": RATES[0]})), first.out)
    rates.train(spec, where, "cpu", 1)
    assert (where.out / "train.json").is_file()


def test_a_rate_that_diverges_has_lost(tiny, tmp_path, monkeypatch, capsys):
    original = loop.train

    def diverge_at_the_higher(spec, where, *options, **more):
        if spec["train"]["lr"] == RATES[1]:
            (where.out / loop.FAILED).write_text("{}")
            raise CrnetError("the loss is nan")
        original(spec, where, *options, **more)

    monkeypatch.setattr(loop, "train", diverge_at_the_higher)
    where = paths(tiny, tmp_path)
    rates.train(tiny.training(train={"lr": RATES}), where, "cpu", 1)
    about = read_json(where.out / "train.json")
    assert [trial["base_miou"] is None for trial in about["trials"]] == [False, True]
    assert about["choice"] == {"lr": RATES[0], "edge_lr": "lowest"}
    assert "lr 0.003 is out: the loss is nan" in capsys.readouterr().out


def test_all_rates_that_diverge_are_a_failed_training(tiny, tmp_path, monkeypatch):
    def diverge(spec, where, *options, **more):
        (where.out / loop.FAILED).write_text("{}")
        raise CrnetError("the loss is nan")

    monkeypatch.setattr(loop, "train", diverge)
    where = paths(tiny, tmp_path)
    with pytest.raises(CrnetError, match="every learning rate diverged; add lower ones"):
        rates.train(tiny.training(train={"lr": RATES}), where, "cpu", 1)
    assert "diverged" in read_json(where.out / loop.FAILED)["failed"]
    monkeypatch.undo()
    rates.train(tiny.training(train={"lr": RATES}), where, "cpu", 1)
    assert not (where.out / loop.FAILED).exists(), "a second start tries all rates again"


@pytest.mark.parametrize("moment", ["_result", "_keep", "_forget"])
def test_of_two_copies_the_later_finds_the_earlier_s_result(tiny, tmp_path, monkeypatch, moment, capsys):
    """The earlier had all rates when the later began, and takes the trials away while the later reads them."""
    spec, where = tiny.training(train={"lr": RATES}), paths(tiny, tmp_path)
    kept, original = where.state.with_suffix(".rates"), getattr(rates, moment)

    def the_earlier_ends(*given):
        monkeypatch.undo()
        rates.train(spec, where, "cpu", 1)  # nothing is left to train
        result.append((where.out / "model.safetensors").read_bytes())
        assert not kept.exists()
        return original(*given)

    result: list[bytes] = []
    monkeypatch.setattr(rates, moment, the_earlier_ends)
    rates.train(spec, where, "cpu", 1)
    assert "another copy" in capsys.readouterr().out
    assert [(where.out / "model.safetensors").read_bytes()] == result


def test_trials_that_vanish_without_a_result_are_an_error(tiny, tmp_path, monkeypatch):
    where, original = paths(tiny, tmp_path), rates._result

    def vanish(folder):
        shutil.rmtree(folder.parent, ignore_errors=True)
        return original(folder)

    monkeypatch.setattr(rates, "_result", vanish)
    with pytest.raises(FileNotFoundError):
        rates.train(tiny.training(train={"lr": RATES}), where, "cpu", 1)


def test_errors_that_are_no_divergence_end_the_job(tiny, tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise CrnetError("the disk is full")

    monkeypatch.setattr(loop, "train", refuse)
    with pytest.raises(CrnetError, match="disk is full"):
        rates.train(tiny.training(train={"lr": RATES}), paths(tiny, tmp_path), "cpu", 1)


@pytest.mark.parametrize(
    ("reached", "chosen"),
    [((0.4, 0.5, 0.3), (2, "")), ((0.5, 0.5, 0.3), (1, "lowest")), ((0.1, None, 0.3), (3, "highest"))],
)
def test_the_best_of_trials(reached, chosen):
    trials = [{"lr": rate, "base_miou": miou} for rate, miou in zip((1, 2, 3), reached, strict=True)]
    assert tuple(best(trials).values()) == chosen


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"lr": [1e-3]}, "fewer than two rates"),
        ({"lr": [1e-3, 1e-3]}, "fewer than two rates"),
        ({"lr": []}, "fewer than two rates"),
        ({"lr": [1e-3, "fast"]}, "train.lr"),
        ({"lr": [1e-3, 11.0]}, "train.lr"),
        ({"lr": [1e-3, 1e-2], "base_episodes": 0}, "base_episodes: 0"),
    ],
)
def test_lists_that_leave_no_choice_are_refused(train, words):
    with pytest.raises(CrnetError, match=words):
        study.load(overrides={"train": train})


def test_a_study_s_plan_counts_each_rate(tmp_path):
    def steps(lr):
        plan = study.load(overrides={"train": {"lr": lr}})
        spec = next(iter(plan.trainings.values()))
        return stages.training(spec, DataSet(spec["dataset"], Layout(plan)), NONE).units, spec

    (one, _), (three, spec) = steps(1e-3), steps([1e-2, 1e-3, 1e-4])
    assert three == 3 * one and spec["train"]["lr"] == [1e-4, 1e-3, 1e-2]


def test_rows_page_and_audit_say_what_was_chosen(tiny, tmp_path):
    spec = tiny.training(train={"lr": RATES})
    where = replace(paths(tiny, tmp_path), out=tmp_path / training_name(spec))
    rates.train(spec, where, "cpu", 1)
    files = [tmp_path / name for name in ("runs.csv", "training.csv")]
    collect([where.out / "train.json"], [where.out / "log.csv"], [], [], [], *files)
    (row,), logged = read_csv(files[0]), read_csv(files[1])
    trials = json.loads(row["choice.trials"])
    assert (row["train.lr"], float(row["choice.lr"])) == (canonical(RATES), best(trials)["lr"])
    text = "\n".join(render_rates([row], [("Table 2: both", [row["run"]])]))
    assert "Table 2: both" in text and "(1 of 1)" in text and "0.003" in text

    def audited(row, end=logged[-1]):
        check = Check("rates")
        _one(check, "runs.csv, line 2", row, RATES, end)
        return check.differences

    assert audited(row) == []
    other = next(rate for rate in RATES if f"{rate}" != row["choice.lr"])
    assert any("choice.lr" in text for text in audited(row | {"choice.lr": f"{other}"}))
    assert any("ends at" in text for text in audited(row, logged[-1] | {"base_miou": "0.999"}))
    assert any("the plan has the rates" in text for text in audited(row | {"choice.trials": canonical(trials[:1])}))


def test_pages_of_studies_that_chose_nothing_have_no_such_section():
    assert render_rates([{"kind": "train", "run": "a", "method": "crnet"}], []) == []
