"""Control: the untrained prototype. What the frozen encoder alone knows.

Masked average pooling of the support's features over its foreground and over its background gives two prototypes;
a query position belongs to the one that its features are closer to in cosine (the rule of PANet@1695bf3, untrained).
"""

import torch
from torch.nn import functional as F

from crnet.methods import Method
from crnet.model.condition import EPSILON, foreground_share

SETTINGS = {
    "rev": 1,
    "scale": 20.0,  # cosine to logit, PANet@1695bf3; matters only where probabilities are averaged
}
LIMITS = {"scale": (0.1, 1000.0)}
TRAINS = False


class Prototype(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], scale: float):
        super().__init__()
        self.maps = tuple(range(len(channels)))
        self.scale = scale

    def embed(self, maps):
        return torch.cat(maps, 1)

    def predict(self, pairs, refinements):
        share = foreground_share(pairs.support_mask, pairs.support.shape[-2:])  # (N, 1, h, w)
        query, support = pairs.query.float(), pairs.support.float()
        cosines = []
        for weight in (1 - share, share):
            prototype = (support * weight).sum((2, 3)) / (weight.sum((2, 3)) + EPSILON)  # (N, D)
            cosines.append(F.cosine_similarity(query, prototype[:, :, None, None], dim=1))
        return self.scale * torch.stack(cosines, 1)


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return Prototype(channels, settings["scale"])
