"""The numbers of a table: every row x shots x metric x void convention x fold, and the mean over folds.

A fold of which any seed's counts are absent is missing, or failed where the cell says why its training did, and a row
with such a fold has no mean: a mean over other folds than the caption says would be another quantity. A row that is
only quoted from the paper has no counts, and one that cannot be had for a number of shots says why.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from crnet.errors import CrnetError
from crnet.metrics.intervals import FoldCounts, interval, query_photos, read_fold, seed_deviation, unknown
from crnet.metrics.iou import VOID_COLUMNS

METRIC_NAMES = {"miou": "mIoU", "fbiou_pairs": "FB-IoU", "fbiou": "FB-IoU, classes equal"}
METRIC_MEANINGS = {
    "fbiou_pairs": "FB-IoU: mean of the foreground and the background IoU, each pooled over the classes of a fold; a "
    "class weighs as many pairs of a photo and a class as the test list has of it, as where queries follow that list, "
    "which is the setting that the paper takes.",
    "fbiou": "FB-IoU, classes equal: pooled over the episodes, which ask for all classes equally often.",
}
VOID_NAMES = {"background": "void counted as background", "ignore": "void ignored"}
VOIDS = tuple(VOID_COLUMNS)  # the convention that is probably the paper's, the headline, comes first
REPORTED = "reported, not run here"
NOT_AVAILABLE = "N/A"
UNDEFINED = "undefined: no pixel was asked for or predicted"


@dataclass(frozen=True)
class Cell:
    """One number of a table, in percent. ``fold``: an index or "mean". ``note``: why a value is absent.

    ``photos``: distinct query photos of the episodes; ``pairs``: of a query photo and the class asked for, which the
    intervals leave out. ``paper``: its value, under the void convention that is probably the paper's. ``seed_sd``:
    standard deviation between training seeds, in points; None with one seed.
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
    pairs: int | None = None
    paper: float | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.value is None or self.paper is None else self.value - self.paper


def collect(job: dict[str, Any]) -> list[Cell]:
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
            cells += _row_cells(job, row, shots, parts, notes)
    return cells


def read_folds(
    folds: Iterable[int], cells: Iterable[Mapping[str, Any]], **only: str
) -> tuple[dict[int, FoldCounts], dict[int, list[int]]]:
    """Counts of the folds that are whole, and for every other fold the planned seeds whose counts are absent.

    ``only``: as ``crnet.metrics.intervals.read_fold`` has it.
    """
    parts, gaps = {}, {}
    for fold in folds:
        files = {cell["seed"]: cell["counts"] for cell in cells if cell["fold"] == fold}
        absent = [seed for seed, path in sorted(files.items()) if not Path(path).is_file()]
        if files and not absent:
            parts[fold] = read_fold(fold, files, **only)
        else:
            gaps[fold] = absent
    return parts, gaps


def place(fold: int, seeds: Sequence[int]) -> str:
    return f"fold {fold}" + (f", seed {', '.join(map(str, seeds))}" if seeds else "")


def _read_folds(job: dict, row: dict, shots: int) -> tuple[dict[int, FoldCounts], dict[int, str]]:
    """Counts of the folds that are whole, and for every other fold why it is not."""
    planned = [cell for cell in row["cells"] if cell["shots"] == shots]
    if not planned:
        return {}, dict.fromkeys(job["folds"], _why_none(row, shots))
    parts, gaps = read_folds(job["folds"], planned)
    return parts, {fold: gap(fold, [] if row["control"] else seeds, planned) for fold, seeds in gaps.items()}


def gap(fold: int, absent: Sequence[int], cells: Iterable[Mapping[str, Any]]) -> str:
    """Which seeds of a fold have no counts; of those whose training failed, why the first did."""
    failed = {(cell["fold"], cell["seed"]): cell["failed"] for cell in cells if "failed" in cell}
    lost, others = ([seed for seed in absent if ((fold, seed) in failed) == wanted] for wanted in (True, False))
    if not lost:
        return f"missing ({place(fold, absent)})"
    why = failed[fold, lost[0]]
    return f"failed ({place(fold, lost)}): {why}" + (f", and missing ({place(fold, others)})" if others else "")


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


def _row_cells(job: dict, row: dict, shots: int, parts: dict[int, FoldCounts], notes: dict[int, str]) -> Iterator[Cell]:
    why = "; ".join(dict.fromkeys(notes.values()))
    for metric, void in product(job["metrics"], VOIDS):
        about = {"row": row["id"], "label": row["label"], "shots": shots, "metric": metric, "void": void}
        for fold in job["folds"]:
            measured = _measured([parts[fold]], metric, void) if fold in parts else {"note": notes[fold]}
            yield Cell(**about, fold=fold, **measured)
        measured = {"note": why} if notes else _measured([*parts.values()], metric, void)
        quoted = row.get("paper", {}) if void == VOIDS[0] else {}
        paper = quoted.get(f"{shots}-shot", {}).get(metric)
        yield Cell(**about, fold="mean", paper=paper, **measured)


def _measured(folds: Sequence[FoldCounts], metric: str, void: str) -> dict[str, Any]:
    """What a cell holds of some folds: the value with its interval and sizes, or why there is none."""
    if why := unknown(folds, metric):
        return {"note": why}
    value, low, high = (100 * x for x in interval(folds, metric, void))
    if math.isnan(value):
        return {"note": UNDEFINED}
    deviation = seed_deviation(folds, metric, void)
    return {
        **{"value": value, "low": low, "high": high},
        "seeds": min(len(part.seeds) for part in folds),
        "seed_sd": None if deviation is None else 100 * deviation,
        "episodes": sum(len(part.classes) for part in folds),
        "photos": query_photos(folds),
        "pairs": sum(part.pairs for part in folds),
    }
