"""From training episodes to batches of encoder maps: encoded on the fly, or read from the feature store."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crnet.data import transforms
from crnet.data.index import Index
from crnet.data.transforms import WHOLE, Placement
from crnet.encoders.features import FeatureStore
from crnet.encoders.frozen import FrozenEncoder, as_images
from crnet.encoders.learning import LearningEncoder
from crnet.errors import CrnetError
from crnet.methods import Method
from crnet.training.episodes import TrainingEpisode


@dataclass
class Batch:
    """N episodes as maps of the encoder.

    Attributes:
        query, support, masked: Maps [(N, C_i, h, w)] that the method takes; ``masked`` is None if it needs none. Of an
            encoder that learns its input, one (N, 3, S, S) in a list: the maps are made in the step.
        query_mask, support_mask: uint8 (N, S, S) of {0, 1, 255 void}.
        query_placements, support_placements: Per episode, where in its photo lies what the map shows.
    """

    episodes: list[TrainingEpisode]
    query: list[Tensor]
    support: list[Tensor]
    masked: list[Tensor] | None
    query_mask: Tensor
    support_mask: Tensor
    query_placements: list[Placement]
    support_placements: list[Placement]


class CachedSource:
    """Batches from a feature store. No augmentation but the store's views."""

    def __init__(self, store: FeatureStore, method: Method, void_classes: tuple[int, ...], void: str):
        self.store, self.method, self.void_classes, self.void = store, method, void_classes, void

    def batches(self, episodes: list[TrainingEpisode], size: int, augment: bool = True) -> Iterator[Batch]:
        for start in range(0, len(episodes), size):
            yield self._batch(episodes[start : start + size])

    def _batch(self, episodes: list[TrainingEpisode]) -> Batch:
        store, maps = self.store, self.method.maps
        supports = [(e.support, e.class_id, e.support_view) for e in episodes]
        return Batch(
            episodes,
            store.maps([(e.query, None, e.query_view) for e in episodes], maps),
            store.maps([(e.support, None, e.support_view) for e in episodes], maps),
            store.maps(supports, maps) if self.method.needs_masked else None,
            self._masks([(e.query, e.class_id, e.query_view) for e in episodes]),
            self._masks(supports),
            [transforms.in_view(store.kind, e.query_view, WHOLE) for e in episodes],
            [transforms.in_view(store.kind, e.support_view, WHOLE) for e in episodes],
        )

    def _masks(self, keys: list[tuple[str, int, int]]) -> Tensor:
        return torch.from_numpy(np.stack([self.store.mask(*key, self.void_classes, self.void) for key in keys]))


class LiveSource:
    """Batches from photos: decoded and augmented by loader workers, encoded here.

    Each episode carries its own seed, so the number of workers does not change a single bit.
    """

    def __init__(
        self,
        index: Index,
        encoder: FrozenEncoder | LearningEncoder,
        method: Method,
        settings: dict,
        void_classes: tuple[int, ...],
        workers: int,
    ):
        self.index, self.encoder, self.method, self.settings = index, encoder, method, settings
        self.learns = encoder.learns
        self.void_classes, self.workers = void_classes, workers

    def batches(self, episodes: list[TrainingEpisode], size: int, augment: bool = True) -> Iterator[Batch]:
        how = self.settings["augment"] if augment else "none"
        photos = _EpisodePhotos(self.index, episodes, self.settings, how, self.void_classes)
        start = "forkserver" if self.workers else None
        loader = DataLoader(photos, size, num_workers=self.workers, collate_fn=list, multiprocessing_context=start)
        for first, rows in zip(range(0, len(episodes), size), loader, strict=True):
            for row in rows:
                if isinstance(row, CrnetError):
                    raise row
            yield self._batch(episodes[first : first + size], rows)

    def _batch(self, episodes: list[TrainingEpisode], rows: list) -> Batch:
        queries, query_masks, query_placements, supports, support_masks, support_placements = zip(*rows, strict=True)
        query_mask, support_mask = (torch.from_numpy(np.stack(m)) for m in (query_masks, support_masks))
        n, keep_all = len(rows), torch.ones_like(query_mask, dtype=torch.bool)
        images, keep = [*queries, *supports], [keep_all, keep_all]
        if self.method.needs_masked:  # one pass for all three: query, support, support without background
            images, keep = [*images, *supports], [*keep, support_mask == 1]
        maps = self.encoder(as_images(images), torch.cat(keep))
        chosen = maps if self.learns else [maps[i] for i in self.method.maps]
        return Batch(
            episodes,
            [m[:n] for m in chosen],
            [m[n : 2 * n] for m in chosen],
            [m[2 * n :] for m in chosen] if self.method.needs_masked else None,
            query_mask,
            support_mask,
            list(query_placements),
            list(support_placements),
        )


class _EpisodePhotos(Dataset):
    """Episode number -> query (S, S, 3), its mask (S, S) and placement, support likewise; a function of the episode."""

    def __init__(self, index, episodes, settings, augment, void_classes):
        self.index, self.episodes, self.augment, self.void_classes = index, episodes, augment, void_classes
        self.size, self.views, self.void = settings["size"], settings["views"], settings["void"]

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, number: int) -> tuple[np.ndarray | Placement, ...] | CrnetError:
        """What is wrong with a photo is returned: raised in a worker, it would arrive as a page of traceback."""
        episode = self.episodes[number]
        generator = np.random.default_rng(episode.seed)
        try:
            support = self._photo(episode.support, episode.support_view, episode, generator, self.augment != "none")
            query = self._photo(episode.query, episode.query_view, episode, generator, self.augment == "both")
        except CrnetError as error:
            return error
        return *query, *support

    def _photo(self, photo, view, episode, generator, augment):
        image, placement = self.index.read_image(photo), WHOLE
        mask = self.index.class_mask(photo, episode.class_id, self.void_classes, self.void)
        if augment:
            placement = transforms.draw_placement(mask, self.size, 1, generator)
        image = transforms.apply_view(self.views, view, transforms.squash(image, self.size, placement))
        mask = transforms.apply_view_to_mask(self.views, view, transforms.squash_mask(mask, self.size, placement))
        return image, mask, transforms.in_view(self.views, view, placement)
