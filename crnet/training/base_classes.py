"""How well a training knows its base classes: fixed episodes of them, at input size."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from crnet.metrics.iou import fg_counts, miou
from crnet.model.grid import enlarged
from crnet.training.sources import Batch


def score(predicted: Iterable[tuple[Batch, Tensor, Tensor | None]]) -> tuple[float, float]:
    """mIoU of the queries, and foreground IoU of the supports, 0 where there is no support branch; both in [0, 1].

    Args:
        predicted: Batches with logits (N, 2, h, w) of their queries and, or None, of their supports.
    """
    totals: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(2, int))  # of a class
    hit, union = 0, 0  # of the supports
    for batch, query, support in predicted:
        for i, episode in enumerate(batch.episodes):
            totals[episode.class_id] += _counts(query[i], batch.query_mask[i])
            if support is not None:
                counts = _counts(support[i], batch.support_mask[i])
                hit, union = hit + counts[0], union + counts[1]
    return float(miou(*np.transpose(list(totals.values())))), hit / max(1, union)


def _counts(logits: Tensor, mask: Tensor) -> tuple[int, int]:
    """Foreground intersection and union of logits (2, h, w) at the size of the mask (S, S)."""
    large = enlarged(logits[None].float(), mask.shape)[0]
    return fg_counts((large[1] > large[0]).cpu().numpy(), mask.numpy())
