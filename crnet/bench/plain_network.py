"""CRNet written out for one pair at a time: the reference that every faster way through the network is held to.

It uses the trained layers and nothing else of ``crnet/model``: no branch is joined with another, nothing that stays the
same between two passes is kept, and losses are taken from both channels at the masks' size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from crnet.methods.crnet import CRNet
from crnet.metrics.iou import VOID
from crnet.model.condition import EPSILON, foreground_share
from crnet.model.cross_reference import CooccurrenceHead
from crnet.model.grid import enlarged
from crnet.model.refinement import DownsampleBlock, GlobalConvolution


def embed(method: CRNet, maps: list[Tensor]) -> Tensor:
    """Encoder maps [(1, C_i, h, w)] of one photo -> F (1, W, h, w), paper 4.2."""
    chosen = [maps[i] for i in method.maps]
    if method.settings["equalise_maps"]:
        chosen = [m / (m.square().mean() + 1e-6).sqrt() for m in chosen]
    return F.relu(method.enter(torch.cat(chosen, 1)))


def reinforce(method: CRNet, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """F_s, F_q -> G_s, G_q, paper 4.3, the gate "plain"."""
    if not method.settings["cross_reference"]:
        return support, query
    gates = method.cross_reference
    importance = gates.support(support) * gates.query(query)
    return support * importance[:, :, None, None], query * importance[:, :, None, None]


def category(method: CRNet, masked: Tensor, mask: Tensor) -> Tensor | None:
    """Mean over the support's foreground: (1, W, h, w) of one photo and its mask (1, H, W) -> (1, W), paper 4.4."""
    if not method.settings["condition"]:
        return None
    share = foreground_share(mask, masked.shape[-2:])
    return (masked * share).sum((2, 3)) / (share.sum((2, 3)) + EPSILON)


def logits(method: CRNet, reinforced: Tensor, category: Tensor | None, cache: Tensor | None) -> Tensor:
    """One pass of one branch: condition, then refinement from the last probabilities (1, 2, h, w); None: zeros."""
    features = reinforced
    if category is not None:
        condition = method.condition
        tiled = category[:, :, None, None].expand_as(reinforced)
        x = condition.norm(condition.enter(torch.cat([reinforced, tiled], 1)))
        features = torch.cat([F.relu(condition.residual(x)), reinforced], 1)
    refine = method.refine
    stream = F.relu(refine.norm(refine.enter_features(features)))
    if not refine.cached:
        return _combine(refine.combine, [_global(refine.global_features, stream + _down(refine.down_features, stream))])
    if cache is None:
        cache = stream.new_zeros((len(stream), 2, *stream.shape[-2:]))
    remembered = F.relu(refine.enter_cache(cache))
    first = _global(refine.global_features, stream + _down(refine.down_cache, remembered))
    second = _global(refine.global_cache, remembered + _down(refine.down_features, stream))
    return _combine(refine.combine, [first, second])


def _down(block: DownsampleBlock, x: Tensor) -> Tensor:
    sides = [side + 1 - side % 2 for side in x.shape[-2:]]  # odd: the last cell is halved to a cell
    padded = x.new_zeros((*x.shape[:2], *sides))
    padded[..., : x.shape[-2], : x.shape[-1]] = x
    large = F.interpolate(F.relu(block.down(padded)), size=sides, mode="bilinear", align_corners=True)
    return large[..., : x.shape[-2], : x.shape[-1]]


def _global(block: GlobalConvolution, x: Tensor) -> Tensor:
    return x + F.relu(block.rows_first(x) + block.columns_first(x))


def _combine(block, streams: list[Tensor]) -> Tensor:
    return block.classify(F.relu(block.norm(block.join(torch.cat(streams, 1)))))


def cooccurrence(head: CooccurrenceHead, reinforced: Tensor) -> Tensor:
    """Logits (1, 2, h, w) of the object that both photos show; training only, paper 4.3."""
    x = F.relu(head.norm(head.enter(reinforced)))
    aspp = head.aspp
    pooled = aspp.dropout(F.relu(aspp.pooled(x.mean((2, 3), keepdim=True)))).expand_as(x)
    branches = [aspp.dropout(F.relu(branch(x))) for branch in aspp.branches]
    return head.classify(F.relu(aspp.join(torch.cat([pooled, *branches], 1))))


def cross_entropy(logits: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Mean over all pixels of all masks (1, H, W) that are not void, from logits (1, 2, h, w) of each."""
    total = torch.zeros(())
    for each, mask in zip(logits, masks, strict=True):
        large = enlarged(each, mask.shape[-2:])
        total = total + F.cross_entropy(large, mask.long(), ignore_index=VOID, reduction="sum").cpu()
    return total / max(1, sum(int((mask != VOID).sum()) for mask in masks))
