"""The predictor as a ``torch.export`` program: one support, scale 1, of fixed size, for machines without crnet.

``forward(query, support, support_mask)`` takes photos uint8 (1, 3, S, S), squashed to the square that the network sees,
and the support's mask uint8 (1, S, S) of 0, 1 and 255 void; it gives logits float32 (1, 2, h, w), of background and
foreground, of cells that lie at pixels 8i of the square where S is 8(h - 1) + 1, at 8i + 3.5 where S is 8h: to be
enlarged to the square bilinearly (``align_corners`` in the first case) and from there to the photo's own size, or as
``crnet/model/grid.py`` does in one step. S is ``evaluate.size``.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from crnet import encoders
from crnet.errors import CrnetError
from crnet.evaluation.predict import learnt_encoder, load_method
from crnet.methods import Method, Pairs, each
from crnet.yours.load import Files


class OneSupport(nn.Module):
    """Encoder and method in float32, joined."""

    def __init__(self, encoder: nn.Module, method: Method, refinements: int):
        super().__init__()
        self.encoder, self.method, self.refinements = encoder, method, refinements
        for name, values in (("mean", encoders.MEAN), ("std", encoders.STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, query: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
        pictures = [(photo.float() / 255 - self.mean) / self.std for photo in (query, support)]
        if self.method.needs_masked:
            pictures.append(pictures[1] * (support_mask == 1)[:, None])
        maps = self.encoder(torch.cat(pictures))
        embedded = self.method.embed([maps[i] for i in self.method.maps])
        query, support, masked = (each(embedded, lambda m, row=row: m[row : row + 1]) for row in range(3))
        pairs = Pairs(query, support, masked if self.method.needs_masked else support, support_mask)
        return self.method.predict(pairs, self.refinements)


def one_support(found: Files) -> tuple[OneSupport, int]:
    """The network of a run, and S."""
    train, evaluate = found.spec["train"], found.spec["evaluate"]
    encoder = encoders.build(train["encoder"], found.encoder)
    encoders.take(encoder, learnt_encoder(train, found.weights), train["encoder"]["name"])
    method = load_method(train, tuple(encoder.channels), found.weights)
    return OneSupport(encoder, method, evaluate["refinements"]).eval(), evaluate["size"]


def write_program(found: Files, out: Path) -> None:
    """Raises CrnetError where the method does things that ``torch.export`` cannot follow."""
    network, size = one_support(found)
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (2, 1, 3, size, size), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    try:
        with torch.no_grad():
            program = torch.export.export(network, (photos[0], photos[1], mask))
    except Exception as error:  # torch.export raises what its tracer meets; the cause is chained
        name = found.spec["train"]["method"]
        raise CrnetError(f"--program: torch.export cannot follow the method {name}; export without it.") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, out)
