"""Cross-reference module (paper 4.3, Figure 3): what two images have in common, found by gating their channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.model.layers import ASPP, Rows, conv, norm


class ChannelImportance(nn.Module):
    """Map (N, W, h, w) -> importance of its channels (N, W) in [0, 1]: average pooling, two FC layers, sigmoid."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.reduce, self.expand = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.expand(F.relu(self.reduce(features.mean((2, 3))))))


class CrossReference(nn.Module):
    """Weights both maps by the product of their channel importances: common channels stay, others fade.

    Args:
        hidden: Width between the two FC layers (unstated in the paper).
        tied: One pair of FC layers for both branches; the paper's "respectively" reads as one pair each.
    """

    def __init__(self, width: int, hidden: int, tied: bool):
        super().__init__()
        self.support = ChannelImportance(width, hidden)
        self.query = self.support if tied else ChannelImportance(width, hidden)

    def forward(self, support: Tensor, query: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps F_s, F_q (N, W, h, w) -> reinforced maps G_s, G_q of the same shape.

        Args:
            seen: What the support's importance is read from, (N, W, h, w); None: the support's map itself.
        """
        importance = (self.support(support if seen is None else seen) * self.query(query))[:, :, None, None]
        return support * importance, query * importance


class CooccurrenceHead(nn.Module):
    """Reinforced map (N, W, h, w) -> logits (N, 2, h, w) of the common object: conv, ASPP, conv. Training only."""

    def __init__(self, width: int, dropout: float, normalisation: str = "none"):
        super().__init__()
        self.norm = norm(width, normalisation)
        self.enter, self.aspp, self.classify = conv(width, width), ASPP(width, dropout), conv(width, 2)

    def forward(self, reinforced: Tensor, rows: Rows | None = None) -> Tensor:
        return self.classify(self.aspp(F.relu(self.norm(self.enter(reinforced))), rows))
