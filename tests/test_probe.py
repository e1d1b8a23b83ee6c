"""The probe: what is swapped and what is not, that nothing else differs, and its table by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import drawn, untrained
from safetensors.torch import load_file, save_file

from crnet import methods
from crnet.config import probe as probes
from crnet.config import study
from crnet.config.jobs import page_job, probe_job
from crnet.config.layout import Layout
from crnet.config.settings import Component
from crnet.data import episodes
from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.evaluation import probe as probing
from crnet.evaluation.evaluate import evaluate
from crnet.evaluation.predict import Predictor
from crnet.methods import Pairs
from crnet.metrics.iou import QUERY_COLUMNS, episode_counts
from crnet.model.cross_reference import ChannelImportance
from crnet.report.page.page import write_page
from crnet.report.probe import TITLE, Reading, collect, render_probe, sentences, verdict
from crnet.runtime.files import read_csv, read_json, write_csv
from crnet.runtime.limits import NONE, Limits

PROBE = {"table": "table2", "rows": ["condition", "cross-reference", "both"], "episodes": 20}


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory) -> Path:
    return drawn(tiny, tmp_path_factory.mktemp("episodes"), count=12, shots=2)


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory) -> Path:
    """Of a head whose gate is far from even: as it is born, it hardly depends on the photo."""
    file = untrained(tiny, tmp_path_factory.mktemp("weights"))
    state = load_file(file)
    for name in state:
        if name.startswith("cross_reference") and name.endswith("weight"):
            state[name] *= 100
    save_file(state, file)
    return file


@pytest.fixture
def run(tiny, table, weights):
    def run(out: Path, weights=weights, model=None, episodes=12, state=None, limits=NONE, **changes) -> Path:
        """Probe a model of the tiny data set; where its counts are."""
        spec = tiny.evaluation(tiny.training(model=model), **changes)
        spec |= {"probe": {"rev": 1, "episodes": episodes}}
        probing.probe(spec, tiny.data, table, tiny.encoder, weights, state, out, "cpu", 1, (), limits)
        return out / "counts.csv"

    return run


def counts(file: Path, swap: str) -> np.ndarray:
    rows = [row for row in read_csv(file) if row["swap"] == swap]
    return np.array([[int(row[column]) for column in QUERY_COLUMNS] for row in rows])


class TestOthers:
    def test_never_of_the_episodes_class_nor_showing_it(self, tiny, table):
        index, drawn = Index.load(tiny.data), episodes.read(table)
        many = replace(drawn, episodes=drawn.episodes * 20)
        others = episodes.draw_others(many, index, len(many.episodes))
        assert len(others) == 240
        tested = {(episode.class_id, episode.supports[0]) for episode in drawn.episodes}
        for episode, other in zip(many.episodes, others, strict=True):
            assert other.class_id != episode.class_id
            assert episode.class_id not in index.photos[other.photo].classes
            assert (other.class_id, other.photo) in tested

    def test_a_function_of_the_episode_not_of_how_many_are_asked(self, tiny, table):
        index, drawn = Index.load(tiny.data), episodes.read(table)
        others = episodes.draw_others(drawn, index, 12)
        assert episodes.draw_others(drawn, index, 5) == others[:5]
        assert len(set(others)) > 3
        renumbered = replace(drawn, episodes=tuple(replace(e, number=e.number + 100) for e in drawn.episodes))
        assert episodes.draw_others(renumbered, index, 12) != others

    def test_one_class_alone_is_one_sentence(self, tiny, table):
        drawn = episodes.read(table)
        first = drawn.episodes[0].class_id
        alone = replace(drawn, episodes=tuple(e for e in drawn.episodes if e.class_id == first))
        with pytest.raises(CrnetError, match=r"fold 0 of shapes5i: no episode of another class .* draw more episodes"):
            episodes.draw_others(alone, Index.load(tiny.data), 1)


class TestJob:
    def test_untouched_is_the_evaluation_and_every_line_says_what_was_put_in(self, tiny, table, weights, run, tmp_path):
        file = run(tmp_path / "probe", episodes=5)
        evaluation = tmp_path / "evaluation"
        evaluate(
            tiny.evaluation(tiny.training()), tiny.data, table, tiny.encoder, weights, None, None, evaluation, "cpu", 1
        )
        evaluated = read_csv(evaluation / "counts.csv")[:5]
        difference = counts(file, "untouched") - [[int(row[c]) for c in QUERY_COLUMNS] for row in evaluated]
        assert np.abs(difference).max() <= 2, "batches differ in rounding only"
        rows = read_csv(file)
        assert [row["swap"] for row in rows] == ["untouched", "gate", "category"] * 5
        others = episodes.draw_others(episodes.read(table), Index.load(tiny.data), 5)
        for number, row in enumerate(rows):
            episode, other = evaluated[number // 3], others[number // 3]
            assert all(row[name] == episode[name] for name in ("episode_seed", "episode", "class", "query"))
            put_in = ("", "") if row["swap"] == "untouched" else (str(other.class_id), other.photo)
            assert (row["other_class"], row["other_support"]) == put_in
        about = read_json(tmp_path / "probe/probe.json")
        assert about["spec"]["probe"] == {"rev": 1, "episodes": 5}
        assert about["weights_sha256"] and about["episodes_digest"] and about["dataset_digest"]

    @pytest.mark.parametrize("mask_input", [True, False])
    def test_counts_are_those_of_a_plain_loop(self, tiny, table, weights, run, tmp_path, mask_input):
        """The gate's share from the other photo with the category of the true support, and the other way round."""
        model = {"mask_input": mask_input}
        file = run(tmp_path, model=model, episodes=4)
        predictor = Predictor(tiny.evaluation(tiny.training(model=model)), tiny.data, tiny.encoder, weights, "cpu")
        index, chosen = predictor.index, episodes.read(table).episodes[:4]
        network = predictor.method

        @torch.no_grad()
        def seen(photo: str, class_id: int | None) -> torch.Tensor:
            return predictor.embed(predictor.encode([(photo, class_id, 1.0)]))

        def masked(photo: str, class_id: int) -> torch.Tensor:
            return seen(photo, class_id if mask_input else None)

        for number, other in enumerate(episodes.draw_others(episodes.read(table), index, 4)):
            episode = chosen[number]
            own, query = (episode.supports[0], episode.class_id), seen(episode.query, None)
            another = other.photo, other.class_id
            for swap, gate, category in (("untouched", own, own), ("gate", another, own), ("category", own, another)):
                mask = torch.from_numpy(predictor.support_mask(*category, tiny.SIZE))[None]
                with torch.no_grad():
                    share = network.cross_reference.support(seen(gate[0], None))
                    weight = (share * network.cross_reference.query(query))[:, :, None, None]
                    vector = network._category(Pairs(query, seen(category[0], None), masked(*category), mask))
                    logits = network._recur(network._branch(query * weight, vector), None, 5)[-1]
                plain = predictor.at_own_size(logits[0], episode.query, 1.0)
                expected = episode_counts((plain[1] > plain[0]).numpy(), index.class_mask(episode.query, own[1]))
                assert np.abs(counts(file, swap)[number] - expected).max() <= 2, swap

    def test_a_gate_that_ignores_the_support_changes_nothing_and_the_category_does(
        self, weights, run, tmp_path, monkeypatch
    ):
        state = load_file(weights)
        state["cross_reference.support.expand.weight"] *= 0
        save_file(state, tmp_path / "blind.safetensors")
        blind = run(tmp_path / "blind", tmp_path / "blind.safetensors")
        assert (counts(blind, "gate") == counts(blind, "untouched")).all()
        assert (counts(blind, "category") != counts(blind, "untouched")).any()
        # As it is born, a gate hardly tells photos apart; this one gives each photo importances of its own.
        of_its_own = lambda module, features: features.float().mean((2, 3)) * 1e4 % 1  # noqa: E731
        monkeypatch.setattr(ChannelImportance, "forward", of_its_own)
        seeing = run(tmp_path / "seeing")
        assert (counts(seeing, "gate") != counts(seeing, "untouched")).any()

        job = made_job([row("both", ["gate", "category"], {(0, 0): blind})])
        mean = {r.swap: r for r in collect(job) if (r.fold, r.void) == ("mean", "background")}
        assert (mean["gate"].change, mean["gate"].low, mean["gate"].high) == (0, 0, 0)
        assert "does not use what its support shows" in sentences(job, collect(job))[0]

    def test_a_model_without_a_module_has_no_such_lines(self, tiny, run, tmp_path):
        model = {"condition": False}
        spec = tiny.training(model=model)
        assert probes.swaps(spec) == ("gate",)
        head = methods.build("crnet", (64, 96), spec["model"])
        save_file(head.state_dict(), tmp_path / "head.safetensors")
        rows = read_csv(run(tmp_path, tmp_path / "head.safetensors", model, episodes=3))
        assert [row["swap"] for row in rows] == ["untouched", "gate"] * 3

    def test_a_killed_one_goes_on_with_the_same_bytes(self, run, tmp_path, monkeypatch):
        little = Limits(pairs_at_once=2)
        whole = run(tmp_path / "whole", limits=little)
        state, count = tmp_path / "state.json", probing.episode_counts
        calls = iter(range(20))

        def killed(*arguments):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return count(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(probing, "episode_counts", killed)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "again", state=state, limits=little)
        assert state.is_file() and not (tmp_path / "again/counts.csv").exists()
        again = run(tmp_path / "again", state=state, limits=little)
        assert again.read_bytes() == whole.read_bytes()
        assert not state.exists()


HEADER = (*("episode_seed", "episode", "class", "query", "swap", "other_class", "other_support"), *QUERY_COLUMNS)


def row(name: str, swaps: list[str], files: dict[tuple[int, int], Path]) -> dict:
    cells = [{"fold": fold, "seed": seed, "counts": str(file)} for (fold, seed), file in files.items()]
    return {"id": name, "label": name.capitalize(), "switches": [["Module", True]], "swaps": swaps, "cells": cells}


def made_job(rows: list[dict], folds=(0,)) -> dict:
    about = {"study": "made", "study_title": "Made", "caption": "By hand.", "table": "table2", "title": "Ablation"}
    return {**about, "folds": list(folds), "dataset_folds": 4, "episodes": 4, "rows": rows}


def write_counts(file: Path, hits: dict[str, list[int]]) -> Path:
    """Counts of two classes with two photos each: of 100 pixels of foreground so many are found, and no others."""
    lines = []
    for number in range(4):
        for swap, found in hits.items():
            about = (
                0,
                number,
                1 + number // 2,
                f"photo{number}",
                swap,
                *(("", "") if swap == "untouched" else (9, "x")),
            )
            counted = (found[number], 100, 900, 1000 - found[number])
            lines.append((*about, *counted, *counted))
    write_csv(file, HEADER, lines)
    return file


class TestTable:
    def test_changes_are_paired_differences_by_hand(self, tmp_path):
        hits = {"untouched": [50, 60, 80, 70], "gate": [40, 50, 70, 60], "category": [0, 30, 10, 0]}
        both = row("both", ["gate", "category"], {(0, 0): write_counts(tmp_path / "c.csv", hits)})
        alone = row("condition", ["category"], {(0, 0): tmp_path / "c.csv"})
        job = made_job([alone, both])
        found = {(r.row, r.swap): r for r in collect(job) if (r.fold, r.void) == ("mean", "background")}
        # IoU of the classes: 110/200 and 150/200; without them 90/200 and 130/200; 30/200 and 10/200
        assert found["both", "untouched"].miou == pytest.approx(65)
        assert found["both", "untouched"].change is None
        gate = found["both", "gate"]
        assert (gate.miou, gate.change) == (pytest.approx(55), pytest.approx(-10))
        assert gate.low == pytest.approx(-10) and gate.high == pytest.approx(-10)  # each photo loses as much
        category = found["both", "category"]
        assert category.change == pytest.approx(-55) and category.low < -55 < category.high
        assert found["condition", "gate"].note and found["condition", "gate"].miou is None
        assert (category.episodes, category.photos, category.seeds) == (4, 4, 1)

        render_probe(job, tmp_path / "table")
        text = (tmp_path / "table.md").read_text()
        first = next(line for line in text.splitlines() if line.startswith("| Condition"))
        assert [cell.strip() for cell in first.strip("|").split("|")][:4] == ["Condition", "✓", "65.0", "—"]
        assert "**−10.0** [−10.0,\N{NO-BREAK SPACE}−10.0]" in text
        said = sentences(job, collect(job))[0]
        assert said.startswith("Another class's photo in the gate changes mIoU by −10.0 [−10.0")
        assert "another category by −55.0 [" in said and "in *Condition* and −55.0 [" in said
        assert "So in *Both* the cross-reference uses what its support shows" in said
        rows = read_csv(tmp_path / "table.csv")
        assert len(rows) == 2 * 3 * 2 * 2  # rows, readings, void conventions, fold and mean
        assert {r["change"] for r in rows if (r["row"], r["swap"]) == ("both", "gate")} == {"-10.00"}

    def test_a_fold_without_its_counts_says_so(self, tmp_path):
        file = write_counts(tmp_path / "c.csv", {"untouched": [5] * 4, "gate": [5] * 4})
        job = made_job([row("both", ["gate"], {(0, 0): file, (1, 0): tmp_path / "absent.csv"})], folds=(0, 1))
        found = {r.fold: r for r in collect(job) if (r.swap, r.void) == ("gate", "background")}
        assert found[0].change == 0
        assert found[1].note == found["mean"].note == "missing (fold 1, seed 0)"
        assert found["mean"].change is None
        assert sentences(job, collect(job)) == []
        job["rows"][0]["cells"][1]["failed"] = "the loss is nan"
        assert any(r.note == "failed (fold 1, seed 0): the loss is nan" for r in collect(job))

    @pytest.mark.parametrize(
        ("low", "high", "miou", "words"),
        [
            (-3.0, -0.1, 50.0, "uses what its support shows"),
            (-1.0, 1.0, 50.0, "not to be told from nothing"),
            (-0.6, 0.0, 50.0, "not to be told from nothing"),
            (-0.2, -0.1, 50.0, "less than 0.5 points: the cross-reference works without it"),
            (0.2, 2.0, 50.0, "does better with another class's photo"),
            (0.0, 0.0, 50.0, "does not use what its support shows"),
            (0.0, 0.0, 0.0, "nothing can be told of the cross-reference, as the head finds nothing"),
        ],
    )
    def test_the_verdict_is_the_intervals(self, low, high, miou, words):
        middle = (low + high) / 2
        assert words in verdict(Reading("r", "R", "gate", "mean", "background", miou, middle, low, high))


class TestStudy:
    def test_one_a_row_fold_and_seed_with_the_rows_own_settings(self):
        plan = study.load(overrides={"probe": PROBE, "seeds": [0, 1]})
        assert len(plan.probes) == 3 * 4 * 2
        for name, spec in plan.probes.items():
            evaluated = {key: value for key, value in spec.items() if key != "probe"}
            assert evaluated in plan.evaluations.values()
            assert (spec["probe"]["episodes"], name) == (20, probes.probe_name(spec))
        job = probe_job(plan, Layout(plan))
        asked = {r["id"]: r["swaps"] for r in job["rows"]}
        assert asked == {"condition": ["category"], "cross-reference": ["gate"], "both": ["gate", "category"]}
        assert {Path(c["counts"]).parent.name for r in job["rows"] for c in r["cells"]} == set(plan.probes)

    def test_no_more_episodes_than_are_stored(self):
        plan = study.load(overrides={"probe": PROBE | {"episodes": 5000}})
        assert {spec["probe"]["episodes"] for spec in plan.probes.values()} == {200}

    def test_without_a_probe_there_is_none(self):
        plan = study.load(overrides={"probe": None})
        assert plan.probes == {} and probe_job(plan, Layout(plan)) is None

    def test_a_fold_of_one_class_has_no_other(self, monkeypatch):
        monkeypatch.setattr(Component, "class_names", lambda self, given: {fold: ["star"] for fold in range(4)})
        with pytest.raises(CrnetError, match=r"probe: fold 0 of shapes5i tests one class alone"):
            study.load(overrides={"probe": PROBE})


def test_the_page_has_the_probe_behind_its_table(tmp_path):
    job = {
        **{"study": "made", "title": "Made", "caption": "By hand.", "orientation_only": False, "labels": []},
        "tables": [{"name": "table2", "title": "Modules"}, {"name": "table3", "title": "Extras"}],
        **{"headline": "table3", "sheet": False, "command": "snakemake --cores all", "results": "out/made"},
    }
    write_page(job | {"probe": None}, tmp_path)
    assert TITLE not in (tmp_path / "README.md").read_text()
    write_page(job | {"probe": "table2"}, tmp_path)
    assert "`probe/table.md` has not been made" in (tmp_path / "README.md").read_text()
    file = write_counts(tmp_path / "c.csv", {"untouched": [50, 60, 80, 70], "gate": [40, 50, 70, 61]})
    render_probe(made_job([row("both", ["gate"], {(0, 0): file})]), tmp_path / "probe/table")
    write_page(job | {"probe": "table2"}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    section = text.split(f"## {TITLE}\n")[1].split("\n## ")[0]
    assert text.index("## Table 2: Modules") < text.index(f"## {TITLE}") < text.index("## Table 3: Extras")
    assert "changes mIoU by −9.8 [" in section and "](probe/table.csv)" in section
    assert "Fold 0" not in section.replace("fold 0", "")  # the details are a click away


@pytest.mark.parametrize("file", sorted((study.ROOT / "configs/studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_study_without_the_table_that_its_base_probes_has_all_its_jobs(file):
    plan = study.load([file])
    job, page = probe_job(plan, Layout(plan)), page_job(plan)
    assert (job is None) == (page["probe"] is None) == (not plan.probes)
    if plan.probes:
        assert {row["id"] for row in job["rows"]} == set(plan.study.probe.rows)
