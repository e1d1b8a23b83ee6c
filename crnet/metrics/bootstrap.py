"""Intervals: a stratified percentile bootstrap over query photos and training seeds.

The score of a row is the mean over folds of the mean over training seeds of a fold's mIoU (or FB-IoU). One
resample draws, within each (fold, class), as many query photos with replacement as there are, each with all
its episodes; the same for all seeds of the fold because they are scored on the same episodes; and, within each
fold, as many seeds with replacement as there are.

Photos are drawn, not episodes: episodes that ask for the same photo are alike (on 728 photos of PASCAL, 60 to 95 %
of the variance of most classes lies between photos), and more episodes on the same photos say no more about
others. Where every episode has a photo of its own the two are the same. Supports are shared by episodes as well,
and are not drawn: the interval is a lower bound of what other test photos would do.

Draws depend only on the fold, its episodes and its seeds, never on the row. Two rows on the same episodes
therefore see the same resamples, and the interval of their difference is a paired one.

With one seed the interval covers photos only; with two or three it still understates the variation between
seeds (by (S - 1) / S in variance). That is the estimator, and captions name it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from crnet.errors import CrnetError
from crnet.metrics.iou import METRICS, QUERY_COLUMNS, VOID_COLUMNS, score
from crnet.runtime.files import canonical, read_csv, sha256_text
from crnet.runtime.seeding import derive

RESAMPLES = 2000
LEVEL = 0.95  # mass of an interval
# Resamples that are turned into floats at a time: 256 x 5000 episodes x 8 bytes = 10 MB.
_CHUNK = 256
_EPISODE_COLUMNS = ("episode_seed", "episode", "class", "query")


class Interval(NamedTuple):
    """A score or a difference of scores in [-1, 1] with the bounds of its percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class FoldCounts:
    """What one row achieved on one fold."""

    fold: int
    seeds: tuple[int, ...]  # the S training seeds, ascending
    classes: np.ndarray  # int (E,), class id of each episode
    queries: np.ndarray  # int (E,), the same number for the same query photo
    counts: np.ndarray  # int64 (S, E, 8), the columns ``iou.QUERY_COLUMNS``
    episodes: str  # digest of the episodes' identity and order; equal digests may be compared in pairs

    @cached_property
    def photos(self) -> int:
        """Number of query photos, of each class for itself: what is drawn from."""
        return np.unique(np.stack([self.classes, self.queries]), axis=1).shape[1]

    def class_sums(self) -> np.ndarray:
        """(S, classes, 8): counts summed over the episodes of each class, classes ascending."""
        return np.stack([self.counts[:, members].sum(1) for members in strata(self.classes)], axis=1)


def read_fold(fold: int, files: Mapping[int, str | os.PathLike]) -> FoldCounts:
    """Read the ``counts.csv`` of every training seed, by seed, of one row on one fold.

    Raises:
        CrnetError: no seed, an empty file or one without the columns, or seeds scored on different episodes.
    """
    if not files:
        raise CrnetError(f"Fold {fold} has no counts to read: give at least one training seed.")
    identity, counts = None, []
    for seed in sorted(files):
        rows = read_csv(files[seed])
        missing = [name for name in (*_EPISODE_COLUMNS, *QUERY_COLUMNS) if not rows or name not in rows[0]]
        if missing:
            raise CrnetError(f"{files[seed]} holds no episodes with the column {missing[0]}: evaluate again.")
        episodes = [[row[name] for name in _EPISODE_COLUMNS] for row in rows]
        if identity is not None and episodes != identity:
            raise CrnetError(
                f"{files[seed]} was scored on other episodes than the other seeds of fold {fold}: "
                "evaluate all seeds on one episode table."
            )
        identity = episodes
        try:
            counts.append([[int(row[name]) for name in QUERY_COLUMNS] for row in rows])
        except ValueError as error:
            raise CrnetError(f"{files[seed]}: a count is no whole number ({error}); evaluate again.") from error
    classes = np.array([int(episode[2]) for episode in identity])
    queries = np.unique([episode[3] for episode in identity], return_inverse=True)[1]
    digest = sha256_text(canonical(identity))
    return FoldCounts(fold, tuple(sorted(files)), classes, queries, np.array(counts), digest)


def strata(classes: np.ndarray) -> list[np.ndarray]:
    """Indices of each class's episodes, classes ascending."""
    return [np.flatnonzero(classes == label) for label in np.unique(classes)]


def estimate(row: Sequence[FoldCounts], metric: str, void: str) -> float:
    """Mean over folds of the mean over seeds, in [0, 1]."""
    _check_folds(row)
    return float(np.mean([score(part.class_sums(), metric, void).mean() for part in row]))


def seed_deviation(row: Sequence[FoldCounts], metric: str, void: str) -> float | None:
    """Standard deviation, over training seeds, of the mean over folds, in [0, 1]; None unless all folds have the same
    two or more seeds. Test episodes are fixed: it says how far training again moves the score."""
    seeds = {part.seeds for part in row}
    if len(seeds) != 1 or len(row[0].seeds) < 2:
        return None
    by_seed = np.mean([score(part.class_sums(), metric, void) for part in row], axis=0)
    return float(np.std(by_seed, ddof=1))


class Bootstrap:
    """One plan of resampling, shared by all rows of a table; draws and scores are kept, so reuse the object."""

    def __init__(self, resamples: int = RESAMPLES, level: float = LEVEL) -> None:
        if resamples < 1 or not 0 < level < 1:
            raise CrnetError(f"A bootstrap needs 1 or more resamples and 0 < level < 1, not {resamples}, {level}.")
        self.resamples, self.level = resamples, level
        self._weights: dict[tuple[int, str], np.ndarray] = {}
        self._scores: dict[FoldCounts, dict[tuple[str, str], np.ndarray]] = {}

    def interval(self, row: Sequence[FoldCounts], metric: str, void: str) -> Interval:
        """Interval of one row: pass one fold for that fold, several for their mean."""
        return self._summary(estimate(row, metric, void), self.replicates(row, metric, void))

    def difference(self, row: Sequence[FoldCounts], other: Sequence[FoldCounts], metric: str, void: str) -> Interval:
        """Interval of ``row`` minus ``other`` on common resamples of episodes, and of seeds where equal.

        Raises:
            CrnetError: the rows cover different folds or were scored on different episodes.
        """
        value = estimate(row, metric, void) - estimate(other, metric, void)
        if {part.fold: part.episodes for part in row} != {part.fold: part.episodes for part in other}:
            raise CrnetError("Rows can only be compared in pairs on the same folds and the same episodes: check both.")
        return self._summary(value, self.replicates(row, metric, void) - self.replicates(other, metric, void))

    def replicates(self, row: Sequence[FoldCounts], metric: str, void: str) -> np.ndarray:
        """(resamples,) scores in [0, 1]; the same position means the same resample in every row."""
        _check_folds(row)
        folds = []
        for part in row:
            rng = np.random.default_rng(derive("bootstrap", "seeds", part.fold, *part.seeds))
            weights = _draw(rng, self.resamples, len(part.seeds)) / len(part.seeds)
            folds.append((self._fold_scores(part)[metric, void] * weights).sum(1))
        return np.mean(folds, axis=0)

    def _summary(self, value: float, replicates: np.ndarray) -> Interval:
        tail = 50 * (1 - self.level)
        low, high = np.percentile(replicates, [tail, 100 - tail])
        return Interval(value, float(low), float(high))

    def _fold_scores(self, part: FoldCounts) -> dict[tuple[str, str], np.ndarray]:
        """For each (metric, void) the score of every resample and seed, (resamples, S)."""
        if part not in self._scores:
            sums = self._resampled_sums(part)
            self._scores[part] = {(m, v): score(sums, m, v) for m in METRICS for v in VOID_COLUMNS}
        return self._scores[part]

    def _resampled_sums(self, part: FoldCounts) -> np.ndarray:
        """(resamples, S, classes, 8): counts of every class summed over its resampled episodes."""
        weights, groups = self._episode_weights(part), strata(part.classes)
        seeds, _, columns = part.counts.shape
        sums = np.empty((self.resamples, seeds, len(groups), columns))
        for position, members in enumerate(groups):
            # float64 holds sums of pixels exactly (below 2**53) and, unlike integers, is multiplied by BLAS
            counts = part.counts[:, members].transpose(1, 0, 2).reshape(len(members), -1).astype(float)
            for start in range(0, self.resamples, _CHUNK):
                chunk = weights[start : start + _CHUNK, members].astype(float)
                sums[start : start + _CHUNK, :, position] = (chunk @ counts).reshape(-1, seeds, columns)
        return sums

    def _episode_weights(self, part: FoldCounts) -> np.ndarray:
        """uint16 (resamples, E): how often the query photo of each episode was drawn among its class's."""
        key = (part.fold, part.episodes)
        if key not in self._weights:
            rng = np.random.default_rng(derive("bootstrap", "episodes", part.fold, part.episodes))
            weights = np.empty((self.resamples, len(part.classes)), np.uint16)
            for members in strata(part.classes):
                _, first, photo = np.unique(part.queries[members], return_index=True, return_inverse=True)
                photo = np.argsort(np.argsort(first))[photo]  # numbered as they come, whatever they are called
                for start in range(0, self.resamples, _CHUNK):
                    count = min(_CHUNK, self.resamples - start)
                    weights[start : start + count, members] = _draw(rng, count, len(first))[:, photo]
            self._weights[key] = weights
        return self._weights[key]


def _draw(rng: np.random.Generator, resamples: int, size: int) -> np.ndarray:
    """(resamples, size) counts of ``size`` draws with replacement; far faster than ``rng.multinomial``."""
    drawn = rng.integers(0, size, (resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)


def _check_folds(row: Sequence[FoldCounts]) -> None:
    folds = [part.fold for part in row]
    if not folds or len(set(folds)) != len(folds):
        raise CrnetError(f"A row needs at least one fold and each only once, but has the folds {folds}.")
