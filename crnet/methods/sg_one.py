"""SG-One (Zhang et al., 2018), on a frozen encoder: the cosine to the support's mean guides the query's features.

From SG-One@7436ca4:oneshot/onemodel_sg-one.py and models/vgg/vgg_sg.py: features f of both photos; their cosine in the
query to the support's masked average multiplies the query's side features, negative values and all; then 3 x 3, ReLU
and 1 x 1 give the scores. Several supports: the mean of their vectors.

Other here: the encoder is frozen (published: VGG16, trained, three side branches from its blocks); one convolution of
the joined maps gives the side features. The support is averaged by the share of foreground in each cell in place of
enlarging f to the mask, with an epsilon for an empty mask. The last 1 x 1 has no padding: published, it has one, which
adds a rim to the map and shifts it by 5 %.
"""

from torch import nn

from crnet.methods import Method, Step
from crnet.model.condition import foreground_average_pooling
from crnet.model.entrance import Entrance
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import cosine, mean_of_shots

SETTINGS = {
    "rev": 1,
    "width": 512,  # of the features that are compared [SG-One]
    "side_width": 128,  # of those that are guided [SG-One]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {"width": (1, 4096), "enter_kernel": {1, 3}, "side_width": (1, 4096)}
TRAIN = {"lr": 1e-5, "momentum": 0.99}
FUSION = "own"
K_SHOT = "mean of the supports' vectors"


class SGOne(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps = tuple(range(len(channels)))
        side, kernel, equalise = (settings[name] for name in ("side_width", "enter_kernel", "equalise_maps"))
        self.compared = Entrance(channels, settings["width"], kernel, equalise)
        self.side = Entrance(channels, side, kernel, equalise)
        self.classify = nn.Sequential(conv(side, side), nn.ReLU(), conv(side, 2, 1))

    def embed(self, maps):
        """Features that are compared (N, width, h, w), and the side features (N, side_width, h, w)."""
        return self.compared(maps), self.side(maps)

    def similarity(self, pairs):
        """Of each cell of the query to the supports, (N, 1, h, w) in [-1, 1]."""
        vector = foreground_average_pooling(pairs.support[0], pairs.support_mask)
        return cosine(pairs.query[0], mean_of_shots(vector, pairs.shots))

    def predict(self, pairs, refinements):
        side = pairs.query[1]
        return self.classify(side * self.similarity(pairs).to(side.dtype))

    def losses(self, pairs, auxiliary=True):
        loss = mean_cross_entropy(self.predict(pairs, 1), pairs.query_mask)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return SGOne(channels, settings)
