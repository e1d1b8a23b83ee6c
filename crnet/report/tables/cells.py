"""The numbers of a table: every row x shots x metric x void convention x fold, and the mean over folds.

A fold of which any seed's counts are absent is missing, or failed where the cell says why its training did, and a row
with such a fold has no mean: a mean over other folds than the caption says would be another quantity. A row that is
only quoted from the paper has no counts, and one that cannot be had for a number of shots says why.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnet.errors import CrnetError
from crnet.metrics.bootstrap import Bootstrap, FoldCounts, read_fold, seed_deviation
from crnet.metrics.iou import VOID_COLUMNS

METRIC_NAMES = {"miou": "mIoU", "fbiou": "FB-IoU"}
VOID_NAMES = {"background": "void counted as background", "ignore": "void ignored"}
VOIDS = tuple(VOID_COLUMNS)  # the convention that is probably the paper's, the headline, comes first
REPORTED = "reported, not run here"
NOT_AVAILABLE = "N/A"


@dataclass(frozen=True)
class Cell:
    """One number of a table, in percent. ``fold``: an index or "mean". ``note``: why a value is absent.

    ``photos``: query photos of the episodes, of each class for itself. ``seed_sd``: standard deviation between training
    seeds, in points; None with one seed.
    """

    row: str
    label: str
    shots: int
    fold: int | str
    metric: str
    void: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    seed_sd: float | None = None
    episodes: int | None = None
    photos: int | None = None
    paper: float | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.value is None or self.paper is None else self.value - self.paper


def collect(job: dict[str, Any], bootstrap: Bootstrap) -> list[Cell]:
    """All cells of the table: rows in their order, then shots, metric, void, folds and mean."""
    cells: list[Cell] = []
    episodes: dict[int, tuple[str, str]] = {}  # fold: digest of its episodes, and the row that gave it
    for row in job["rows"]:
        for shots in job["shots"]:
            parts, notes = _read_folds(job, row, shots)
            for part in parts.values():
                digest, first = episodes.setdefault(part.fold, (part.episodes, row["label"]))
                if digest != part.episodes:
                    raise CrnetError(
                        f"{job['table']}: {first!r} and {row['label']!r} were scored on different episodes "
                        f"of fold {part.fold}, so they cannot stand in one table: evaluate them again."
                    )
            for metric in job["metrics"]:
                for void in VOIDS:
                    cells += _row_cells(job, row, shots, metric, void, parts, notes, bootstrap)
    return cells


def _read_folds(job: dict, row: dict, shots: int) -> tuple[dict[int, FoldCounts], dict[int, str]]:
    """Counts of the folds that are whole, and for every other fold why it is not."""
    planned = [cell for cell in row["cells"] if cell["shots"] == shots]
    if not planned:
        return {}, dict.fromkeys(job["folds"], _why_none(row, shots))
    parts, notes = {}, {}
    for fold in job["folds"]:
        files = {cell["seed"]: cell["counts"] for cell in planned if cell["fold"] == fold}
        absent = [seed for seed, path in sorted(files.items()) if not Path(path).is_file()]
        if files and not absent:
            parts[fold] = read_fold(fold, files)
            continue
        failed = {cell["seed"]: cell["failed"] for cell in planned if cell["fold"] == fold and "failed" in cell}
        notes[fold] = _gap(fold, [] if row["control"] else absent, failed)
    return parts, notes


def _gap(fold: int, absent: Sequence[int], failed: Mapping[int, str]) -> str:
    """Which seeds of a fold have no counts; of those whose training failed, why the first did."""

    def place(seeds: Sequence[int]) -> str:
        return f"fold {fold}" + (f", seed {', '.join(map(str, seeds))}" if seeds else "")

    lost, others = ([seed for seed in absent if (seed in failed) == wanted] for wanted in (True, False))
    if not lost:
        return f"missing ({place(absent)})"
    return f"failed ({place(lost)}): {failed[lost[0]]}" + (f", and missing ({place(others)})" if others else "")


def short_gap(note: str) -> str:
    """The note of a missing or failed cell without its reasons, for places that are narrow."""
    kind = note.partition(" ")[0]
    return kind if ";" in note else note.partition("): ")[0] + (")" if "): " in note else "")


def _why_none(row: dict, shots: int) -> str:
    """Why a row has no counts at all for a number of shots."""
    if row.get("reported"):
        return REPORTED
    reason = row.get("absent", {}).get(f"{shots}-shot")
    return f"{NOT_AVAILABLE}: {reason}" if reason else NOT_AVAILABLE


def _row_cells(
    job: dict,
    row: dict,
    shots: int,
    metric: str,
    void: str,
    parts: dict[int, FoldCounts],
    notes: dict[int, str],
    bootstrap: Bootstrap,
) -> Iterable[Cell]:
    base = {"row": row["id"], "label": row["label"], "shots": shots, "metric": metric, "void": void}

    def measured(fold: int | str, folds: Sequence[FoldCounts], **more: Any) -> Cell:
        value, low, high = (100 * x for x in bootstrap.interval(folds, metric, void))
        if math.isnan(value):
            return Cell(**base, fold=fold, note="undefined: no pixel was asked for or predicted", **more)
        seeds = min(len(part.seeds) for part in folds)
        more |= {"episodes": sum(len(part.classes) for part in folds), "photos": sum(part.photos for part in folds)}
        deviation = seed_deviation(folds, metric, void)
        more["seed_sd"] = None if deviation is None else 100 * deviation
        return Cell(**base, fold=fold, value=value, low=low, high=high, seeds=seeds, **more)

    for fold in job["folds"]:
        yield measured(fold, [parts[fold]]) if fold in parts else Cell(**base, fold=fold, note=notes[fold])
    paper = row.get("paper", {}).get(f"{shots}-shot", {}).get(metric)
    if notes:
        yield Cell(**base, fold="mean", paper=paper, note="; ".join(dict.fromkeys(notes.values())))
    else:
        yield measured("mean", list(parts.values()), paper=paper)
