"""Between the cells of maps and the pixels of the input, exactly as ``crnet/data/grid.py`` says that they lie."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from crnet.data.grid import CORNERS, FIRST, STRIDE, alignment_in
from crnet.errors import CrnetError


def alignment(cells: Sequence[int], pixels: Sequence[int]) -> str:
    """Of maps of (h, w) cells in an input of (H, W) pixels; raises CrnetError if they do not fit each other."""
    height, width = (alignment_in(*side) for side in zip(pixels, cells, strict=True))
    if height != width:
        raise CrnetError(f"an input of {pixels[0]} x {pixels[1]} px fits {height} in height and {width} in width.")
    return height


def enlarged(maps: Tensor, pixels: Sequence[int]) -> Tensor:
    """Maps (N, C, h, w) at every pixel of their input, (N, C, H, W), bilinear.

    Raises:
        CrnetError: So many cells do not fit so many pixels.
    """
    corners = alignment(maps.shape[-2:], pixels) == CORNERS
    return F.interpolate(maps, size=tuple(pixels), mode="bilinear", align_corners=corners)


def at_own_size(maps: Tensor, pixels: Sequence[int], own: Sequence[int]) -> Tensor:
    """Maps (N, C, h, w) at every pixel of the photo of ``own`` height and width that was squashed to ``pixels``.

    Bilinear between cells, in one step; beyond the outermost cells their values are kept.

    Raises:
        CrnetError: So many cells do not fit so many pixels.
    """
    how = alignment(maps.shape[-2:], pixels)
    if how != CORNERS:  # cells tile the input, and so the photo
        return F.interpolate(maps, size=tuple(own), mode="bilinear", align_corners=False)
    seen = [(torch.arange(n) + 0.5) * (side / n) - 0.5 for n, side in zip(own, pixels, strict=True)]
    return sampled(maps, *(cell_of(each, how) for each in seen))


def pixel_of(cell: Tensor, how: str) -> Tensor:
    """Pixels of the input that cells of an alignment are centred on."""
    return STRIDE * cell + FIRST[how]


def cell_of(pixel: Tensor, how: str) -> Tensor:
    """Places among the cells, in fractions of a cell, of pixels of the input."""
    return (pixel - FIRST[how]) / STRIDE


def sampled(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps (N, C, h, w) at ``rows`` (H) x ``columns`` (W), in fractions of a cell, bilinear: (N, C, H, W)."""
    y, x = (2 * places / (n - 1) - 1 for places, n in zip((rows, columns), maps.shape[-2:], strict=True))
    where = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(maps)
    where = where.expand(len(maps), *where.shape)
    return F.grid_sample(maps, where, mode="bilinear", padding_mode="border", align_corners=True)
