"""Trained weights: one file a training, named alike by every report, and the file that is at hand."""

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from crnet.audit.folder import UNREADABLE, Folder
from crnet.audit.ledger import Check, Ledger, shown
from crnet.config import resolve
from crnet.runtime.files import canonical, sha256_file

RECORDS = "weights: reports agree, one a training"
FILES = "weights: files are the reports'"


def check_weights(folder: Folder, ledger: Ledger) -> None:
    recorded = _records(folder, ledger[RECORDS])
    for name, training in folder.plan.trainings.items():
        path = folder.weights(training)
        if path is None:
            ledger[FILES].unknown("not at hand in a work folder")
            continue
        digest = sha256_file(path)
        if name in recorded:
            known, source = recorded[name]
            ledger[FILES].same(str(path), digest, known, f"{source} has")
        else:
            ledger[FILES].unknown("no report names its weights")
        _specification(ledger[FILES], path, training)


def _records(folder: Folder, check: Check) -> dict[str, tuple[str, str]]:
    """Training -> digest of its weights, and the file that says so first."""
    first: dict[str, tuple[str, str]] = {}
    owners: dict[str, str] = {}
    for name, digest, where in _sources(folder, check):
        if not digest:
            check.differs(where, "names no weights")
            continue
        known, source = first.setdefault(name, (digest, where))
        if digest != known:
            check.differs(where, f"weights_sha256 is {shown(digest)}, {source} has {shown(known)}")
        elif owners.setdefault(digest, name) != name:
            check.differs(where, f"has the weights {shown(digest)} of another training, {owners[digest]}")
        else:
            check.ok()
    return first


def _sources(folder: Folder, check: Check) -> Iterator[tuple[str, str, str]]:
    """(training, digest, where) of all reports; a control must have none."""
    for name, report in folder.trainings.items():
        yield name, report.get("weights_sha256", ""), str(report["path"])
    for reports in (folder.tunings, folder.evaluations):
        for report in reports.values():
            where = folder.relative(report["path"])
            try:
                training = report["spec"]["train"]
                name = resolve.training_name(training)
            except UNREADABLE:
                check.unknown(f"{where}: its settings are not those of this version")
                continue
            if "train" in training:
                yield name, report.get("weights_sha256", ""), where
            else:
                check.same(where, report.get("weights_sha256"), "", "for a method without weights")
    for line, row in enumerate(folder.rows("runs.csv"), 2):
        if row.get("kind") == "train" and row.get("status") != "failed":
            yield str(row.get("run")), row.get("weights_sha256", ""), f"runs.csv, line {line}"


def _specification(check: Check, path: Path, training: dict) -> None:
    """Weights carry the specification that they were trained with."""
    where = str(path)
    try:
        with safe_open(path, "np") as stream:
            spec = (stream.metadata() or {}).get("spec")
    except (OSError, SafetensorError) as error:
        check.differs(where, f"is no safetensors file ({error})")
        return
    check.same(f"{where}, specification in its head", spec, canonical(training), "in the plan")
