"""The loss curves of a study's trainings."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from crnet.errors import CrnetError
from crnet.report.figures import BELOW, BLACK, COLOURS, drawing, fold_marker
from crnet.report.runs import label_of
from crnet.runtime.files import read_csv

SEED_LINES = ("-", "--", ":", "-.")
TITLE = 52  # characters of a panel's title before it is broken


def plot_losses(job: Mapping[str, Any], training_csv: Path, out_prefix: Path) -> None:
    """Loss and base-class mIoU of every run: panels per variant, a colour per fold, a dash per seed.

    ``job`` is ``crnet.config.study.page_job``'s: title, and what runs are called. Of ``training_csv`` the columns run,
    variant, fold, seed, step, loss and base_miou (in [0, 1], empty where it was not measured) are read; ``out_prefix``
    is a path without suffix.

    Raises:
        CrnetError: no line, a missing column, or a base_miou outside [0, 1].
    """
    lines = read_csv(training_csv)
    missing = {"run", "variant", "fold", "seed", "step", "loss", "base_miou"} - set(lines[0] if lines else ())
    if missing:
        raise CrnetError(f"{training_csv} has no line with the column {min(missing)}: no training was logged.")
    if any(line["base_miou"] and not 0 <= float(line["base_miou"]) <= 1 for line in lines):
        raise CrnetError(f"{training_csv} holds a base_miou outside [0, 1]: log fractions, not percent.")
    label = label_of(job["labels"])
    known = dict.fromkeys(map(label, lines))
    labels = [name for name in {**dict(job["labels"]), **known} if name in known]  # as in the tables
    folds, seeds = (sorted({int(line[key]) for line in lines}) for key in ("fold", "seed"))
    with drawing("Training", job["title"], 1.2 + 1.45 * len(labels), out_prefix) as figure:
        grid = figure.subplots(len(labels), 2, squeeze=False, sharex=True, sharey="col")
        for name, axes_row in zip(labels, grid, strict=True):
            _training_panels(axes_row, [line for line in lines if label(line) == name])
            axes_row[0].set_title("\n".join(textwrap.wrap(name, TITLE)), loc="left")
            axes_row[0].set_ylabel("loss")
            axes_row[1].set_ylabel("percent")
        grid[0][1].set_title("base-class mIoU", loc="left")
        for axes in grid[-1]:
            axes.set_xlabel("training step")
        handles = [
            Line2D([], [], color=COLOURS[fold % len(COLOURS)], marker=fold_marker(fold), ms=4, label=f"fold {fold}")
            for fold in folds
        ]
        handles += [
            Line2D([], [], color=BLACK, ls=SEED_LINES[seed % len(SEED_LINES)], label=f"seed {seed}") for seed in seeds
        ]
        figure.legend(handles=handles, loc=BELOW, ncols=min(len(handles), 8))


def _training_panels(axes_row: Sequence[Axes], lines: Sequence[dict[str, str]]) -> None:
    for run in dict.fromkeys(line["run"] for line in lines):
        own = sorted((line for line in lines if line["run"] == run), key=lambda line: int(line["step"]))
        fold, seed = int(own[0]["fold"]), int(own[0]["seed"])
        style = {"color": COLOURS[fold % len(COLOURS)], "ls": SEED_LINES[seed % len(SEED_LINES)], "lw": 1.1, "ms": 4}
        for axes, column, scale in zip(axes_row, ("loss", "base_miou"), (1, 100), strict=True):
            points = [(int(line["step"]), scale * float(line[column])) for line in own if line[column]]
            if points:
                # one marker, at the end of the line: tells the folds apart in grey print
                axes.plot(*zip(*points, strict=True), marker=fold_marker(fold), markevery=[-1], **style)
