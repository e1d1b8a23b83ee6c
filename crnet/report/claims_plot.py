"""All claims that were tested in one plot: our difference and its interval against the paper's size."""

import textwrap
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crnet.config.labels import table_name
from crnet.errors import CrnetError
from crnet.report.claims import (
    CONTRADICTED,
    HEADER,
    NOT_RUN,
    NOT_TESTABLE,
    ONE_SEED,
    SUPPORTED,
    UNDECIDED,
    encoder_sentence,
)
from crnet.report.figures import BELOW, BLACK, BLUE, GREY, PAPER, PURPLE, SHADE, drawing, paper_handle
from crnet.runtime.files import read_csv

# Colour, marker and its filling; the verdict stands beside each line in words, too.
LOOKS = {
    SUPPORTED: {"color": BLUE, "marker": "o", "mfc": BLUE},
    CONTRADICTED: {"color": PURPLE, "marker": "s", "mfc": PURPLE},
    UNDECIDED: {"color": GREY, "marker": "o", "mfc": "white"},
}
BOUND = {"color": BLACK, "lw": 1.1, "ls": (0, (2, 1.2))}
ROW, LABEL = 0.30, 50  # inches a line; characters of a claim before it is broken


def plot_claims(job: dict[str, Any], claims_csv: Path, out_prefix: Path) -> None:
    """One line a claim that was tested, in groups by table; the others are counted below.

    ``claims_csv`` is what ``render_claims`` wrote of the same job, ``out_prefix`` a path without suffix.

    Raises:
        CrnetError: the CSV holds other claims than the job.
    """
    lines = read_csv(claims_csv)
    ids = [claim["id"] for claim in job["claims"]]
    if [line.get("id") for line in lines] != ids or set(HEADER) - set(lines[0]):
        raise CrnetError(f"{claims_csv} does not hold the claims of study {job['study']}: render the claims first.")
    # What was predicted elsewhere is no claim of the paper's.
    lines = [line for line, claim in zip(lines, job["claims"], strict=True) if not claim.get("elsewhere")]
    tested = [line for line in lines if line["estimate"]]
    groups = [(table, list(own)) for table, own in groupby(tested, key=lambda line: line["table"])]
    rows = len(tested) + len(groups)
    with drawing("The paper's claims", job["title"], 1.6 + ROW * max(rows, 1), out_prefix) as figure:
        axes = figure.subplots()
        if tested:
            _panel(axes, groups)
            once = [ONE_SEED] if any(line["seeds"] == "1" for line in tested) else []
            axes.set_xlabel("\n".join(["difference in points", *once, *encoder_sentence(job), *_left_out(lines)]))
            handles = _legend(job, tested)
            figure.legend(handles=handles, loc=BELOW, ncols=(len(handles) + 1) // 2)
        else:
            axes.set_axis_off()
            text = "\n".join(["No claim was tested in this study.", *_left_out(lines)])
            axes.text(0.5, 0.5, text, ha="center", va="center")


def _panel(axes: Axes, groups: Sequence[tuple[str, list[dict[str, str]]]]) -> None:
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.axvline(0, color=BLACK, lw=0.9, zorder=1)
    labels, y = {}, 0
    for table, lines in groups:
        axes.axhspan(y - 0.42, y + 0.42, color=SHADE, lw=0, zorder=1.5)
        axes.text(0.01, y, table_name(table), transform=axes.get_yaxis_transform(), va="center", weight="bold")
        for line in lines:
            y += 1
            labels[y] = "\n".join(textwrap.wrap(line["claim"], LABEL))
            _line(axes, y, line)
        y += 1
    axes.set_yticks(list(labels), list(labels.values()), fontsize=8.5, linespacing=1.0)
    axes.set_ylim(y - 0.4, -0.6)
    axes.margins(x=0.04)


def _line(axes: Axes, y: int, line: dict[str, str]) -> None:
    look = LOOKS[line["verdict"]]
    value, low, high, bound = (float(line[key]) for key in ("estimate", "low", "high", "bound"))
    axes.plot([low, high], [y, y], color=look["color"], lw=1.8, marker="|", ms=8, mew=1.4)
    axes.plot(value, y, ls="", ms=5, mew=1.3, **look)
    if line["paper"]:
        # above the interval, so that neither hides the other
        axes.plot(float(line["paper"]), y - 0.31, "D", mfc="white", **PAPER)
    if bound:
        axes.plot([bound, bound], [y - 0.42, y + 0.42], **BOUND)
    words = {"color": GREY if line["verdict"] == UNDECIDED else BLACK, "fontsize": 8.5, "va": "center"}
    words["weight"] = "bold" if line["verdict"] == CONTRADICTED else "normal"
    axes.text(1.01, y, line["verdict"], transform=axes.get_yaxis_transform(), **words)


def _legend(job: dict[str, Any], tested: Sequence[dict[str, str]]) -> list[Line2D]:
    seen = {line["verdict"] for line in tested}
    handles = [
        Line2D([], [], lw=1.8, ms=5, mew=1.3, label=f"ours with 95 % interval: {name}", **look)
        for name, look in LOOKS.items()
        if name in seen
    ]
    if any(line["paper"] for line in tested):
        handles.append(paper_handle(job, mfc="white", **PAPER))
    if any(float(line["bound"]) for line in tested):
        handles.append(Line2D([], [], label="bound of the verdict, where it is not 0", **BOUND))
    return handles


def _left_out(lines: Sequence[dict[str, str]]) -> list[str]:
    """How many claims are not shown, in words."""
    count = {name: sum(line["verdict"] == name for line in lines) for name in (NOT_RUN, NOT_TESTABLE)}
    undefined = sum(line["verdict"] == UNDECIDED and not line["estimate"] for line in lines)
    parts = [f"{number} {name}" for name, number in (*count.items(), ("undefined", undefined)) if number]
    return [f"Not shown, of {len(lines)} claims: {', '.join(parts)}."] if parts else []
