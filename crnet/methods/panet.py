"""PANet (Wang et al., ICCV 2019), on a frozen encoder: nearest prototype, aligned from support to query and back.

From PANet@1695bf3:models/fewshot.py: foreground and background prototypes of the support by masked averages; the
query's logits are 20 times its cosines to them; in training the query's own prediction gives prototypes back, which
must segment the support.

Other here: published, the only weights are those of VGG16, all trained; the encoder here is frozen, so a 3 x 3
convolution without activation embeds its maps (without it, this is the control ``prototype``). Void in the support is
left out, where the code counts it as background. Published for five supports is training with five; here with one.
"""

import torch

from crnet.methods import SHARE, Method, Step
from crnet.model.entrance import Entrance
from crnet.model.losses import VOID, mean_cross_entropy
from crnet.model.prototypes import cosine, foreground_and_background, masked_average, mean_of_shots

SETTINGS = {
    "rev": 1,
    "width": 256,  # of the embedding [ours]
    "scale": 20.0,  # cosine to logit [PANet]
    "alignment_weight": 1.0,  # of the loss on the support [PANet]
    "enter_kernel": 3,  # of the convolution that takes the encoder's maps in; 1: fewer weights to learn [ours]
    "equalise_maps": False,  # each encoder map divided by its root mean square [ours]
}
LIMITS = {"width": (1, 4096), "enter_kernel": {1, 3}, "scale": (0.1, 1000.0), "alignment_weight": (0.0, 100.0)}
TRAIN = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
FUSION = "own"
K_SHOT = "mean of the prototypes"


class PANet(Method):
    needs_masked = False
    mean_over = SHARE  # the alignment is a mean over the supports' pixels

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, self.settings = tuple(range(len(channels))), settings
        self.enter = Entrance(channels, settings["width"], settings["enter_kernel"], settings["equalise_maps"])

    def embed(self, maps):
        return self.enter(maps)

    def _nearest(self, features, background, foreground):
        return self.settings["scale"] * torch.cat([cosine(features, each) for each in (background, foreground)], 1)

    def predict(self, pairs, refinements):
        vectors = foreground_and_background(pairs.support, pairs.support_mask)
        foreground, background = (mean_of_shots(each, pairs.shots) for each in vectors)
        return self._nearest(pairs.query, background, foreground)

    def aligned(self, pairs, logits):
        """The support segmented by what the query's logits (N, 2, h, w) call the object: a loss, and nothing of pairs
        in which that is nothing."""
        found = (logits[:, 1:] > logits[:, :1]).float()
        foreground, background = (masked_average(pairs.query, share) for share in (found, 1 - found))
        nothing = found.amax((1, 2, 3)) == 0
        mask = torch.where(nothing[:, None, None], VOID, pairs.support_mask)
        pixels = pairs.share.support_pixels if pairs.share else (pairs.support_mask != VOID).sum()
        return mean_cross_entropy(self._nearest(pairs.support, background, foreground), mask, pixels)

    def losses(self, pairs, auxiliary=True):
        logits = self.predict(pairs, 1)
        query = mean_cross_entropy(logits, pairs.query_mask, pairs.share and pairs.share.query_pixels)
        parts = {"query": query}
        if auxiliary:
            parts["alignment"] = self.aligned(pairs, logits.detach())
            query = query + self.settings["alignment_weight"] * parts["alignment"]
        return Step(query, parts)


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return PANet(channels, settings)
