"""Training episodes: the class first, then its photos (paper 3); drawn per epoch from a named seed."""

from dataclasses import dataclass

import numpy as np

from crnet.data.index import Index, Pair
from crnet.data.transforms import draw_views
from crnet.errors import CrnetError
from crnet.runtime.seeding import derive


@dataclass(frozen=True)
class TrainingEpisode:
    """One support-query pair of a base class.

    Attributes:
        seed: For the augmentation of its photos, so that any number of loader workers gives the same batch.
    """

    class_id: int
    query: str
    support: str
    query_view: int
    support_view: int
    seed: int


class EpisodeSource:
    """Draws the episodes of any epoch, in any order, from (name, fold, seed, epoch) alone.

    Raises:
        CrnetError: a pair that the fold's training must not see, or no class with two photos.
    """

    def __init__(self, index: Index, pairs: list[Pair], fold: int, seed: int, views: str):
        self.index, self.fold, self.seed, self.views = index, fold, seed, views
        index.check_training_pairs(fold, pairs)  # again, whoever made the list
        pools: dict[int, list[str]] = {}
        for pair in pairs:
            pools.setdefault(pair.class_id, []).append(pair.image)
        self.pools = {c: photos for c, photos in sorted(pools.items()) if len(photos) > 1}
        if not self.pools:
            raise CrnetError(
                f"{index.name}, fold {fold}: no base class has two training photos; nothing can be learnt."
            )

    def epoch(self, number: int, count: int) -> list[TrainingEpisode]:
        return self._draw(count, self.views, "training episodes", self.fold, self.seed, number)

    def base(self, count: int) -> list[TrainingEpisode]:
        """Fixed episodes of base classes in view 0, the same for every seed and variant, for the log."""
        return self._draw(count, "identity", "base episodes", self.fold)

    def _draw(self, count: int, views: str, *seed: str | int) -> list[TrainingEpisode]:
        generator = np.random.default_rng(derive(seed[0], self.index.name, *seed[1:]))
        classes = list(self.pools)
        episodes = []
        for _ in range(count):
            class_id = classes[generator.integers(len(classes))]
            pool = self.pools[class_id]
            query, support = (pool[i] for i in generator.choice(len(pool), 2, replace=False))
            query_view, support_view = draw_views(views, generator)
            seed_of_photos = int(generator.integers(2**63))
            episodes.append(TrainingEpisode(class_id, query, support, query_view, support_view, seed_of_photos))
        return episodes
