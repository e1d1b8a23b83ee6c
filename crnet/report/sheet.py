"""A sheet of episodes as in the paper's Figure 6: one episode a column, support to truth from above."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from crnet.errors import CrnetError
from crnet.metrics.iou import VOID
from crnet.report.figures import GREY, ORANGE, STYLE, VERMILLION, WIDTH, save

ROWS = ("Support\nwith mask", "Query", "Prediction", "Truth")
_OPACITY = 0.45
_PER_SHEET = 8  # more columns than that are too small to see at the width of a page
_NAME = 10  # characters of a class's name on a line
_LONGEST = 320  # pixels of an embedded image's longer side: more is not visible


def draw_sheet(episodes: Sequence[dict[str, Any]], out_prefix: Path, title: str) -> None:
    """Write ``<out_prefix>.png`` and ``.svg``.

    Args:
        episodes: one dict a column: ``support`` and ``query`` uint8 (H, W, 3); ``support_mask`` and ``truth``
            uint8 (H, W), 1 foreground, 0 background, 255 void; ``prediction`` bool (H, W) of the query's size;
            ``class_name``; ``fold``; ``iou`` of this query in [0, 1], or None. Images may differ in size.
        out_prefix: path without suffix.

    Raises:
        CrnetError: no episode, more than 8, or a mask of another size than its image.
    """
    if not 1 <= len(episodes) <= _PER_SHEET:
        raise CrnetError(f"A sheet holds 1 to {_PER_SHEET} episodes, not {len(episodes)}: choose among them.")
    width = WIDTH if len(episodes) > 3 else 3 * len(episodes)
    cell = (width - 0.8) / len(episodes)
    tallest = float(max(np.divide(*e[key].shape[:2]) for e in episodes for key in ("support", "query")))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(width, 1.0 + len(ROWS) * cell * tallest), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        figure.suptitle(title, fontsize=11)
        grid = figure.subplots(len(ROWS), len(episodes), squeeze=False)
        for column, episode in zip(grid.T, episodes, strict=True):
            _draw_episode(column, episode, tallest)
        for axes, name in zip(grid[:, 0], ROWS, strict=True):
            axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
        save(figure, out_prefix, dpi=100)  # photos compress badly, and sheets are kept in git


def _draw_episode(column: Sequence[Axes], episode: dict[str, Any], box_aspect: float) -> None:
    support, query = episode["support"], episode["query"]
    panels = (
        (support, episode["support_mask"], ORANGE),
        (query, None, ""),
        (query, episode["prediction"].astype(np.uint8), VERMILLION),
        (query, episode["truth"], ORANGE),
    )
    for axes, (image, mask, colour) in zip(column, panels, strict=True):
        shown = Image.fromarray(image if mask is None else overlay(image, mask, colour))
        shown.thumbnail((_LONGEST, _LONGEST))
        height, width = image.shape[:2]
        axes.imshow(shown, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest")
        if mask is not None and 0 < np.count_nonzero(mask == 1) < mask.size:
            # white below the colour: an outline that shows on any photo, also in grey
            for line, thickness in (("white", 2.2), (colour, 1.1)):
                axes.contour(mask == 1, levels=[0.5], colors=[line], linewidths=[thickness])
        # equal boxes, so that images of other proportions keep titles and rows in line
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim", box_aspect=box_aspect)
        axes.spines[:].set_visible(False)
    # long names would run into each other
    name = "\n".join(textwrap.wrap(episode["class_name"], _NAME, break_long_words=False))
    column[0].set_title(f"{name}\nfold {episode['fold']}", fontsize=9)
    if episode["iou"] is not None:
        column[2].set_title(f"IoU {100 * episode['iou']:.0f} %", fontsize=8.5, pad=2)


def overlay(image: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    """The image with foreground tinted and void hatched in grey; uint8 (H, W, 3), as ``image``.

    Raises:
        CrnetError: image and mask differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise CrnetError(f"A mask of shape {mask.shape} does not lie on an image of shape {image.shape[:2]}.")
    tinted = image.astype(float)
    rows, columns = np.indices(mask.shape)
    stripes = (rows + columns) // max(1, min(mask.shape) // 64) % 2 == 0
    for chosen, tint in ((mask == 1, colour), ((mask == VOID) & stripes, GREY)):
        tinted[chosen] = (1 - _OPACITY) * tinted[chosen] + _OPACITY * 255 * np.array(to_rgb(tint))
    return tinted.round().astype(np.uint8)
