"""Finetuning on an episode's supports (paper 4.6): all but the encoder, on ordered pairs of the labelled supports.

An episode starts from the trained weights and leaves no trace: they are copied back bit by bit before the next, and all
chance is derived from the episode, so neither order nor interruption changes a result.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor

from crnet.config.defaults import scaled
from crnet.data.episodes import Episode
from crnet.data.transforms import WHOLE
from crnet.encoders.frozen import autocast
from crnet.errors import CrnetError
from crnet.evaluation.predict import Prediction, Predictor, foreground
from crnet.methods import Embedded, Pairs, Share, Step, each
from crnet.runtime.seeding import derive
from crnet.training.accumulation import accumulate, shares, weighed
from crnet.training.cache import ProbabilityCache
from crnet.training.optimisation import optimiser


class Diverged(CrnetError):
    """The loss on the supports is no longer finite."""


@dataclass
class Supports:
    """The k supports of an episode at scale 1, encoded once.

    Attributes:
        maps: The encoder's maps, joined along channels, (k, C, h, w).
        masked: Likewise of the photos without background; None if the method needs none.
        masks: uint8 (k, S, S) of {0, 1, 255 void}.
    """

    photos: tuple[str, ...]
    class_id: int
    maps: Tensor
    masked: Tensor | None
    masks: Tensor

    def __len__(self) -> int:
        return len(self.photos)


class Finetuner:
    """Adapts the predictor's method to one episode after the other.

    Args:
        predictor: Its method has the trained weights.
        train: Specification of the training, for names of seeds and the confidence cache's reset.
        settings: As ``FINETUNE`` in ``crnet.config.defaults``.
    """

    def __init__(self, predictor: Predictor, train: dict, settings: dict):
        self.predictor, self.method, self.train, self.settings = predictor, predictor.method, train, settings
        self.trained = {name: value.detach().clone() for name, value in self.method.state_dict().items()}

    def predictions(self, episodes: Iterable[Episode], lr: float, steps: int) -> Iterator[Prediction]:
        """Each episode's query, after finetuning on its supports.

        With no step at all the bits are those of ``Predictor.readings``: of an evaluation that does not finetune.
        """
        if not steps:
            yield from self._untouched(list(episodes))
            return
        for episode in episodes:
            supports = self.supports(episode)
            before = self.loss(supports)
            for _ in self.adapt(episode, supports, lr, [steps]):
                after = self.loss(supports)
                query, fused = self.predict(episode)
            yield Prediction(episode, query, fused=fused, support_loss=(before, after))

    def _untouched(self, episodes: list[Episode]) -> Iterator[Prediction]:
        self.predictor.maps.room = 0  # of supports, for their loss; the room is that of the embedded photos
        for episode, first, every in self.predictor.readings(episodes):
            loss = self.loss(self.supports(episode))
            yield Prediction(episode, foreground(first), fused=foreground(every), support_loss=(loss, loss))

    def restore(self) -> None:
        """The trained weights and buffers, bit by bit."""
        with torch.no_grad():
            for name, value in self.method.state_dict().items():
                value.copy_(self.trained[name])
        self.method.eval().requires_grad_(False)

    def supports(self, episode: Episode) -> Supports:
        predictor, shots = self.predictor, self.predictor.settings["shots"]
        photos, class_id = episode.supports[:shots], episode.class_id
        predictor.maps.fill(predictor.keys(episode, 1.0))
        masked = None
        if self.method.needs_masked:
            masked = predictor.maps.take([(photo, class_id, 1.0) for photo in photos])
        masks = np.stack([predictor.support_mask(photo, class_id, predictor.settings["size"]) for photo in photos])
        maps = predictor.maps.take([(photo, None, 1.0) for photo in photos])
        return Supports(photos, class_id, maps, masked, torch.from_numpy(masks).to(predictor.device))

    def adapt(self, episode: Episode, supports: Supports, lr: float, checkpoints: Iterable[int]) -> Iterator[int]:
        """Finetune from the trained weights; yields at each of the numbers of steps, of which 0 is one, then restores.

        Raises:
            Diverged: The loss is not finite.
        """
        checkpoints = set(checkpoints)
        if 0 in checkpoints:
            yield 0
        seed = self.seed_of(episode)
        reset, size = self.train["model"].get("cache_reset", 0.0), self.predictor.settings["size"]
        cache = ProbabilityCache(reset, self.train["fold"], seed, size)
        draws = batches_of_pairs(ordered_pairs(len(supports), self.settings["pairs"]), self.settings["batch"], seed)
        try:
            optimise = optimiser(self.method.requires_grad_(True), {**self.settings, "lr": lr})
            for step in range(max(checkpoints)):
                self.method.train().requires_grad_(True)
                self._step(supports, next(draws), optimise, cache, step, derive("finetune step", seed, step))
                if step + 1 in checkpoints:
                    self.method.eval().requires_grad_(False)
                    yield step + 1
        finally:
            self.restore()

    def _step(
        self,
        supports: Supports,
        chosen: list[tuple[int, int]],
        optimise: torch.optim.Optimizer,
        cache: ProbabilityCache,
        step: int,
        seed: int,
    ) -> None:
        keys = [[(supports.photos[pair[branch]], supports.class_id) for pair in chosen] for branch in (1, 0)]
        whole = [WHOLE] * len(chosen)

        def losses(share: Share | None) -> Step:
            rows = slice(None) if share is None else share.rows
            with autocast(self.predictor.device, self.predictor.settings["precision"]):
                pairs = self._pairs(supports, chosen[rows], share)
                if self.method.stores_cache:  # chance is drawn for the whole batch
                    pairs.query_cache = cache.read("query", keys[0], whole, step, pairs.query)[rows]
                    pairs.support_cache = cache.read("support", keys[1], whole, step, pairs.support)[rows]
                return self.method.losses(pairs, auxiliary=False)

        optimise.zero_grad(set_to_none=True)
        result = accumulate(losses, self._shares(supports, chosen), seed)
        if not torch.isfinite(result.loss):
            raise Diverged(
                f"finetuning: the loss on the supports is {result.loss.item()} at step {step}; lower finetune.lr."
            )
        optimise.step()
        if self.method.stores_cache:
            cache.write("query", keys[0], whole, result.query_probability)
            if result.support_probability is not None:
                cache.write("support", keys[1], whole, result.support_probability)

    def _shares(self, supports: Supports, chosen: list[tuple[int, int]]) -> list[Share | None]:
        """The parts in which pairs (support, query) go through the network."""
        support, query = (supports.masks[list(side)] for side in zip(*chosen, strict=True))
        return shares(query, support, self.predictor.limits.pairs(len(chosen)), self.method.mean_over)

    def _pairs(self, supports: Supports, chosen: list[tuple[int, int]], share: Share | None = None) -> Pairs:
        """Pairs (support, query) of supports; every photo among them is embedded once."""
        support, query = zip(*chosen, strict=True)
        photos, masked = sorted({*support, *query}), sorted(set(support))
        maps = supports.maps[photos]
        if supports.masked is not None:
            maps = torch.cat([maps, supports.masked[masked]])
        embedded = self.predictor.embed(maps)
        supported = without_background = _rows(embedded, [photos.index(i) for i in support])
        if supports.masked is not None:
            without_background = _rows(embedded, [len(photos) + masked.index(i) for i in support])
        return Pairs(
            _rows(embedded, [photos.index(i) for i in query]),
            supported,
            without_background,
            supports.masks[list(support)],
            supports.masks[list(query)],
            share=share,
        )

    @torch.no_grad()
    def loss(self, supports: Supports) -> float:
        """Loss of both branches over a ring of pairs: each support is once the support, once the query; no dropout."""
        ring = [(i, (i + 1) % len(supports)) for i in range(len(supports))]
        total = 0.0
        for share in self._shares(supports, ring):
            part = ring if share is None else ring[share.rows]
            with autocast(self.predictor.device, self.predictor.settings["precision"]):
                step = self.method.losses(self._pairs(supports, part, share), auxiliary=False)
            total += weighed(step, share).loss.item()
        return total

    def predict(self, episode: Episode, fuse: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        """The query's foreground (H, W) from the first support, and averaged over the supports if ``fuse``."""
        first, every = self.probabilities(episode, fuse)
        return foreground(first), None if every is None else foreground(every)

    @torch.no_grad()
    def probabilities(self, episode: Episode, fuse: bool = True) -> tuple[Tensor, Tensor | None]:
        """Likewise the probabilities (2, H, W)."""
        predictor = self.predictor
        photos = episode.supports[: predictor.settings["shots"] if fuse else 1]
        first, every = [], []
        for scale in predictor.settings["scales"]:
            apart = photos[:1] if predictor.sees_all_supports else photos
            logits = self._logits(episode, apart, scale)
            probabilities = [predictor.at_own_size(one, episode.query, scale).softmax(0) for one in logits]
            first.append(probabilities[0])
            if fuse and predictor.sees_all_supports:
                [together] = self._logits(episode, photos, scale, together=True)
                probabilities = [predictor.at_own_size(together, episode.query, scale).softmax(0)]
            every += probabilities
        return torch.stack(first).mean(0), torch.stack(every).mean(0) if fuse else None

    def _logits(self, episode: Episode, photos: tuple[str, ...], scale: float, together: bool = False) -> Tensor:
        """Query logits (k, 2, h, w), one for each support; (1, 2, h, w) where they are seen ``together``."""
        predictor, class_id, count = self.predictor, episode.class_id, len(photos)
        if (size := predictor.limits.pairs(count)) < count and not together:
            chunks = [photos[start : start + size] for start in range(0, count, size)]
            return torch.cat([self._logits(episode, chunk, scale) for chunk in chunks])
        keys = [(episode.query, None, scale), *((photo, None, scale) for photo in photos)]
        if self.method.needs_masked:
            keys += [(photo, class_id, scale) for photo in photos]
        predictor.maps.fill(keys)
        embedded = predictor.embed(predictor.maps.take(keys))
        supported = each(embedded, lambda m: m[1 : 1 + count])
        size = scaled(predictor.settings["size"], scale)
        masks = np.stack([predictor.support_mask(photo, class_id, size) for photo in photos])
        pairs = Pairs(
            each(embedded, lambda m: m[:1] if together else m[:1].expand(count, -1, -1, -1)),
            supported,
            each(embedded, lambda m: m[1 + count :]) if self.method.needs_masked else supported,
            torch.from_numpy(masks).to(predictor.device),
            shots=count if together else 1,
        )
        with autocast(predictor.device, predictor.settings["precision"]):
            return self.method.predict(pairs, predictor.settings["refinements"]).float()

    def seed_of(self, episode: Episode) -> int:
        """Of all chance in finetuning to an episode."""
        train = self.train
        return derive("finetune", train["dataset"]["name"], train["fold"], train["seed"], episode.seed, episode.number)


def _rows(embedded: Embedded, rows: list[int]) -> Embedded:
    return each(embedded, lambda maps: maps[rows])


def ordered_pairs(shots: int, kind: str) -> list[tuple[int, int]]:
    """(support, query) of k supports: k(k - 1) ``distinct`` ones, or ``all`` k^2, "at most k^2" (paper 4.6).

    Raises:
        CrnetError: Fewer than two supports, which make no pair.
    """
    if shots < 2:
        raise CrnetError(f"finetuning needs at least 2 supports, not {shots}: a pair is a support and a query.")
    return list(permutations(range(shots), 2)) if kind == "distinct" else list(product(range(shots), repeat=2))


def batches_of_pairs(pairs: list[tuple[int, int]], size: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Batches without end: all pairs in a new order, then all again."""
    generator = np.random.default_rng(derive("finetune pairs", seed))
    waiting: list[tuple[int, int]] = []
    while True:
        while len(waiting) < size:
            waiting += [pairs[i] for i in generator.permutation(len(pairs))]
        batch, waiting = waiting[:size], waiting[size:]
        yield batch
