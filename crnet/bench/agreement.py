"""Whether a fast way gives what the plain one gives, within the rounding of the precision."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crnet.errors import CrnetError
from crnet.methods import Method


@dataclass(frozen=True)
class Rounding:
    """How far two ways of the same arithmetic may part.

    Attributes:
        values: Distance of maps or logits, over the length of the plain one's.
        gradients: Likewise, all gradients as one vector: a value near a ReLU's kink flips whole terms of it.
        pixels: Share of the pixels of masks.
    """

    values: float
    gradients: float
    pixels: float


# bfloat16 keeps 8 bits, float32 24; what some twenty layers of random weights make of that was measured, and doubled.
ROUNDING = {"float32": Rounding(1e-4, 2e-3, 1e-3), "bfloat16": Rounding(5e-2, 1e-1, 4e-2)}


def relative(ours: Tensor, reference: Tensor) -> float:
    """Distance of two tensors of one shape over the length of the reference."""
    ours, reference = ours.detach().float().cpu(), reference.detach().float().cpu()
    return ((ours - reference).norm() / reference.norm()).item()


def differing(ours: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Share of pixels that differ, of masks bool (H, W) in pairs."""
    wrong = sum(int((a != b).sum()) for a, b in zip(ours, reference, strict=True))
    return wrong / sum(a.size for a in ours)


def gradient(method: Method) -> Tensor:
    """All gradients in one vector; a parameter that has none has zeros."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in method.parameters()]
    return torch.cat([part.float().flatten() for part in parts])


@contextmanager
def recorded_logits(method: Method) -> Iterator[list[Tensor]]:
    """Collects what ``predict`` returns, (N, 2, h, w) a call, in float32."""
    found, original = [], method.predict

    def predict(*args, **kwargs) -> Tensor:
        found.append(original(*args, **kwargs))
        return found[-1]

    method.predict = predict
    try:
        yield found
    finally:
        del method.predict


def require(what: str, reached: float, allowed: float) -> str:
    """``what`` with the difference, for a note; raises CrnetError if it is above rounding."""
    if not reached <= allowed:
        raise CrnetError(
            f"bench: {what} of the fast way and of the plain one differ by {reached:.1e}, above the rounding of "
            f"{allowed:.0e}: one of them is wrong, and their times cannot be compared."
        )
    return f"{what} differ by {reached:.1e}"
