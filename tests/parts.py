"""A batch that tests take in parts: with void pixels, unevenly, and one pair all void."""

import torch

from crnet.methods import Method, Pairs, Share, Step
from crnet.training.accumulation import accumulate, shares

CHANNELS, MAP, SIZE, BATCH = (4, 6), 7, 49, 5


def batch() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps of queries, supports and supports without background; masks of uneven void, one of them all void."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, BATCH, c, MAP, MAP, generator=generator, dtype=torch.float64) for c in CHANNELS]
    masks = torch.randint(0, 2, (2, BATCH, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    masks[0, 1, :30] = masks[1, 3, :, :45] = masks[0, 4] = 255
    caches = torch.rand(2, BATCH, 2, MAP, MAP, generator=generator, dtype=torch.float64)
    return maps, *masks, caches


def gradients(method: Method, at_once: int, auxiliary: bool = True) -> tuple[Step, dict[str, torch.Tensor]]:
    """Losses of the batch, ``at_once`` pairs at a time, and the gradient of each weight."""
    maps, query_mask, support_mask, caches = batch()

    def losses(share: Share | None) -> Step:
        rows = slice(None) if share is None else share.rows
        query, support, masked = (method.embed([maps[i][group, rows] for i in method.maps]) for group in range(3))
        cache = [each[rows] if method.stores_cache else None for each in caches]
        classes = torch.arange(BATCH)[rows]
        masks = support_mask[rows], query_mask[rows]
        pairs = Pairs(query, support, masked, *masks, *cache, share, class_index=classes)
        return method.losses(pairs, auxiliary)

    method.zero_grad(set_to_none=True)
    step = accumulate(losses, shares(query_mask, support_mask, at_once, method.mean_over), seed=7)
    return step, {name: weight.grad for name, weight in method.named_parameters() if weight.grad is not None}
