"""Condition module (paper 4.4, Figure 4): tells both branches which category the support mask shows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.data.grid import CORNERS, STRIDE
from crnet.model.grid import alignment
from crnet.model.layers import ResidualConv, conv, norm

EPSILON = 5e-4  # in the denominator, CaNet@fdce946: an empty mask gives a zero vector, not a division by zero


def foreground_share(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask (N, H, W) of {0, 1, 255 void} -> share of foreground around each cell of the map, (N, 1, h, w) in [0, 1].

    Areas are averaged: bilinear sampling of a fine mask, as CANet does, can miss a small object altogether. They are
    centred on the cells, 9 x 9 px around a pixel (corners) or 8 x 8 px (tiles).

    Raises:
        CrnetError: So many cells do not fit so many pixels.
    """
    foreground = (mask == 1).float()[:, None]
    if alignment(size, mask.shape[-2:]) == CORNERS:
        return F.avg_pool2d(foreground, 9, STRIDE, padding=4, count_include_pad=False)
    return F.avg_pool2d(foreground, STRIDE)


def foreground_average_pooling(features: Tensor, mask: Tensor) -> Tensor:
    """Mean of features (N, W, h, w) over the foreground of mask (N, H, W): the category vector (N, W), float32."""
    share = foreground_share(mask, features.shape[-2:])
    return (features.float() * share).sum((2, 3)) / (share.sum((2, 3)) + EPSILON)


class Condition(nn.Module):
    """Category vector (N, W), tiled and joined to a map (N, W, h, w), through a residual convolution: (N, W, h, w).

    One module serves both branches: "share all the parameters" (paper 4.4).
    """

    def __init__(self, width: int, normalisation: str = "none"):
        super().__init__()
        self.enter, self.residual = conv(2 * width, width), ResidualConv(width, normalisation)
        self.norm = norm(width, normalisation)

    def forward(self, features: Tensor, category: Tensor) -> Tensor:
        tiled = category.to(features.dtype)[:, :, None, None].expand_as(features)
        return F.relu(self.residual(self.norm(self.enter(torch.cat([features, tiled], 1)))))
