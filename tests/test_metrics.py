"""Counts and scores against masks small enough to count by hand."""

import numpy as np
import pytest

from crnet.errors import CrnetError
from crnet.metrics.iou import QUERY_COLUMNS, episode_counts, fg_counts, miou, score

MASK = np.array([[1, 1, 0, 0], [1, 255, 255, 0], [0, 0, 255, 0]], np.uint8)
PREDICTION = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0]], bool)


def test_hand_counted_with_void() -> None:
    counts = dict(zip(QUERY_COLUMNS, episode_counts(PREDICTION, MASK), strict=True))
    assert counts == {
        "ignore_fg_intersection": 2,  # (0,0) (1,0)
        "ignore_fg_union": 4,  # and (0,1) (0,2)
        "ignore_bg_intersection": 5,  # (0,3) (1,3) (2,0) (2,1) (2,3)
        "ignore_bg_union": 7,  # and (0,1) (0,2)
        "void_fg_intersection": 2,
        "void_fg_union": 6,  # and (1,1) (2,2), predicted in void
        "void_bg_intersection": 6,  # and (1,2), void and not predicted
        "void_bg_union": 10,  # all 12 but the two hits
    }
    assert all(type(count) is int for count in counts.values())
    assert fg_counts(PREDICTION, MASK) == (2, 4)


def test_counts_agree_with_set_definitions() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        mask = rng.choice(np.array([0, 1, 255], np.uint8), (7, 9))
        prediction = rng.random((7, 9)) < 0.5
        expected = []
        for seen in (mask != 255, np.ones_like(prediction)):
            for p, t in ((prediction, mask == 1), (~prediction, mask != 1)):
                expected += [(p & t & seen).sum(), ((p | t) & seen).sum()]
        assert list(episode_counts(prediction, mask)) == expected


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        (PREDICTION[:2], MASK, "shape"),
        (PREDICTION.astype(float), MASK, "boolean"),
        (PREDICTION, np.where(MASK == 1, np.uint8(7), MASK), "value 7"),
    ],
)
def test_wrong_input_is_refused(prediction: np.ndarray, mask: np.ndarray, message: str) -> None:
    with pytest.raises(CrnetError, match=message):
        episode_counts(prediction, mask)


def test_miou_accumulates_per_class_before_dividing() -> None:
    # class 1: episodes 1/1 and 0/9 give 1/10 (their mean would be 1/2); class 2: 6/12
    assert miou(np.array([1 + 0, 6]), np.array([1 + 9, 12])) == pytest.approx((0.1 + 0.5) / 2)


def test_class_without_union_is_left_out() -> None:
    assert miou(np.array([3, 0]), np.array([4, 0])) == pytest.approx(0.75)
    assert np.isnan(miou(np.array([0]), np.array([0])))


def test_fb_iou_pools_classes_before_dividing() -> None:
    void = np.array([[1, 10, 80, 90], [6, 12, 10, 40]])  # foreground and background, intersection and union, by class
    sums = np.concatenate([np.zeros_like(void), void], axis=1)
    assert score(sums, "fbiou", "background") == pytest.approx((7 / 22 + 90 / 130) / 2)


def test_fb_iou_by_pairs_weighs_classes_as_the_list_of_test_pairs_does() -> None:
    """Classes of 3 and of 1 pair, in 2 and in 1 episodes, so that an episode weighs 3/2 and 1."""
    void = np.array([[2, 20, 160, 180], [6, 12, 10, 40]])
    sums, weights = np.concatenate([np.zeros_like(void), void], axis=1), np.array([3 / 2, 1.0])
    expected = ((3 + 6) / (30 + 12) + (240 + 10) / (270 + 40)) / 2
    assert score(sums, "fbiou_pairs", "background", weights) == pytest.approx(expected)
    assert score(sums, "fbiou_pairs", "background", 100 * weights) == pytest.approx(expected)  # only ratios count
    equal = score(sums, "fbiou", "background", weights)
    assert equal == pytest.approx((8 / 32 + 170 / 220) / 2)
    assert score(sums, "fbiou_pairs", "background", np.ones(2)) == pytest.approx(equal)
    assert np.isnan(score(sums, "fbiou_pairs", "background"))  # weights are never guessed


def test_score_picks_the_columns_of_its_convention() -> None:
    sums = np.array(episode_counts(PREDICTION, MASK), float)[None]  # one class
    assert score(sums, "miou", "ignore") == pytest.approx(2 / 4)
    assert score(sums, "miou", "background") == pytest.approx(2 / 6)
    assert score(sums, "fbiou", "ignore") == pytest.approx((2 / 4 + 5 / 7) / 2)
    assert score(sums, "fbiou", "background") == pytest.approx((2 / 6 + 6 / 10) / 2)
    with pytest.raises(CrnetError, match="known are miou, fbiou_pairs, fbiou"):
        score(sums, "iou", "ignore")
    with pytest.raises(CrnetError, match="known are background, ignore"):
        score(sums, "miou", "void")
