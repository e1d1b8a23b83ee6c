"""MLflow as a view of a study's result files, for ``mlflow ui``; the files are the truth, and never wait.

Jobs know nothing of it. :func:`sync` brings a store to the state of ``runs.csv`` and ``training.csv``, whether it is
new, half filled, or up to date; :mod:`crnet.report.following` shows the trainings of a study that is being run.
Whatever is wrong with the store costs one warning, not a result.

Layout: one experiment for each study and data set; in it one parent run for each row and shot (or training) with the
mean scores, and under it its folds and seeds, each training with its curve by epoch. One run more stands for the study
and holds its page, tables and plots. A run is found again by its tag ``crnet.key``, since MLflow does not let run ids
be chosen.
"""

import logging
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextlib import closing as closed
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType
from urllib.parse import quote

from crnet.config.resolve import Plan
from crnet.errors import CrnetError
from crnet.report.experiment import Experiment
from crnet.report.tracked import NOTE, RESTORE, RUN_COLUMNS, Record, records, study_record
from crnet.runtime.files import read_csv, sha256_text

BUSY_SECONDS = 20  # as long as MLflow itself waits for a locked SQLite file
LOCK_SECONDS = 120  # for another sync of ours to end
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow's own values (7 retries, 120 s each) would keep a study waiting for minutes for a lost server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def store_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, else the SQLite file that a plain ``mlflow ui`` started at ``root`` opens."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


def track(results: Path, plan: Plan | None) -> None:
    """Bring the store of this folder or of the environment to the state of a study's files, and say how to look at it.

    Raises:
        CrnetError: The folder holds no results, or they are damaged.
    """
    if not (results / "runs.csv").is_file():
        raise CrnetError(f"{results}: has no runs.csv; give the results folder of a study, e.g. results/demo.")
    uri = store_uri(Path.cwd())
    if shown := sync(results, uri, plan):
        print(closing_line(shown, results, uri))


def sync(results: Path, uri: str, plan: Plan | None = None) -> int:
    """Bring the store to the state of a study's files; a second call finds nothing to do.

    A run whose content changed is replaced, one that an earlier call left unfinished is completed. Runs that
    the files no longer name stay, as history. ``uri`` is as by :func:`store_uri`, and an SQLite file is made if it is
    missing.

    Args:
        results: The study's folder, which has its name, e.g. ``out/demo``.
        plan: Of the study, from which runs have the names of rows of tables; without it they have those of variants.

    Returns:
        How many runs the store now shows of the study; 0 if it could not be brought up to date, and a sentence on
        stderr has said why and how to rebuild it.

    Raises:
        CrnetError: One of the index files is not what :func:`crnet.report.runs.collect` writes, or ``runs.csv`` names
            no run; without ``training.csv`` there is a warning, and no curves. No failure of MLflow raises.
    """
    study, runs_csv, training_csv = results.resolve().name, results / "runs.csv", results / "training.csv"
    if not (rows := _lines(runs_csv, RUN_COLUMNS)):
        raise CrnetError(f"{runs_csv}: names no run; {RESTORE}.")
    curves: dict[str, list[dict[str, str]]] = {}
    if not training_csv.is_file():
        remedy = "put it back from a copy, or let the workflow make it again"
        print(f"warning: {training_csv} is absent, so the runs are shown without curves; {remedy}.", file=sys.stderr)
    for line in _lines(training_csv, ("run", "epoch", "seconds")) if training_csv.is_file() else []:
        curves.setdefault(line["run"], []).append(line)
    made = records(rows, curves, study, plan, f"{runs_csv} or {training_csv.name}")
    by_experiment = in_experiments(made, study)
    try:
        with opened(uri) as experiment_of:
            about = study_record(study, plan, made, results)
            largest = max(by_experiment, key=lambda name: len(by_experiment[name]))
            shown = 0
            for name, ours in by_experiment.items():
                experiment = experiment_of(name)
                shown += experiment.bring_to(ours)
                if name == largest:
                    experiment.attach(about, results, uri)
                    shown += 1
                where = f"They are in the run `{about.name}` of the experiment `{largest}`."
                experiment.describe(f"{about.tags[NOTE]}\n\n{where}")
    except Exception as error:
        _warn(uri, results, error)
        return 0
    return shown


def closing_line(shown: int, results: Path, uri: str) -> str:
    """What `crnet track` says last: how many runs there are, and how to look at them."""
    if _sqlite_path(uri):
        plain = uri == f"sqlite:///{Path.cwd()}/mlflow.db"
        look = f"`mlflow ui{'' if plain else f' --backend-store-uri {uri}'}` shows them in a browser"
    else:
        look = f"{_without_password(uri)} shows them in a browser"
    return f"MLflow has {shown} runs of {results.resolve().name}, means among them; {look}."


@contextmanager
def opened(uri: str, busy: float | None = None) -> Iterator[Callable[[str], Experiment]]:
    """The experiments of a store by their names, for one sync of ours at a time.

    Args:
        busy: How many seconds to wait for an SQLite file that others have locked; default: ``BUSY_SECONDS``.
    """
    path = _sqlite_path(uri)
    # A server's runs would be there twice, were two to look at once whether they are there.
    served = Path(gettempdir(), f"crnet-{os.getuid()}-{sha256_text(uri)[:16]}")
    with _lock(path or served):
        if path:
            _ensure_store(path)
            # an sqlite3.Error at once, or after a while, where MLflow would retry for minutes
            with _connect(path, "ro" if "mode=ro" in uri else "rw", busy) as connection:
                connection.execute("DELETE FROM runs WHERE 0")  # asks for the right to write; is not committed
        client = import_mlflow().MlflowClient(tracking_uri=uri)
        yield lambda name: Experiment(client, name, path and path.resolve().parent / "mlruns")


def make_store(uri: str) -> None:
    """Make an SQLite store that is not there; a `mlflow ui` that does so at the same time would leave it unusable."""
    if path := _sqlite_path(uri):
        with _lock(path):
            _ensure_store(path)


def in_experiments(made: Sequence[Record], study: str) -> dict[str, list[Record]]:
    """The runs of a study by the names of their experiments."""
    found: dict[str, list[Record]] = {}
    for record in made:
        found.setdefault(f"{study} · {record.params['dataset.name']}", []).append(record)
    return found


def _lines(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = read_csv(path)
    if rows and (missing := [name for name in columns if name not in rows[0]]):
        raise CrnetError(f"{path}: has no column {missing[0]!r}; {RESTORE}.")
    return rows


def import_mlflow() -> ModuleType:
    """MLflow, imported late (2 s) and kept from the network, from long waits and from its own messages."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its tracebacks; our one sentence says the same
    return mlflow


def _sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite store, also of ``sqlite:///file:/a/b.db?mode=ro&uri=true``; else None."""
    scheme, separator, rest = uri.partition(":///")
    if not separator or not scheme.startswith("sqlite"):
        return None
    return Path(rest.partition("?")[0].removeprefix("file:"))


def _lock(path: Path) -> AbstractContextManager:
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{path}.lock", timeout=LOCK_SECONDS)


def _connect(path: Path, mode: str, busy: float | None = None) -> closed[sqlite3.Connection]:
    address, seconds = f"file:{quote(str(path.resolve()))}?mode={mode}", BUSY_SECONDS if busy is None else busy
    return closed(sqlite3.connect(address, uri=True, timeout=seconds))


def _ensure_store(path: Path) -> None:
    """Make an SQLite store if there is none; the caller holds its lock. Another file than a store is left alone.

    Several processes opening a *new* SQLite store at once leave it unusable (MLflow 3.17.2, 8 of 8), so it is made
    under the lock and under another name, and then appears whole.
    """
    if path.exists() and path.stat().st_size:
        query = "SELECT count(*) FROM sqlite_master WHERE name IN ('alembic_version', 'runs')"
        with _connect(path, "ro") as connection:
            if connection.execute(query).fetchone()[0] != 2:
                raise RuntimeError("the file is a database of something else")
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)  # of a process that was killed; the lock says it is not another's
    import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{unfinished.resolve()}").search_experiments(max_results=1)
    os.replace(unfinished, path)


def _warn(uri: str, results: Path, error: Exception) -> None:
    sentence = (
        f"warning: the MLflow store {_without_password(uri)} could not be brought up to date ({reason(error)}); the "
        f"result files are complete, and `crnet track {results}` fills it when it can be written again."
    )
    print(sentence, file=sys.stderr)


def reason(error: Exception) -> str:
    """The first line of an error, without a password."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _without_password(line).rstrip(".")[:200]


def _without_password(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
