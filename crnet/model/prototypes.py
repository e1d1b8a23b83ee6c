"""Masked average pooling and the cosine to what it gives: what most methods know of a class.

Shapes: N queries with k supports each; what is of supports has N k rows, the k of the first query first.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from crnet.model.condition import EPSILON, foreground_share

SMALL = 1e-7  # in the denominator of a cosine, PFENet@a505675


def background_share(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask (N, H, W) of {0, 1, 255 void} -> share of background around each cell of the map, (N, 1, h, w) in [0, 1]."""
    return foreground_share((mask == 0).byte(), size)


def masked_average(features: Tensor, share: Tensor) -> Tensor:
    """Mean of features (N, D, h, w) weighed by share (N, 1, h, w): (N, D), float32; zeros where nothing is."""
    return (features.float() * share).sum((2, 3)) / (share.sum((2, 3)) + EPSILON)


def foreground_and_background(features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The masked averages (N, D) of features (N, D, h, w) over foreground and background of mask (N, H, W)."""
    shares = (share(mask, features.shape[-2:]) for share in (foreground_share, background_share))
    foreground, background = (masked_average(features, share) for share in shares)
    return foreground, background


def per_query(of_supports: Tensor, shots: int) -> Tensor:
    """(N k, ...) -> (N, k, ...)."""
    return of_supports.unflatten(0, (-1, shots))


def mean_of_shots(of_supports: Tensor, shots: int) -> Tensor:
    """(N k, ...) -> (N, ...), the mean over the supports of each query."""
    return per_query(of_supports, shots).mean(1)


def cosine(features: Tensor, vector: Tensor) -> Tensor:
    """Cosine in [-1, 1] of features (N, D, h, w) at each cell to a vector (N, D): (N, 1, h, w), float32."""
    features, vector = F.normalize(features.float(), dim=1), F.normalize(vector.float(), dim=1)
    return torch.einsum("ndhw,nd->nhw", features, vector).clamp(-1, 1)[:, None]


def tiled(vector: Tensor, like: Tensor) -> Tensor:
    """A vector (N, D) at every cell of a map (N, ., h, w): (N, D, h, w) in the map's precision."""
    return vector.to(like.dtype)[:, :, None, None].expand(-1, -1, *like.shape[-2:])
