"""The folder that is audited: its study's plan, the reports of its runs, and what is at hand to hold them against."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crnet.audit.ledger import UNREADABLE
from crnet.config import resolve, study
from crnet.config.layout import Layout
from crnet.config.probe import FOLDER
from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv, read_json

FAILED = "failed.json"  # beside where the results of a training would be


class Folder:
    """A study's results and what belongs to them; arguments and errors are those of ``audit``.

    Attributes:
        layouts: One for each work folder; all have the audited results.
        evaluations, trials, choices, trainings, probes: Name -> report, of those that could be read; ``plan`` may not
            name all.
        broken: File -> why it could not be read.
        failed: Training -> why it failed, as ``failed.json`` in a work folder or else ``runs.csv`` says.
        failures: Training -> its ``failed.json``.
        trusted: Data sets at hand that have the digest of the runs; results are not held against any other data.
    """

    def __init__(self, results: Path, files: Sequence[Path], works: Sequence[Path]):
        if not results.is_dir():
            raise CrnetError(f"{results}: is no folder; give the results of a study, e.g. results/demo.")
        self.results = results.resolve()
        own = study.file_of(self.results)
        if not files and own is None:
            wanted = study.DEFAULT_STUDY.with_stem(self.results.name)
            raise CrnetError(f"{self.results}: there is no {wanted}; give the results' study with --configfile.")
        self.plan = study.load(files or [own])
        for work in works:
            if not work.is_dir():
                raise CrnetError(f"--work {work}: is no folder; give the one that holds data, encoders and train.")
        self.layouts = [Layout(self.plan) for _ in works or [None]]
        for layout, work in zip(self.layouts, works or [self.layout.work], strict=True):
            layout.results, layout.work = str(self.results), str(work)
        self.broken: dict[str, str] = {}
        self.trusted: set[str] = set()
        self._indices: dict[str, Index] = {}
        self.evaluations = self._reports(self.results.glob("evaluate/*/evaluation.json"))
        self.trials = self._reports(self.results.glob("finetune/*/trials.json"))
        self.choices = self._reports(self.results.glob("finetune/*/choice.json"))
        self.probes = self._reports(self.results.glob(f"{FOLDER}/*/probe.json"))
        trainings = (Path(at.training(name)) / "train.json" for name in self.plan.trainings for at in self.layouts)
        self.trainings = self._reports(path for path in trainings if path.is_file())
        self.failed: dict[str, str] = {}
        self.failures: dict[str, Path] = {}
        self._find_failed()

    @property
    def layout(self) -> Layout:
        return self.layouts[0]

    @property
    def reports(self) -> dict[str, dict]:
        """Of all runs, whatever their kind."""
        return {**self.trainings, **self.trials, **self.choices, **self.evaluations, **self.probes}

    def _find_failed(self) -> None:
        for row in self.rows("runs.csv"):
            if row.get("kind") == "train" and row.get("status") == "failed":
                self.failed[str(row.get("run"))] = row.get("failed") or ""
        for name in set(self.plan.trainings) - set(self.trainings):
            if path := self._first(f"{at.training(name)}/{FAILED}" for at in self.layouts):
                try:
                    self.failed[name], self.failures[name] = str(read_json(path)["failed"]), path
                except UNREADABLE as error:
                    self.broken[self.relative(path)] = f"cannot be read ({error})"

    def rows(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV under the results; none if there is no such file, or none that can be read."""
        path = self.results / name
        try:
            return read_csv(path) if path.is_file() else []
        except UNREADABLE as error:
            self.broken[name] = f"cannot be read ({error})"
            return []

    def _reports(self, paths: Iterable[Path]) -> dict[str, dict]:
        found: dict[str, dict] = {}
        for path in sorted(paths):
            try:
                report = read_json(path)
                report["spec"]["train" if path.name != "train.json" else "method"]
            except UNREADABLE as error:
                self.broken[self.relative(path)] = f"is not the report of a run ({type(error).__name__}: {error})"
                continue
            found.setdefault(path.parent.name, report | {"path": path})
        return found

    def relative(self, path: Path | str) -> str:
        """How an audit names a file: without the results' folder where it is in there."""
        path = Path(path)
        return str(path.relative_to(self.results)) if path.is_relative_to(self.results) else str(path)

    def data(self, spec: dict) -> Path | None:
        """The prepared data set, if a work folder has it whole."""
        description = self._first(f"{at.data(spec)}/dataset.json" for at in self.layouts)
        return description and description.parent

    def index(self, spec: dict) -> Index | None:
        """The prepared data set opened; None if it was not found to be the one of the runs."""
        name = resolve.dataset_name(spec)
        if name in self.trusted and name not in self._indices:
            self._indices[name] = Index.load(self.data(spec))
        return self._indices.get(name)

    def encoder(self, spec: dict) -> Path | None:
        return self._first(path for at in self.layouts if (path := at.encoder(spec)))

    def weights(self, training: dict) -> Path | None:
        name = resolve.training_name(training)
        return self._first(f"{at.training(name)}/model.safetensors" for at in self.layouts)

    @staticmethod
    def _first(paths: Iterable[str]) -> Path | None:
        return next((path for path in map(Path, paths) if path.is_file()), None)

    def counts_files(self, name: str) -> list[str]:
        """Names of the counts that an evaluation writes."""
        return ["counts.csv", *(["counts-fusion.csv"] if "finetune" in self.evaluations[name]["spec"] else [])]

    def where(self, name: str) -> str:
        return f"evaluate/{name}/evaluation.json"


def commits(reports: Iterable[dict[str, Any]]) -> str:
    """The commits that made the reports, shortened."""
    return ", ".join(sorted({str(report.get("commit", "unknown"))[:12] for report in reports}))
