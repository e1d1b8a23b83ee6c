"""CRNet (Liu et al., CVPR 2020, section 4): its modules are in ``crnet/model``, each has its switch here."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from crnet.errors import CrnetError
from crnet.methods import SHARE, Method, Pairs, Share, Step
from crnet.model.condition import Condition, foreground_average_pooling
from crnet.model.cross_reference import CooccurrenceHead, CrossReference
from crnet.model.layers import Rows, conv, initialise
from crnet.model.refinement import MaskRefinement

SETTINGS = {
    "rev": 1,
    "cross_reference": True,  # module of paper 4.3; Table 2
    "condition": True,  # module of paper 4.4; Table 2
    "mask_input": True,  # background removed in the support photo too, not in its features alone [P 4.4]
    "refinement": True,  # cached branch of paper 4.5; Table 3. Off: one pass, no cache
    "multi_level": True,  # all maps of the encoder; off: the last alone; Table 3
    "width": 256,  # channels of the proposed modules [P 5.1]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in [P 5.1]; 1: fewer weights to learn [ours]
    "gate_width": 128,  # between the two FC layers of the cross-reference; unstated
    "gate_tied": False,  # one pair of FC layers for both branches; "respectively" [P 4.3] reads as separate
    "cooccurrence_weight": 1.0,  # of the auxiliary loss; the paper names the term, no weight; PFENet's auxiliaries 1.0
    "support_weight": 1.0,  # of the support branch's loss; likewise
    "dropout": 0.5,  # of channels in the ASPP [CANet]
    "equalise_maps": False,  # each encoder map divided by its root mean square, so that no level drowns another [ours]
    "normalisation": "none",  # in the heads [CANet]; "group": group norm, which needs fewer steps to train [ours]
    "initialisation": "normal",  # N(0, 0.01) [CANet]
    # In training: the prediction of the photo's last visit [CANet], by either branch where supports are not cropped, as
    # in finetuning and under augment: none; CANet keeps the query's alone. "unrolled": detached passes in a step.
    "cache": "stored",
    "cache_reset": 0.7,  # probability that a stored prediction is replaced by zeros [CANet]
    "unroll": 2,  # passes of a training step where the cache is "unrolled" [ours]
}
LIMITS = {
    "width": (1, 4096),
    "enter_kernel": {1, 3},
    "gate_width": (1, 4096),
    "cooccurrence_weight": (0.0, 100.0),
    "support_weight": (0.0, 100.0),
    "dropout": (0.0, 0.95),
    "normalisation": {"none", "group"},
    "initialisation": {"normal", "kaiming"},
    "cache": {"stored", "unrolled"},
    "cache_reset": (0.0, 1.0),
    "unroll": (1, 10),
}
SWAPS = {"gate": "cross_reference", "category": "condition"}  # what a probe may swap -> the switch of what reads it


VOID = 255


class CRNet(Method):
    """Two symmetric branches that predict query and support at the same time (paper 4.1, Figure 2).

    Without the condition module no support mask is read: the network segments whatever the two photos share.
    """

    mean_over = SHARE  # queries, supports and both: three means over pixels, each weighed by its own number

    def __init__(self, channels: tuple[int, ...], settings: dict):
        """Raises CrnetError if both modules that could find the object are switched off."""
        super().__init__()
        if not settings["cross_reference"] and not settings["condition"]:
            raise CrnetError(
                "crnet: switch on model.cross_reference or model.condition; without both, nothing links the photos."
            )
        self.settings = settings
        self.maps = tuple(range(len(channels))) if settings["multi_level"] else (len(channels) - 1,)
        self.needs_masked = settings["condition"] and settings["mask_input"]
        self.stores_cache = settings["refinement"] and settings["cache"] == "stored"
        width, how = settings["width"], settings["normalisation"]
        self.enter = conv(sum(channels[i] for i in self.maps), width, settings["enter_kernel"])
        if settings["cross_reference"]:
            self.cross_reference = CrossReference(width, settings["gate_width"], settings["gate_tied"])
            self.cooccurrence = CooccurrenceHead(width, settings["dropout"], how)
        if settings["condition"]:
            self.condition = Condition(width, how)
        self.refine = MaskRefinement(width * (2 if settings["condition"] else 1), width, settings["refinement"], how)
        initialise(self, settings["initialisation"])

    def embed(self, maps: list[Tensor]) -> Tensor:
        """Joined encoder maps -> F (N, W, h, w), paper 4.2."""
        if self.settings["equalise_maps"]:
            maps = [m * _mean_square(m).add(1e-6).rsqrt().to(m.dtype) for m in maps]
        return F.relu(self.enter(torch.cat(maps, 1)))

    def _reinforce(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        if self.settings["cross_reference"]:
            return self.cross_reference(pairs.support, pairs.query, (pairs.gate or pairs).support)
        return pairs.support, pairs.query

    def _branch(self, reinforced: Tensor, category: Tensor | None) -> Tensor:
        """Input of the refinement: "the concatenation of the outputs" of condition and cross-reference (paper 4.5)."""
        if category is None:
            return reinforced
        return torch.cat([self.condition(reinforced, category), reinforced], 1)

    def _category(self, pairs: Pairs) -> Tensor | None:
        """Background removed in the input photo and in its features (paper 4.4)."""
        if not self.settings["condition"]:
            return None
        return foreground_average_pooling(pairs.masked, pairs.support_mask)

    def _recur(self, features: Tensor, cache: Tensor | None, passes: int) -> list[Tensor]:
        """Logits (N, 2, h, w) of each pass; no gradient flows from a pass into the one before."""
        read = self.refine.read(features)
        if not self.settings["refinement"]:
            return [self.refine(read, None)]
        if cache is None:
            cache = features.new_zeros((len(features), 2, *features.shape[-2:]))
        logits = []
        for _ in range(passes):
            logits.append(self.refine(read, cache))
            cache = logits[-1].detach().float().softmax(1)
        return logits

    def losses(self, pairs: Pairs, auxiliary: bool = True) -> Step:
        """Cross-entropy of query and support masks and of the co-occurring object in both; void is left out."""
        share = pairs.share
        support, query = self._reinforce(pairs)
        category = self._category(pairs)
        passes = self.settings["unroll"] if self.settings["cache"] == "unrolled" else 1
        both = torch.cat([query, support])
        # The branches share all parameters (paper 4.4): they go through as one batch.
        twice = None if category is None else torch.cat([category, category])
        cache = None if pairs.query_cache is None else torch.cat([pairs.query_cache, pairs.support_cache])
        logits = self._recur(self._branch(both, twice), cache, passes)
        query_logits, support_logits = zip(*(each.chunk(2) for each in logits), strict=True)
        parts = {
            "query": _mean_cross_entropy(query_logits, pairs.query_mask, share and share.query_pixels),
            "support": _mean_cross_entropy(support_logits, pairs.support_mask, share and share.support_pixels),
        }
        loss = parts["query"] + self.settings["support_weight"] * parts["support"]
        if auxiliary and self.settings["cross_reference"]:
            masks = torch.cat([pairs.query_mask, pairs.support_mask])
            pixels = share and share.query_pixels + share.support_pixels
            parts["cooccurrence"] = _mean_cross_entropy([self.cooccurrence(both, _doubled(share))], masks, pixels)
            loss = loss + self.settings["cooccurrence_weight"] * parts["cooccurrence"]
        probability = [logits[-1].detach().float().softmax(1) for logits in (query_logits, support_logits)]
        return Step(loss, parts, *probability)

    def predict(self, pairs: Pairs, refinements: int) -> Tensor:
        _, query = self._reinforce(pairs)
        return self._recur(self._branch(query, self._category(pairs)), None, refinements)[-1]

    def predict_support(self, pairs: Pairs, refinements: int) -> Tensor:
        support, _ = self._reinforce(pairs)
        return self._recur(self._branch(support, self._category(pairs)), None, refinements)[-1]


def _mean_square(maps: Tensor) -> Tensor:
    """Of each map (N, C, h, w), as float32 (N, 1, 1, 1)."""
    norm = torch.linalg.vector_norm(maps, dim=(1, 2, 3), keepdim=True, dtype=torch.float32)
    return norm.square() / maps[0].numel()


def _doubled(share: Share | None) -> Rows | None:
    """The rows of queries and supports, one behind the other, among those of the whole batch."""
    if share is None:
        return None
    queries = range(share.batch)[share.rows]
    return Rows([*queries, *(share.batch + row for row in queries)], 2 * share.batch)


def _mean_cross_entropy(passes: Sequence[Tensor], masks: Tensor, pixels: Tensor | None = None) -> Tensor:
    """Mean over passes of the cross-entropy at the masks' size (N, H, W); 0 where every pixel is void.

    Of two channels only their difference counts: it is enlarged and compared instead of both.

    Args:
        pixels: Not void in the batch of which this is a part, so that the parts add up to its mean.
    """
    target, weight = (masks == 1)[:, None].float(), (masks != VOID)[:, None].float()
    losses = []
    for logits in passes:
        difference = (logits[:, 1].float() - logits[:, 0].float())[:, None]
        difference = F.interpolate(difference, size=masks.shape[-2:], mode="bilinear", align_corners=False)
        losses.append(F.binary_cross_entropy_with_logits(difference, target, weight, reduction="sum"))
    return torch.stack(losses).mean() / (weight.sum() if pixels is None else pixels).clamp(min=1)


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return CRNet(channels, settings)
