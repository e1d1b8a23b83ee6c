"""Mask refinement module (paper 4.5, Figure 5): predicts from the features and from its own last prediction.

The figure is not in the text we hold; the wiring follows the text's description of the three blocks.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.model.layers import ChannelDropout, Rows, conv, norm


class DownsampleBlock(nn.Module):
    """Halves the map, returns it at its original size: (N, W, h, w) -> (N, W, h, w) with a wider view.

    The convolution is centred on cells 0, 2, 4, ...: an even side gets one more cell at its end, so that the last of
    these is the map's last and enlarging brings each back to where it was.
    """

    def __init__(self, width: int):
        super().__init__()
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, 1 - width % 2, 0, 1 - height % 2))
        halved = F.relu(self.down(padded))
        enlarged = F.interpolate(halved, size=padded.shape[-2:], mode="bilinear", align_corners=True)
        return enlarged[..., :height, :width]


class GlobalConvolution(nn.Module):
    """Two groups of 1 x 7 and 7 x 1 convolutions in either order, added (Peng et al. 2017): (N, W, h, w) -> same."""

    def __init__(self, width: int, kernel: int = 7):
        super().__init__()
        self.rows_first = nn.Sequential(conv(width, width, (1, kernel)), conv(width, width, (kernel, 1)))
        self.columns_first = nn.Sequential(conv(width, width, (kernel, 1)), conv(width, width, (1, kernel)))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.rows_first(x) + self.columns_first(x))


class CombineBlock(nn.Module):
    """Streams, joined along channels, -> logits (N, 2, h, w)."""

    def __init__(self, inputs: int, width: int, normalisation: str, dropout: float):
        super().__init__()
        self.dropout = ChannelDropout(dropout)
        self.join, self.classify = conv(inputs, width), conv(width, 2)
        self.norm = norm(width, normalisation)

    def forward(self, streams: list[Tensor], rows: Rows | None = None) -> Tensor:
        return self.classify(self.dropout(F.relu(self.norm(self.join(torch.cat(streams, 1)))), rows))


class MaskRefinement(nn.Module):
    """Features (N, C, h, w) and the cached probability map (N, 2, h, w) -> logits (N, 2, h, w).

    Args:
        inputs: C, the channels of condition and cross-reference features together.
        cached: Whether there is a cache stream. Without it (Table 3's baseline) the features meet their own
            downsampled selves, so that the rest stays as it is, and ``cache`` is not read.
        dropout: Of channels of the joined streams, in training.
    """

    def __init__(self, inputs: int, width: int, cached: bool, normalisation: str = "none", dropout: float = 0.0):
        super().__init__()
        self.enter_features, self.norm = conv(inputs, width), norm(width, normalisation)
        self.down_features, self.global_features = DownsampleBlock(width), GlobalConvolution(width)
        self.cached = cached
        if cached:
            self.enter_cache = conv(2, width)
            self.down_cache, self.global_cache = DownsampleBlock(width), GlobalConvolution(width)
        self.combine = CombineBlock(2 * width if cached else width, width, normalisation, dropout)

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What stays the same in every recurrence: the feature stream (N, W, h, w) and its downsampled self."""
        stream = F.relu(self.norm(self.enter_features(features)))
        return stream, self.down_features(stream)

    def forward(self, read: tuple[Tensor, Tensor], cache: Tensor | None, rows: Rows | None = None) -> Tensor:
        """One prediction from what ``read`` returned and the last probability map (zeros at first).

        Args:
            rows: Which rows of a batch these are, where they are a part of it.
        """
        stream, downsampled = read
        if not self.cached:
            return self.combine([self.global_features(stream + downsampled)], rows)
        cache = F.relu(self.enter_cache(cache.to(stream.dtype)))
        features = self.global_features(stream + self.down_cache(cache))
        return self.combine([features, self.global_cache(cache + downsampled)], rows)
