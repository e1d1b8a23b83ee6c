"""Intervals on synthetic counts: by hand, right in simulation, paired on shared episodes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from crnet.errors import CrnetError
from crnet.metrics.intervals import (
    FoldCounts,
    Interval,
    difference,
    estimate,
    interval,
    of_class,
    query_photos,
    read_fold,
    seed_deviation,
    unknown,
)
from crnet.metrics.iou import QUERY_COLUMNS
from crnet.runtime.files import write_csv, write_json

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


def width(found: Interval) -> float:
    return found.high - found.low


def test_estimate_is_mean_over_folds_of_mean_over_seeds() -> None:
    row = [make_fold(np.array([[0.2] * 5, [0.4] * 5])), make_fold(np.full((1, 10), 0.9), fold=1)]
    assert estimate(row, "miou", "ignore") == pytest.approx((0.3 + 0.9) / 2)


def test_of_one_class_it_is_the_textbooks_interval_of_a_mean() -> None:
    """Photos with equal unions: the IoU is the mean of the photos', the interval Student's."""
    values = np.random.default_rng(1).integers(100, 300, (1, 12)) / 400
    found = interval([make_fold(values, classes=1)], "miou", "ignore")
    error = np.std(values, ddof=1) / np.sqrt(12)
    assert found.value == pytest.approx(values.mean())
    assert width(found) == pytest.approx(2 * stats.t.ppf(0.975, 11) * error)
    assert found.high - found.value == pytest.approx(found.value - found.low)


def test_classes_folds_and_seeds_add_their_errors_by_hand() -> None:
    """Two folds of one class of 3 photos and 2 seeds each: four strata, their variances and Satterthwaite's formula."""
    values = [np.array([[0.2, 0.4, 0.6], [0.4, 0.6, 0.8]]), np.array([[0.3, 0.3, 0.9], [0.3, 0.3, 0.9]])]
    found = interval([make_fold(v, fold, classes=1) for fold, v in enumerate(values)], "miou", "ignore")
    photos = [np.var(v.mean(0), ddof=1) / 3 for v in values]  # 0.04 / 3 and 0.12 / 3
    seeds = [np.var(v.mean(1), ddof=1) / 2 for v in values]  # 0.02 / 2 and 0
    added = np.array([*photos, *seeds]) / 4
    degrees = added.sum() ** 2 / (added**2 / [2, 2, 1, 1]).sum()
    assert width(found) == pytest.approx(2 * stats.t.ppf(0.975, degrees) * np.sqrt(added.sum()))


def test_episodes_of_one_photo_are_left_out_together() -> None:
    values = np.random.default_rng(7).normal(0.5, 0.1, (1, 100))
    once = interval([make_fold(values, classes=1)], "miou", "ignore")
    again = np.repeat(values, 10, axis=1)
    photos = np.repeat(np.arange(100)[::-1] + 5, 10)  # other numbers, other order
    same = interval([make_fold(again, classes=1, queries=photos)], "miou", "ignore")
    assert same == pytest.approx(once)  # ten times as many episodes on the same photos say no more
    apart = interval([make_fold(again, classes=1)], "miou", "ignore")
    assert width(same) / width(apart) == pytest.approx(np.sqrt(10), rel=0.1)


@pytest.mark.parametrize(("seeds", "episodes"), [(1, 1), (3, 1), (1, 5)])
def test_degenerate_cases_have_an_interval_of_what_varies(seeds: int, episodes: int) -> None:
    values = np.linspace(0.2, 0.6, seeds)[:, None] * np.ones((1, episodes))
    found = interval([make_fold(values)], "miou", "background")
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert (found.low < found.high) == (seeds > 1)


def test_bounds_stay_in_range_and_the_undefined_has_none() -> None:
    found = interval([make_fold(np.array([[0.0, 0.9]]), classes=1)], "miou", "ignore")
    assert (found.low, found.high) == (0.0, 1.0)
    nothing = FoldCounts(0, (0,), np.array([1, 1]), np.array([0, 1]), np.zeros((1, 2, 8), int), "none")
    assert all(map(np.isnan, interval([nothing], "miou", "ignore")))


class Population:
    """Photos of a class without end: sizes over two orders of magnitude, IoUs of any shape that go with size or not."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.shape, self.sizes = rng, rng.uniform([0.3, 0.5], 3), rng.uniform(0.5, 1.2)
        self.together = rng.uniform(-0.3, 0.6)
        grid = np.linspace(0.0005, 0.9995, 2000)
        self.quantiles = grid, stats.beta.ppf(grid, *self.shape)
        first, union, second = self.draw(100_000).sum(0)
        self.truth, self.second = first / union, second / union

    def draw(self, photos: int) -> np.ndarray:
        """Pixels of a method's intersection, of the union, and of a second method's intersection, (photos, 3)."""
        size, quality = self.rng.normal(size=(2, photos))
        quality = self.together * size + np.sqrt(1 - self.together**2) * quality
        union = np.exp(9 + self.sizes * size)
        hit = np.interp(stats.norm.cdf(quality), *self.quantiles) * union
        return np.stack([hit, union, hit * self.rng.uniform(0.2, 1.0, photos)], 1).round().astype(int)


def study(classes: Sequence[Population], photos: Sequence[int], fold: int) -> list[FoldCounts]:
    """A fold of both methods with one seed, on as many photos of each class."""
    pixels = np.concatenate([each.draw(count) for each, count in zip(classes, photos, strict=True)])
    columns = np.zeros((2, 1, len(pixels), 8), int)
    columns[:, 0, :, 0], columns[:, 0, :, 1] = pixels[:, [0, 2]].T, pixels[:, 1]
    labels = np.repeat(np.arange(len(photos)), photos)
    return [FoldCounts(fold, (0,), labels, np.arange(len(pixels)), each, "same") for each in columns]


def coverage(photos: Sequence[Sequence[int]], populations: int = 4, studies: int = 150) -> tuple[float, float]:
    """How often the intervals of a score, and of the difference of two, hold that of the whole populations."""
    rng, held = np.random.default_rng(7), []
    for _ in range(populations):
        classes = [[Population(rng) for _ in fold] for fold in photos]
        truth = np.mean([np.mean([each.truth for each in fold]) for fold in classes])
        second = np.mean([np.mean([each.second for each in fold]) for fold in classes])
        for _ in range(studies):
            folds = [study(*each, fold) for fold, each in enumerate(zip(classes, photos, strict=True))]
            row, other = map(list, zip(*folds, strict=True))
            alone, apart = interval(row, "miou", "ignore"), difference(row, other, "miou", "ignore")
            held.append([alone.low <= truth <= alone.high, apart.low <= truth - second <= apart.high])
    return tuple(np.mean(held, axis=0))


FEW = {
    "two photos a class": [[2] * 5],
    "five photos a class": [[5] * 5],
    "the three folds of the photos studies": [[2, 6, 40, 10, 23], [7, 43, 34, 49], [7, 19, 15, 4, 6]],
    "the demo's k-shot folds": [[5, 7, 9, 6, 5], [4, 9, 7, 8, 6], [8, 8, 9, 6, 5], [7, 9, 7, 9, 2]],
    "forty photos a class": [[40] * 5],
}


@pytest.mark.parametrize("photos", FEW.values(), ids=FEW)
def test_the_truth_is_inside_as_often_as_is_said(photos) -> None:
    found = coverage(photos)
    print(*(f"{share:.3f}" for share in found))
    assert 0.92 <= min(found) <= max(found) <= 0.98


def test_paired_difference_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(4)
    base = np.clip(rng.normal(0.5, 0.15, (2, 300)), 0, 0.9)
    row, other = [make_fold(base + 0.03 + rng.normal(0, 0.02, base.shape))], [make_fold(base)]
    paired = difference(row, other, "miou", "ignore")
    assert paired.low > 0
    assert width(paired) < 0.4 * np.hypot(*(width(interval(each, "miou", "ignore")) for each in (row, other)))


def test_seeds_are_paired_where_they_are_the_same() -> None:
    values = np.random.default_rng(5).normal(0.5, 0.1, (1, 100)) + np.array([[-0.1], [0.0], [0.1]])
    row, same, one = [make_fold(values + 0.1)], [make_fold(values)], [make_fold(values[1:2])]
    assert width(difference(row, same, "miou", "ignore")) < 0.01  # training moves both alike
    apart = difference(row, one, "miou", "ignore")
    assert width(apart) > 0.2  # 4.3 standard errors of three seeds each way
    assert apart.low < 0.1 < apart.high


def test_other_episodes_or_folds_cannot_be_paired() -> None:
    fold = make_fold(np.full((1, 5), 0.5))
    for other in (make_fold(np.full((1, 5), 0.5), episodes="other"), make_fold(np.full((1, 5), 0.5), fold=1)):
        with pytest.raises(CrnetError, match="same folds and the same episodes"):
            difference([fold], [other], "miou", "ignore")


def write_counts(path, values: np.ndarray, first_query: str = "a") -> None:
    counts = make_counts(values[None])[0]
    rows = [[0, i, i % 2 + 1, first_query if i == 0 else f"q{i}", *c] for i, c in enumerate(counts)]
    write_csv(path, ("episode_seed", "episode", "class", "query", *QUERY_COLUMNS), rows)


def test_read_fold(tmp_path) -> None:
    for seed in (0, 1):
        write_counts(tmp_path / f"{seed}.csv", np.full(6, 0.25 * (seed + 1)))
    fold = read_fold(2, {1: tmp_path / "1.csv", 0: tmp_path / "0.csv"})
    assert fold.counts.shape == (2, 6, len(QUERY_COLUMNS))
    assert (fold.seeds, fold.fold, fold.pairs) == ((0, 1), 2, 6)
    assert estimate([fold], "miou", "ignore") == pytest.approx(0.375)


def weighted(part: FoldCounts, *pairs: int) -> FoldCounts:
    return replace(part, class_pairs=dict(enumerate(pairs, 1)))


def test_fb_iou_by_pairs_is_the_expectation_under_the_list_of_pairs() -> None:
    """Classes of 3 and 1 pairs: as if the first had been asked for three times as often, whatever the episodes are."""
    rng = np.random.default_rng(3)
    values = rng.uniform(0.1, 0.9, (2, 10))
    part = make_fold(values, classes=2)
    often = np.concatenate([np.repeat(np.arange(0, 10, 2), 3), np.arange(1, 10, 2)])
    labels = often % 2 + 1
    listed = replace(part, classes=labels, queries=often, counts=part.counts[:, often])
    one, other = weighted(part, 3, 1), listed
    assert estimate([one], "fbiou_pairs", "ignore") == pytest.approx(estimate([other], "fbiou", "ignore"))
    assert estimate([one], "fbiou_pairs", "ignore") != pytest.approx(estimate([part], "fbiou", "ignore"), abs=1e-3)
    assert seed_deviation([one], "fbiou_pairs", "ignore") == pytest.approx(seed_deviation([other], "fbiou", "ignore"))


def test_fb_iou_with_equal_weights_and_as_many_episodes_is_the_one_with_classes_equal() -> None:
    part = make_fold(np.random.default_rng(3).uniform(0.1, 0.9, (2, 40)), classes=2)
    equal = weighted(part, 7, 7)
    assert estimate([equal], "fbiou_pairs", "ignore") == pytest.approx(estimate([equal], "fbiou", "ignore"))
    # Without a photo its class weighs as before here, and a little less in "fbiou".
    found, plain = (interval([equal], metric, "ignore") for metric in ("fbiou_pairs", "fbiou"))
    assert width(found) == pytest.approx(width(plain), rel=0.05)


def test_the_jackknife_of_fb_iou_by_pairs_by_hand() -> None:
    """One photo of each class of 3 and 1 pairs left out at a time; its class weighs as much without it."""
    values = np.array([[0.5, 0.45, 0.55, 0.6, 0.6, 0.5]])  # classes 1, 2, 1, 2, 1, 2
    part = weighted(make_fold(values, classes=2), 3, 1)

    def fb(without: int | None) -> float:
        kept = [[i for i in range(first, 6, 2) if i != without] for first in (0, 1)]
        hit = sum(share * 400 * values[0, each].mean() for share, each in zip((3, 1), kept, strict=True))
        return (hit / 1600 + 2400 / (4000 - hit)) / 2

    added = np.array([np.var([fb(i) for i in range(first, 6, 2)]) * 2 for first in (0, 1)])
    degrees = added.sum() ** 2 / (added**2 / 2).sum()
    found = interval([part], "fbiou_pairs", "ignore")
    assert found.value == pytest.approx(fb(None))
    assert width(found) == pytest.approx(2 * stats.t.ppf(0.975, degrees) * np.sqrt(added.sum()))


def test_test_pairs_come_from_the_reports_beside_the_counts_and_are_never_guessed(tmp_path) -> None:
    files = {seed: tmp_path / str(seed) / "counts.csv" for seed in (0, 1)}
    for file in files.values():
        write_counts(file, np.linspace(0.2, 0.8, 6))
    for name, said in (("", {}), ("evaluation.json", {"run": "of an earlier version"})):
        if name:
            write_json(files[0].with_name(name), said)
        part = read_fold(0, files)
        assert part.class_pairs is None and "earlier version" in unknown([part], "fbiou_pairs")
        assert unknown([part], "fbiou") is unknown([part], "miou") is None
        assert np.isnan(estimate([part], "fbiou_pairs", "ignore"))
    write_json(files[0].with_name("evaluation.json"), {"class_pairs": {"1": 3, "2": 1, "5": 9}})
    assert read_fold(0, files).class_pairs is None  # one seed has them, the other not
    write_json(files[1].with_name("score.json"), {"class_pairs": {"1": 3, "2": 1, "5": 9}})
    part = read_fold(0, files)
    assert part.class_pairs == {1: 3, 2: 1, 5: 9} and unknown([part], "fbiou_pairs") is None
    assert estimate([part], "fbiou_pairs", "ignore") < estimate([part], "fbiou", "ignore")  # the first class is worse
    wrong = (
        ({"1": 3, "2": 2}, r"score\.json: class_pairs differs from that of another seed of fold 0; evaluate all again"),
        ({"1": 3, "2": "many"}, r"class_pairs is not a number for each class .*'many'.*; evaluate again"),
    )
    for said, message in wrong:
        write_json(files[1].with_name("score.json"), {"class_pairs": said})
        with pytest.raises(CrnetError, match=message):
            read_fold(0, files)
    write_json(files[1].with_name("score.json"), {"class_pairs": {"1": 3}})
    with pytest.raises(CrnetError, match="class_pairs has no pair of class 2, which is asked for; evaluate again"):
        read_fold(0, {1: files[1]})


def test_a_photo_that_is_asked_for_two_classes_is_one_photo_and_two_pairs() -> None:
    queries = np.array(["a", "a", "b", "c", "b", "c"])  # classes 1, 2, 1, 2, 1, 2
    first = make_fold(np.full((1, 6), 0.5), classes=2, queries=queries)
    other = make_fold(np.full((1, 6), 0.5), fold=1, classes=2, queries=np.array(list("aaaaad")))
    assert (first.pairs, query_photos([first]), query_photos([first, other])) == (4, 3, 4)
    alone = of_class(first, 2)
    assert alone.classes.tolist() == [2, 2, 2] and alone.queries.tolist() == ["a", "c", "c"]
    assert alone.counts.shape == (1, 3, 8) and alone.pairs == 2


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
