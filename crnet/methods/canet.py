"""CANet (Zhang et al., CVPR 2019), on its frozen encoder: dense comparison, then iterative refinement.

From CaNet@fdce946:one_shot_network.py and train.py: one 3 x 3 convolution dilated by 2 embeds both photos; the
support's masked average, tiled, is compared with the query by another; the iterative optimisation module adds the last
prediction, in three residual blocks, and ASPP gives the next one. In training a pass starts from the query's stored
prediction of its last visit, or from zeros with probability 0.7.

Other here: the mask is reduced by areas, where bilinear sampling may miss small objects; biases start at zero. The
attention that weighs several supports is unreleased and is trained with several; training here has one support, so
their comparisons have equal weights. The released code takes the best of five passes and of 200 epochs on the test
classes; here the last of both.
"""

import torch
from torch import nn
from torch.nn import functional as F

from crnet.methods import SHARE, Method, Step, rows
from crnet.model.condition import foreground_average_pooling
from crnet.model.entrance import Entrance
from crnet.model.layers import ASPP, ChannelDropout, ResidualConv, conv, initialise
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import mean_of_shots, tiled

SETTINGS = {
    "rev": 1,
    "width": 256,  # [CANet]
    "dropout": 0.5,  # of channels [CANet]
    "cache_reset": 0.7,  # probability that a stored prediction is replaced by zeros [CANet]
    "initialisation": "normal",  # N(0, 0.01) [CANet]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {
    "width": (1, 4096),
    "enter_kernel": {1, 3},
    "dropout": (0.0, 0.95),
    "cache_reset": (0.0, 1.0),
    "initialisation": {"normal", "kaiming"},
}
TRAIN = {"lr": 2.5e-3, "momentum": 0.9, "weight_decay": 5e-4}  # ten times the stated rate, in every group that trains
FUSION = "own"
K_SHOT = "mean of the comparisons: the paper's attention, with equal weights, as it is trained with several supports"


class CANet(Method):
    needs_masked = False
    stores_cache = True
    mean_over = SHARE  # so that dropout draws for the whole batch

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, width = tuple(range(len(channels))), settings["width"]
        self.enter = Entrance(channels, width, settings["enter_kernel"], settings["equalise_maps"], dilation=2)
        self.dropout = ChannelDropout(settings["dropout"])
        self.compare = conv(2 * width, width, dilation=2)
        self.history = nn.ModuleList([conv(width + 2, width), conv(width, width)])
        self.residual = nn.Sequential(ResidualConv(width, "none"), ResidualConv(width, "none"))
        self.aspp, self.classify = ASPP(width, settings["dropout"]), conv(width, 2, 1)
        initialise(self, settings["initialisation"])

    def embed(self, maps):
        return F.relu(self.enter(maps))

    def _compared(self, query, support, mask, shots, places=None):
        """The dense comparison (N, width, h, w)."""
        vector = foreground_average_pooling(support, mask)  # (N k, width)
        each = query.repeat_interleave(shots, 0)
        each = self.dropout(F.relu(self.compare(torch.cat([each, tiled(vector, each)], 1))), places)
        return mean_of_shots(each, shots)

    def _refined(self, compared, last, places=None):
        """Logits (N, 2, h, w) of one pass from the last probabilities (N, 2, h, w)."""
        first, second = self.history
        given = F.relu(torch.cat([compared, last.to(compared.dtype)], 1))
        return self.classify(self.aspp(self.residual(compared + second(F.relu(first(given)))), places))

    def predict(self, pairs, refinements):
        compared = self._compared(pairs.query, pairs.support, pairs.support_mask, pairs.shots)
        last = compared.new_zeros(len(compared), 2, *compared.shape[-2:])
        for _ in range(refinements):
            logits = self._refined(compared, last)
            last = logits.float().softmax(1)
        return logits

    def losses(self, pairs, auxiliary=True):
        places = rows(pairs.share)
        query, support = self.dropout(pairs.query, places), self.dropout(pairs.support, places)
        compared = self._compared(query, support, pairs.support_mask, 1, places)
        last = pairs.query_cache
        if last is None:
            last = compared.new_zeros(len(compared), 2, *compared.shape[-2:])
        logits = self._refined(compared, last, places)
        pixels = pairs.share and pairs.share.query_pixels
        loss = mean_cross_entropy(logits, pairs.query_mask, pixels)
        return Step(loss, {"query": loss}, logits.detach().float().softmax(1))


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return CANet(channels, settings)
