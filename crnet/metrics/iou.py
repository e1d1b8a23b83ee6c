"""IoU from integer counts: mIoU as in Shaban et al. (BMVC 2017), FB-IoU as in Rakelly et al. (2018), in two weightings.

An episode is reduced to pixel counts once, at the original image size; every score is made from sums of
counts, so that classes, seeds and samples can be combined later without looking at a mask again.

Pixels marked void (255) follow one of two conventions, both counted in the same pass:

* ``background``: void is background, as in the code of OSLSM and CANet and so, probably, in the paper;
* ``ignore``: void is left out, as in PFENet, HSNet and most later work (PFENet issue 25: 4.6 mIoU higher).
"""

import numpy as np

from crnet.errors import CrnetError

VOID = 255

QUERY_COLUMNS = (
    *("ignore_fg_intersection", "ignore_fg_union", "ignore_bg_intersection", "ignore_bg_union"),
    *("void_fg_intersection", "void_fg_union", "void_bg_intersection", "void_bg_union"),
)

# Where the four counts of a void convention stand within QUERY_COLUMNS.
VOID_COLUMNS = {"background": slice(4, 8), "ignore": slice(0, 4)}
METRICS = ("miou", "fbiou_pairs", "fbiou")
PAIRS = "class_pairs"  # in a report: class id -> test pairs of a photo and this class, of every class of the fold


def episode_counts(prediction: np.ndarray, mask: np.ndarray) -> tuple[int, ...]:
    """Count one query's pixels under both void conventions.

    Args:
        prediction: bool (H, W), True where foreground is predicted.
        mask: uint8 (H, W), 1 the episode's class, 0 background, 255 void.

    Returns:
        Eight integers in the order of ``QUERY_COLUMNS``.

    Raises:
        CrnetError: shapes differ, the prediction is not boolean, or the mask holds other values.
    """
    if prediction.shape != mask.shape or prediction.ndim != 2:
        raise CrnetError(
            f"A prediction of shape {prediction.shape} cannot be scored on a mask of shape {mask.shape}: "
            "bring it to the mask's height and width first."
        )
    if prediction.dtype != np.bool_:
        raise CrnetError(f"A prediction must be boolean (H, W), not {prediction.dtype}: threshold it first.")
    truth, void = mask == 1, mask == VOID
    total, positive, void_total = mask.size, int(truth.sum()), int(void.sum())
    if positive + void_total + np.count_nonzero(mask == 0) != total:
        other = sorted(set(np.unique(mask).tolist()) - {0, 1, VOID})
        raise CrnetError(f"An episode's mask holds the value {other[0]}: only 0, 1 and {VOID} (void) may occur.")
    predicted, hit = int(prediction.sum()), int((prediction & truth).sum())
    predicted_in_void = int((prediction & void).sum())
    union = predicted + positive - hit
    seen, seen_union = total - void_total, union - predicted_in_void
    return (
        *(hit, seen_union, seen - seen_union, seen - hit),
        *(hit, union, total - union, total - hit),
    )


def fg_counts(prediction: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """Foreground intersection and union, void left out; input as ``episode_counts``."""
    return episode_counts(prediction, mask)[:2]


def iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Ratio in [0, 1], of any shape; NaN where the union is 0, because nothing was asked there."""
    intersection, union = np.asarray(intersection, float), np.asarray(union, float)
    return np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def miou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Mean over classes of the class-accumulated foreground IoU (not the mean of episodes' IoU).

    Args:
        intersection, union: (..., classes), summed over the episodes of each class.

    Returns:
        (...) in [0, 1]. A class with union 0 was neither present nor predicted: it is left out of the mean
        instead of counted as 0 or 1; if all classes are such, the result is NaN.
    """
    ratio = iou(intersection, union)
    known = ~np.isnan(ratio)
    return iou(np.where(known, ratio, 0.0).sum(-1), known.sum(-1))


def score(sums: np.ndarray, metric: str, void: str, weights: np.ndarray | None = None) -> np.ndarray:
    """``miou``, or an FB-IoU: the mean of foreground and background IoU, each pooled over all classes of a fold.

    ``fbiou`` pools the episodes as they are, which ask for all classes equally often. In ``fbiou_pairs`` a class
    weighs as many episodes as it has pairs of a photo and a class in the list of test pairs: the expectation where
    queries follow that list, as in OSLSM, whose setting the paper takes (5.2), and SG-One.

    Args:
        sums: (..., classes, 8), the ``QUERY_COLUMNS`` summed over each class's episodes of one fold.
        metric: one of ``METRICS``.
        void: one of ``VOID_COLUMNS``.
        weights: (..., classes), for ``fbiou_pairs``: what one episode of a class weighs, its pairs by its episodes;
            None if its pairs are not known.

    Returns:
        (...) in [0, 1]; NaN if no class was asked for or predicted, for an FB-IoU if either pooled union is 0, and for
        ``fbiou_pairs`` without weights, as they are never guessed.

    Raises:
        CrnetError: unknown metric or void convention.
    """
    if metric not in METRICS:
        raise CrnetError(f"Unknown metric {metric!r}: known are {', '.join(METRICS)}.")
    if void not in VOID_COLUMNS:
        raise CrnetError(f"Unknown void convention {void!r}: known are {', '.join(VOID_COLUMNS)}.")
    columns = np.moveaxis(sums[..., VOID_COLUMNS[void]], -1, 0)  # (4, ..., classes)
    if metric == "miou":
        return miou(*columns[:2])
    if metric == "fbiou_pairs":
        columns = columns * (np.nan if weights is None else weights)
    fg_intersection, fg_union, bg_intersection, bg_union = columns.sum(-1)
    return (iou(fg_intersection, fg_union) + iou(bg_intersection, bg_union)) / 2
