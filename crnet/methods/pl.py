"""In the spirit of PL (Dong & Xing, BMVC 2018), on a frozen encoder: prototypes that are learnt as a metric.

A reading of the paper, from notes on it: there is no public code, and widths, rates and the encoder are not known to
us. What the notes agree on: a learner f makes a prototype of a photo and a mask; a segmenter g scores the query's
cells with each class's prototype added; the map of each class, taken as a mask, makes a prototype of the query by f,
whose distance to the support's weighs that class; segmentation and metric are trained together. Guessed here: that
every sum, softmax and temperature is as below. One-way, two classes are left: background and foreground.
"""

import torch
from torch import nn
from torch.nn import functional as F

from crnet.methods import SHARE, Method, Step
from crnet.model.condition import foreground_share
from crnet.model.entrance import Entrance
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import background_share, foreground_and_background, masked_average, mean_of_shots, tiled

SETTINGS = {
    "rev": 1,
    "width": 256,  # of learner and segmenter [guess]
    "metric_weight": 1.0,  # of the metric's loss [guess]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {"width": (1, 4096), "enter_kernel": {1, 3}, "metric_weight": (0.0, 100.0)}
FUSION = "own"
K_SHOT = "mean of the prototypes"


class PL(Method):
    needs_masked = False
    mean_over = SHARE  # the metric is a mean over pairs, the segmentation over pixels

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps = tuple(range(len(channels)))
        self.width, self.metric_weight = settings["width"], settings["metric_weight"]
        kernel, equalise = settings["enter_kernel"], settings["equalise_maps"]
        self.learner = nn.Sequential(Entrance(channels, self.width, kernel, equalise), nn.ReLU())
        self.segmenter = Entrance(channels, self.width, kernel, equalise)
        self.score = conv(self.width, 1, 1)

    def embed(self, maps):
        """The learner's map and the segmenter's, (N, width, h, w) each."""
        return self.learner(maps), self.segmenter(maps)

    def prototypes(self, pairs):
        """Of background and foreground: (N, 2, width), the mean over the supports."""
        foreground, background = foreground_and_background(pairs.support[0], pairs.support_mask)
        return torch.stack([mean_of_shots(each, pairs.shots) for each in (background, foreground)], 1)

    def closeness(self, vectors, prototypes):
        """Minus squared distances, per channel, of vectors (N, 2, width) to prototypes: (N, 2 vectors, 2 classes)."""
        return -(vectors[:, :, None] - prototypes[:, None]).square().mean(-1)

    def predict(self, pairs, refinements):
        prototypes = self.prototypes(pairs)
        learnt, segmented = pairs.query
        # ReLU stands behind the sum: of a linear score of the sum both classes would have the same map.
        fused = [torch.relu(segmented + tiled(each, segmented)) for each in prototypes.unbind(1)]
        scores = torch.cat([self.score(each) for each in fused], 1).float()
        found = [masked_average(learnt, share[:, None]) for share in scores.softmax(1).unbind(1)]
        own = self.closeness(torch.stack(found, 1), prototypes).diagonal(dim1=1, dim2=2)  # (N, 2)
        return scores + own.log_softmax(1)[:, :, None, None]

    def losses(self, pairs, auxiliary=True):
        """Cross-entropy of the mask, and of the class of the query's true foreground and background by distance."""
        share, size = pairs.share, pairs.query[0].shape[-2:]
        query = mean_cross_entropy(self.predict(pairs, 1), pairs.query_mask, share and share.query_pixels)
        regions = [background_share(pairs.query_mask, size), foreground_share(pairs.query_mask, size)]
        vectors = torch.stack([masked_average(pairs.query[0], region) for region in regions], 1)
        logits = self.closeness(vectors, self.prototypes(pairs)).flatten(0, 1)  # (N 2, 2)
        classes = torch.arange(2, device=logits.device).repeat(len(vectors))
        shown = torch.cat([region.amax((2, 3)) for region in regions], 1).flatten() > 0
        each = F.cross_entropy(logits, classes, reduction="none") * shown
        metric = each.sum() / (2 * (share.batch if share else len(vectors)))
        return Step(query + self.metric_weight * metric, {"query": query, "metric": metric})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return PL(channels, settings)
