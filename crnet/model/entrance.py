"""How the heads of several methods take the encoder's maps in."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crnet.model.layers import conv


class Entrance(nn.Module):
    """Encoder maps [(N, C_i, h, w)], joined, through one convolution: (N, width, h, w), without activation.

    Args:
        equalise: Each map divided by its root mean square, so that no level drowns another [ours].
        options: Of the convolution.
    """

    def __init__(self, channels: tuple[int, ...], width: int, kernel: int, equalise: bool = False, **options):
        super().__init__()
        self.equalise, self.conv = equalise, conv(sum(channels), width, kernel, **options)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.conv(joined(maps, self.equalise))


def joined(maps: list[Tensor], equalise: bool) -> Tensor:
    """Maps [(N, C_i, h, w)] along channels, each divided by its root mean square if ``equalise``."""
    if equalise:
        maps = [m / m.float().square().mean((1, 2, 3), keepdim=True).add(1e-6).sqrt().to(m.dtype) for m in maps]
    return torch.cat(maps, 1)


def centred(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Maps (N, C_i, h, w), each channel minus its mean over the map."""
    return tuple(m - m.float().mean((2, 3), keepdim=True).to(m.dtype) for m in maps)
