"""What the networks of a specification compute and hold, whichever they are: the real modules are run and counted."""

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from crnet import encoders, methods
from crnet.config.encoders import learns
from crnet.config.settings import sees_all_supports
from crnet.cost.counting import Count, count
from crnet.errors import CrnetError
from crnet.methods import Embedded, Method, Pairs, listed
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
    """An encoder, frozen unless it has an ``lr_factor``. Counts are in float32: lower precision halves the bytes.

    Attributes:
        channels: Of its maps.
        learns: Whether it is trained with the method.
        parameters: Of its weights, at most, that learn; 0 where it is frozen.
        about: How a model of timm was made to fit, "" for others.
        weight_bytes: Of weights and buffers as they are loaded, in float32 and once more in the precision used.
    """

    def __init__(self, spec: dict):
        self._name, self.learns, self._network = spec["name"], learns(spec), encoders.without_values(spec)
        self.channels = tuple(self._network.channels)
        self.about: str = getattr(self._network, "about", "")
        self.weight_bytes = 8 * sum(tensor.numel() for tensor in _state(self._network))
        self.parameters = sum(tensor.numel() for tensor in self._network.parameters()) if self.learns else 0

    @cache  # noqa: B019 - all counts are kept as long as the process
    def photo(self, size: int) -> Count:
        """Of one photo of ``size`` pixels."""

        def prepare(device: str) -> tuple[Callable[[], Any], list[Tensor]]:
            network = self._network.to_empty(device=device)
            photo = torch.zeros(1, 3, size, size, device=device)
            return torch.no_grad()(lambda: network(photo)), [photo, *_state(network)]

        return _count(f"encoder {self._name}", prepare)

    @cache  # noqa: B019
    def photo_training(self, size: int) -> Count:
        """Of one photo, forward and, where it learns, backward; what is kept in between is its peak."""
        if not self.learns:
            return self.photo(size)

        def prepare(device: str) -> tuple[Callable[[], Any], list[Tensor]]:
            network = self._network.to_empty(device=device)
            photo = torch.zeros(1, 3, size, size, device=device)
            for weight in network.parameters():
                weight.grad = torch.zeros_like(weight)
            given = [photo, *_state(network), *(weight.grad for weight in network.parameters())]
            return lambda: sum(maps.sum() for maps in network(photo)).backward(), given

        with torch.enable_grad():
            return _count(f"encoder {self._name}", prepare)


class Networks:
    """Encoder and method of a specification. Counts are in float32: lower precision halves the bytes.

    Attributes:
        taken: Channels of those of the encoder's maps that the method takes.
        photos: Embedded for a pair: with the support without background, three.
        sees_all_supports: Whether one prediction sees all supports of an episode.
        stores_cache: Whether training keeps predictions of photos.
        parameters: Of the method.
    """

    def __init__(self, spec: dict):
        self._spec, self.encoder = spec, encoder(spec["encoder"])
        method = self._method("meta")
        self.taken, self.photos = sum(self.encoder.channels[i] for i in method.maps), 3 if method.needs_masked else 2
        self.stores_cache, self.sees_all_supports = method.stores_cache, sees_all_supports(spec["method"])
        self.parameters = sum(weight.numel() for weight in method.parameters())

    @cache  # noqa: B019 - all counts are kept as long as the process
    def _method(self, device: str) -> Method:
        with torch.device(device):
            return methods.build(self._spec["method"], self.encoder.channels, self._spec["model"])

    def _count(
        self, size: int, pairs: int, prepare: Callable[["_Made"], Callable[[], Any]], learns: bool, shots: int = 1
    ) -> Count:
        def on(device: str) -> tuple[Callable[[], Any], list[Tensor]]:
            made = _Made(self._method(device), self.encoder.channels, size, pairs, device, shots)
            return prepare(made), made.tensors

        with torch.set_grad_enabled(learns):
            return _count(f"method {self._spec['method']}", on)

    @cached_property
    def embedded_channels(self) -> int:
        """Of an embedded photo, all its maps together."""
        found: list[int] = []

        def prepare(made: "_Made") -> Callable[[], Any]:
            return lambda: found.append(sum(maps.shape[1] for maps in listed(made.embed(0))))

        self._count(STRIDE, 1, prepare, learns=False)
        return found[-1]

    @cache  # noqa: B019
    def embedding(self, size: int) -> Count:
        """Of embedding a photo, for prediction."""
        return self._count(size, 1, lambda made: lambda: made.embed(0), learns=False)

    @cache  # noqa: B019
    def embedding_training(self, size: int) -> Count:
        """Of embedding a photo, forward and, where something of it is learnt, backward."""

        def learn(made: "_Made") -> None:
            if learnt := [maps.sum() for maps in listed(made.embed(0)) if maps.requires_grad]:
                sum(learnt).backward()

        return self._count(size, 1, lambda made: lambda: learn(made), learns=True)

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
    def prediction(self, size: int, refinements: int, pairs: int, shots: int = 1) -> Count:
        """Of predicting so many queries whose photos, with their ``shots`` supports each, are embedded already."""

        def prepare(made: "_Made") -> Callable[[], Any]:
            given = made.embedded()
            return lambda: made.method.predict(given, refinements)

        return self._count(size, pairs, prepare, learns=False, shots=shots)


class _Made:
    """Photos and masks of zeros for a method, ``pairs`` queries with ``shots`` supports each.

    Attributes:
        tensors: All that is there before something is counted.
    """

    def __init__(self, method: Method, channels: Sequence[int], size: int, pairs: int, device: str, shots: int):
        self.method, self.shots, side = method, shots, map_side(size)

        def zeros(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(count, *shape, dtype=dtype, device=device)

        # Maps of queries, supports, and supports without background where the method asks for them.
        photos = [pairs, *[pairs * shots] * (2 if method.needs_masked else 1)]
        self._photos = [[zeros(count, channels[i], side, side) for i in method.maps] for count in photos]
        self._mask = zeros(pairs * shots, size, size, dtype=torch.uint8)  # of either branch, as the probabilities
        self._cache = zeros(pairs, 2, side, side) if method.stores_cache else None
        self._class = zeros(pairs, dtype=torch.int64)
        for weight in method.parameters():
            weight.grad = torch.zeros_like(weight)  # as in all steps but the first
        self.tensors = [*_state(method), *(weight.grad for weight in method.parameters()), self._mask]
        self.tensors += [each for maps in self._photos for each in maps]
        if self._cache is not None:
            self.tensors.append(self._cache)

    def embed(self, photo: int) -> Embedded:
        return self.method.embed(self._photos[photo])

    def embedded(self) -> Pairs:
        query, support, *masked = map(self.method.embed, self._photos)
        masked = masked[0] if masked else support
        others = {"shots": self.shots, "class_index": self._class}
        return Pairs(query, support, masked, self._mask, self._mask, self._cache, self._cache, **others)
