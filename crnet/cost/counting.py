"""Work and memory of a computation, counted while it runs; on the ``meta`` device, which computes no values."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Count:
    """Of one computation.

    Attributes:
        multiply_adds: Of convolutions and matrix products, forward and, where it ran, backward.
        peak_bytes: Of the tensors that it made and that were alive at the same time, at most.
    """

    multiply_adds: int
    peak_bytes: int


def count(run: Callable[[], Any], given: Iterable[Tensor] = ()) -> Count:
    """Run something and count.

    Args:
        given: Tensors that were there before, which are not counted: weights, inputs.
    """
    with FlopCounterMode(display=False) as operations, _LiveBytes(given) as memory:
        result = run()
    del result
    return Count(operations.get_total_flops() // 2, memory.peak)  # torch counts both halves


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, from when they are made until nothing holds them any more."""

    def __init__(self, given: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size
