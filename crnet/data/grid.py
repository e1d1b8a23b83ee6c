"""Where the cells of an encoder's stride-8 maps lie in its input, and which sizes of input fit that.

Strided convolutions with padding, as of ResNets, centre cell i on pixel 8i: "corners". Pooling without padding, as of
VGG16, centres it on 8i + 3.5, amid a tile of 8 px: "tiles". Enlarging finds every pixel exactly where the input fits:
8n + 1 px for corners (``align_corners=True``), 8n px for tiles (``align_corners=False``).
"""

from math import floor

from crnet.errors import CrnetError

STRIDE = 8
CORNERS, TILES = "corners", "tiles"
FIRST = {CORNERS: 0.0, TILES: 3.5}  # the pixel that cell 0 is centred on


def fitted(size: float, alignment: str) -> int:
    """The side in pixels, nearest to ``size``, of an input whose cells are so aligned; of two the larger."""
    beyond = 1 if alignment == CORNERS else 0
    return STRIDE * max(1, floor((size - beyond) / STRIDE + 0.5)) + beyond


def alignment_of(size: int) -> str:
    """The alignment that an input of this side in pixels fits; raises CrnetError if it fits none."""
    for alignment in (CORNERS, TILES):
        if fitted(size, alignment) == size:
            return alignment
    raise CrnetError(
        f"an input of {size} px fits no encoder: use 8n + 1 px where cells lie at pixels 8i (corners, as of ResNets), "
        "8n px where they lie at 8i + 3.5 (tiles, as of VGG16)."
    )


def alignment_in(size: int, cells: int) -> str:
    """How so many cells along a side of so many pixels lie; raises CrnetError if they fit neither way."""
    if size == STRIDE * (cells - 1) + 1:
        return CORNERS
    if size == STRIDE * cells:
        return TILES
    raise CrnetError(
        f"a map of {cells} cells along {size} px fits neither alignment: {STRIDE * (cells - 1) + 1} px would be "
        f"corners, {STRIDE * cells} px tiles; use a size that fits the encoder, which is to have a stride of 8."
    )
