"""R-DFCN (Siam & Oreshkin, 2019), which became AMP (ICCV 2019), on a frozen encoder: weights imprinted from proxies.

From AdaptiveMaskedProxies@cc0d3d1:ptsemseg/models/* and fewshot_imprinted.py: a network is trained on the base classes
with a row of weights for each, at each of the encoder's levels; the deepest goes through a 1 x 1 convolution f first.
At test the supports' masked averages become the row of the new class and move the background's by ``alpha``; a pixel is
of the class whose summed scores are highest. Pixels of the query that are surely of the new class move its row by
``query_alpha``. Nothing is learnt by gradient at test, and an episode leaves no trace.

Other here: the encoder is frozen (published: VGG16, trained). Features and rows are normalised at every level, as the
code's later ``use_normalize_train``: without, new rows of norm 1 stand beside base rows of any norm, which makes their
balance an accident. Features are compared as they are averaged, without ReLU. Labels here name one class a photo; what
is not of it may be another base class, so the loss asks that its row be lower than *some* other, the background's or a
class's, where cross-entropy with "background" would unlearn in one episode what the last has taught. Base rows of
classes that a support shows besides are not moved, as its mask does not say them.
"""

import torch
from torch import nn
from torch.nn import functional as F

from crnet.methods import Method, Step
from crnet.model.entrance import centred
from crnet.model.layers import conv
from crnet.model.losses import mean_cross_entropy
from crnet.model.prototypes import foreground_and_background, masked_average, mean_of_shots

SETTINGS = {
    "rev": 1,
    "width": 256,  # of the deepest features [AMP]
    "base_classes": 15,  # rows beside the background's: as many as a fold has [PASCAL-5i]
    "centre_maps": False,  # each level minus its mean over the photo, so that cosines are of what differs in it [ours]
    "scale": 20.0,  # cosine to logit; learnt in the code, where it starts here
    "alpha": 0.25821,  # how far the background's row is moved [AMP]
    "query_alpha": 0.1,  # how far the query moves the new row [AMP]; 0: it does not
    "query_threshold": 0.7,  # probability above which a pixel of the query is surely of the new class [AMP]
}
LIMITS = {
    "width": (1, 4096),
    "base_classes": (1, 1000),
    "scale": (0.1, 1000.0),
    "alpha": (0.0, 1.0),
    "query_alpha": (0.0, 1.0),
    "query_threshold": (0.0, 1.0),
}
FINETUNES = False  # supports have no base class to be learnt
FUSION = "own"
K_SHOT = "mean of the proxies that are imprinted"


class AMP(Method):
    needs_masked = False

    def __init__(self, channels: tuple[int, ...], settings: dict):
        super().__init__()
        self.maps, self.settings = tuple(range(len(channels))), settings
        self.deepest = conv(channels[-1], settings["width"], 1)
        widths = [*channels[:-1], settings["width"]]
        self.rows = nn.ParameterList([torch.empty(1 + settings["base_classes"], width) for width in widths])
        for rows in self.rows:
            bound = rows.shape[1] ** -0.5  # as PyTorch starts a 1 x 1 convolution: longer rows hardly turn
            nn.init.uniform_(rows, -bound, bound)

    def embed(self, maps):
        """A map (N, C_l, h, w) of each level."""
        levels = (*maps[:-1], self.deepest(maps[-1]))
        return centred(levels) if self.settings["centre_maps"] else levels

    def scores(self, query, rows):
        """Summed cosines of maps (N, C_l, h, w) to rows [(N, R, C_l)], scaled: (N, R, h, w), float32."""
        each = [
            torch.einsum("nchw,nrc->nrhw", F.normalize(m.float(), dim=1), F.normalize(r.float(), dim=2))
            for m, r in zip(query, rows, strict=True)
        ]
        return self.settings["scale"] * torch.stack(each).sum(0)

    def imprinted(self, pairs):
        """Rows [(N, 2 + base classes, C_l)] of each episode: background, base classes, and the new class."""
        alpha, found = self.settings["alpha"], []
        for support, rows in zip(pairs.support, self.rows, strict=True):
            vectors = foreground_and_background(support, pairs.support_mask)
            new, background = (F.normalize(mean_of_shots(each, pairs.shots), dim=1) for each in vectors)
            base = F.normalize(rows.float(), dim=1).expand(len(new), -1, -1)
            moved = (1 - alpha) * base[:, :1] + alpha * background[:, None]
            found.append(torch.cat([moved, base[:, 1:], new[:, None]], 1))
        return found

    def _two(self, scores, left_out=None):
        """Scores (N, R, h, w), the last of them the new class's -> logits (N, 2, h, w): the best of the others, and it.

        Args:
            left_out: (N,) a row of each that does not count.
        """
        others = scores[:, :-1]
        if left_out is not None:
            gone = F.one_hot(left_out, others.shape[1]).bool()[:, :, None, None]
            others = others.masked_fill(gone, -torch.inf)
        return torch.stack([others.amax(1), scores[:, -1]], 1)

    def predict(self, pairs, refinements):
        rows, settings = self.imprinted(pairs), self.settings
        # In training's own scores of base classes the class has a row already; it must not stand against itself.
        left_out = None if pairs.class_index is None else 1 + pairs.class_index
        scores = self.scores(pairs.query, rows)
        if settings["query_alpha"]:
            logits = self._two(scores, left_out)
            sure = (logits.softmax(1)[:, 1:] > settings["query_threshold"]).float()
            rows = [self._moved(r, m, sure) for r, m in zip(rows, pairs.query, strict=True)]
            scores = self.scores(pairs.query, rows)
        return self._two(scores, left_out)

    def _moved(self, rows, query, sure):
        """Rows (N, R, C_l), the new class's moved by what is ``sure`` (N, 1, h, w) in the query (N, C_l, h, w)."""
        alpha, seen = self.settings["query_alpha"], F.normalize(masked_average(query, sure), dim=1)
        return torch.cat([rows[:, :-1], (1 - alpha) * rows[:, -1:] + alpha * seen[:, None]], 1)

    def losses(self, pairs, auxiliary=True):
        """The class of the episode against all other rows together, at each pixel of the query that is not void."""
        rows = [each.expand(len(pairs.query_mask), -1, -1) for each in self.rows]
        scores = self.scores(pairs.query, rows)
        own = F.one_hot(1 + pairs.class_index, scores.shape[1]).bool()[:, :, None, None]
        others = scores.masked_fill(own, -torch.inf).logsumexp(1)
        logits = torch.stack([others, scores.masked_fill(~own, 0).sum(1)], 1)
        loss = mean_cross_entropy(logits, pairs.query_mask)
        return Step(loss, {"query": loss})


def build(channels: tuple[int, ...], settings: dict) -> Method:
    return AMP(channels, settings)
