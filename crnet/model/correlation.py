"""Correlations of two maps, and centre-pivot 4D convolutions of them (hsnet@6b1bc12).

Shapes: N pairs, C channels, a x b the query's cells, c x d the support's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.model.pyramid import resize

GROUPS = 4  # of the group norms, as far as they divide the channels
SMALL = 1e-5  # in the norms


def correlation(query: Tensor, support: Tensor) -> Tensor:
    """Cosines of cells of two maps (N, D, a, b) and (N, D, c, d): (N, a, b, c, d), negative ones zero."""
    query, support = (m / (m.norm(dim=1, keepdim=True) + SMALL) for m in (query, support))
    return torch.einsum("nxab,nxcd->nabcd", query, support).clamp(min=0)


def resize_query(correlations: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, a, b, c, d) -> (N, C, *size, c, d), bilinear over the query's sides."""
    n, channels, a, b, c, d = correlations.shape
    maps = correlations.permute(0, 1, 4, 5, 2, 3).reshape(n, -1, a, b)
    return resize(maps, size).reshape(n, channels, c, d, *size).permute(0, 1, 4, 5, 2, 3)


class CentrePivot(nn.Module):
    """A 4D convolution (N, C, a, b, c, d) -> (N, outputs, a, b, c / stride, d / stride), group norm and ReLU.

    Of the 4D kernel only two planes through its centre are kept: a 2D convolution over the query's sides, at each
    ``stride``-th support cell, and one over the support's sides, at each query cell.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.over_query = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.over_support = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.GroupNorm(math.gcd(GROUPS, outputs), outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.convolve(x)))

    def convolve(self, x: Tensor) -> Tensor:
        """Without norm and ReLU."""
        n, _, a, b, _, _ = x.shape
        kept = x[..., :: self.stride, :: self.stride]
        c, d = kept.shape[-2:]
        over_query = self.over_query(kept.permute(0, 4, 5, 1, 2, 3).flatten(0, 2))  # (N c d, outputs, a, b)
        over_query = over_query.reshape(n, c, d, -1, a, b).permute(0, 3, 4, 5, 1, 2)
        over_support = _strided(self.over_support, x.permute(0, 2, 3, 1, 4, 5).flatten(0, 2))  # (N a b, outputs, c, d)
        return over_query + over_support.reshape(n, a, b, -1, c, d).permute(0, 3, 1, 2, 4, 5)


def _strided(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of many small maps (N, C, c, d); on a CPU as a product of matrices.

    In bfloat16 oneDNN leaves what was in memory, up to 1e35 or NaN, in gradients of kernels that hardly fit into their
    map: of 3 x 3 with stride 2 on 1 x 1, of 5 x 3 with stride 4 on 5 x 3 (torch 2.11, AMX).
    """
    if x.device.type != "cpu":
        return convolution(x)
    kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
    cells = F.unfold(x, kernel, stride=stride, padding=padding).mT  # (N, cells, C * taps)
    sides = [(side - 1) // step + 1 for side, step in zip(x.shape[-2:], stride, strict=True)]
    return F.linear(cells, convolution.weight.flatten(1), convolution.bias).mT.unflatten(2, sides)
