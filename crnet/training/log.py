"""The log of a training, a row an epoch, and the loss that it is held against."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from crnet.runtime.files import write_csv

# Between them stand the parts of the loss: CRNet's, and what other methods call theirs.
LOG_FIRST, LOG_PARTS = ("epoch", "step", "loss"), ("query", "support", "cooccurrence")
LOG_LAST = ("lr", "images_per_second", "peak_memory_bytes", "base_miou", "support_iou", "seconds")


def write_log(path: Path, log: Sequence[Mapping[str, float]]) -> None:
    """Write rows of an epoch each; what was not measured, NaN, is empty."""
    columns = log_columns(log)
    write_csv(path, columns, [[_cell(row.get(column, "")) for column in columns] for row in log])


def log_columns(log: Sequence[Mapping[str, float]]) -> list[str]:
    """Columns of a log, of which a method's own parts of the loss follow those that every log has."""
    known = {*LOG_FIRST, *LOG_PARTS, *LOG_LAST}
    own = dict.fromkeys(name for row in log for name in row if name not in known)
    return [*LOG_FIRST, *LOG_PARTS, *own, *LOG_LAST]


def constant_loss(share: float) -> float:
    """The least cross-entropy of one probability for all pixels, of which ``share``, in [0, 1], are foreground."""
    return -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)


def _cell(value: float | str) -> float | str:
    """How a value stands in the log; what was not measured is empty."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
