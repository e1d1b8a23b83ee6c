"""co-FCN (Rakelly et al., ICLR workshop 2018), late fusion, on a frozen encoder: means of the support, tiled.

From revolver@df5b72b:revolver/model/cofeat_late_lite_unshared.py: the support's features are averaged over foreground
and over background, over all supports too; both means are joined to every cell of the query, then a 1 x 1 convolution,
ReLU, channel dropout and the scores.

Other here: the encoder is frozen and at 1/8 (published: VGG16, trained, at 1/32), a 3 x 3 convolution stands for fc6.
The public code is a later variant than the workshop's network, which puts the annotation into the encoder's input.
Layers start as PyTorch's do; published: N(0, 0.001), and scores of zero, which learn slowly.
"""

import torch
from torch import nn

from crnet.methods import Method, Step
from crnet.model.entrance import Entrance
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import foreground_and_background, mean_of_shots, tiled

SETTINGS = {
    "rev": 1,
    "width": 256,  # of the features [revolver]
    "dropout": 0.5,  # of channels [revolver]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {"width": (1, 4096), "enter_kernel": {1, 3}, "dropout": (0.0, 0.95)}
TRAIN = {"lr": 1e-5, "momentum": 0.99}  # the code's default
FUSION = "own"
K_SHOT = "mean of the pooled foreground and background vectors"


class CoFCN(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps = tuple(range(len(channels)))
        width, drop = settings["width"], nn.Dropout2d(settings["dropout"])
        enter = Entrance(channels, width, settings["enter_kernel"], settings["equalise_maps"])
        self.enter = nn.Sequential(enter, nn.ReLU(), drop)
        self.join = nn.Sequential(conv(3 * width, 3 * width, 1), nn.ReLU(), drop, conv(3 * width, 2, 1))

    def embed(self, maps):
        return self.enter(maps)

    def predict(self, pairs, refinements):
        pooled = foreground_and_background(pairs.support, pairs.support_mask)
        foreground, background = (tiled(mean_of_shots(v, pairs.shots), pairs.query) for v in pooled)
        return self.join(torch.cat([pairs.query, background, foreground], 1))

    def losses(self, pairs, auxiliary=True):
        loss = mean_cross_entropy(self.predict(pairs, 1), pairs.query_mask)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return CoFCN(channels, settings)
