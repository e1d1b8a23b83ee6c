"""OSLSM (Shaban et al., BMVC 2017), on a frozen encoder: the support photo writes the weights of a classifier.

From OSLSM@d5312de:os_semantic_segmentation/training/*.prototxt and code/ss_settings.py: the support without its
background becomes 1000 numbers, which a fixed layer spreads over the weights and the bias of a classifier of the
query's 4096 features; the widest of k scores at each pixel counts, a union of classifiers.

Other here: the published net trains two VGG16 with their fully connected layers and gives the query's features at
stride 32; here one frozen encoder gives maps at 1/8, the fully connected layers are a mean over cells with a linear
layer, and convolutions of ``width`` channels. From memory of the paper, the released layer being stored numbers: the
fixed layer copies input kappa(i) with sign zeta(i) to output i. The loss is a mean, where Caffe's is a sum.
"""

import numpy as np
import torch
from torch import nn

from crnet.methods import Method, Step
from crnet.model.entrance import Entrance, joined
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy, two_channels
from crnet.model.prototypes import per_query
from crnet.runtime.seeding import derive

SETTINGS = {
    "rev": 1,
    "width": 1024,  # of the query's features; 4096 in VGG16 [ours]
    "hashed": 1000,  # numbers that are spread over the weights: VGG16's classes [OSLSM]
    "dropout": 0.5,  # behind each layer of the query's branch [OSLSM]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {"width": (1, 4096), "enter_kernel": {1, 3}, "hashed": (1, 4096), "dropout": (0.0, 0.95)}
TRAIN = {"lr": 2.5e-5, "momentum": 0.99}  # published: 1e-10 on a loss summed over some 250,000 pixels
FUSION = "own"
K_SHOT = "the highest of the supports' scores, a union of classifiers"


class OSLSM(Method):
    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps = tuple(range(len(channels)))
        self.equalise, width = settings["equalise_maps"], settings["width"]
        self.condition = nn.Linear(sum(channels), settings["hashed"])
        drop = nn.Dropout(settings["dropout"])
        self.enter = Entrance(channels, width, settings["enter_kernel"])
        self.query = nn.Sequential(nn.ReLU(), drop, conv(width, width, 1), nn.ReLU(), drop)
        # Drawn once, no matter which training: as it is not learnt, no weights file need hold it.
        chance = np.random.default_rng(derive("oslsm", "fixed layer", settings["hashed"], width))
        source = chance.integers(settings["hashed"], size=width + 1)
        self.register_buffer("source", torch.tensor(source), persistent=False)
        self.register_buffer("sign", torch.tensor(chance.choice([-1.0, 1.0], width + 1)).float(), persistent=False)

    def embed(self, maps):
        return joined(maps, self.equalise)

    def weights(self, masked):
        """Supports without background (N, C, h, w) -> weights and bias (N, width + 1) of their classifiers."""
        return self.condition(masked.mean((2, 3)))[:, self.source] * self.sign

    def predict(self, pairs, refinements):
        features = self.query(self.enter([pairs.query]))
        weights = per_query(self.weights(pairs.masked), pairs.shots)  # (N, k, width + 1)
        weights, bias = weights[..., :-1].to(features.dtype), weights[..., -1, None, None]
        scores = torch.einsum("nkd,ndhw->nkhw", weights, features) / features.shape[1] ** 0.5 + bias
        return two_channels(scores.amax(1, keepdim=True))

    def losses(self, pairs, auxiliary=True):
        loss = mean_cross_entropy(self.predict(pairs, 1), pairs.query_mask)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return OSLSM(channels, settings)
