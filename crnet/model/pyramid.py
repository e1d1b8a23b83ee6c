"""Maps of several sizes: how they are brought to one."""

from torch import Tensor
from torch.nn import functional as F


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Features (N, C, h, w) -> (N, C, *size), bilinear, corners on corners, as CANet, PFENet and HSNet do it."""
    return maps if maps.shape[-2:] == tuple(size) else F.interpolate(maps, size, mode="bilinear", align_corners=True)
