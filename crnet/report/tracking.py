"""MLflow as a view of a study's result files, for ``mlflow ui``; the files are the truth, and never wait.

Nothing is logged while jobs run: :func:`sync` brings a store to the state of ``runs.csv`` and
``training.csv``, whether it is new, half filled, or up to date. Whatever is wrong with the store costs one
warning, not a result.

Layout: one experiment for each study and data set; in it one parent run for each variant and shot (or
training) with the mean scores, and under it its folds and seeds. A run is found again by its tag
``crnet.key``, since MLflow does not let run ids be chosen.
"""

import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any
from urllib.parse import quote

from crnet.errors import CrnetError
from crnet.report.runs import SETTINGS
from crnet.runtime.files import canonical, read_csv, sha256_text

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

IDENTITY_PARAMS = ("method", "dataset.name", "fold", "seed", "shots")
CELL_PARAMS = ("fold", "seed")  # what differs between the children of one parent
RUN_COLUMNS = ("run", "kind", "status", "variant", *IDENTITY_PARAMS, "seconds")  # what no run can be shown without
RESTORE = "put it back from a copy, or delete it and let the workflow make it again"
FINAL = {
    "miou_ignore": "test/miou",
    "fbiou_ignore": "test/fbiou",
    "miou_background": "test/miou_void_as_background",
    "fbiou_background": "test/fbiou_void_as_background",
    **{name: f"cost/{name}" for name in ("seconds", "peak_memory_bytes", "images_per_second", "episodes_per_second")},
}
CURVES = {"base_miou": "base/miou", "support_iou": "base/support_iou"}  # other columns of a log: train/<column>
SAME_TAGS = ("method", "variant", "kind", "fold", "seed", "shots", "train_run", "failed", "device", "cpu", "gpu")
TAGS = {
    **{name: name for name in SAME_TAGS},
    "dataset.name": "dataset",
    "commit": "mlflow.source.git.commit",
    "dirty": "git.dirty",
    "dataset_digest": "digest.dataset",
    "encoder_digest": "digest.encoder",
    "weights_sha256": "digest.weights",
    "episodes_digest": "digest.episodes",
    "versions.torch": "version.torch",
}
Point = tuple[str, float, float, int]  # metric, value, seconds since the start, step
KEY, CONTENT, PARENT = "crnet.key", "crnet.content", "mlflow.parentRunId"


def store_uri(root: Path) -> str:
    """``MLFLOW_TRACKING_URI``, else the SQLite file that a plain ``mlflow ui`` started at ``root`` opens."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


def sync(results: Path, uri: str) -> bool:
    """Bring the store to the state of a study's two index files; a second call finds nothing to do.

    A run whose content changed is replaced, one that an earlier call left unfinished is completed. Runs that
    the files no longer name stay, as history. The folder ``results/<study>`` has the study's name; ``uri`` is as by
    :func:`store_uri`, and an SQLite file is made if it is missing.

    Returns:
        Whether the store holds all runs; if not, a sentence on stderr has said why and how to rebuild it.

    Raises:
        CrnetError: One of the index files is not what :func:`crnet.report.runs.collect` writes, or ``runs.csv`` names
            no run; without ``training.csv`` there is a warning, and no curves. No failure of MLflow raises.
    """
    study, runs_csv, training_csv = results.resolve().name, results / "runs.csv", results / "training.csv"
    by_dataset: dict[str, list[Record]] = {}
    if not (rows := _lines(runs_csv, RUN_COLUMNS)):
        raise CrnetError(f"{runs_csv}: names no run; {RESTORE}.")
    curves: dict[str, list[dict[str, str]]] = {}
    if not training_csv.is_file():
        remedy = "put it back from a copy, or let the workflow make it again"
        print(f"warning: {training_csv} is absent, so the runs are shown without curves; {remedy}.", file=sys.stderr)
    for line in _lines(training_csv, ("run", "epoch", "seconds")) if training_csv.is_file() else []:
        curves.setdefault(line["run"], []).append(line)
    for row in rows:
        try:
            record = _record(row, curves.get(row["run"], []), study)
        except ValueError as error:
            raise CrnetError(f"{runs_csv} or {training_csv.name}, run {row['run']}: {error}; {RESTORE}.") from error
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
            for dataset, records in by_dataset.items():
                _Experiment(client, f"{study} · {dataset}").bring_to(records)
    except Exception as error:
        _warn(uri, results, error)
        return False
    return True


def _lines(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = read_csv(path)
    if rows and (missing := [name for name in columns if name not in rows[0]]):
        raise CrnetError(f"{path}: has no column {missing[0]!r}; {RESTORE}.")
    return rows


@dataclass(frozen=True)
class Record:
    """One run as MLflow shall show it."""

    key: str
    name: str
    params: dict[str, str]  # every setting of the study, "-" where it does not apply, so that all runs have the same
    tags: dict[str, str]
    points: list[Point] = field(default_factory=list)
    status: str = "FINISHED"
    started: float | None = None  # Unix time in seconds, None if unknown
    seconds: float = 0.0
    dataset: tuple[str, str] | None = None
    group: "Record | None" = None  # what its parent run shares with it; None for a parent

    def content(self) -> str:
        """Digest of what cannot change in a logged run; settings that only other runs have are not."""
        given = {name: value for name, value in self.params.items() if value != "-"}
        points = [(key, repr(value), step) for key, value, _, step in self.points]
        return sha256_text(canonical([given, points, self.status]))[:16]


def _record(row: dict[str, str], curve: list[dict[str, str]], study: str) -> Record:
    params = {name: row[name] or "-" for name in row if name in IDENTITY_PARAMS or name.startswith(SETTINGS)}
    tags = {"study": study, **{tag: row[name] for name, tag in TAGS.items() if row.get(name)}}
    seconds = float(row["seconds"] or 0)
    points = [(metric, float(row[name]), seconds, 0) for name, metric in FINAL.items() if row.get(name)]
    part = f"{row['shots']}shot" if row["shots"] else row["kind"]
    return Record(
        key=row["run"],
        name=f"{row['variant']} f{row['fold']} s{row['seed']} {part}",
        params=params,
        tags=tags,
        points=[*_curve(curve), *points],
        status="FAILED" if row["status"] == "failed" else "FINISHED",
        started=datetime.fromisoformat(row["started"]).timestamp() if row.get("started") else None,
        seconds=seconds,
        dataset=(row["dataset.name"], row["dataset_digest"]) if row.get("dataset_digest") else None,
        group=_group(row, params, study, part),
    )


def _curve(lines: list[dict[str, str]]) -> Iterator[Point]:
    about = {"run", "method", "variant", "fold", "seed", "epoch", "step", "seconds"}
    for line in lines:
        epoch = int(line["epoch"])
        for name, value in line.items():
            if name not in about and value:
                yield CURVES.get(name, f"train/{name}"), float(value), float(line["seconds"] or epoch), epoch


def _group(row: dict[str, str], params: dict[str, str], study: str, part: str) -> Record:
    shared = {**params, **dict.fromkeys(CELL_PARAMS, "-")}
    # The label of a variant changes as a study grows; its settings do not, and neither does this key.
    settings = {name: value for name, value in shared.items() if value != "-"}
    key = f"{row['kind']}-{sha256_text(canonical(settings))[:16]}"
    named = ("method", "variant", "shots", "dataset.name")
    tags = {"study": study, "kind": "variant", **{TAGS[name]: row[name] for name in named if row[name]}}
    return Record(key=key, name=f"{row['variant']} {part}", params=shared, tags=tags)


def _parent(children: list[Record], folds: set[str]) -> Record:
    """The run above a variant's folds and seeds: which they are, mean scores and costs, total time.

    There is no mean if any fold that the experiment has, or a seed of one of them, is missing or failed.
    """
    cells = {tuple(child.params[name] for name in CELL_PARAMS) for child in children if child.status == "FINISHED"}
    of = {name: sorted({child.params[name] for child in children}, key=int) for name in CELL_PARAMS}
    points = []
    if folds == set(of["fold"]) and cells == set(product(*of.values())):
        final = [{key: value for key, value, _, _ in child.points if key in FINAL.values()} for child in children]
        shared = sorted(set.intersection(*map(set, final)))
        points = [(key, fmean(values[key] for values in final), 0.0, 0) for key in shared]
    starts = [child.started for child in children]
    return replace(
        children[0].group,
        params={**children[0].group.params, **{name: ",".join(values) for name, values in of.items()}},
        points=points,
        started=None if None in starts else min(starts),
        seconds=sum(child.seconds for child in children),
    )


class _Experiment:
    """One experiment of the store, with an index of the runs that it already has."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.id = self._find(name)
        self.runs: dict[str, Any] = {}
        page = None
        while page is None or page.token:
            page = client.search_runs([self.id], max_results=1000, page_token=page and page.token)
            self.runs |= {run.data.tags[KEY]: run for run in page if KEY in run.data.tags}

    def _find(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # Opens in the view of trained models instead of the one of language-model traces.
            return self.client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def bring_to(self, records: list[Record]) -> None:
        families: dict[str, list[Record]] = {}
        for record in records:
            families.setdefault(record.group.key, []).append(record)
        folds = {record.params["fold"] for record in records}
        for children in families.values():
            parent = self._put(_parent(children, folds), {})
            for record in children:
                self._put(record, {PARENT: parent})

    def _put(self, record: Record, links: dict[str, str]) -> str:
        """Create, complete or touch up one run; returns its id."""
        from mlflow.entities import RunTag

        tags = {**record.tags, **links, KEY: record.key, CONTENT: record.content()}
        run = self.runs.get(record.key)
        if run is not None and run.data.tags.get(CONTENT) != tags[CONTENT]:
            self.client.delete_run(run.info.run_id)
            run = None
        if run is None:
            started = record.started if record.started is not None else time.time() - record.seconds
            run = self.client.create_run(self.id, int(1000 * started), tags, record.name)
        if run.info.status == "RUNNING":
            self._fill(run, record)
        else:
            self._add_params(run, record)  # settings that the study did not have
        changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
        if changed:
            self.client.log_batch(run.info.run_id, tags=changed)
        if run.info.run_name != record.name:
            self.client.update_run(run.info.run_id, name=record.name)
        return run.info.run_id

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


def _connect(path: Path, mode: str) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode={mode}", uri=True, timeout=BUSY_SECONDS))


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
    print(re.sub(r"(?<=://)[^/@\s]+@", "", sentence), file=sys.stderr)  # without a password
