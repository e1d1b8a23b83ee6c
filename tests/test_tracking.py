"""MLflow shows what the files say, once; and whatever is wrong with it is a warning."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crnet.config import study
from crnet.errors import CrnetError
from crnet.report import tracking
from crnet.report.tracking import sync
from crnet.runtime.files import read_csv, write_csv

pytest.importorskip("mlflow", reason="needs MLflow, which training and evaluation do without")

RUNS = ("run", "kind", "status", "failed", "train_run", "method", "variant", "dataset.name", "fold", "seed",
        "shots", "miou_background", "fbiou_pairs_background", "miou_ignore", "evaluate.scales", "model.condition",
        "train.lr", "started", "seconds", "commit", "dirty", "dataset_digest")  # fmt: skip
LINES = ("run", "method", "variant", "fold", "seed", "epoch", "step", "loss", "lr", "base_miou",
         "support_iou", "seconds")  # fmt: skip
ORIGIN = ("2026-01-02T03:04:05Z", "60.0", "c0ffee", "false", "ab" * 32)
ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "demo · shapes5i"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new store; tests work on copies, since making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with tracking._lock(path):
        tracking._ensure_store(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


def write_index(root: Path, study="demo", folds=2, variant="crnet", failed="", loss=1.0) -> Path:
    """Index files of a study: a training and an evaluation for each fold."""
    results, runs, lines = root / "results" / study, [], []
    for fold in range(folds):
        train, place = f"crnet-f{fold}", ("crnet", variant, "shapes5i", fold, 0)
        status = ("failed", failed) if failed and fold == 0 else ("finished", "")
        scores = (1, 50 + fold, 60, 48, "[1.0]")
        runs.append([train, "train", *status, "", *place, "", "", "", "", "", "true", "0.1", *ORIGIN])
        runs.append([f"{train}-1shot", "evaluate", "finished", "", train, *place, *scores, "true", "0.1", *ORIGIN])
        lines += [
            [train, "crnet", variant, fold, 0, e, 10 * e, loss / (e + 1), 0.1, 0.3 + e / 10, "", 20 * e + 5]
            for e in range(3)
        ]
    write_csv(results / "runs.csv", RUNS, runs)
    write_csv(results / "training.csv", LINES, lines)
    return results


def client(uri: str):
    return tracking._mlflow().MlflowClient(tracking_uri=uri)


def runs_of(uri: str, name: str = EXPERIMENT) -> dict:
    found = client(uri).search_runs([client(uri).get_experiment_by_name(name).experiment_id], max_results=1000)
    assert len({run.data.tags["crnet.key"] for run in found}) == len(found)
    return {run.data.tags["crnet.key"]: run for run in found}


def parents_of(uri: str) -> dict:
    return {run.info.run_name: run for run in runs_of(uri).values() if run.data.tags["kind"] == "variant"}


def dump(uri: str) -> list[str]:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        return list(connection.iterdump())


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
    assert train.data.metrics["base/miou"] == pytest.approx(50)  # percent, as all scores
    assert "base/support_iou" not in train.data.metrics  # empty in the log
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
    assert (parent.data.metrics["test/miou"], parent.data.metrics["cost/seconds"]) == (50.5, 60.0)


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
    assert (means["cost/seconds"], means["base/miou"]) == (60.0, pytest.approx(50))
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


def test_an_interrupted_sync_is_completed_without_doubles(store: str, tmp_path: Path, monkeypatch, capsys) -> None:
    results = write_index(tmp_path)

    def killed(*_: object) -> None:
        raise RuntimeError("killed after the metrics")

    with monkeypatch.context() as patch:
        patch.setattr(tracking._Experiment, "_add_params", killed)
        assert not sync(results, store)
    assert "killed after the metrics" in capsys.readouterr().err
    assert {run.info.status for run in runs_of(store).values()} == {"RUNNING"}
    assert sync(results, store)
    runs = runs_of(store)
    assert [run.info.status for run in runs.values()] == ["FINISHED"] * 7
    assert len(client(store).get_metric_history(runs["crnet-f0"].info.run_id, "train/loss")) == 3


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
    assert finetuned.data.params["choice.lr"] == "0.0001,0.0003"
    table4 = {place: run for place, run in shown.items() if run.data.tags["table"] == "table4"}
    assert len(table4) > 10
    assert {place: round(run.data.metrics["test/miou"], 2) for place, run in table4.items()} == {
        place: pytest.approx(means[place], abs=0.011) for place in table4
    }
    wanted = {"evaluate": "test/miou", "train": "base/miou", "trials": "cost/seconds", "choice": "trials/miou"}
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


def test_runs_that_were_deleted_or_restored_by_hand_are_there_once(store: str, tmp_path: Path) -> None:
    sync(write_index(tmp_path, loss=2.0), store)
    former = runs_of(store)["crnet-f0"].info.run_id
    results = write_index(tmp_path)
    sync(results, store)
    before = {key: run.info.run_id for key, run in runs_of(store).items()}
    client(store).delete_run(before["crnet-f1"])
    client(store).restore_run(former)  # it has another content, and the same key as the run that took its place
    sync(results, store)
    assert {key: run.info.run_id for key, run in runs_of(store).items()} == before


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


def assert_warns(capsys, uri: str, results: Path, reason: str) -> None:
    """A sync gives up, and says so once."""
    assert not sync(results, uri)
    assert_one_warning(capsys.readouterr().err, uri, results, reason)


def assert_one_warning(err: str, uri: str, results: Path, reason: str) -> None:
    (line,) = filter(None, err.splitlines())
    assert line.startswith("warning: ") and line.endswith(".")
    for words in (uri, f"`crnet track {results}`", reason):
        assert words in line


def test_a_read_only_store_is_a_warning(store: str, tmp_path: Path, capsys) -> None:
    # By its address and not by file mode, which does not bind the superuser that tests may run as.
    read_only = store.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    assert_warns(capsys, read_only, write_index(tmp_path), "readonly")


def test_a_locked_store_is_a_warning(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    results = write_index(tmp_path)
    monkeypatch.setattr(tracking, "BUSY_SECONDS", 0.5)
    with sqlite3.connect(store.removeprefix("sqlite:///")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        assert_warns(capsys, store, results, "locked")
        assert time.monotonic() - started < 5
    assert sync(results, store)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 50, None])
def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path, capsys, content: bytes | None) -> None:
    path = tmp_path / "mlflow.db"
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE precious (x)")
        content = path.read_bytes()
    path.write_bytes(content)
    assert_warns(capsys, f"sqlite:///{path}", write_index(tmp_path), "database")
    assert path.read_bytes() == content


def test_without_curves_the_runs_are_shown_and_it_is_said(store: str, tmp_path: Path, capsys) -> None:
    results = write_index(tmp_path)
    (results / "training.csv").unlink()
    assert sync(results, store)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and f"{results}/training.csv is absent, so the runs are shown without curves" in said[0]
    runs = runs_of(store)
    assert runs["crnet-f1-1shot"].data.metrics["test/miou"] == 51.0
    assert "train/loss" not in runs["crnet-f1"].data.metrics


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("runs.csv", lambda text: "", r"runs\.csv: names no run; put it back"),
        ("runs.csv", lambda text: text.splitlines()[0] + "\n", r"runs\.csv: names no run; put it back"),
        ("runs.csv", lambda text: text.replace("dataset.name", "data"), r"runs\.csv: has no column 'dataset\.name'"),
        ("runs.csv", lambda text: text.replace("60.0", "soon"), r"runs\.csv .*run crnet-f0: could not convert .*soon"),
        ("runs.csv", lambda text: text[: text.rindex(",")], r"runs\.csv: is no CSV any more \(line 5 has"),
        ("training.csv", lambda text: text.replace("epoch", "e"), r"training\.csv: has no column 'epoch'"),
        ("training.csv", lambda text: text.replace("t,0,0,1,", "t,0,0,x,"), r"training\.csv, run crnet-f0: .*'x'"),
    ],
)
def test_an_index_that_is_none_is_one_sentence(tmp_path: Path, file: str, change, words: str) -> None:
    results = write_index(tmp_path)
    path = results / file
    path.write_text(change(path.read_text()))
    with pytest.raises(CrnetError, match=words) as caught:
        sync(results, f"sqlite:///{tmp_path}/none.db")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "none.db").exists()


def test_a_server_that_is_gone_is_a_warning_without_its_password(tmp_path: Path, capsys) -> None:
    results, port, started = write_index(tmp_path), free_port(), time.monotonic()
    assert not sync(results, f"http://me:secret@127.0.0.1:{port}")
    assert time.monotonic() - started < 20
    err = capsys.readouterr().err
    assert_one_warning(err, f"http://127.0.0.1:{port}", results, "failed")
    assert "secret" not in err


SYNC = """
import os, sys
from pathlib import Path
from crnet.report import tracking
tracking._mlflow().MlflowClient  # imported once, by the parent of all
jobs = []
for folder in sys.argv[2:]:
    jobs.append(os.fork())
    if jobs[-1] == 0:
        done = tracking.sync(Path(folder), sys.argv[1])
        sys.stderr.flush()
        os._exit(not done)
sys.exit(any([os.waitpid(job, 0)[1] for job in jobs]))
"""


def start_sync(uri: str, *studies: Path) -> subprocess.Popen:
    """A process for each study, all of them at once."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SYNC, uri, *map(str, studies)]
    return subprocess.Popen(command, env=environment, cwd=studies[0], stderr=subprocess.PIPE, text=True)


def test_sixteen_processes_at_once_on_a_store_that_is_not_there(tmp_path: Path) -> None:
    """Eight studies, each twice: every run is there, and once (``runs_of`` looks)."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    studies = [write_index(tmp_path, study=f"study-{number}", folds=1) for number in range(8)]
    job = start_sync(uri, *studies, *studies)
    assert (job.communicate(timeout=300)[1], job.returncode) == ("", 0)
    for results in studies:
        runs = runs_of(uri, f"{results.name} · shapes5i")
        assert [run.info.status for run in runs.values()] == ["FINISHED"] * 5


def wait_for_runs(path: Path, count: int, job: subprocess.Popen) -> None:
    """Until a sync has begun so many runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert job.poll() is None, "the sync was over before it could be disturbed"
        with sqlite3.connect(path) as connection:
            if connection.execute("SELECT count(*) FROM runs").fetchone()[0] >= count:
                return
        time.sleep(0.02)
    raise AssertionError("no run appeared")


def test_a_store_deleted_while_it_is_filled_is_a_warning_and_made_again(store: str, tmp_path: Path) -> None:
    results, path = write_index(tmp_path, folds=12), tmp_path / "mlflow.db"
    job = start_sync(store, results)
    wait_for_runs(path, 3, job)
    path.unlink()
    assert_given_up_and_made_good(job, store, results, store)


def assert_given_up_and_made_good(job: subprocess.Popen, uri: str, results: Path, store: str) -> None:
    """A sync of 12 folds ends with a warning, and the next one with every run, once."""
    err = job.communicate(timeout=120)[1]
    assert job.returncode == 1
    assert_one_warning(err, uri, results, "")
    assert sync(results, store)
    assert len(runs_of(store)) == 2 * 12 + 3


@pytest.fixture
def server(empty_store: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str, Path]]:
    """A tracking server of MLflow's own, its address, and the file behind it."""
    path, port = tmp_path / "server.db", free_port()
    path.write_bytes(empty_store.read_bytes())
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{path}", "--workers", "1",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with open(tmp_path / "server.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}", path
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def test_a_server_killed_in_the_middle_is_a_warning_and_nothing_is_twice(server, tmp_path: Path, capsys) -> None:
    process, uri, path = server
    results = write_index(tmp_path, folds=12)
    job = start_sync(uri, results)
    wait_for_runs(path, 3, job)
    os.killpg(process.pid, signal.SIGKILL)
    job.wait(timeout=60)
    assert_given_up_and_made_good(job, uri, results, f"sqlite:///{path}")
    assert "a server made the experiment of demo and keeps its files" in capsys.readouterr().err


class Broken(BaseHTTPRequestHandler):
    """Answers 500."""

    def do_GET(self) -> None:
        self.send_error(500)

    def log_message(self, *_: object) -> None:
        pass


class Hanging(Broken):
    """Answers nothing at all."""

    def do_GET(self) -> None:
        time.sleep(30)


@pytest.mark.parametrize("handler", [Broken, Hanging])
def test_a_server_that_is_broken_is_a_warning(tmp_path: Path, monkeypatch, capsys, handler: type[Broken]) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # ours is 10
    broken = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    broken.daemon_threads = True
    threading.Thread(target=broken.serve_forever, daemon=True).start()
    started = time.monotonic()
    assert_warns(capsys, f"http://127.0.0.1:{broken.server_port}", write_index(tmp_path), "")
    assert time.monotonic() - started < 30
    broken.shutdown()
    broken.socket.close()
