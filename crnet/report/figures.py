"""Plots of tables, and what all plots share: PNG (150 dpi) and SVG with equal bytes for equal input.

Colours are those of Okabe and Ito, which survive colour-blindness; what a colour says, a marker or a line
style says too, for print in grey.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style.core
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from crnet.config.labels import table_heading
from crnet.errors import CrnetError
from crnet.metrics.intervals import NO_PAIRS
from crnet.report.tables.cells import METRIC_NAMES, NOT_AVAILABLE, REPORTED, VOID_NAMES, VOIDS, short_gap
from crnet.report.tables.layout import all_folds, fold_columns, mean_name, row_label, shown_shots
from crnet.runtime.files import atomic_write, read_csv

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#777777"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK)
SHADE = "#EFEFEF"
FOLD_MARKERS = ("s", "^", "v", "P", "X", "*")

# Upon matplotlib's own defaults, not upon the user's matplotlibrc: the same bytes on every machine.
STYLE = {
    **{k: v for k, v in dict.items(matplotlib.rcParamsDefault) if k not in matplotlib.style.core.STYLE_BLACKLIST},
    **{"font.size": 9, "axes.titlesize": 10, "legend.fontsize": 8.5, "font.family": "DejaVu Sans"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True},
    **{"grid.color": "#DDDDDD", "grid.linewidth": 0.6, "legend.frameon": False, "svg.hashsalt": "crnet"},
}
BELOW = "outside lower center"  # where legends stand
PAPER = {"mec": VERMILLION, "mew": 1.2, "ms": 4.5}
EDGE = 0.5  # of a panel, beyond its first and last line
WIDTH = 9.0  # inches; at 150 dpi somewhat wider than a page on GitHub, so text stays sharp


def save(figure: Figure, out_prefix: Path, dpi: int = 150) -> None:
    """Write ``<out_prefix>.png`` and ``.svg`` without a date or a version inside."""
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        content = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(content, format=suffix, dpi=dpi, metadata=metadata)
        atomic_write(f"{out_prefix}.{suffix}", content.getvalue())


@contextmanager
def drawing(title: str, study: str, height: float, out_prefix: Path) -> Iterator[Figure]:
    """A figure of ``WIDTH`` x ``height`` inches in our style, under its title and the study's; saved when drawn."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height + 0.2), layout="constrained")
        figure.suptitle(f"{title}\n{study}", fontsize=11, x=0.01, ha="left")
        yield figure
    save(figure, out_prefix)


def paper_handle(job: dict[str, Any], **style: Any) -> Line2D:
    """What the legend says of the paper's values."""
    label = "paper (other data)" if job["orientation_only"] else "paper"
    return Line2D([], [], ls="", marker="D", label=label, **style)


def plot_table(job: dict[str, Any], table_csv: Path, out_prefix: Path) -> None:
    """Every row of a table: mean with interval, folds, the controls as floors, the paper's value.

    Rows with several numbers of shots have a line for each, below one another, and each number of shots has its own
    floor. Such a plot shows the first metric only, others the first two: the rest is in the table, and a plot of two
    screens is looked at by nobody.

    ``table_csv`` is what ``render_table`` wrote of the same job, ``out_prefix`` a path without suffix.

    Raises:
        CrnetError: the CSV belongs to another table.
    """
    lines = read_csv(table_csv)
    if {line["table"] for line in lines} != {job["table"]}:
        raise CrnetError(f"{table_csv} does not hold {job['table']}: render the table first.")
    shown = shown_shots(job)
    metrics = job["metrics"][: 2 if len(shown) == 1 else 1]
    marks = _marks(job, shown)
    last = marks[-1][0]
    title, height = table_heading(job["table"], job["title"]), 1.1 + len(metrics) * (0.75 + 0.38 * (last + 1))
    with drawing(title, job["study_title"], height, out_prefix) as figure:
        grid = figure.subplots(len(metrics), len(VOIDS), squeeze=False, sharey=True, sharex="row")
        for metric, axes_row in zip(metrics, grid, strict=True):
            values = [
                float(line[key])
                for line in lines
                for key in ("value", "low", "high", "paper")
                if line[key] and line["metric"] == metric and int(line["shots"]) in shown
            ]
            axes_row[0].set_xlim(*_limits(values))
            for void, axes in zip(VOIDS, axes_row, strict=True):
                chosen = [line for line in lines if (line["metric"], line["void"]) == (metric, void)]
                _table_panel(axes, marks, chosen, void == VOIDS[0])
                axes.set_title(f"{METRIC_NAMES[metric]}, {VOID_NAMES[void]}", loc="left")
            axes_row[0].set_yticks([y for y, *_ in marks], [_mark_label(row, shots, shown) for _, row, shots in marks])
            axes_row[0].set_ylim(last + EDGE, -EDGE)
        for axes in grid[-1]:
            axes.set_xlabel(f"percent{scope(job)}")
        handles = _table_legend(job, lines)
        columns = (len(handles) + 1) // 2 if fold_columns(job) else len(handles)
        figure.legend(handles=handles, loc=BELOW, ncols=columns)


def _marks(job: dict, shown: Sequence[int]) -> list[tuple[float, dict, int]]:
    """Place, row and shots of every line: the paper's order, controls last, a gap after rows of several lines.

    Lines that hold the paper's mark or a word alone are closer to the next than those with folds below them.
    """
    marks: list[tuple[float, dict, int]] = []
    step, close, after, y = (1.0 if len(shown) == 1 else 0.9), 0.62, 0.0, 0.0
    for row in sorted(job["rows"], key=lambda row: row["control"]):  # stable
        for shots in shown:
            run = any(cell["shots"] == shots for cell in row["cells"])
            y += 0.15 if run and after == close else 0  # room for the paper's mark above it
            marks.append((y, row, shots))
            after = step if run else close
            y += after
        y += 0 if len(shown) == 1 else 0.45
    return marks


def scope(job: dict[str, Any]) -> str:
    """What follows a title where the folds are not all."""
    return "" if all_folds(job) else f", {mean_name(job).lower()}"


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Axis from a little left of the least value to a little right of the greatest, within [0, 100]."""
    if not values:
        return 0, 100
    margin = max(1.0, 0.06 * (max(values) - min(values)))
    return max(0, min(values) - margin), min(100, max(values) + margin)


def _mark_label(row: dict, shots: int, shown: Sequence[int]) -> str:
    if len(shown) == 1:
        return row_label(row)
    return f"{row_label(row)}   {shots}-shot" if shots == shown[0] else f"{shots}-shot"


def _table_panel(
    axes: Axes, marks: Sequence[tuple[float, dict, int]], lines: Sequence[dict[str, str]], headline: bool
) -> None:
    """One metric under one void convention; the paper's values, whose convention is one, are in the headline's."""
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    floors: dict[int, float] = {}  # by shots: the best control
    for y, row, shots in marks:
        own = [line for line in lines if line["row"] == row["id"] and line["shots"] == str(shots)]
        folds, mean = own[:-1], own[-1]
        colour = GREY if row["control"] else BLUE
        for fold in folds if len(folds) > 1 else []:
            if fold["value"]:
                marker = fold_marker(int(fold["fold"]))
                # below the interval, so that neither hides the other
                axes.plot(float(fold["value"]), y + 0.29, marker, ms=3.6, mfc="none", mec=colour, mew=0.8)
        if mean["value"]:
            value, low, high = (float(mean[key]) for key in ("value", "low", "high"))
            axes.plot([low, high], [y, y], color=colour, lw=1.8, marker="|", ms=8, mew=1.4)
            axes.plot(value, y, "o", color=colour, ms=4.5)
            if row["control"]:
                floors[shots] = max(value, floors.get(shots, 0))
        elif headline or mean["note"] != REPORTED:
            _explain(axes, y, mean)
        if headline and mean["paper"]:
            above = 0.31 if mean["value"] else 0
            axes.plot(float(mean["paper"]), y - above, "D", mfc="white", **PAPER)
    edges = [-EDGE, *((one[0] + other[0]) / 2 for one, other in pairwise(marks)), marks[-1][0] + EDGE]
    for (top, bottom), (_, _, shots) in zip(pairwise(edges), marks, strict=True):
        if shots in floors:
            axes.fill_betweenx([top, bottom], 0, floors[shots], color=SHADE, lw=0, zorder=0)
    if floors:
        first = next(i for i, (_, row, _) in enumerate(marks) if row["control"])
        if first:
            axes.axhline((marks[first - 1][0] + marks[first][0]) / 2, color=GREY, lw=0.8)


def _explain(axes: Axes, y: float, mean: dict[str, str]) -> None:
    """Why a line has no value; beside the paper's mark where it has one."""
    note = mean["note"]
    if note == REPORTED:
        text, colour = ("reported", GREY) if mean["paper"] else ("not reported", GREY)
    elif note.startswith(NOT_AVAILABLE):
        text, colour = NOT_AVAILABLE, GREY
    elif note == NO_PAIRS:
        text, colour = "not known", GREY
    else:
        text, colour = short_gap(note), VERMILLION
    if not mean["paper"]:
        axes.text(0.02, y, text, transform=axes.get_yaxis_transform(), color=colour, va="center")
        return
    left, right = axes.get_xlim()
    paper = float(mean["paper"])
    side = 1 if paper < left + 0.25 * (right - left) else -1  # one side for all but the least, so that they line up
    place = {"textcoords": "offset points", "ha": "left" if side > 0 else "right", "va": "center"}
    axes.annotate(text, (paper, y), (8 * side, 0), color=colour, fontsize=8.5, **place)


def _table_legend(job: dict, lines: Sequence[dict[str, str]]) -> list[Line2D | Patch]:
    """What the marks mean; a legend of two lines, filled column by column, shows meanings above folds."""
    interval = {"lw": 1.8, "marker": "o", "ms": 4.5}
    name = "value" if len(job["folds"]) == 1 else "mean over folds"
    meanings: list[Line2D | Patch] = [Line2D([], [], color=BLUE, label=f"{name}, 95 % interval", **interval)]
    if any(row["control"] for row in job["rows"]):
        meanings.append(Line2D([], [], color=GREY, label="control", **interval))
        of = "" if len(shown_shots(job)) == 1 else " of as many shots"
        meanings.append(Patch(color=SHADE, label=f"not above the best control{of}"))
    if any(line["paper"] for line in lines):
        meanings.append(paper_handle(job, mfc="none", **PAPER))
    if not fold_columns(job):
        return meanings
    style = {"ls": "", "mfc": "none", "mec": BLUE, "ms": 4.5}
    folds = [Line2D([], [], marker=fold_marker(fold), label=f"fold {fold}", **style) for fold in fold_columns(job)]
    empty = Line2D([], [], ls="", label=" ")
    return [handle for pair in zip_longest(meanings, folds, fillvalue=empty) for handle in pair]


def fold_marker(fold: int) -> str:
    return FOLD_MARKERS[fold % len(FOLD_MARKERS)]
