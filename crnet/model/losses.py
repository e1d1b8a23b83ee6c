"""Cross-entropy at the masks' size, with void left out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from crnet.model.grid import enlarged

FOREGROUND, VOID = 1, 255


def mean_cross_entropy(logits: Tensor, masks: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Mean over the pixels of masks (N, H, W) of {0, 1, 255 void} that are not void; 0 where all are.

    Args:
        logits: (N, 2, h, w), enlarged to the masks. Of two channels only their difference counts.
        pixels: Not void in the batch of which this is a part, so that the parts add up to its mean.
    """
    target, weight = (masks == FOREGROUND)[:, None].float(), (masks != VOID)[:, None].float()
    difference = enlarged((logits[:, 1].float() - logits[:, 0].float())[:, None], masks.shape[-2:])
    total = F.binary_cross_entropy_with_logits(difference, target, weight, reduction="sum")
    return total / (weight.sum() if pixels is None else pixels).clamp(min=1)


def two_channels(foreground: Tensor) -> Tensor:
    """A score of the foreground (N, 1, h, w) as logits (N, 2, h, w), of which the background's are 0."""
    return torch.cat([torch.zeros_like(foreground), foreground], 1)
