"""Methods: one file each, found by name, behind the protocol below.

A method's file declares a function ``build(channels, settings) -> Method`` and literals, read without importing it:

- ``SETTINGS``, and ``LIMITS`` of them. A setting called ``base_classes``, how many it has weights for, is compared with
  the fold's when a study is read.
- ``TRAINS = False`` if nothing of it is trained; ``FINETUNES = False`` if its loss asks for more than supports have.
- ``TRAIN``: where its training differs from a study's defaults, e.g. ``{"lr": 1e-3}``; what a study or row says wins.
- ``FUSION``: what becomes of several supports. "average", the default: of each a prediction, whose probabilities are
  averaged; "own": one prediction sees all of them.
- ``K_SHOT``: that rule in a few words, for readers.
- ``SWAPS`` if it can be probed, see ``crnet.config.probe``.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from crnet.errors import CrnetError
from crnet.model.layers import Rows


@dataclass(frozen=True)
class Share:
    """Which part of a batch some pairs are, so that the losses and gradients of its parts add up to the batch's.

    Attributes:
        weight: By which the trainer multiplies the part's losses; None where the method weighs them itself.
        rows: Their places in the batch.
        batch: Pairs of the whole batch.
        query_pixels, support_pixels: Pixels of the whole batch's masks that are not void, over which losses are means.
    """

    weight: float | None
    rows: slice
    batch: int
    query_pixels: Tensor
    support_pixels: Tensor


def rows(share: Share | None) -> Rows | None:
    """Where the pairs of a part stand in the batch, for dropout that draws for the whole of it."""
    return None if share is None else Rows([*range(share.batch)[share.rows]], share.batch)


Embedded = Tensor | tuple[Tensor, ...]  # a photo's maps as ``Method.embed`` gives them


def each(embedded: Embedded, change: Callable[[Tensor], Tensor]) -> Embedded:
    """The same done to all maps of embedded photos."""
    return change(embedded) if isinstance(embedded, Tensor) else tuple(change(maps) for maps in embedded)


def listed(embedded: Embedded) -> list[Tensor]:
    """The maps of embedded photos, however many."""
    return [embedded] if isinstance(embedded, Tensor) else list(embedded)


@dataclass
class Pairs:
    """N support-query pairs, one support each, as the frozen encoder and the method's ``embed`` see them.

    With k supports each (``shots``), which only a method with ``FUSION = "own"`` meets, what is of supports has N k
    rows: first the k of the first query, see ``crnet.model.prototypes.per_query``.

    Attributes:
        query, support: Embedded photos (N, D, h, w), or tuples of such maps.
        masked: The embedded support photo with its background removed before the encoder, likewise.
        support_mask: (N, H, W) of {0 background, 1 foreground, 255 void}.
        query_mask: Likewise; None at test.
        query_cache, support_cache: Probabilities (N, 2, h, w) kept from an earlier visit of the same photos; zeros
            where there are none; None unless the method stores a cache.
        share: Which part of a batch these pairs are; None: all of it. For methods of which ``mean_over`` is "share".
        gate: Whose supports a gate of two photos reads in place of these pairs' own; None: their own. Probes give it.
        shots: k, the supports of each query.
        class_index: (N,) of int64, each episode's class as its place among the fold's base classes; None at test and in
            finetuning. Training's own scoring of base classes has it, so that what was learnt of the very class can be
            left aside.
    """

    query: Tensor
    support: Tensor
    masked: Tensor
    support_mask: Tensor
    query_mask: Tensor | None = None
    query_cache: Tensor | None = None
    support_cache: Tensor | None = None
    share: Share | None = None
    gate: "Pairs | None" = None
    shots: int = 1
    class_index: Tensor | None = None


@dataclass
class Step:
    """Result of ``Method.losses``: the scalar to minimise, its parts for the log, and what the cache keeps."""

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    query_probability: Tensor | None = None  # (N, 2, h, w), detached
    support_probability: Tensor | None = None


# What ``Method.losses`` may be means over.
PIXELS, PAIRS, SHARE = "pixels", "pairs", "share"


class Method(nn.Module):
    """What training and evaluation ask of a method. Encoders are outside: a method sees their maps only.

    Attributes:
        maps: Indices of the encoder's maps that ``embed`` takes.
        needs_masked: Whether ``Pairs.masked`` is used; if not, it is not encoded.
        stores_cache: Whether training keeps the last probabilities of each photo and class for the next visit.
        mean_over: What ``losses`` are means over: "pixels" of the query masks that are not void, as cross-entropy with
            an ``ignore_index`` is, or "pairs". Where a batch is taken in parts, the trainer weighs them by that.
            "share": ``losses`` reads ``Pairs.share`` and gives the part's share of the batch's losses.
    """

    maps: tuple[int, ...]
    needs_masked = True
    stores_cache = False
    mean_over = PIXELS

    def embed(self, maps: list[Tensor]) -> Embedded:
        """Chosen encoder maps [(N, C_i, h, w)] of single photos -> (N, D, h, w), or a tuple of such maps of any sizes.

        Photos do not see each other.
        """
        raise NotImplementedError

    def losses(self, pairs: Pairs, auxiliary: bool = True) -> Step:
        """Training loss of the pairs, a mean as ``mean_over`` says (not called for methods that do not train).

        Args:
            auxiliary: With the losses of heads that serve training only; finetuning goes without.
        """
        raise NotImplementedError

    def predict(self, pairs: Pairs, refinements: int) -> Tensor:
        """Query logits (N, 2, h, w): channel 0 background, 1 foreground."""
        raise NotImplementedError

    def predict_support(self, pairs: Pairs, refinements: int) -> Tensor | None:
        """Support logits (N, 2, h, w), or None if the method has no support branch. The branch may see its own mask."""
        return None


def build(name: str, channels: tuple[int, ...], settings: dict) -> Method:
    """The method called ``name`` for an encoder with these channels; the name was checked when the study was read.

    Args:
        name: Of a file of this folder, or ``package.module:function`` with what ``build`` is in such a file.

    Raises:
        CrnetError: It comes from outside and cannot be imported, or its ``mean_over`` is none of the three.
    """
    own = f"crnet.methods.{name.replace('-', '_')}:build"
    module, _, function = (name if ":" in name else own).partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        if ":" not in name:
            raise
        raise CrnetError(f"method {name}: cannot be imported ({error}); put its folder on PYTHONPATH.") from error
    method = make(channels, settings)
    if method.mean_over not in (PIXELS, PAIRS, SHARE):
        raise CrnetError(
            f"method {name}: mean_over is {method.mean_over!r}; its losses are means over pixels or pairs."
        )
    return method
