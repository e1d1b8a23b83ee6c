"""PFENet (Tian et al., TPAMI 2020), on its frozen encoder: a prior of high-level features, and feature enrichment.

From PFENet@a505675:model/PFENet.py: the prior of a query cell is its highest cosine to the support's foreground in the
deepest map, scaled to [0, 1] by image; the support's prototype, the query and the prior are joined at several grids,
each of which passes what it found to the next and is trained by a loss of its own. Several supports: mean prototype
and mean prior.

The encoder's last map makes the prior; the others, joined, the features (with a single map: that for both). Other
here: the mask is applied behind the deepest layer alone, not before it too, which the author calls hardly different
(its issue 37); grids are fractions of the map's side, as 60 cells on a smaller map would repeat cells; masks are
reduced by areas.
"""

import torch
from torch import nn
from torch.nn import functional as F

from crnet.methods import Method, Step
from crnet.model.condition import foreground_average_pooling, foreground_share
from crnet.model.entrance import Entrance
from crnet.model.layers import conv, initialise
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import SMALL, mean_of_shots, tiled
from crnet.model.pyramid import resize

SETTINGS = {
    "rev": 1,
    "width": 256,  # [PFENet]
    "grids": [1.0, 0.5, 0.25, 0.125],  # of the map's side; published 60, 30, 15 and 8 of 60 cells
    "dropout": 0.5,  # of channels of the features [PFENet]
    "classify_dropout": 0.1,  # of channels before each classifier [PFENet]
    "auxiliary_weight": 1.0,  # of the mean loss of the grids [PFENet]
    "initialisation": "torch",  # PyTorch's own [PFENet]; or as the other methods'
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {
    "width": (1, 4096),
    "grids": (0.01, 1.0),
    "dropout": (0.0, 0.95),
    "classify_dropout": (0.0, 0.95),
    "auxiliary_weight": (0.0, 100.0),
    "initialisation": {"torch", "normal", "kaiming"},
}
TRAIN = {"lr": 2.5e-2, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "poly"}  # ten times the stated rate
FUSION = "own"
K_SHOT = "mean of the prototypes and of the priors"


def prior(query, support, mask, shots=1):
    """How much each cell of the query's map (N, C, h, w) is like the supports' foreground: (N, 1, h, w) in [0, 1].

    Args:
        support: (N k, C, h, w), with mask (N k, H, W). No gradient flows.
    """
    with torch.no_grad():
        share = foreground_share(mask, support.shape[-2:])
        query = query.float().repeat_interleave(shots, 0).flatten(2)
        support = (support.float() * share).flatten(2)
        dots = torch.einsum("ncq,ncs->nqs", query, support)
        norms = query.norm(dim=1)[:, :, None] * support.norm(dim=1)[:, None]
        highest = (dots / (norms + SMALL)).amax(2)  # (N k, h w)
        low, high = highest.amin(1, keepdim=True), highest.amax(1, keepdim=True)
        scaled = (highest - low) / (high - low + SMALL)
        return mean_of_shots(scaled, shots).unflatten(1, share.shape[-2:])[:, None]


class PFENet(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, self.settings = tuple(range(len(channels))), settings
        width, equalise = settings["width"], settings["equalise_maps"]
        features = channels[:-1] or channels

        def enter() -> nn.Module:
            entrance = Entrance(features, width, 1, equalise, bias=False)
            return nn.Sequential(entrance, nn.ReLU(), nn.Dropout2d(settings["dropout"]))

        def classifier() -> nn.Module:
            drop = nn.Dropout2d(settings["classify_dropout"])
            return nn.Sequential(conv(width, width, bias=False), nn.ReLU(), drop, conv(width, 2, 1))

        def two() -> nn.Module:
            layers = [layer for _ in range(2) for layer in (conv(width, width, bias=False), nn.ReLU())]
            return nn.Sequential(*layers)

        def narrow(inputs: int) -> nn.Module:
            return nn.Sequential(conv(inputs, width, 1, bias=False), nn.ReLU())

        grids = settings["grids"]
        self.enter_query, self.enter_support = enter(), enter()
        self.merge = nn.ModuleList([narrow(2 * width + 1) for _ in grids])
        self.passed = nn.ModuleList([narrow(2 * width) for _ in grids[1:]])
        self.enrich = nn.ModuleList([two() for _ in grids])
        self.inner = nn.ModuleList([classifier() for _ in grids])
        self.join, self.residual, self.classify = narrow(len(grids) * width), two(), classifier()
        if settings["initialisation"] != "torch":
            initialise(self, settings["initialisation"])

    def embed(self, maps):
        """The features as a query's and as a support's (N, width, h, w), and the map of the prior (N, C, h, w)."""
        features = maps[:-1] or maps
        return self.enter_query(features), self.enter_support(features), maps[-1]

    def _logits(self, pairs):
        """Logits (N, 2, h, w), and those of each grid, likewise."""
        query, size = pairs.query[0], pairs.query[0].shape[-2:]
        vector = mean_of_shots(foreground_average_pooling(pairs.support[1], pairs.support_mask), pairs.shots)
        likeness = prior(pairs.query[2], pairs.support[2], pairs.support_mask, pairs.shots).to(query.dtype)
        found, inner, last = [], [], None
        for number, fraction in enumerate(self.settings["grids"]):
            grid = [max(1, round(side * fraction)) for side in size]
            pooled = F.adaptive_avg_pool2d(query, grid)
            x = self.merge[number](torch.cat([pooled, tiled(vector, pooled), resize(likeness, grid)], 1))
            if last is not None:
                x = x + self.passed[number - 1](torch.cat([x, resize(last, grid)], 1))
            last = x = x + self.enrich[number](x)
            inner.append(resize(self.inner[number](x), size))
            found.append(resize(x, size))
        x = self.join(torch.cat(found, 1))
        return self.classify(x + self.residual(x)), inner

    def predict(self, pairs, refinements):
        return self._logits(pairs)[0]

    def losses(self, pairs, auxiliary=True):
        logits, inner = self._logits(pairs)
        loss = mean_cross_entropy(logits, pairs.query_mask)
        parts = {"query": loss}
        if auxiliary:
            parts["grids"] = torch.stack([mean_cross_entropy(each, pairs.query_mask) for each in inner]).mean()
            loss = loss + self.settings["auxiliary_weight"] * parts["grids"]
        return Step(loss, parts)


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return PFENet(channels, settings)
