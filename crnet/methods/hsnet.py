"""HSNet (Min et al., ICCV 2021), on its frozen encoder: 4D convolutions of the correlations of two photos.

From hsnet@6b1bc12:model/{hsnet,base/conv4d,learner}.py: the cosines of every query cell with every cell of the
support's foreground, negative ones zero, at three levels; centre-pivot 4D convolutions squeeze the support's sides,
coarse levels are mixed into finer ones, and a decoder gives the mask. Several supports vote: the threshold is half of
the votes of the best cell.

Other here: published, a level holds the outputs of all blocks of a stage at its own stride, 8, 16 or 32, before the
last ReLU. The encoders here give maps at 1/8; maps of equal channels in a row are a level, and coarser levels are
pooled from 1/8 by areas to 1/16 and 1/32. Masks are reduced by areas. The decoder's enlargement by two is left to that
of the logits. Votes are probabilities, as masks do not have the photo's size yet.
"""

from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.errors import CrnetError
from crnet.methods import Method, Step
from crnet.model.condition import foreground_share
from crnet.model.correlation import CentrePivot, correlation, resize_query
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy, two_channels
from crnet.model.prototypes import per_query

SETTINGS = {
    "rev": 1,
    "width": 128,  # of the mixed correlations [HSNet]
    "levels": [0],  # how many maps each level has, from fine to coarse; [0]: those of equal channels in a row are one
}
LIMITS = {"width": (8, 1024), "levels": (0, 100)}
TRAIN = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0}  # Adam
FUSION = "own"
K_SHOT = "a vote: mean probability against half of the best cell's share of votes"
# Kernels and strides, over the support's sides, of the three squeezing convolutions of each level, fine to coarse.
SQUEEZE = (((5, 5, 3), (4, 4, 2)), ((5, 3, 3), (4, 2, 2)), ((3, 3, 3), (2, 2, 2)))


class HSNet(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, width = tuple(range(len(channels))), settings["width"]
        self.levels = settings["levels"]
        if self.levels == [0]:
            self.levels = [len([*run]) for _, run in groupby(channels)]
        if len(self.levels) > len(SQUEEZE) or sum(self.levels) != len(channels):
            raise CrnetError(
                f"hsnet: model.levels {self.levels} must be up to {len(SQUEEZE)} numbers with the sum {len(channels)}, "
                "the encoder's maps; choose levels, or layers of the encoder that make so many."
            )
        self.squeeze = nn.ModuleList()
        for maps, (kernels, strides) in zip(self.levels, SQUEEZE, strict=False):
            widths = [maps, width // 8, width // 2, width]
            layers = zip(widths, widths[1:], kernels, strides, strict=False)
            self.squeeze.append(nn.Sequential(*(CentrePivot(*layer) for layer in layers)))
        three = [(width, width, 3, 1)] * 3
        self.mix = nn.ModuleList([nn.Sequential(*(CentrePivot(*layer) for layer in three)) for _ in self.levels[1:]])
        half = width // 2
        self.decode = nn.Sequential(
            *(conv(width, width), nn.ReLU(), conv(width, half), nn.ReLU()),
            *(conv(half, half), nn.ReLU(), conv(half, 2)),
        )

    def embed(self, maps):
        """The encoder's maps (N, C_i, h_l, w_l) at the size of their level l: 1/8, 1/16 or 1/32 of the photo."""
        factors = [2**level for level, count in enumerate(self.levels) for _ in range(count)]
        sizes = [[-(-side // factor) for side in m.shape[-2:]] for m, factor in zip(maps, factors, strict=True)]
        return tuple(F.adaptive_avg_pool2d(m, size) for m, size in zip(maps, sizes, strict=True))

    def correlations(self, pairs) -> list[Tensor]:
        """Of each level: (N k, maps, query sides, support sides), in [0, 1]."""
        each = []
        cells = foreground_share(pairs.support_mask, pairs.support[0].shape[-2:])  # of the finest level
        for query, support in zip(pairs.query, pairs.support, strict=True):
            share = F.adaptive_avg_pool2d(cells, support.shape[-2:])
            each.append(correlation(query.repeat_interleave(pairs.shots, 0), support * share.to(support.dtype)))
        ends = [sum(self.levels[: level + 1]) for level in range(len(self.levels))]
        return [torch.stack(each[end - count : end], 1) for count, end in zip(self.levels, ends, strict=True)]

    def _logits(self, pairs):
        """Of each support by itself: (N k, 2, h, w)."""
        given = self.correlations(pairs)
        squeezed = [squeeze(each) for squeeze, each in zip(self.squeeze, given, strict=True)]
        mixed = squeezed.pop()
        for finer, mix in zip(reversed(squeezed), self.mix, strict=True):
            mixed = mix(finer + resize_query(mixed, finer.shape[2:4]))
        return self.decode(mixed.mean((4, 5)))

    def predict(self, pairs, refinements):
        logits = self._logits(pairs).float()
        if pairs.shots == 1:
            return logits
        probability = per_query(logits.softmax(1)[:, 1], pairs.shots)  # (N, k, h, w)
        votes = (probability > 0.5).float().mean(1).amax((1, 2), keepdim=True)
        share = probability.mean(1) / torch.where(votes > 0, votes, torch.ones_like(votes))
        return two_channels(torch.logit(share, 1e-6)[:, None])

    def losses(self, pairs, auxiliary=True):
        loss = mean_cross_entropy(self._logits(pairs), pairs.query_mask)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return HSNet(channels, settings)
