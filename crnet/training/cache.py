"""The confidence cache of training: a photo's last prediction for a class, kept for its next visit (CaNet@fdce946).

Both branches share it, as they share their weights: a photo may find what it gave in the other role. CANet has one.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from crnet.runtime.seeding import derive

Key = tuple[str, int]  # photo, class id


class ProbabilityCache:
    """(photo, class) -> probability map (2, h, w), unmirrored, float16; part of the training state.

    Args:
        reset: Probability that a stored map is passed over and zeros are given, which teaches the first pass too.
    """

    def __init__(self, reset: float, fold: int, seed: int):
        self.reset, self.fold, self.seed = reset, fold, seed
        self._maps: dict[Key, Tensor] = {}

    def read(self, keys: list[Key], flipped: list[bool] | None, step: int, branch: str, like: Tensor) -> Tensor:
        """Maps (N, 2, h, w) on the device and at the size of ``like`` (N, C, h, w); zeros where nothing is stored."""
        result = torch.zeros(len(keys), 2, *like.shape[-2:])
        if flipped is not None:
            generator = np.random.default_rng(derive("cache reset", branch, self.fold, self.seed, step))
            for i, (key, keep) in enumerate(zip(keys, generator.random(len(keys)) >= self.reset, strict=True)):
                if keep and key in self._maps:
                    stored = self._maps[key].float()
                    result[i] = stored.flip(-1) if flipped[i] else stored
        return result.to(like.device)

    def write(self, keys: list[Key], flipped: list[bool] | None, probability: Tensor) -> None:
        """Keep ``probability`` (N, 2, h, w); nothing is kept of cropped photos (``flipped`` None)."""
        if flipped is None:
            return
        for key, mirrored, stored in zip(keys, flipped, probability.to("cpu", torch.float16), strict=True):
            self._maps[key] = stored.flip(-1) if mirrored else stored.clone()

    def state(self) -> dict[str, Any]:
        keys = list(self._maps)
        return {
            "keys": [list(key) for key in keys],
            "maps": torch.stack([self._maps[k] for k in keys]) if keys else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._maps = {(photo, c): state["maps"][i] for i, (photo, c) in enumerate(state["keys"])}
