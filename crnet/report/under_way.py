"""Trainings of a study that is being run: rows and curves as ``runs.csv`` and ``training.csv`` will have them."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.config.tuning import CHOSEN
from crnet.report.runs import FAILED, flat, log_columns, table, variants
from crnet.runtime.files import read_csv, read_json

Line = dict[str, str]


def trainings(plan: Plan, since: float) -> tuple[list[Line], dict[str, list[Line]]]:
    """A row for each training of a study, and the log of each that has begun, by its name.

    A row's ``status`` is that of ``runs.csv``, ``finished`` or ``failed``, or ``running``, ``killed`` (it began before
    ``since`` and does not go on yet) or ``scheduled``. What is known only at its end, as digests and machine, is empty.

    Args:
        since: When the study's run began, Unix time in seconds; infinite: it has ended.

    Raises:
        CrnetError: A file of a training is not what it should be.
    """
    layout, rows, logs = Layout(plan), [], {}
    for name, spec in plan.trainings.items():
        report, log = _training(Path(layout.training(name)), Path(layout.log_so_far(name)), since)
        logs[name] = [{column: line.get(column, "") for column in log_columns(line)} for line in log]
        rows.append(_row({**report, "run": name, "spec": spec}, "train") | {"status": report["status"]})
    for row, label in zip(rows, variants(rows), strict=True):
        row["variant"] = label
    header, cells = table([*rows, *_later(plan)])  # which other columns there will be
    return [dict(zip(header, line, strict=True)) for line in cells[: len(rows)]], logs


def _training(folder: Path, log: Path, since: float) -> tuple[dict[str, Any], list[Line]]:
    """What a training has reported so far, its status too, and its log."""
    with suppress(FileNotFoundError):
        return read_json(folder / "train.json") | {"status": "finished"}, read_csv(folder / "log.csv")
    try:
        written, lines = log.stat().st_mtime, read_csv(log)
    except FileNotFoundError:  # it has not begun, or has this moment ended
        return {"status": "scheduled"}, []
    seconds = float(lines[-1]["seconds"]) if lines else 0.0
    about = {"seconds": seconds, "started": datetime.fromtimestamp(written - seconds, UTC).isoformat()}
    # A training that failed leaves its mark until it is finished; its log is newer when it was started again.
    if (mark := folder / FAILED).is_file() and mark.stat().st_mtime >= written:
        return about | {"status": "failed", "failed": read_json(mark)["failed"]}, lines
    return about | {"status": "running" if written >= since else "killed"}, lines


def _later(plan: Plan) -> list[Mapping[str, Any]]:
    """What trials, choices and evaluations are known to be before they are run."""
    chosen = dict.fromkeys(CHOSEN)
    tried = [_row({"run": name, "spec": spec}, "trials") for name, spec in plan.trials.items()]
    unknown = {"miou": None, **chosen, "trials": None, "trials_sha256": None}
    choices = [_row({"run": name, "spec": spec, **unknown}, "choice") for name, spec in plan.choices.items()]
    evaluated = [
        _row({"run": name, "spec": spec, "choice": chosen if "finetune" in spec else {}}, "evaluate")
        for name, spec in plan.evaluations.items()
    ]
    return [*tried, *choices, *evaluated]


def _row(report: dict[str, Any], kind: str) -> dict[str, Any]:
    row = flat(report, kind)
    del row["spec"]
    return row
