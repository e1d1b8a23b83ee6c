"""Whatever happens to an MLflow store or its server is a warning, and is made good by the next call."""

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
from stores import client, runs_of, write_index

from crnet.errors import CrnetError
from crnet.report import tracking
from crnet.report.experiment import Experiment
from crnet.report.tracking import sync

pytest.importorskip("mlflow", reason="needs MLflow, which training and evaluation do without")


def test_an_interrupted_sync_is_completed_without_doubles(store: str, tmp_path: Path, monkeypatch, capsys) -> None:
    results = write_index(tmp_path)

    def killed(*_: object) -> None:
        raise RuntimeError("killed after the metrics")

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "_add_params", killed)
        assert not sync(results, store)
    assert "killed after the metrics" in capsys.readouterr().err
    assert {run.info.status for run in runs_of(store).values()} == {"RUNNING"}
    assert sync(results, store)
    runs = runs_of(store)
    assert [run.info.status for run in runs.values()] == ["FINISHED"] * 7
    assert len(client(store).get_metric_history(runs["crnet-f0"].info.run_id, "train/loss")) == 3


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
tracking.import_mlflow().MlflowClient  # imported once, by the parent of all
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
