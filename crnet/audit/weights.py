"""Trained weights: one file a training, named alike by every report, and the file that is at hand."""

from collections.abc import Iterator

from safetensors import SafetensorError, safe_open

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, shown
from crnet.config import resolve
from crnet.runtime.files import canonical, sha256_file

RECORDS = "weights: reports agree, one a training"
FILES = "weights: files are the reports'"


def check_weights(folder: Folder, ledger: Ledger) -> None:
    recorded, check = _records(folder, ledger[RECORDS]), ledger[FILES]
    for name, training in folder.plan.trainings.items():
        path = folder.weights(training)
        if path is None:
            check.unknown("not at hand in a work folder")
            continue
        if name in recorded:
            known, source = recorded[name]
            check.same(str(path), sha256_file(path), known, f"{source} has")
        else:
            check.unknown("no report names its weights")
        with check.reading(str(path), "is no safetensors file", SafetensorError):
            with safe_open(path, "np") as stream:
                spec = (stream.metadata() or {}).get("spec")
            check.same(f"{path}, specification in its head", spec, canonical(training), "in the plan")


def _records(folder: Folder, check: Check) -> dict[str, tuple[str, str]]:
    """Training -> digest of its weights, and the file that says so first."""
    first: dict[str, tuple[str, str]] = {}
    owners: dict[str, str] = {}
    for name, digest, where in _sources(folder, check):
        if not digest:
            check.differs(where, "names no weights")
            continue
        known, source = first.setdefault(name, (digest, where))
        problem = None
        if digest != known:
            problem = f"weights_sha256 is {shown(digest)}, {source} has {shown(known)}"
        elif owners.setdefault(digest, name) != name:
            problem = f"has the weights {shown(digest)} of another training, {owners[digest]}"
        check.judge(where, problem)
    return first


def _sources(folder: Folder, check: Check) -> Iterator[tuple[str, str, str]]:
    """(training, digest, where) of all reports; a control must have none."""
    for name, report in folder.trainings.items():
        yield name, report.get("weights_sha256", ""), str(report["path"])
    for report in (*folder.tunings.values(), *folder.evaluations.values()):
        where, digest = folder.relative(report["path"]), report.get("weights_sha256")
        try:
            training = report["spec"]["train"]
            name = resolve.training_name(training)
        except UNREADABLE:
            check.unknown(f"{where}: its settings are not those of this version")
            continue
        if "train" in training:
            yield name, digest, where
        else:
            check.same(where, digest, "", "for a method without weights")
    for line, row in enumerate(folder.rows("runs.csv"), 2):
        if row.get("kind") == "train" and row.get("status") != "failed":
            yield str(row.get("run")), row.get("weights_sha256", ""), f"runs.csv, line {line}"
