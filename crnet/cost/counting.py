"""Work and memory of a computation, counted while it runs; on the ``meta`` device, which computes no values."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

# On "meta" torch takes it apart into some eighty operations, a third of all the time; no kernel makes their tensors.
ENLARGE = torch.ops.aten.upsample_bilinear2d.default


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
    with _Counting(given) as counting:
        result = run()
    del result
    return Count(counting.operations // 2, counting.peak)  # torch counts both halves


class _Counting(TorchDispatchMode):
    """Adds up operations, by torch's own formulas, and storages, from when they are made until nothing holds them."""

    def __init__(self, given: Iterable[Tensor]):
        super().__init__()
        self.operations = self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is ENLARGE and args[0].device.type == "meta":
            result = args[0].new_empty(*args[0].shape[:2], *args[1])
        else:
            result = operation(*args, **kwargs)
        if formula := flop_registry.get(operation.overloadpacket):
            self.operations += formula(*args, **kwargs, out_val=result)
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
