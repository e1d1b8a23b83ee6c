"""The k-shot curve: what more supports are worth to each strategy, for the stripped and the full model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from crnet.errors import CrnetError
from crnet.report.figures import BELOW, BLUE, GREEN, GREY, ORANGE, drawing, paper_handle, scope
from crnet.report.tables.cells import METRIC_NAMES, VOID_NAMES, VOIDS
from crnet.runtime.files import read_csv

MODELS = {"stripped": "Stripped model (Table 2, both)", "full": "Full model"}
# Colour, marker and dash all differ, so that any one of them is enough.
STRATEGIES = {
    "fusion": ("Fusion", BLUE, "o", "-"),
    "finetune": ("Finetune", ORANGE, "s", (0, (6, 2))),
    "finetune-fusion": ("Finetune + fusion", GREEN, "^", (0, (6, 2, 1, 2))),
}
METRIC, VOID = "miou", VOIDS[0]
_DODGE = 0.07  # between strategies, so that their intervals stand side by side


def plot_k_shot(job: dict[str, Any], table_csv: Path, out_prefix: Path) -> None:
    """mIoU over shots with intervals: a panel for each model, a line for each strategy, the paper's values.

    ``job`` is Table 4's, with rows named ``<model>-<strategy>`` and its shots as x axis, ``table_csv`` what
    ``render_table`` wrote of it, ``out_prefix`` a path without suffix.

    Raises:
        CrnetError: the table has no row of a known model and strategy.
    """
    lines = [line for line in read_csv(table_csv) if line["fold"] == "mean"]
    lines = [line for line in lines if (line["metric"], line["void"]) == (METRIC, VOID)]
    there = {line["row"] for line in lines}
    models = [name for name in MODELS if there & {f"{name}-{strategy}" for strategy in STRATEGIES}]
    if not models:
        wanted = f"{next(iter(MODELS))}-{next(iter(STRATEGIES))}"
        raise CrnetError(f"{table_csv} has no row such as {wanted!r}: the k-shot curve is drawn from Table 4.")
    shots = [str(count) for count in job["shots"]]
    control = _best_control(job, lines, shots)
    title = f"{METRIC_NAMES[METRIC]} by number of supports, {VOID_NAMES[VOID]}{scope(job)}"
    with drawing(title, job["study_title"], 4.4, out_prefix) as figure:
        panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
        for name, axes in zip(models, panels, strict=True):
            _panel(axes, name, lines, shots, control)
        panels[0].set_ylabel("percent")
        handles = _legend(job, lines, control)
        figure.legend(handles=handles, loc=BELOW, ncols=len(handles))


def _best_control(job: dict, lines: Sequence[dict[str, str]], shots: Sequence[str]) -> str | None:
    controls = {row["id"] for row in job["rows"] if row["control"]}
    known = [line for line in lines if line["row"] in controls and line["value"] and line["shots"] in shots]
    return max(known, key=lambda line: float(line["value"]))["row"] if known else None


def _panel(axes: Axes, model: str, lines: Sequence[dict[str, str]], shots: Sequence[str], control: str | None) -> None:
    axes.set_title(MODELS[model], loc="left")
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(shots)), [f"{count}-shot" for count in shots])
    axes.set_xlim(-0.4, len(shots) - 0.6)
    if control:
        points = _points(lines, control, shots, 0)
        axes.plot([p[0] for p in points], [p[1] for p in points], color=GREY, ls=":", marker="x", ms=5, lw=1.2)
    curves = {}
    for position, (strategy, (_, colour, marker, dash)) in enumerate(STRATEGIES.items()):
        curves[strategy] = _points(lines, f"{model}-{strategy}", shots, _DODGE * (position - 1))
        if not curves[strategy]:
            continue
        x, value, low, high = zip(*curves[strategy], strict=True)
        axes.vlines(x, low, high, color=colour, lw=1.6)
        axes.plot(x, low, "_", x, high, "_", color=colour, ms=6, mew=1.4)
        axes.plot(x, value, color=colour, ls=dash, lw=1.5, marker=marker, ms=5.5)
        origin = curves["fusion"][0] if curves["fusion"] else None
        if origin and origin[0] < x[0] - 0.5:  # begins at more shots: where it comes from
            axes.plot([origin[0], x[0]], [origin[1], value[0]], color=colour, ls=(0, (1, 2)), lw=1.1, zorder=1)
    for position, (strategy, (_, colour, *_)) in enumerate(STRATEGIES.items()):
        for line in lines:
            if line["row"] == f"{model}-{strategy}" and line["paper"] and line["shots"] in shots:
                x = shots.index(line["shots"]) + _DODGE * (position - 1)
                axes.plot(x, float(line["paper"]), "D", mfc="white", mec=colour, mew=1.4, ms=5.5)
    if not any(curves.values()):
        axes.text(0.5, 0.5, "no value", transform=axes.transAxes, ha="center", color=GREY)


def _points(lines: Sequence[dict[str, str]], row: str, shots: Sequence[str], dodge: float) -> list[tuple[float, ...]]:
    """The row's place on the axis of shots, value, low and high from few shots to many, those that there are."""
    own = {line["shots"]: line for line in lines if line["row"] == row and line["value"]}
    return [
        (place + dodge, *(float(own[count][key]) for key in ("value", "low", "high")))
        for place, count in enumerate(shots)
        if count in own
    ]


def _legend(job: dict, lines: Sequence[dict[str, str]], control: str | None) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, ls=dash, lw=1.5, ms=5.5, label=name)
        for name, colour, marker, dash in STRATEGIES.values()
    ]
    if any(line["paper"] for line in lines):
        handles.append(paper_handle(job, mfc="white", mec="black", mew=1.4, ms=5.5))
    if control:
        label = next(row["label"] for row in job["rows"] if row["id"] == control)
        handles.append(Line2D([], [], color=GREY, ls=":", marker="x", ms=5, lw=1.2, label=f"{label} (control)"))
    return handles
