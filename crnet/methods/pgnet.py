"""PGNet (Zhang et al., ICCV 2019), on its frozen encoder: the query's cells attend to the support's foreground.

A reading of the paper with the layers of a re-implementation that goes by its name; there is no official code. As
there: CANet's embedding; attention of query cells, pooled to grids of 1/4, 1/2 and 1 of the map, to the support's
cells, and a fourth unit with uniform weights, of which one layer g is shared; the results enlarged and summed; three
residual blocks, ASPP, 1 x 1. Several supports: all their cells in one softmax.

Other here: the softmax runs over the support's foreground, weighed by its share in each cell, as the paper has it (the
re-implementation's runs over all cells). Whether the paper sums or joins the levels is not known to us. Rate and
schedule are CANet's, whose first author and encoder it shares [guess].
"""

import torch
from torch import nn
from torch.nn import functional as F

from crnet.methods import SHARE, Method, Step, rows
from crnet.model.condition import foreground_share
from crnet.model.entrance import Entrance
from crnet.model.layers import ASPP, ChannelDropout, conv, initialise
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import per_query
from crnet.model.pyramid import resize

SETTINGS = {
    "rev": 1,
    "width": 256,  # as CANet
    "dropout": 0.5,  # of channels, as CANet
    "grids": [0.25, 0.5, 1.0],  # of the map's side, that of the query's nodes
    "initialisation": "normal",  # N(0, 0.01), as CANet [guess]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {
    "width": (1, 4096),
    "enter_kernel": {1, 3},
    "dropout": (0.0, 0.95),
    "grids": (0.01, 1.0),
    "initialisation": {"normal", "kaiming"},
}
FUSION = "own"
K_SHOT = "one attention over the foreground of all supports"


class GraphAttention(nn.Module):
    """Query nodes (N, W, a, b) and support nodes (N, W, m) -> (N, W, a, b)."""

    def __init__(self, width: int):
        super().__init__()
        self.of_query, self.of_support = conv(width, width, 1), conv(width, width, 1)
        self.join = conv(2 * width, width, 1)

    def attention(self, query, support, share):
        """Of each query node over the support nodes (N, W, m, 1): (N, a b, m), which sum to 1; 0 where no share is."""
        nodes = self.of_query(query).flatten(2).float(), self.of_support(support).flatten(2).float()
        scores = torch.einsum("nwq,nws->nqs", *nodes)
        # An empty mask: all nodes alike, as no softmax is one of nothing.
        share = torch.where(share.sum(1, keepdim=True) > 0, share, torch.ones_like(share))
        return (scores + share.log()[:, None]).softmax(2)

    def forward(self, query, support, share, shared):
        """``shared``: the layer g of all units."""
        seen = torch.einsum("nqs,nws->nwq", self.attention(query, support, share), shared(support).flatten(2).float())
        seen = seen.reshape(query.shape).to(query.dtype)
        return F.relu(self.join(torch.cat([seen, shared(query)], 1)))


class PGNet(Method):
    needs_masked = False
    mean_over = SHARE  # so that dropout draws for the whole batch

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, self.grids, width = tuple(range(len(channels))), settings["grids"], settings["width"]
        self.enter = Entrance(channels, width, settings["enter_kernel"], settings["equalise_maps"], dilation=2)
        self.dropout = ChannelDropout(settings["dropout"])
        self.shared = nn.Sequential(conv(width, width, 1), nn.ReLU())
        self.units = nn.ModuleList([GraphAttention(width) for _ in self.grids])
        self.uniform = conv(2 * width, width, 1)
        pairs = [(conv(width, width), conv(width, width)) for _ in range(3)]
        self.residual = nn.ModuleList([nn.ModuleList(pair) for pair in pairs])
        self.aspp, self.classify = ASPP(width, settings["dropout"]), conv(width, 2, 1)
        initialise(self, settings["initialisation"])

    def embed(self, maps):
        return F.relu(self.enter(maps))

    def nodes(self, support, mask, shots):
        """All supports of a query as one row of nodes (N, W, k h w, 1), and their foreground's shares (N, k h w)."""
        share = foreground_share(mask, support.shape[-2:])
        nodes = per_query(support, shots).movedim(1, 2).flatten(2)
        return nodes[..., None], per_query(share, shots).flatten(1)

    def _logits(self, query, nodes, share, places=None):
        size, found = query.shape[-2:], 0
        for grid, unit in zip(self.grids, self.units, strict=True):
            pooled = F.adaptive_avg_pool2d(query, [max(1, round(side * grid)) for side in size])
            found = found + resize(unit(pooled, nodes, share, self.shared), size)
        weights = share / share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        mean = torch.einsum("nws,ns->nw", self.shared(nodes).flatten(2).float(), weights)
        mean = mean.to(query.dtype)[:, :, None, None].expand_as(query)
        x = found + F.relu(self.uniform(torch.cat([mean, self.shared(query)], 1)))
        for first, second in self.residual:
            x = F.relu(x + second(F.relu(first(x))))
        return self.classify(self.aspp(x, places))

    def predict(self, pairs, refinements):
        return self._logits(pairs.query, *self.nodes(pairs.support, pairs.support_mask, pairs.shots))

    def losses(self, pairs, auxiliary=True):
        places = rows(pairs.share)
        query, support = self.dropout(pairs.query, places), self.dropout(pairs.support, places)
        logits = self._logits(query, *self.nodes(support, pairs.support_mask, 1), places)
        loss = mean_cross_entropy(logits, pairs.query_mask, pairs.share and pairs.share.query_pixels)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return PGNet(channels, settings)
