"""MLflow as a view of a study's result files, for ``mlflow ui``; the files are the truth, and never wait.

Nothing is logged while jobs run: :func:`sync` brings a store to the state of ``runs.csv`` and
``training.csv``, whether it is new, half filled, or up to date. Whatever is wrong with the store costs one
warning, not a result.

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
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextlib import closing as closed
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from urllib.parse import quote

from crnet.config.resolve import Plan
from crnet.errors import CrnetError
from crnet.report.page.page import PAGE
from crnet.report.tracked import NOTE, RESTORE, RUN_COLUMNS, Record, parent, records, study_record
from crnet.runtime.files import canonical, read_csv, sha256_file, sha256_text

SHOWN = ("*.md", "*.csv", "tables/*", "figures/*.png")  # of a study's folder, as artifacts
BUSY_SECONDS = 20  # as long as MLflow itself waits for a locked SQLite file
LOCK_SECONDS = 120  # for another sync of ours to end
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # MLflow's own values (7 retries, 120 s each) would keep a study waiting for minutes for a lost server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
METRICS_PER_BATCH, PARAMS_PER_BATCH = 800, 100  # a batch may hold 1000 entries in all, 100 of them parameters

SERVED = "mlflow-artifacts:"  # of files that a server keeps and a client of the bare store cannot reach
KEY, CONTENT, PARENT, ARTIFACTS = "crnet.key", "crnet.content", "mlflow.parentRunId", "crnet.artifacts"


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
    by_dataset: dict[str, list[Record]] = {}
    made = records(rows, curves, study, plan, f"{runs_csv} or {training_csv.name}")
    for row, record in zip(rows, made, strict=True):
        by_dataset.setdefault(row["dataset.name"], []).append(record)
    try:
        path = _sqlite_path(uri)
        with _lock(path) if path else nullcontext():
            if path:
                _ensure_store(path)
                # an sqlite3.Error at once, or after BUSY_SECONDS, where MLflow would retry for minutes
                with _connect(path, "ro" if "mode=ro" in uri else "rw") as connection:
                    connection.execute("DELETE FROM runs WHERE 0")  # asks for the right to write; is not committed
            client = _mlflow().MlflowClient(tracking_uri=uri)
            about = study_record(study, plan, made, results)
            largest = max(by_dataset, key=lambda name: len(by_dataset[name]))
            shown = 0
            for dataset, ours in by_dataset.items():
                name = f"{study} · {dataset}"
                experiment = _Experiment(client, name, path and path.resolve().parent / "mlruns")
                shown += experiment.bring_to(ours)
                if dataset == largest:
                    experiment.attach(about, results, uri)
                    shown += 1
                where = f"They are in the run `{about.name}` of the experiment `{study} · {largest}`."
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


def _lines(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = read_csv(path)
    if rows and (missing := [name for name in columns if name not in rows[0]]):
        raise CrnetError(f"{path}: has no column {missing[0]!r}; {RESTORE}.")
    return rows


class _Experiment:
    """One experiment of the store, with an index of the runs that it already has, deleted ones too."""

    def __init__(self, client: Any, name: str, artifacts: Path | None) -> None:
        from mlflow.entities import ViewType

        self.client = client
        self.id = self._find(name, artifacts)
        self.runs: dict[str, list[Any]] = {}
        page = None
        while page is None or page.token:
            page = client.search_runs([self.id], "", ViewType.ALL, 1000, page_token=page and page.token)
            for run in page:
                if KEY in run.data.tags:
                    self.runs.setdefault(run.data.tags[KEY], []).append(run)

    def _find(self, name: str, artifacts: Path | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # Opens in the view of trained models instead of the one of language-model traces.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return self.client.create_experiment(name, artifacts and artifacts.as_uri(), tags)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def describe(self, text: str) -> None:
        if self.client.get_experiment(self.id).tags.get(NOTE) != text:
            self.client.set_experiment_tag(self.id, NOTE, text)

    def bring_to(self, ours: list[Record]) -> int:
        """Show these runs and their parents; returns how many that are."""
        families: dict[str, list[Record]] = {}
        for record in ours:
            families.setdefault(record.group.key, []).append(record)
        folds = {record.params["fold"] for record in ours}
        for children in families.values():
            above = self._put(parent(children, folds), {})
            for record in children:
                self._put(record, {PARENT: above})
        self._clear(families)
        return len(ours) + len(families)

    def _clear(self, families: Mapping[str, Any]) -> None:
        """Delete parents whose children all went to others, as an earlier version grouped them."""
        active = [run for runs in self.runs.values() for run in runs if run.info.lifecycle_stage == "active"]
        above = {run.data.tags.get(PARENT) for run in active}
        for run in active:
            tags = run.data.tags
            if tags.get("kind") == "variant" and tags[KEY] not in families and run.info.run_id not in above:
                self.client.delete_run(run.info.run_id)

    def attach(self, about: Record, results: Path, uri: str) -> None:
        """Show the run of the study, with its page, tables and plots as artifacts, anew where they changed."""
        from crnet.report.page.html import write_html

        run_id = self._put(about, {})
        files = [path for pattern in SHOWN for path in sorted(results.glob(pattern))]
        digest = sha256_text(canonical([[str(path.relative_to(results)), sha256_file(path)] for path in files]))
        run = self.client.get_run(run_id)
        if not files or run.data.tags.get(ARTIFACTS) == digest:
            return
        if run.info.artifact_uri.startswith(SERVED) and not uri.startswith("http"):
            print(
                f"warning: a server made the experiment of {results.name} and keeps its files: page and plots are not "
                "shown; set MLFLOW_TRACKING_URI to its address and track again while it runs.",
                file=sys.stderr,
            )
            return
        for path in files:
            folder = str(path.parent.relative_to(results))
            self.client.log_artifact(run_id, str(path), None if folder == "." else folder)
        if (results / PAGE).is_file():
            with TemporaryDirectory() as temporary:
                write_html(results / PAGE, Path(temporary) / "page.html")
                self.client.log_artifact(run_id, f"{temporary}/page.html")
        self.client.set_tag(run_id, ARTIFACTS, digest)

    def _put(self, record: Record, links: dict[str, str]) -> str:
        """Create, complete or touch up one run; returns its id."""
        from mlflow.entities import RunTag

        tags = {**record.tags, **links, KEY: record.key, CONTENT: record.content()}
        run = self._same(record.key, tags[CONTENT])
        if run is None:
            started = record.started if record.started is not None else time.time() - record.seconds
            run = self.client.create_run(self.id, int(1000 * started), tags, record.name)
        self.runs[record.key] = [run]
        if run.info.status == "RUNNING":
            self._fill(run, record)
        else:
            self._add_params(run, record)  # settings that the study did not have
        changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
        if changed:
            self.client.log_batch(run.info.run_id, tags=changed)
            run.data.tags.update(tags)
        if run.info.run_name != record.name:
            self.client.update_run(run.info.run_id, name=record.name)
        return run.info.run_id

    def _same(self, key: str, content: str) -> Any:
        """The run of this key and content: one, restored if it was deleted, and no other of the key beside it."""
        known = sorted(self.runs.get(key, []), key=lambda run: run.info.lifecycle_stage)  # active before deleted
        kept = next((run for run in known if run.data.tags.get(CONTENT) == content), None)
        for run in known:
            if run is not kept and run.info.lifecycle_stage == "active":
                self.client.delete_run(run.info.run_id)
        if kept is not None and kept.info.lifecycle_stage == "deleted":
            self.client.restore_run(kept.info.run_id)
        return kept

    def _fill(self, run: Any, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        start = run.info.start_time
        # Times are taken from the files, not the clock: MLflow drops a point that it has, so a fill can be repeated.
        metrics = [Metric(key, value, start + int(1000 * at), step) for key, value, at, step in record.points]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self.client.log_batch(run.info.run_id, metrics=metrics[first : first + METRICS_PER_BATCH])
        self._add_params(run, record)
        if record.dataset:
            name, digest = record.dataset
            dataset = Dataset(name, digest[:36], "local", canonical({"digest": digest}))  # MLflow takes 36 characters
            context = InputTag("mlflow.data.context", record.tags["kind"])
            self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [context])])
        self.client.set_terminated(run.info.run_id, record.status, start + int(1000 * record.seconds))

    def _add_params(self, run: Any, record: Record) -> None:
        from mlflow.entities import Param

        # MLflow refuses names with other characters than these
        params = {re.sub(r"[^\w./: -]", "_", name): value for name, value in record.params.items()}
        entries = [Param(name, value) for name, value in params.items() if name not in run.data.params]
        for first in range(0, len(entries), PARAMS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=entries[first : first + PARAMS_PER_BATCH])


def _mlflow() -> ModuleType:
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


def _connect(path: Path, mode: str) -> closed[sqlite3.Connection]:
    return closed(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode={mode}", uri=True, timeout=BUSY_SECONDS))


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
    _mlflow().MlflowClient(tracking_uri=f"sqlite:///{unfinished.resolve()}").search_experiments(max_results=1)
    os.replace(unfinished, path)


def _warn(uri: str, results: Path, error: Exception) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    sentence = (
        f"warning: the MLflow store {uri} could not be brought up to date ({reason}); the result files are "
        f"complete, and `crnet track {results}` fills it when it can be written again."
    )
    print(_without_password(sentence), file=sys.stderr)


def _without_password(text: str) -> str:
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)
