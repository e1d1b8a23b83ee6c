"""Masks of test episodes from a frozen encoder and a method: a support at a time, then fused, or all at once."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from crnet import methods
from crnet.config.defaults import scaled
from crnet.config.encoders import learns
from crnet.config.settings import sees_all_supports
from crnet.data import transforms
from crnet.data.episodes import Episode
from crnet.data.index import Index
from crnet.encoders.features import FeatureStore
from crnet.encoders.frozen import FrozenEncoder, as_images, autocast, compute_dtype
from crnet.encoders.learning import PREFIX, of_method
from crnet.errors import CrnetError
from crnet.methods import Embedded, Method, Pairs, each, listed
from crnet.model.grid import at_own_size
from crnet.runtime.limits import EPISODES_TOGETHER, NONE, PAIRS_TOGETHER, PHOTOS_TOGETHER, Limits
from crnet.runtime.out_of_memory import ran_out

Key = tuple[str, int | None, float]  # photo, class whose background is removed (None: whole photo), scale


@dataclass
class Prediction:
    """Foreground of one episode's query, bool (H, W) at the photo's own size.

    Attributes:
        query: The episode's answer. Of a finetuned network: predicted with the first support.
        fused: Of a finetuned network: probabilities averaged over the supports; else None.
        support_loss: Of a finetuned network: loss on the supports before and after; else None.
    """

    episode: Episode
    query: np.ndarray
    fused: np.ndarray | None = None
    support_loss: tuple[float, float] | None = None


class Predictor:
    """Asked for masks of episodes. Deterministic: no augmentation, no dropout.

    Args:
        spec: As ``crnet.config.resolve`` makes it: train, evaluate.
        data: Folder of the prepared data set, or what reads photos and masks as its ``Index`` does.
        weights: ``model.safetensors`` of the training; None for methods that have none.
        features: Folders of stores of test photos, one for each scale that shall be read instead of encoded.
        limits: What it may hold at once.

    Attributes:
        together: Episodes that are predicted in one go, whose bits are the go's.
        sees_all_supports: Whether one prediction sees all supports of an episode, as the method declares.
    """

    def __init__(
        self,
        spec: dict,
        data: Path | Index,
        encoder: Path | None,
        weights: Path | None,
        device: str,
        features: Sequence[Path] = (),
        limits: Limits = NONE,
    ):
        self.settings, train = spec["evaluate"], spec["train"]
        self.sees_all_supports = sees_all_supports(train["method"])
        self.device = torch.device(device)
        self.index = data if isinstance(data, Index) else Index.load(data)
        self.limits, self.together = limits, limits.pairs(EPISODES_TOGETHER)
        precision = self.settings["precision"]
        at_once, learnt = limits.photos_at_once, learnt_encoder(train, weights)
        self.encoder = FrozenEncoder(train["encoder"], encoder, self.device, precision, at_once, learnt)
        self.method = load_method(train, self.encoder.channels, weights).to(
            self.device, memory_format=torch.channels_last
        )
        opened = [FeatureStore(folder, self.index, self.encoder.digest, "val", precision) for folder in features]
        self.stores = {store.size: store for store in opened}
        self.maps = Pool(self.encode, limits.pool_bytes)
        self.embedded = Pool(self._encode_and_embed, limits.pool_bytes)

    def fused(self, episodes: list[Episode]) -> Iterator[Prediction]:
        """Foreground by ``probabilities``."""
        for episode, probability in self.probabilities(episodes):
            yield Prediction(episode, foreground(probability))

    def probabilities(self, episodes: list[Episode]) -> Iterator[tuple[Episode, Tensor]]:
        """Softmax (2, H, W), averaged over predictions and scales at the photo's own size (paper 6, Tables 3, 4)."""
        seen = [None] if self.sees_all_supports else range(self.settings["shots"])
        for episode, _, every in self._readings(episodes, seen):
            yield episode, every

    def readings(self, episodes: list[Episode]) -> Iterator[tuple[Episode, Tensor, Tensor]]:
        """Likewise from the first support alone, averaged over scales, and from all supports."""
        return self._readings(episodes, [0, None] if self.sees_all_supports else range(self.settings["shots"]))

    @torch.no_grad()
    def _readings(
        self, episodes: list[Episode], seen: Sequence[int | None]
    ) -> Iterator[tuple[Episode, Tensor, Tensor]]:
        """Likewise from the first of ``seen``, and from all of it, or from its last where that sees all supports."""
        for start in range(0, len(episodes), self.together):
            chunk = episodes[start : start + self.together]
            logits: list[list[tuple[Tensor, float]]] = [[] for _ in chunk]
            for scale in self.settings["scales"]:
                self.embedded.fill([key for episode in chunk for key in self.keys(episode, scale)])
                for shot in seen:
                    for queries, query in zip(logits, self._logits(chunk, scale, shot), strict=True):
                        queries.append((query, scale))
            for episode, queries in zip(chunk, logits, strict=True):
                large = [self.at_own_size(query, episode.query, scale).softmax(0) for query, scale in queries]
                every = torch.stack(large)
                fused = every[len(seen) - 1 :: len(seen)] if self.sees_all_supports else every
                yield episode, every[:: len(seen)].mean(0), fused.mean(0)

    def _logits(self, chunk: list[Episode], scale: float, shot: int | None) -> Iterator[Tensor]:
        """Query logits (2, h, w) of each episode from one of its supports, None: from all, predicted in batches."""
        size = max(1, self.limits.pairs(PAIRS_TOGETHER) // (self.settings["shots"] if shot is None else 1))
        for start in range(0, len(chunk), size):
            pairs = self._pairs(chunk[start : start + size], scale, shot)
            with autocast(self.device, self.settings["precision"]):
                query = self.method.predict(pairs, self.settings["refinements"])
            yield from query.float()

    def _pairs(self, episodes: list[Episode], scale: float, shot: int | None) -> Pairs:
        size = scaled(self.settings["size"], scale)
        seen = slice(self.settings["shots"]) if shot is None else slice(shot, shot + 1)
        named = [(photo, e.class_id) for e in episodes for photo in e.supports[seen]]
        masks = [self.support_mask(photo, class_id, size) for photo, class_id in named]
        support = self.embedded.take([(photo, None, scale) for photo, _ in named])
        masked = support
        if self.method.needs_masked:
            masked = self.embedded.take([(photo, class_id, scale) for photo, class_id in named])
        query = self.embedded.take([(e.query, None, scale) for e in episodes])
        mask = torch.from_numpy(np.stack(masks)).to(self.device)
        return Pairs(query, support, masked, mask, shots=len(named) // len(episodes))

    def keys(self, episode: Episode, scale: float) -> list[Key]:
        """All that an episode needs encoded: the query, its supports, and these without background."""
        supports = episode.supports[: self.settings["shots"]]
        keys: list[Key] = [(photo, None, scale) for photo in (episode.query, *supports)]
        return keys + [(photo, episode.class_id, scale) for photo in supports if self.method.needs_masked]

    def named(self, episodes: Iterable[Episode]) -> int:
        """Photos, and pairs without background, that the episodes name."""
        return len({key for episode in episodes for key in self.keys(episode, 1.0)})

    def support_mask(self, photo: str, class_id: int, size: int) -> np.ndarray:
        """uint8 (size, size) of {0, 1, 255 void}."""
        return transforms.squash_mask(self.index.class_mask(photo, class_id), size)

    def at_own_size(self, logits: Tensor, photo: str, scale: float) -> Tensor:
        """Logits (2, h, w) of a scale -> (2, H, W), straight to the photo's own size, without padding in between."""
        side = scaled(self.settings["size"], scale)
        return at_own_size(logits[None], (side, side), self.index.size(photo))[0]

    @torch.no_grad()
    def encode(self, keys: list[Key]) -> Tensor:
        """Photos of one scale -> the method's maps of the frozen encoder, joined along channels: (N, C, h, w)."""
        size = scaled(self.settings["size"], keys[0][2])
        if size in self.stores:
            maps = self.stores[size].maps([(photo, class_id, 0) for photo, class_id, _ in keys], self.method.maps)
            return torch.cat(maps, 1).to(self.device, compute_dtype(self.device, self.settings["precision"]))
        images, keeps = [], []
        for photo, class_id, _ in keys:
            images.append(transforms.squash(self.index.read_image(photo), size))
            keep = np.ones((size, size), bool)
            keeps.append(keep if class_id is None else self.support_mask(photo, class_id, size) == 1)
        maps = self.encoder(as_images(images), torch.from_numpy(np.stack(keeps)))
        return torch.cat([maps[i] for i in self.method.maps], 1)

    def embed(self, maps: Tensor) -> Embedded:
        """What ``encode`` gave, through ``Method.embed``: (N, D, h, w), or several such maps."""
        channels = [self.encoder.channels[i] for i in self.method.maps]
        with autocast(self.device, self.settings["precision"]):
            return self.method.embed(list(maps.split(channels, 1)))

    @torch.no_grad()
    def _encode_and_embed(self, keys: list[Key]) -> Embedded:
        return self.embed(self.encode(keys))


class Pool:
    """Maps of photos by key: each is computed once and reused by all episodes, as far as ``room`` bytes reach."""

    def __init__(self, compute: Callable[[list[Key]], Embedded], room: int):
        self.compute, self.room = compute, room
        self._kept: OrderedDict[Key, Embedded] = OrderedDict()
        self._bytes = 0

    def fill(self, keys: list[Key]) -> None:
        """Compute the keys, all of one scale, that are not here yet; the longest unused ones make room."""
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        for start in range(0, len(missing), PHOTOS_TOGETHER):
            batch = missing[start : start + PHOTOS_TOGETHER]
            # Always as many at a time: bits depend on the size of a batch, and which photos are here already must not
            # show in a result, as it changes when a killed job goes on.
            padded = batch + batch[-1:] * (PHOTOS_TOGETHER - len(batch))
            computed = self.compute(padded)
            for row, key in enumerate(batch):
                self._kept[key] = each(computed, lambda maps, row=row: maps[row].clone())
                self._bytes += _bytes(self._kept[key])
        wanted = set(keys)
        while self._bytes > self.room and next(iter(self._kept)) not in wanted:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])

    def take(self, keys: list[Key]) -> Embedded:
        """The maps of these photos, a row each."""
        photos = [self._kept[key] for key in keys]
        if isinstance(photos[0], Tensor):
            return torch.stack(photos)
        return tuple(torch.stack(maps) for maps in zip(*photos, strict=True))


def _bytes(embedded: Embedded) -> int:
    return sum(maps.nbytes for maps in listed(embedded))


def learnt_encoder(train: dict, weights: Path | None) -> dict[str, Tensor]:
    """Weights by name of an encoder that was trained with the method; none of a frozen one.

    Raises:
        CrnetError: The specification and the weights file do not agree on whether it was.
    """
    if weights is None:
        return {}
    with safe_open(weights, "pt") as file:  # the head, most of it where the encoder is frozen, is not read
        names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118 - it is no mapping
        learnt = {name.removeprefix(PREFIX): file.get_tensor(name) for name in names}
    if bool(learnt) != learns(train["encoder"]):
        told = "hold none" if learns(train["encoder"]) else "hold some"
        raise CrnetError(f"{weights}: {told} of an encoder, other than the specification says; bring the run's own.")
    return learnt


def load_method(train: dict, channels: tuple[int, ...], weights: Path | None) -> Method:
    """A method in eval mode with its trained weights; raises CrnetError if they are of another training."""
    method = methods.build(train["method"], channels, train["model"])
    if weights is not None:
        try:
            method.load_state_dict(of_method(load_file(weights)), strict=True)
        except RuntimeError as error:
            if ran_out(error):
                raise
            raise CrnetError(f"{weights}: are not weights of this {train['method']} ({error}).") from error
    return method.eval().requires_grad_(False)


def foreground(scores: Tensor) -> np.ndarray:
    """Scores or probabilities (2, H, W) -> bool (H, W)."""
    return (scores[1] > scores[0]).cpu().numpy()
