"""A trained network for photos of your own: ``model = crnet.load(run); masks = model.segment(supports, queries)``."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crnet.config.defaults import EVALUATE, EVALUATE_LIMITS, FINETUNE
from crnet.config.settings import check
from crnet.data.episodes import Episode
from crnet.errors import CrnetError
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Key, Pool, Predictor, foreground
from crnet.runtime.limits import PHOTOS_TOGETHER, Limits
from crnet.runtime.machine import configure
from crnet.yours.photos import CLASS, OwnPhotos, Picture, Source, enlarged, read_mask, read_photo

STRATEGIES = ("fusion", "finetune", "finetune-fusion")
MOST_SHOTS = EVALUATE_LIMITS["shots"][1]
POOL = Limits(pool_gib=0.5)  # of encoded photos: supports are used again, a query is not


@dataclass(frozen=True)
class Segmented:
    """What was found in one query."""

    picture: Picture
    small: np.ndarray  # probability of foreground, float32 (h, w), of the picture's pixels
    small_mask: np.ndarray  # bool (h, w)

    @property
    def probability(self) -> np.ndarray:
        """Of foreground, float32 (H, W) in [0, 1], at the photo's own size."""
        return enlarged(self.small, self.picture.size)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W), at the photo's own size."""
        if self.small.shape == self.picture.size:
            return self.small_mask
        return self.probability > 0.5


class Model:
    """A trained method on its encoder. Made by ``crnet.load``.

    Args:
        spec: As ``crnet.config.resolve`` makes an evaluation: train, evaluate, and finetune if it finetunes.
        choice: ``lr`` and ``steps`` of finetuning that trials chose; empty if there were none.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        encoder: Path | None,
        weights: Path | None,
        choice: dict[str, Any] | None = None,
        device: str = "cpu",
        threads: int = 1,
    ):
        configure(device, threads)
        self.spec, self.choice = spec, choice or {}
        self._photos, self._numbers = OwnPhotos(), count()
        self.predictor = Predictor(spec, self._photos, encoder, weights, device, limits=POOL)
        self.predictor.maps = _Unpadded(self.predictor.maps.compute, POOL.pool_bytes)
        self.predictor.embedded = _Unpadded(self.predictor.embedded.compute, POOL.pool_bytes)

    @property
    def strategy(self) -> str:
        """How it was evaluated with several supports."""
        return "finetune" if "finetune" in self.spec else "fusion"

    def segment(
        self, supports: Iterable[tuple[Source, Source]], queries: Iterable[Source], **how: Any
    ) -> list[np.ndarray]:
        """Masks of the queries, bool (H, W) each at its photo's own size.

        Args:
            supports: Pairs of a photo and its mask, one to 20, all of one class. Each is a path, a PIL image, or an
                array uint8 (H, W), (H, W, 3) or (H, W, 4).
            queries: Photos, likewise.
            how: See ``each``.

        Raises:
            CrnetError: A photo or mask that cannot be used, or settings that do not fit, in one sentence.
        """
        return [found.mask for found in self.each(supports, queries, **how)]

    def each(
        self,
        supports: Iterable[tuple[Source, Source]],
        queries: Iterable[Source],
        strategy: str | None = None,
        lr: float | None = None,
        steps: int | None = None,
        refinements: int | None = None,
    ) -> Iterator[Segmented]:
        """One query after the other, in their order, so that many fit into little memory; as ``segment``.

        Args:
            strategy: Of several supports: "fusion", "finetune" (predicts with the first one) or "finetune-fusion".
                None: as the run was evaluated, fusion for one support.
            lr, steps: Of finetuning, where no trials chose them or others are wanted.
            refinements: Runs of the mask refinement, 1 to 50; None: as the run was evaluated.
        """
        refinements = self.spec["evaluate"]["refinements"] if refinements is None else refinements
        check({"refinements": refinements}, EVALUATE, EVALUATE_LIMITS, "segment")
        names = self._add_supports(list(supports))
        try:
            strategy = strategy or (self.strategy if len(names) > 1 else "fusion")
            if strategy not in STRATEGIES:
                raise CrnetError(f"strategy: unknown {strategy!r}; known: {', '.join(STRATEGIES)}.")
            self.predictor.settings = {**self.spec["evaluate"], "shots": len(names), "refinements": refinements}
            if strategy == "fusion" and (lr is not None or steps is not None):
                raise CrnetError(
                    "lr, steps: are of finetuning, and this is fusion; choose finetune, or leave them out."
                )
            if strategy == "fusion":
                yield from self._fused(names, queries)
            else:
                yield from self._finetuned(names, queries, strategy == "finetune-fusion", *self._chosen(lr, steps))
        finally:
            for name in names:
                self._photos.drop(name)

    def _add_supports(self, supports: Sequence[tuple[Source, Source]]) -> tuple[str, ...]:
        if not 1 <= len(supports) <= MOST_SHOTS:
            raise CrnetError(f"supports: are {len(supports)}; give 1 to {MOST_SHOTS} pairs of a photo and its mask.")
        read = []
        for number, pair in enumerate(supports, 1):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise CrnetError(f"support {number}: is not a pair; give (photo, mask).")
            photo = read_photo(pair[0], f"the photo of support {number}")
            read.append((photo, read_mask(pair[1], photo, f"the mask of support {number}")))
        names = []
        for photo, mask in read:
            names.append(f"support {next(self._numbers)}")
            self._photos.add(names[-1], photo, mask)
        return tuple(names)

    def _fused(self, supports: tuple[str, ...], queries: Iterable[Source]) -> Iterator[Segmented]:
        for episode, picture in self._episodes(supports, queries):
            for _, probability in self.predictor.probabilities([episode]):
                yield _segmented(picture, probability)

    def _finetuned(
        self, supports: tuple[str, ...], queries: Iterable[Source], fuse: bool, lr: float, steps: int
    ) -> Iterator[Segmented]:
        """Adapted once to the supports, for all queries."""
        tuner = Finetuner(self.predictor, self.spec["train"], self.spec.get("finetune", FINETUNE))
        start = Episode(0, 0, CLASS, supports[0], supports)
        for _ in tuner.adapt(start, tuner.supports(start), lr, [steps]):
            for episode, picture in self._episodes(supports, queries):
                first, every = tuner.probabilities(episode, fuse)
                yield _segmented(picture, every if fuse else first)

    def _episodes(self, supports: tuple[str, ...], queries: Iterable[Source]) -> Iterator[tuple[Episode, Picture]]:
        for number, query in enumerate(queries, 1):
            picture, name = read_photo(query, f"query {number}"), f"query {next(self._numbers)}"
            self._photos.add(name, picture)
            try:
                yield Episode(0, 0, CLASS, name, supports), picture
            finally:
                self._photos.drop(name)

    def _chosen(self, lr: float | None, steps: int | None) -> tuple[float, int]:
        chosen = self.choice | {key: value for key, value in (("lr", lr), ("steps", steps)) if value is not None}
        if lacking := {"lr", "steps"} - set(chosen):
            what = " and ".join(sorted(lacking))
            raise CrnetError(f"finetuning: no trials chose its {what}; give them, or load a finetuned run.")
        return float(chosen["lr"]), int(chosen["steps"])


class _Unpadded(Pool):
    """Photos go through the encoder as few as they are: padding keeps bits of resumed runs, of which there are none."""

    def fill(self, keys: list[Key]) -> None:
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        for start in range(0, len(missing), PHOTOS_TOGETHER):
            batch = missing[start : start + PHOTOS_TOGETHER]
            for key, computed in zip(batch, self.compute(batch), strict=True):
                self._kept[key] = computed.clone()
                self._bytes += computed.nbytes
        super().fill(keys)  # nothing is missing any more: it moves what is in use behind the rest, and makes room


def _segmented(picture: Picture, probability: torch.Tensor) -> Segmented:
    return Segmented(picture, probability[1].float().cpu().numpy(), foreground(probability))
