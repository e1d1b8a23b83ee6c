"""In the spirit of A-MCG (Hu et al., AAAI 2019), on a frozen encoder: context of several levels, guided with attention.

A reading of the paper, from its abstract, a figure's caption and notes: there is no public code. Known: at each level
of both encoders 1 x 1 convolutions of the two maps are added to what came from the level before, attention works along
that branch, a decoder gives the mask, and several supports go through a ConvLSTM. Guessed: how the mask enters (by the
masked average), that attention is spatial, widths, and the decoder. All maps here are at 1/8, from coarse features to
fine ones none shrinks. The ConvLSTM asks for training with several supports; training here has one, so there is none.
"""

import torch
from torch import nn

from crnet.methods import Method, Step
from crnet.model.condition import foreground_average_pooling
from crnet.model.entrance import joined
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import tiled

SETTINGS = {
    "rev": 1,
    "width": 256,  # of the fused maps [guess]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {"width": (1, 4096)}
K_SHOT = "mean of probabilities, where the paper has a ConvLSTM that is trained with several supports"


class AMCG(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, self.equalise, width = tuple(range(len(channels))), settings["equalise_maps"], settings["width"]
        self.fuse = nn.ModuleList([conv(2 * c, width, 1) for c in channels])
        self.attend = nn.ModuleList([conv(width, 1, 1) for _ in channels])
        self.decode = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, 2, 1))

    def embed(self, maps):
        """The encoder's maps, a level each."""
        return tuple(joined([each], self.equalise) for each in maps)

    def predict(self, pairs, refinements):
        context = 0
        for query, support, fuse, attend in zip(pairs.query, pairs.support, self.fuse, self.attend, strict=True):
            guide = tiled(foreground_average_pooling(support, pairs.support_mask), query)
            context = torch.relu(fuse(torch.cat([guide, query], 1))) + context
            context = context * (1 + torch.sigmoid(attend(context)))
        return self.decode(context)

    def losses(self, pairs, auxiliary=True):
        loss = mean_cross_entropy(self.predict(pairs, 1), pairs.query_mask)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return AMCG(channels, settings)
