"""One experiment of an MLflow store, brought to what its records say: each run once, begun, completed or replaced."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crnet.report.page.page import PAGE
from crnet.report.tracked import ENDED, NOTE, Record, parent
from crnet.runtime.files import canonical, sha256_file, sha256_text

SHOWN = ("*.md", "*.csv", "tables/*", "figures/*.png")  # of a study's folder, as artifacts
METRICS_PER_BATCH, PARAMS_PER_BATCH = 800, 100  # a batch may hold 1000 entries in all, 100 of them parameters
SERVED = "mlflow-artifacts:"  # of files that a server keeps and a client of the bare store cannot reach
KEY, CONTENT, PARENT, ARTIFACTS = "crnet.key", "crnet.content", "mlflow.parentRunId", "crnet.artifacts"


class Experiment:
    """With an index of the runs that it already has, deleted ones too."""

    def __init__(self, client: Any, name: str, artifacts: Path | None) -> None:
        from mlflow.entities import ViewType

        self.client = client
        self.id = self._find(name, artifacts)
        self.runs: dict[str, list[Any]] = {}
        self.logged: dict[str, set[tuple]] = {}  # points of runs that were under way, by id
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
        """Show these runs, those that have begun, and their parents; returns how many there are in all."""
        families: dict[str, list[Record]] = {}
        for record in ours:
            families.setdefault(record.group.key, []).append(record)
        folds = {record.params["fold"] for record in ours}
        for children in families.values():
            if begun := [record for record in children if record.status != "SCHEDULED"]:
                above = self._put(parent(children, folds), {})
                for record in begun:
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

        tags = {**record.tags, **links, KEY: record.key}
        if record.status in ENDED:
            tags[CONTENT] = record.content()
        run = self._same(record)
        if run is None:
            started = record.started if record.started is not None else time.time() - record.seconds
            run = self.client.create_run(self.id, int(1000 * started), tags, record.name)
        self.runs[record.key] = [run]
        if run.info.status in ENDED and CONTENT in run.data.tags:
            self._add_params(run, record)  # settings that the study did not have
        else:
            self._fill(run, record)
        changed = [RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value]
        if changed:
            self.client.log_batch(run.info.run_id, tags=changed)
            run.data.tags.update(tags)
        if run.info.run_name != record.name:
            self.client.update_run(run.info.run_id, name=record.name)
        return run.info.run_id

    def _same(self, record: Record) -> Any:
        """The run that shows a record or its beginning: one, restored if it was deleted, and no other of its key."""
        known = sorted(self.runs.get(record.key, []), key=lambda run: run.info.lifecycle_stage)  # active before deleted
        content = record.content() if record.status in ENDED else ""
        kept = None
        for run in known:
            of_run = run.data.tags.get(CONTENT)  # none: it was under way when it was shown last
            if kept is None and (of_run == content if of_run else self._begins(run, record)):
                kept = run
            elif run.info.lifecycle_stage == "active":
                self.client.delete_run(run.info.run_id)
        if kept is not None and kept.info.lifecycle_stage == "deleted":
            self.client.restore_run(kept.info.run_id)
        return kept

    def _begins(self, run: Any, record: Record) -> bool:
        """Whether all that a run holds is in the record too, so that it can go on where it is."""
        run_id, points = run.info.run_id, set(_points(run, record))
        history = (point for key in run.data.metrics for point in self.client.get_metric_history(run_id, key))
        self.logged[run_id] = {(point.key, point.value, point.timestamp, point.step) for point in history}
        given = {(name, value) for name, value in run.data.params.items() if value != "-"}
        return self.logged[run_id] <= points and given <= _params(record).items()

    def _fill(self, run: Any, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        run_id, logged = run.info.run_id, self.logged.get(run.info.run_id, ())
        metrics = [Metric(*point) for point in _points(run, record) if point not in logged]
        for first in range(0, len(metrics), METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=metrics[first : first + METRICS_PER_BATCH])
        self._add_params(run, record)
        if record.dataset:
            name, digest = record.dataset
            dataset = Dataset(name, digest[:36], "local", canonical({"digest": digest}))  # MLflow takes 36 characters
            context = InputTag("mlflow.data.context", record.tags["kind"])
            self.client.log_inputs(run_id, [DatasetInput(dataset, [context])])
        if run.info.status == record.status:
            return
        if record.status in (*ENDED, "KILLED"):
            self.client.set_terminated(run_id, record.status, run.info.start_time + int(1000 * record.seconds))
        else:
            self.client.update_run(run_id, record.status)

    def _add_params(self, run: Any, record: Record) -> None:
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in _params(record).items() if name not in run.data.params]
        for first in range(0, len(entries), PARAMS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=entries[first : first + PARAMS_PER_BATCH])


def _params(record: Record) -> dict[str, str]:
    """With names as MLflow takes them."""
    return {re.sub(r"[^\w./: -]", "_", name): value for name, value in record.params.items()}


def _points(run: Any, record: Record) -> list[tuple[str, float, int, int]]:
    """Key, value, time in ms and step of each point.

    Times are taken from the files, not the clock: MLflow drops a point that it has, so a fill can be repeated.
    """
    start = run.info.start_time
    return [(key, value, start + int(1000 * at), step) for key, value, at, step in record.points]
