"""Intervals on synthetic counts: right in simulation, paired on shared episodes, the same on every call."""

import time
from collections.abc import Iterable

import numpy as np
import pytest

from crnet.errors import CrnetError
from crnet.metrics.bootstrap import Bootstrap, FoldCounts, estimate, read_fold
from crnet.metrics.iou import QUERY_COLUMNS
from crnet.runtime.files import write_csv

AREA = 1000


def make_counts(quality: np.ndarray) -> np.ndarray:
    """Counts (S, E, 8) of episodes with foreground IoU ``quality`` (S, E); images of 1000 pixels, no void."""
    union = np.full(quality.shape, 400)
    hit = np.rint(quality * union).astype(int)
    half = np.stack([hit, union, AREA - union, AREA - hit], axis=-1)
    return np.concatenate([half, half], axis=-1)


def make_fold(
    quality: np.ndarray, fold: int = 0, classes: int = 5, episodes: str = "same", queries: np.ndarray | None = None
) -> FoldCounts:
    seeds, count = quality.shape
    labels, queries = np.arange(count) % classes + 1, np.arange(count) if queries is None else queries
    return FoldCounts(fold, tuple(range(seeds)), labels, queries, make_counts(quality), episodes)


def quality(rng: np.random.Generator, seeds: int, episodes: int, mean: float = 0.5) -> np.ndarray:
    difficulty = rng.normal(0, 0.15, episodes)
    return np.clip(mean + difficulty + rng.normal(0, 0.02, (seeds, episodes)), 0, 1)


def test_estimate_is_mean_over_folds_of_mean_over_seeds() -> None:
    row = [make_fold(np.array([[0.2] * 5, [0.4] * 5])), make_fold(np.full((1, 10), 0.9), fold=1)]
    assert estimate(row, "miou", "ignore") == pytest.approx((0.3 + 0.9) / 2)


def coverage(folds: Iterable[FoldCounts]) -> float:
    """How often the interval holds the mean, which is 0.5."""
    intervals = [Bootstrap(400).interval([fold], "miou", "ignore") for fold in folds]
    return float(np.mean([interval.low <= 0.5 <= interval.high for interval in intervals]))


def test_coverage_over_episodes() -> None:
    rng = np.random.default_rng(0)
    folds = (make_fold(quality(rng, 1, 150), episodes=str(trial)) for trial in range(200))
    assert 0.90 <= coverage(folds) <= 0.99


def test_width_matches_the_standard_error_and_adds_seeds() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.5, 0.1, (1, 1000))
    low, high = Bootstrap().interval([make_fold(values, classes=1)], "miou", "ignore")[1:]
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(1000), rel=0.1)

    apart = np.concatenate([values - 0.1, values + 0.1])  # half of the resamples draw one seed twice
    low, high = Bootstrap().interval([make_fold(apart, classes=1)], "miou", "ignore")[1:]
    assert low < 0.41 and high > 0.59


def test_episodes_of_one_photo_are_drawn_together() -> None:
    values = np.random.default_rng(7).normal(0.5, 0.1, (1, 100))
    once = Bootstrap().interval([make_fold(values, classes=1)], "miou", "ignore")
    again = np.repeat(values, 10, axis=1)
    photos = np.repeat(np.arange(100)[::-1] + 5, 10)  # other numbers, other order
    same = Bootstrap().interval([make_fold(again, classes=1, queries=photos)], "miou", "ignore")
    assert same == pytest.approx(once)  # ten times as many episodes on the same photos say no more
    apart = Bootstrap().interval([make_fold(again, classes=1)], "miou", "ignore")
    assert (same.high - same.low) / (apart.high - apart.low) == pytest.approx(np.sqrt(10), rel=0.1)


def test_coverage_over_photos() -> None:
    rng = np.random.default_rng(8)
    photo = np.repeat(np.arange(60), 5)  # twelve photos a class, five episodes each
    folds = []
    for trial in range(200):
        values = rng.normal(0.5, 0.15, (60, 1)) + rng.normal(0, 0.05, (60, 5))
        counts = make_counts(np.clip(values.reshape(1, -1), 0, 1))
        folds.append(FoldCounts(0, (0,), photo % 5 + 1, photo, counts, str(trial)))
    assert 0.88 <= coverage(folds) <= 0.99


def test_seeds_share_the_resampled_episodes() -> None:
    values = quality(np.random.default_rng(2), 1, 200)
    one = Bootstrap().replicates([make_fold(values)], "miou", "ignore")
    three = Bootstrap().replicates([make_fold(np.repeat(values, 3, axis=0))], "miou", "ignore")
    np.testing.assert_allclose(one, three)  # equal seeds carry no variation of their own


def test_strata_keep_their_size() -> None:
    classes = np.array([1] * 40 + [2] * 3)
    fold = FoldCounts(0, (0,), classes, np.arange(43), make_counts(np.where(classes == 1, 0.2, 0.8)[None]), "unequal")
    assert np.ptp(Bootstrap().replicates([fold], "fbiou", "ignore")) < 1e-12  # constant within each class


@pytest.mark.parametrize(("seeds", "episodes"), [(1, 1), (3, 1), (1, 5)])
def test_degenerate_cases_have_an_interval_of_what_varies(seeds: int, episodes: int) -> None:
    values = np.linspace(0.2, 0.6, seeds)[:, None] * np.ones((1, episodes))
    interval = Bootstrap(200).interval([make_fold(values)], "miou", "background")
    assert interval.low <= interval.value <= interval.high
    assert (interval.low < interval.high) == (seeds > 1)


def test_same_numbers_on_every_call_and_whatever_else_was_asked() -> None:
    rng = np.random.default_rng(3)
    first, second = make_fold(quality(rng, 2, 50)), make_fold(quality(rng, 3, 50, 0.4))
    shared = Bootstrap(300)
    shared.interval([second], "miou", "ignore")
    assert shared.interval([first], "fbiou", "ignore") == Bootstrap(300).interval([first], "fbiou", "ignore")


def test_paired_difference_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(4)
    base = quality(rng, 2, 300)
    better = np.clip(base + 0.03 + rng.normal(0, 0.02, base.shape), 0, 1)
    row, other = [make_fold(better)], [make_fold(base)]
    bootstrap = Bootstrap()
    paired = bootstrap.difference(row, other, "miou", "ignore")
    independent = Bootstrap().replicates([make_fold(base, episodes="others")], "miou", "ignore")
    spread = np.ptp(np.percentile(bootstrap.replicates(row, "miou", "ignore") - independent, [2.5, 97.5]))
    assert paired.low > 0
    assert paired.high - paired.low < 0.4 * spread


def test_rows_with_other_numbers_of_seeds_can_be_compared() -> None:
    values = quality(np.random.default_rng(5), 3, 100)
    row, other = [make_fold(values + 0.1)], [make_fold(values[:1])]
    difference = Bootstrap(300).difference(row, other, "miou", "ignore")
    assert difference.low < 0.1 < difference.high


def test_other_episodes_or_folds_cannot_be_paired() -> None:
    fold = make_fold(np.full((1, 5), 0.5))
    for other in (make_fold(np.full((1, 5), 0.5), episodes="other"), make_fold(np.full((1, 5), 0.5), fold=1)):
        with pytest.raises(CrnetError, match="same folds and the same episodes"):
            Bootstrap(10).difference([fold], [other], "miou", "ignore")


def test_the_papers_size_takes_seconds() -> None:
    rng = np.random.default_rng(6)
    row = [make_fold(quality(rng, 3, 5000), fold) for fold in range(4)]
    start = time.process_time()
    Bootstrap().interval(row, "miou", "ignore")
    assert time.process_time() - start < 10  # about 1 s alone on one core


def write_counts(path, values: np.ndarray, first_query: str = "a") -> None:
    counts = make_counts(values[None])[0]
    rows = [[0, i, i % 2 + 1, first_query if i == 0 else f"q{i}", *c] for i, c in enumerate(counts)]
    write_csv(path, ("episode_seed", "episode", "class", "query", *QUERY_COLUMNS), rows)


def test_read_fold(tmp_path) -> None:
    for seed in (0, 1):
        write_counts(tmp_path / f"{seed}.csv", np.full(6, 0.25 * (seed + 1)))
    fold = read_fold(2, {1: tmp_path / "1.csv", 0: tmp_path / "0.csv"})
    assert fold.counts.shape == (2, 6, len(QUERY_COLUMNS))
    assert (fold.seeds, fold.fold, fold.photos) == ((0, 1), 2, 6)
    assert estimate([fold], "miou", "ignore") == pytest.approx(0.375)


def test_read_fold_refuses_seeds_on_other_episodes_and_foreign_files(tmp_path) -> None:
    write_counts(tmp_path / "0.csv", np.full(6, 0.5))
    write_counts(tmp_path / "1.csv", np.full(6, 0.5), first_query="b")
    with pytest.raises(CrnetError, match="other episodes"):
        read_fold(0, {0: tmp_path / "0.csv", 1: tmp_path / "1.csv"})
    write_csv(tmp_path / "2.csv", ("episode", "class"), [(0, 1)])
    with pytest.raises(CrnetError, match="column episode_seed"):
        read_fold(0, {0: tmp_path / "2.csv"})
    (tmp_path / "1.csv").write_text((tmp_path / "1.csv").read_text().replace("200", "2e2"))
    with pytest.raises(CrnetError, match=r"1\.csv: a count is no whole number .*'2e2'.*; evaluate again"):
        read_fold(0, {1: tmp_path / "1.csv"})
    with pytest.raises(CrnetError, match="at least one training seed"):
        read_fold(0, {})
    whole = (tmp_path / "0.csv").read_text()
    (tmp_path / "0.csv").write_text(whole[: whole.rindex(",")])
    with pytest.raises(CrnetError, match=r"0\.csv: is no CSV any more \(line 7 has 11 cells, its header 12\)"):
        read_fold(0, {0: tmp_path / "0.csv"})
