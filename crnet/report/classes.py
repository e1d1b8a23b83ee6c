"""IoU of each test class: how one table's rows do on it, with intervals, as ``classes.csv`` and as a plot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from crnet.config.labels import table_heading
from crnet.errors import CrnetError
from crnet.metrics.intervals import FoldCounts, interval, of_class
from crnet.report.figures import BELOW, BLUE, GREY, SHADE, drawing
from crnet.report.tables.cells import VOID_NAMES, VOIDS, read_folds
from crnet.report.tables.layout import row_label, shown_shots
from crnet.report.tables.markdown import grid
from crnet.report.tables.render import plain
from crnet.runtime.files import read_csv, write_csv

CONTROL_MARKERS = ("x", "+", "1", "2")
LINE = 0.21  # inches


@dataclass(frozen=True)
class ClassCell:
    """One row's IoU on one class of a fold in percent, mean over training seeds, under one void convention.

    ``low`` and ``high`` bound a 95 % interval; None where one photo and one seed tell nothing of the spread.
    """

    table: str
    row: str
    label: str
    shots: int
    fold: int
    class_id: int
    name: str
    void: str
    value: float | None
    low: float | None
    high: float | None
    seeds: int
    episodes: int
    photos: int


HEADER = tuple(field.name for field in fields(ClassCell))


def collect(job: Mapping[str, Any]) -> list[ClassCell]:
    """All classes of the folds that are whole, for every row of a table job, at the fewest shots that it shows.

    Raises:
        CrnetError: counts that cannot be read, or of a class that the data set's folds do not test.
    """
    shots = shown_shots(job)[0]
    cells: list[ClassCell] = []
    for row in job["rows"]:
        parts, _ = read_folds(job["folds"], [cell for cell in row["cells"] if cell["shots"] == shots])
        for fold, part in parts.items():
            for class_id in np.unique(part.classes).tolist():
                cells += _cells(job, row, shots, fold, class_id, of_class(part, class_id))
    return cells


def _cells(job: Mapping, row: Mapping, shots: int, fold: int, class_id: int, part: FoldCounts) -> Iterator[ClassCell]:
    if (name := job["classes"].get(str(class_id))) is None:
        raise CrnetError(f"{row['label']}, fold {fold}: class {class_id} is none of its test classes; evaluate again.")
    for void in VOIDS:
        value, *bounds = (None if np.isnan(x) else 100 * x for x in interval([part], "miou", void))
        low, high = bounds if part.pairs > 1 or len(part.seeds) > 1 else (None, None)
        about = (job["table"], row["id"], row_label(row), shots, fold, class_id, name, void)
        yield ClassCell(*about, value, low, high, len(part.seeds), len(part.classes), part.pairs)


def write_classes(job: Mapping[str, Any], out_csv: Path) -> None:
    """Write every cell of ``collect`` as a line; raises as it."""
    write_csv(out_csv, HEADER, ([plain(value) for value in asdict(cell).values()] for cell in collect(job)))


def _headline(out_csv: Path) -> dict[tuple[int, str], dict[str, dict[str, str]]]:
    """(fold, class) -> row -> line, under the headline's void convention, folds and ids ascending."""
    found: dict[tuple[int, str], dict[str, dict[str, str]]] = {}
    lines = [line for line in read_csv(out_csv) if line["void"] == VOIDS[0]]
    for line in sorted(lines, key=lambda line: (int(line["fold"]), int(line["class_id"]))):
        found.setdefault((int(line["fold"]), line["name"]), {})[line["row"]] = line
    return found


def render_classes(out_csv: Path) -> list[str]:
    """Markdown paragraphs of a ``classes.csv``: a line a class, a column a row of its table; none without a line."""
    classes = _headline(out_csv)
    if not classes:
        return []
    rows = {key: line["label"] for found in classes.values() for key, line in found.items()}
    lines = [["Class", "Fold", "Photos", *rows.values()]]
    for (fold, name), found in classes.items():
        values = [f"{float(found[row]['value']):.1f}" if row in found and found[row]["value"] else "—" for row in rows]
        lines.append([name, str(fold), next(iter(found.values()))["photos"], *values])
    shots = next(iter(next(iter(classes.values())).values()))["shots"]
    return [
        f"**{shots}-shot IoU of each test class in percent, {VOID_NAMES[VOIDS[0]]}**",
        grid(lines, ["l", *"r" * (2 + len(rows))]),
    ]


def plot_classes(job: Mapping[str, Any], out_csv: Path, out_prefix: Path) -> None:
    """The last row that is trained, with intervals, and the controls; a line a class, in groups by fold.

    ``out_csv`` is what ``write_classes`` wrote of the same job, ``out_prefix`` a path without suffix.
    """
    classes = _headline(out_csv)
    there = {row for found in classes.values() for row in found}
    trained = [row for row in job["rows"] if not row["control"] and row["id"] in there]
    controls = [row for row in job["rows"] if row["control"] and row["id"] in there]
    title = f"IoU by class ({table_heading(job['table'], job['title'])})"
    with drawing(title, job["study_title"], 1.5 + LINE * max(4, len(classes)), out_prefix) as figure:
        axes = figure.subplots()
        if not classes:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no value", ha="center", va="center", color=GREY)
            return
        _panel(axes, classes, trained[-1:], controls)
        axes.set_xlabel(f"percent, {shown_shots(job)[0]}-shot, {VOID_NAMES[VOIDS[0]]}; in brackets query photos")
        handles = [
            Line2D([], [], color=BLUE, lw=1.8, marker="o", ms=4.5, label=f"{row_label(row)}, 95 % interval")
            for row in trained[-1:]
        ]
        handles += [
            Line2D([], [], color=GREY, ls="", marker=marker, ms=5.5, label=f"{row_label(row)} (control)")
            for row, marker in zip(controls, CONTROL_MARKERS, strict=False)
        ]
        figure.legend(handles=handles, loc=BELOW, ncols=len(handles))


def _panel(axes: Axes, classes: Mapping, trained: Sequence[dict], controls: Sequence[dict]) -> None:
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    labels, folds = [], [fold for fold, _ in classes]
    for y, ((fold, name), found) in enumerate(classes.items()):
        labels.append(f"{name} ({next(iter(found.values()))['photos']})")
        if folds.index(fold) == y:
            axes.text(1.01, y, f"fold {fold}", transform=axes.get_yaxis_transform(), va="center", color=GREY)
            if folds.index(fold) and fold != folds[0]:
                axes.axhline(y - 0.5, color=SHADE, lw=1.2, zorder=0)
        for row, marker in zip(controls, CONTROL_MARKERS, strict=False):
            if row["id"] in found and found[row["id"]]["value"]:
                axes.plot(float(found[row["id"]]["value"]), y, marker, color=GREY, ms=5.5, mew=1.2)
        for row in trained:
            line = found.get(row["id"], {})
            if line.get("low"):
                axes.plot([float(line["low"]), float(line["high"])], [y, y], color=BLUE, lw=1.8)
            if line.get("value"):
                axes.plot(float(line["value"]), y, "o", color=BLUE, ms=4.5)
    axes.set_yticks(range(len(labels)), labels, fontsize=8.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, 100)
