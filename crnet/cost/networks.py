"""What the networks of a specification compute and hold, whichever they are: the real modules are run and counted."""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from crnet import encoders, methods
from crnet.cost.counting import Count, count
from crnet.errors import CrnetError
from crnet.methods import Method, Pairs
from crnet.runtime.files import canonical

STRIDE = 8  # pixels of the input a cell of the maps, by the contract of encoders
# On "meta" nothing is computed but shapes. What makes tensors elsewhere, or asks for values, is run on zeros.
DEVICES = ("meta", "cpu")
_counted: dict[str, Any] = {}


def encoder(spec: dict) -> "Encoder":
    """The counts of an encoder, made once."""
    return _once("encoder", Encoder, spec)


def networks(training: dict) -> "Networks":
    """The counts of a training's, or a control's, encoder and method, made once for all that have the same."""
    return _once("networks", Networks, {name: training[name] for name in ("encoder", "method", "model")})


def _once(kind: str, make: Callable[[dict], Any], spec: dict) -> Any:
    key = f"{kind} {canonical(spec)}"
    if key not in _counted:
        _counted[key] = make(spec)
    return _counted[key]


def map_side(size: int) -> int:
    """Cells along a side of the encoder's maps, for an input of ``size`` pixels."""
    return ceil(size / STRIDE)


def _count(what: str, prepare: Callable[[str], tuple[Callable[[], Any], Sequence[Tensor]]]) -> Count:
    """Count the work that ``prepare`` sets up on a device; with it come tensors that are there before."""
    for device in DEVICES:
        try:
            return count(*prepare(device))
        except (NotImplementedError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
    raise CrnetError(f"{what}: fails on photos of zeros, so that it cannot be counted ({reason}); mend it.")


def _state(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


class Encoder:
    """A frozen encoder. Counts are in float32: lower precision halves the bytes.

    Attributes:
        channels: Of its maps.
        about: How a model of timm was made to fit, "" for others.
        weight_bytes: Of weights and buffers as they are loaded, in float32 and once more in the precision used.
    """

    def __init__(self, spec: dict):
        self._name, self._network = spec["name"], encoders.without_values(spec)
        self.channels = tuple(self._network.channels)
        self.about: str = getattr(self._network, "about", "")
        self.weight_bytes = 8 * sum(tensor.numel() for tensor in _state(self._network))

    @cache  # noqa: B019 - all counts are kept as long as the process
    def photo(self, size: int) -> Count:
        """Of one photo of ``size`` pixels."""

        def prepare(device: str) -> tuple[Callable[[], Any], list[Tensor]]:
            network = self._network.to_empty(device=device)
            photo = torch.zeros(1, 3, size, size, device=device)
            return torch.no_grad()(lambda: network(photo)), [photo, *_state(network)]

        return _count(f"encoder {self._name}", prepare)


class Networks:
    """Encoder and method of a specification. Counts are in float32: lower precision halves the bytes.

    Attributes:
        taken: Channels of those of the encoder's maps that the method takes.
        photos: Embedded for a pair: with the support without background, three.
        stores_cache: Whether training keeps predictions of photos.
        parameters: Of the method.
    """

    def __init__(self, spec: dict):
        self._spec, self.encoder = spec, encoder(spec["encoder"])
        method = self._method("meta")
        self.taken, self.photos = sum(self.encoder.channels[i] for i in method.maps), 3 if method.needs_masked else 2
        self.stores_cache = method.stores_cache
        self.parameters = sum(weight.numel() for weight in method.parameters())

    @cache  # noqa: B019 - all counts are kept as long as the process
    def _method(self, device: str) -> Method:
        with torch.device(device):
            return methods.build(self._spec["method"], self.encoder.channels, self._spec["model"])

    def _count(self, size: int, pairs: int, prepare: Callable[["_Made"], Callable[[], Any]], learns: bool) -> Count:
        def on(device: str) -> tuple[Callable[[], Any], list[Tensor]]:
            made = _Made(self._method(device), self.encoder.channels, size, pairs, device)
            return prepare(made), made.tensors

        with torch.set_grad_enabled(learns):
            return _count(f"method {self._spec['method']}", on)

    @cached_property
    def embedded_channels(self) -> int:
        """Of an embedded photo."""
        found: list[int] = []
        self._count(STRIDE, 1, lambda made: lambda: found.append(made.embed(0).shape[1]), learns=False)
        return found[-1]

    @cache  # noqa: B019
    def embedding(self, size: int) -> Count:
        """Of embedding a photo, for prediction."""
        return self._count(size, 1, lambda made: lambda: made.embed(0), learns=False)

    @cache  # noqa: B019
    def embedding_training(self, size: int) -> Count:
        """Of embedding a photo, forward and backward."""
        return self._count(size, 1, lambda made: lambda: made.embed(0).sum().backward(), learns=True)

    @cache  # noqa: B019
    def step(self, size: int, pairs: int, auxiliary: bool) -> Count:
        """Of a training step on so many pairs, forward and backward."""

        def prepare(made: "_Made") -> Callable[[], Any]:
            return lambda: made.method.losses(made.embedded(), auxiliary).loss.backward()

        return self._count(size, pairs, prepare, learns=True)

    def pair(self, size: int, pairs: int, auxiliary: bool = True) -> float:
        """Multiply-adds a pair of a step on so many, without those of embedding its photos."""
        embedding = self.photos * self.embedding_training(size).multiply_adds
        return self.step(size, pairs, auxiliary=auxiliary).multiply_adds / pairs - embedding

    @cache  # noqa: B019
    def prediction(self, size: int, refinements: int, pairs: int) -> Count:
        """Of predicting the queries of so many pairs whose photos are embedded already."""

        def prepare(made: "_Made") -> Callable[[], Any]:
            given = made.embedded()
            return lambda: made.method.predict(given, refinements)

        return self._count(size, pairs, prepare, learns=False)


class _Made:
    """Photos and masks of zeros for a method.

    Attributes:
        tensors: All that is there before something is counted.
    """

    def __init__(self, method: Method, channels: Sequence[int], size: int, pairs: int, device: str):
        self.method, side = method, map_side(size)

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(pairs, *shape, dtype=dtype, device=device)

        # Maps of queries, supports, and supports without background where the method asks for them.
        photos = range(3 if method.needs_masked else 2)
        self._photos = [[zeros(channels[i], side, side) for i in method.maps] for _ in photos]
        self._mask = zeros(size, size, dtype=torch.uint8)  # of either branch, as the cached probabilities
        self._cache = zeros(2, side, side) if method.stores_cache else None
        for weight in method.parameters():
            weight.grad = torch.zeros_like(weight)  # as in all steps but the first
        self.tensors = [*_state(method), *(weight.grad for weight in method.parameters()), self._mask]
        self.tensors += [each for maps in self._photos for each in maps]
        if self._cache is not None:
            self.tensors.append(self._cache)

    def embed(self, photo: int) -> Tensor:
        return self.method.embed(self._photos[photo])

    def embedded(self) -> Pairs:
        query, support, *masked = map(self.method.embed, self._photos)
        masked = masked[0] if masked else support
        return Pairs(query, support, masked, self._mask, self._mask, self._cache, self._cache)
