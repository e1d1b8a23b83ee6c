"""A training that diverges: stopped in one sentence, its last good state kept, marked failed in index and tables."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from faults import one_sentence, paths

from crnet.cli import cli
from crnet.config import resolve, study
from crnet.config.jobs import table_job
from crnet.config.layout import Layout
from crnet.errors import CrnetError
from crnet.report.partial import failures, mark
from crnet.report.runs import collect
from crnet.report.tables.cells import collect as cells
from crnet.report.tables.cells import short_gap
from crnet.runtime.checkpoint import load_state
from crnet.runtime.files import read_csv, read_json, write_csv, write_json
from crnet.training import loop
from crnet.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
ONE_TABLE = {"tables": ["table3"], "sheet": None, "probe": None}

DIVERGING = {"optimizer": "sgd", "schedule": "constant", "lr": 10.0, "epochs": 20}


class TestDivergence:
    def test_the_run_is_marked_failed_and_the_last_good_state_loads(self, tiny, tmp_path):
        spec, where = tiny.training(train=DIVERGING), paths(tiny, tmp_path)
        with pytest.raises(CrnetError, match=r"at step \d+ \(lr 10\)|after step \d+ \(lr 10\)") as caught:
            train(spec, where, "cpu", 1, checkpoint_seconds=0)
        one_sentence(caught.value, where.out / "failed.json")
        state = load_state(where.state)
        good = state["progress"]["step"]
        assert f"the last good state, after {good} steps, is {where.state}" in str(caught.value)
        tensors = [*state["method"].values(), *(t for s in state["optimiser"]["state"].values() for t in s.values())]
        assert all(torch.isfinite(t).all() for t in tensors if isinstance(t, torch.Tensor))
        report = read_json(where.out / "failed.json")
        assert (report["run"], report["spec"]) == ("run", spec)
        assert report["failed"] in str(caught.value)
        assert not (where.out / "train.json").exists() and not (where.out / "model.safetensors").exists()

    def test_weights_that_are_not_finite_are_not_saved_as_good(self, tiny, tmp_path, monkeypatch):
        """A finite loss whose gradients are not: the state before it is the one that stays."""
        step = loop.Training.step

        def poisoned(self, batch):
            step(self, batch)
            if self.progress.step == 5:
                with torch.no_grad():
                    next(self.method.parameters()).fill_(float("inf"))

        monkeypatch.setattr(loop.Training, "step", poisoned)
        where = paths(tiny, tmp_path)
        with pytest.raises(CrnetError, match=r"a weight is not finite after step 4 .*last good state, after 4 steps"):
            train(tiny.training(), where, "cpu", 1, checkpoint_seconds=0)
        assert load_state(where.state)["progress"]["step"] == 4
        monkeypatch.undo()
        train(tiny.training(), where, "cpu", 1)
        assert (where.out / "train.json").is_file()
        assert not (where.out / "failed.json").exists(), "a training that finishes after all has not failed"

    def test_index_and_tables_say_failed(self, tmp_path, monkeypatch):
        """From failed.json to the row of runs.csv and the note of the cell."""
        tables, why = {"tables": ["table3"], "shots": [1]}, "the loss is nan at step 6 (lr 10)"
        monkeypatch.chdir(tmp_path)
        plan, layout, name, spec = diverged(ROOT / "tests/tiny.yaml", why, **tables)
        assert failures(plan, layout) == {name: why}
        report = Path(layout.training(name)) / "failed.json"
        collect([report], [], [], [], [], tmp_path / "runs.csv", tmp_path / "training.csv")
        (row,) = read_csv(tmp_path / "runs.csv")
        assert (row["run"], row["status"], row["failed"]) == (name, "failed", why)
        job = mark(table_job(plan, layout, "table3"), plan, layout, failures(plan, layout))
        marked = [cell for row in job["rows"] for cell in row["cells"] if "failed" in cell]
        own = [c for c in plan.cells if resolve.training_name(plan.evaluations[c.evaluation]["train"]) == name]
        assert len(marked) == len(own) > 0
        notes = {c.note for c in cells(job) if c.note.startswith("failed") and c.fold != "mean"}
        assert notes == {f"failed (fold {spec['fold']}, seed 0): {why}"}
        assert {short_gap(note) for note in notes} == {f"failed (fold {spec['fold']}, seed 0)"}

    def test_a_study_of_which_nothing_is_there_is_rendered_as_missing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        plan, _, _, spec = diverged(ROOT / "tests/tiny.yaml", "the loss is nan")
        said, results = rendered(tmp_path), tmp_path / "out/tiny"
        assert f"0 of {len(plan.cells)} cells have counts, trainings that failed: 1" in said
        rows = read_csv(results / "tables/table3.csv")
        assert not any(row["value"] for row in rows)
        notes = {row["note"] for row in rows}
        assert f"failed (fold {spec['fold']}, seed 0): the loss is nan" in notes
        assert f"missing (fold {1 - spec['fold']}, seed 0)" in notes
        assert [row["status"] for row in read_csv(results / "runs.csv")] == ["failed"]
        assert "missing" in (results / "claims.md").read_text()
        assert (results / "figures/table3.png").is_file()
        assert "the loss is nan" in (results / "README.md").read_text()

    def test_what_is_published_stays_where_its_work_is_gone(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "out/tiny: is not there" in rendered(tmp_path, expect=2, **ONE_TABLE)
        _, layout, name, _ = diverged(tmp_path / "study.yaml", "the loss is nan")
        results, job = tmp_path / "out/tiny", Path(layout.job("table3"))
        job.parent.mkdir(parents=True)
        job.touch()
        rendered(tmp_path, **ONE_TABLE)
        stored, index = results / "tables/table3.csv", (results / "runs.csv").read_bytes()
        assert not job.exists()  # or Snakemake would take the table with its gaps for whole
        shutil.rmtree(layout.work)  # as in a clone that holds results alone
        said = rendered(tmp_path, **ONE_TABLE)
        assert f"are left as they are: runs.csv lists {name} (1 runs in all), whose report or log is not here" in said
        assert f"failed: {name}: the loss is nan" in said  # the index knows
        assert (results / "runs.csv").read_bytes() == index
        rows = read_csv(stored)
        rows[0]["value"] = "50.00"
        write_csv(stored, rows[0], [row.values() for row in rows])
        assert f"{stored.relative_to(tmp_path)} is left as it is: it holds values whose counts" in rendered(
            tmp_path, **ONE_TABLE
        )
        assert read_csv(stored)[0]["value"] == "50.00"


def diverged(file: Path, why: str, **changes) -> tuple[resolve.Plan, Layout, str, dict]:
    """A study of which the first training has failed: its plan and layout, and that training."""
    plan = study.load([file], changes)
    layout, (name, spec) = Layout(plan), next(iter(plan.trainings.items()))
    write_json(Path(layout.training(name)) / "failed.json", {"run": name, "spec": spec, "failed": why})
    return plan, layout, name, spec


def rendered(folder: Path, expect: int = 0, **changes) -> str:
    """What ``crnet render`` says of the tiny study."""
    content = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    (folder / "study.yaml").write_text(yaml.safe_dump(content | changes))
    done = CliRunner().invoke(cli, ["render", "--configfile", "study.yaml"])
    if expect:
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.output
