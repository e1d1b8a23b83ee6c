"""MLflow shows what the files say, once: names, means and content of runs."""

import time
from pathlib import Path

import pytest
from stores import ROOT, RUNS, client, dump, parents_of, runs_of, write_index

from crnet.config import study
from crnet.report import tracking
from crnet.report.tracking import sync
from crnet.runtime.files import read_csv, write_csv

pytest.importorskip("mlflow", reason="needs MLflow, which training and evaluation do without")


def test_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.store_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    assert tracking.store_uri(tmp_path) == "http://example.org:5000"


def test_runs_read_as_the_files_say(store: str, tmp_path: Path) -> None:
    assert sync(write_index(tmp_path), store)
    runs = runs_of(store)
    train, evaluation = runs["crnet-f1"], runs["crnet-f1-1shot"]
    assert (train.info.run_name, evaluation.info.run_name) == ("crnet f1 s0 train", "crnet f1 s0 1shot")
    start = 1767323045000
    assert (train.info.status, train.info.start_time, train.info.end_time) == ("FINISHED", start, start + 60_000)
    assert train.data.metrics["train/loss"] == pytest.approx(1 / 3)
    assert train.data.metrics["train/base_miou"] == pytest.approx(50)  # percent, as all scores
    assert "train/base_support_iou" not in train.data.metrics  # empty in the log
    history = client(store).get_metric_history(train.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    scores = {name: value for name, value in evaluation.data.metrics.items() if name.startswith("test/")}
    assert scores == {"test/miou": 51.0, "test/fbiou_pairs": 60.0, "test/miou_void_ignored": 48.0}
    tags = {"train_run": "crnet-f1", "mlflow.source.git.commit": "c0ffee", "git.dirty": "false"}
    assert tags.items() <= evaluation.data.tags.items()
    assert evaluation.inputs.dataset_inputs[0].dataset.name == "shapes5i"


def test_all_runs_have_the_same_params_and_a_parent_per_variant_and_shot(store: str, tmp_path: Path) -> None:
    assert sync(write_index(tmp_path), store)
    runs = runs_of(store)
    names = {"method", "dataset.name", "fold", "seed", "shots", "evaluate.scales", "model.condition", "train.lr"}
    assert all(set(run.data.params) == names for key, run in runs.items() if key != "study")
    assert runs["crnet-f0"].data.params["evaluate.scales"] == "-"
    assert sorted(parents_of(store)) == ["crnet 1shot", "crnet train"]
    parent = parents_of(store)["crnet 1shot"]
    assert (parent.data.params["fold"], parent.data.params["train.lr"]) == ("0,1", "0.1")
    for key in ("crnet-f0-1shot", "crnet-f1-1shot"):
        assert runs[key].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.data.metrics["test/miou"], parent.data.metrics["usage/seconds"]) == (50.5, 60.0)


def test_no_mean_over_what_is_not_complete(store: str, tmp_path: Path) -> None:
    results = write_index(tmp_path, folds=3)
    rows = read_csv(results / "runs.csv")
    write_csv(results / "runs.csv", RUNS, [row.values() for row in rows if row["run"] != "crnet-f1-1shot"])
    assert sync(results, store)
    parents = parents_of(store)
    data = parents["crnet 1shot"].data
    assert (data.metrics, data.params["fold"]) == ({}, "0,2")
    assert data.tags["mlflow.note.content"].startswith("No mean: fold 1 with seed 0 is missing or failed.")
    means = parents["crnet train"].data.metrics
    assert (means["usage/seconds"], means["train/base_miou"]) == (60.0, pytest.approx(50))
    write_csv(results / "runs.csv", RUNS, [row.values() for row in rows])
    assert sync(results, store)
    parent = parents_of(store)["crnet 1shot"]
    assert parent.data.metrics["test/miou"] == 51.0
    assert runs_of(store)["crnet-f0-1shot"].data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_second_sync_changes_nothing(store: str, tmp_path: Path) -> None:
    results = write_index(tmp_path)
    assert sync(results, store)
    before, started = dump(store), time.monotonic()
    assert sync(results, store)
    assert time.monotonic() - started < 10
    assert dump(store) == before


def test_a_growing_study_keeps_its_runs(store: str, tmp_path: Path) -> None:
    assert sync(write_index(tmp_path), store)
    before = {key: run.info.run_id for key, run in runs_of(store).items()}
    results = write_index(tmp_path, folds=3, variant="crnet, rate=0.1")
    rows = read_csv(results / "runs.csv")
    write_csv(results / "runs.csv", [*RUNS, "model.width"], [[*row.values(), ""] for row in rows])
    assert sync(results, store)
    after = runs_of(store)
    kept = {key: run for key, run in before.items() if key.startswith("crnet-f")}
    assert {key: after[key].info.run_id for key in kept} == kept
    assert len(after) == len(before) + 2
    assert after["crnet-f0"].info.run_name == "crnet, rate=0.1 f0 s0 train"
    assert {run.data.params["model.width"] for key, run in after.items() if key != "study"} == {"-"}


def test_a_run_that_was_made_again_replaces_the_former_one(store: str, tmp_path: Path) -> None:
    assert sync(write_index(tmp_path, failed="loss is NaN at step 40"), store)
    former = runs_of(store)
    failed = former["crnet-f0"]
    assert (failed.info.status, failed.data.tags["failed"]) == ("FAILED", "loss is NaN at step 40")
    assert sync(write_index(tmp_path, loss=2.0), store)
    runs = runs_of(store)
    assert runs["crnet-f0"].info.status == "FINISHED" and "failed" not in runs["crnet-f0"].data.tags
    history = client(store).get_metric_history(runs["crnet-f0"].info.run_id, "train/loss")
    assert [point.value for point in history] == [2.0, 1.0, pytest.approx(2 / 3)]
    assert runs["crnet-f0-1shot"].info.run_id == former["crnet-f0-1shot"].info.run_id


@pytest.fixture(scope="module")
def published(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict, dict]:
    """The committed demo in a store: its address, and the runs of both data sets."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{folder}/mlflow.db"
    plan = study.load([ROOT / "configs/studies/demo.yaml"])
    shown = sync(ROOT / "results/demo", uri, plan)
    both = runs_of(uri), runs_of(uri, "demo · shapes80")
    assert shown == sum(map(len, both))
    return uri, *both


def test_runs_have_the_names_of_rows_and_every_row_has_the_mean_of_its_table(published) -> None:
    """Also a finetuned one, for which the folds chose different rates."""
    _, *both = published
    cells = read_csv(ROOT / "results/demo/tables/table4.csv")
    mean = [row for row in cells if (row["fold"], row["metric"], row["void"]) == ("mean", "miou", "background")]
    means = {(row["row"], row["shots"]): float(row["value"]) for row in mean if row["value"]}
    parents = [run for runs in both for run in runs.values() if run.data.tags["kind"] == "variant"]
    assert len({run.info.run_name for run in parents}) == len(parents)
    shown = {(run.data.tags["row"], run.data.tags["shots"]): run for run in parents
             if "table4/" in run.data.tags.get("cells", "") and "test/miou" in run.data.metrics}  # fmt: skip
    finetuned = shown["full-finetune", "5"]
    assert finetuned.info.run_name == "table4 full-finetune 5shot"
    assert finetuned.data.params["choice.lr"] == "0.0003,0.001"
    table4 = {place: run for place, run in shown.items() if run.data.tags["table"] == "table4"}
    assert len(table4) > 10
    assert {place: round(run.data.metrics["test/miou"], 2) for place, run in table4.items()} == {
        place: pytest.approx(means[place], abs=0.011) for place in table4
    }
    wanted = {"evaluate": "test/miou", "train": "train/base_miou", "trials": "usage/seconds", "choice": "trials/miou"}
    for run in parents:
        kind = run.data.tags["crnet.key"].split("-")[0]
        assert run.data.metrics[wanted[kind]] > 1, run.info.run_name
        assert run.data.tags["mlflow.note.content"].startswith("Mean over folds 0")
    child = next(run for run in both[0].values() if run.info.run_name == "table3 full f2 s0 1shot")
    tags = {"table": "table3", "row": "full", "cells": "table3/full, table5/crnet-resnet50", "fold": "2", "seed": "0"}
    assert (tags | {"shots": "1"}).items() <= child.data.tags.items()


def test_the_run_of_the_study_holds_page_tables_and_figures(published) -> None:
    uri, runs, others = published
    assert "study" not in others
    run_id, note = runs["study"].info.run_id, runs["study"].data.tags["mlflow.note.content"]
    assert note.startswith("Demo on generated data\n\nDemo study on generated scenes")
    store = client(uri)
    at_root = {file.path for file in store.list_artifacts(run_id)}
    assert {"page.html", "runs.csv", "tables", "figures"} <= at_root
    assert "figures/table3.png" in {file.path for file in store.list_artifacts(run_id, "figures")}
    experiment = store.get_experiment_by_name("demo · shapes80")
    assert "`study demo` of the experiment `demo · shapes5i`" in experiment.tags["mlflow.note.content"]


def test_parents_that_lost_all_children_are_deleted(store: str, tmp_path: Path) -> None:
    results = write_index(tmp_path)
    sync(results, store)
    rows = read_csv(results / "runs.csv")
    changed = [[*(row | {"train.lr": "0.2"}).values()] for row in rows]
    write_csv(results / "runs.csv", RUNS, changed)
    sync(results, store)
    assert len(parents_of(store)) == 2 and len(runs_of(store)) == 4 + 2 + 1


def test_what_is_said_last_counts_runs_and_says_how_to_look_at_them(store, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    tracking.track(write_index(tmp_path), None)
    assert (
        capsys.readouterr().out == "MLflow has 7 runs of demo, means among them; `mlflow ui` shows them in a browser.\n"
    )
    assert "--backend-store-uri sqlite:///other.db" in tracking.closing_line(7, tmp_path, "sqlite:///other.db")
    assert "secret" not in tracking.closing_line(7, tmp_path, "http://me:secret@host:5000")
