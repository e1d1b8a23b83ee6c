"""The confidence cache of training: what a branch last predicted on a photo for a class, for the next visit.

CaNet@fdce946 keeps the query's, of photos that it does not crop. Here each branch keeps its own, and with it where in
the photo the network looked: another crop finds what it shows of the one before.
"""

from dataclasses import astuple, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crnet.data.transforms import Placement
from crnet.model.grid import alignment, cell_of, pixel_of, sampled
from crnet.runtime.seeding import derive

Key = tuple[str, int]  # photo, class id
ROUNDING = 1e-6  # of the input: what is that near to the edge of what was seen was seen


class ProbabilityCache:
    """Branch, photo, class -> probability map (2, h, w), float16, as it was seen; part of the training state.

    Args:
        reset: Probability that a stored map is passed over and zeros are given, which teaches the first pass too.
        size: Side in pixels of the input.
    """

    def __init__(self, reset: float, fold: int, seed: int, size: int):
        self.reset, self.fold, self.seed, self.size = reset, fold, seed, size
        self._visits: dict[tuple[str, str, int], tuple[Placement, Tensor]] = {}

    def read(self, branch: str, keys: list[Key], placements: list[Placement], step: int, like: Tensor) -> Tensor:
        """Maps (N, 2, h, w) on the device and at the size of ``like`` (N, C, h, w); zeros where nothing is stored.

        Args:
            branch: "query" or "support".
            placements: Where in the photos the network looks now.
        """
        result = torch.zeros(len(keys), 2, *like.shape[-2:])
        generator = np.random.default_rng(derive("cache reset", branch, self.fold, self.seed, step))
        kept = generator.random(len(keys)) >= self.reset
        for i, (key, placement) in enumerate(zip(keys, placements, strict=True)):
            if kept[i] and (visit := self._visits.get((branch, *key))):
                result[i] = moved(visit[1].float(), visit[0], placement, self.size)
        return result.to(like.device)

    def write(self, branch: str, keys: list[Key], placements: list[Placement], probability: Tensor) -> None:
        """Keep ``probability`` (N, 2, h, w) of what was seen at ``placements``."""
        maps = probability.to("cpu", torch.float16)
        for key, placement, seen in zip(keys, placements, maps, strict=True):
            self._visits[branch, *key] = placement, seen.clone()

    def state(self) -> dict[str, Any]:
        visits = list(self._visits.values())
        return {
            "keys": [list(key) for key in self._visits],
            "placements": [list(astuple(placement)) for placement, _ in visits],
            "maps": torch.stack([each for _, each in visits]) if visits else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        entries = enumerate(zip(state["keys"], state["placements"], strict=True))
        self._visits = {tuple(key): (Placement(*where), state["maps"][i]) for i, (key, where) in entries}


def moved(probability: Tensor, seen: Placement, wanted: Placement, size: int) -> Tensor:
    """A map (2, h, w) of what was seen at one place of a photo, at another; zeros where nothing was seen.

    Args:
        size: Side in pixels of the input.

    Raises:
        CrnetError: So many cells do not fit so many pixels.
    """
    if replace(wanted, flipped=seen.flipped) == seen:
        return probability if wanted == seen else probability.flip(-1)
    cells = probability.shape[-2:]
    how = alignment(cells, (size, size))

    def there(count: int, start: float, start_seen: float, turned: bool, turned_seen: bool) -> tuple[Tensor, Tensor]:
        """Places of the wanted cells among those that were seen, and whether they were."""
        pixel = pixel_of(torch.arange(count, dtype=torch.float64), how)
        place = start + ((size - 1 - pixel if turned else pixel) + 0.5) / (size * wanted.scale)  # in the photo
        share = (place - start_seen) * seen.scale  # of what was seen
        pixel = share * size - 0.5
        return cell_of(size - 1 - pixel if turned_seen else pixel, how), (share - 0.5).abs() <= 0.5 + ROUNDING

    rows, rows_seen = there(cells[0], wanted.top, seen.top, False, False)
    columns, columns_seen = there(cells[1], wanted.left, seen.left, wanted.flipped, seen.flipped)
    return sampled(probability[None], rows, columns)[0] * (rows_seen[:, None] & columns_seen)
