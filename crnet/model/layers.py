"""Layers that several modules share."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, **options) -> nn.Conv2d:
    """A convolution that keeps the map's size (3 x 3 and biased, paper 5.1 and CaNet@fdce946)."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    dilation = options.get("dilation", 1)
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    return nn.Conv2d(inputs, outputs, (height, width), padding=padding, **options)


def norm(width: int, how: str) -> nn.Module:
    """``none``, as CaNet@fdce946; ``group``: group norm of up to 8 groups [ours], which needs fewer steps to train."""
    return nn.Identity() if how == "none" else nn.GroupNorm(math.gcd(8, width), width)


class ResidualConv(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))) (N, W, h, w), as CaNet@fdce946 builds its residual blocks."""

    def __init__(self, width: int, normalisation: str):
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        self.norm = norm(width, normalisation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.norm(self.first(F.relu(x)))))


@dataclass(frozen=True)
class Rows:
    """``places`` of some rows among ``count`` that are taken part by part."""

    places: list[int]
    count: int


class ChannelDropout(nn.Module):
    """Dropout of whole channels of maps (N, W, h, w), as ``nn.Dropout2d``: the same draws from the same seed.

    Rows that are a part of a batch get what the draw for the whole batch gives them.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        if not self.training or not self.probability:
            return x
        keep = x.new_empty((len(x) if rows is None else rows.count, x.shape[1], 1, 1))
        keep.bernoulli_(1 - self.probability).div_(1 - self.probability)
        return x * (keep if rows is None else keep[rows.places])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (N, W, h, w) -> (N, W, h, w).

    Branches as in CaNet@fdce946: image pooling, 1 x 1, and 3 x 3 dilated by 6, 12 and 18; ReLU and channel dropout
    after each, joined by a 1 x 1 convolution.
    """

    def __init__(self, width: int, dropout: float, dilations: tuple[int, ...] = (6, 12, 18)):
        super().__init__()
        self.pooled = conv(width, width, 1)
        self.branches = nn.ModuleList([conv(width, width, 1), *(conv(width, width, dilation=d) for d in dilations)])
        self.dropout = ChannelDropout(dropout)
        self.join = conv(width * (2 + len(dilations)), width, 1)

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        pooled = self.dropout(F.relu(self.pooled(x.mean((2, 3), keepdim=True))), rows)
        maps = [self.dropout(F.relu(branch(x)), rows) for branch in self.branches]
        # Pooling gives one value a channel: its share of the join is added, instead of tiled and convolved.
        tiled, weight = pooled.shape[1], self.join.weight
        joined = F.conv2d(torch.cat(maps, 1), weight[:, tiled:], self.join.bias)
        return F.relu(joined + F.conv2d(pooled, weight[:, :tiled]))


def initialise(module: nn.Module, how: str) -> None:
    """Draw the weights of convolutions: ``normal``, N(0, 0.01), or ``kaiming`` (He et al. 2015); their biases are zero.

    FC layers keep PyTorch's own start, as in CaNet@fdce946, whose loop touches ``Conv2d`` alone: drawn as narrowly as
    convolutions, they give all channels of a gate one value, and it wakes late.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if how == "normal":
                nn.init.normal_(layer.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
