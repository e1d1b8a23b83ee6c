"""Photos through the frozen encoder: the one place where pixels become maps."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from crnet import encoders
from crnet.errors import CrnetError
from crnet.runtime.machine import has_bfloat16


def compute_dtype(device: torch.device, precision: str) -> torch.dtype:
    """bfloat16 if it is asked for and the device has it, else float32; what was used is recorded with each run."""
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16(device.type) else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype(device, precision) == torch.bfloat16)


class FrozenEncoder:
    """An encoder that only looks: no gradient, batch norm in eval mode, weights and buffers hashed.

    Args:
        at_once: Photos that go through it together, of however many are given; 0: all.
        learnt: Weights by name that a training of the encoder left, in place of those of the file.

    Attributes:
        channels: Of each map.
        digest: SHA-256 of its weights and buffers, as they were given.
    """

    learns, parameters = False, ()  # as of one that learns, crnet/encoders/learning.py

    def __init__(
        self,
        spec: dict,
        weights: Path | None,
        device: torch.device,
        precision: str,
        at_once: int = 0,
        learnt: Mapping[str, Tensor] | None = None,
    ):
        network = encoders.build(spec, weights)
        self.name: str = spec["name"]
        self.channels = tuple(network.channels)
        self.digest = encoders.digest(network)
        encoders.take(network, learnt or {}, self.name)
        self._in_use = encoders.digest(network)
        if encoders.may_fold(self.name):
            encoders.fold_batch_norm(network)
            self._in_use = encoders.digest(network)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.device, self.precision, self.at_once = device, precision, at_once

    @torch.no_grad()
    def __call__(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """Photos uint8 (N, 3, H, W) -> maps [(N, C_i, h, w)].

        Args:
            keep: (N, H, W) bool; False pixels are removed: set to the mean colour, which the encoder sees as zero.
        """
        size = self.at_once or len(images)
        chunks = [
            self._maps(images[start : start + size], None if keep is None else keep[start : start + size])
            for start in range(0, len(images), size)
        ]
        return chunks[0] if len(chunks) == 1 else [torch.cat(level) for level in zip(*chunks, strict=True)]

    def _maps(self, images: Tensor, keep: Tensor | None) -> list[Tensor]:
        x = encoders.normalise(images.to(self.device, non_blocking=True))
        if keep is not None:
            x = x * keep.to(self.device, non_blocking=True)[:, None]
        with autocast(self.device, self.precision):
            return self.network(x.contiguous(memory_format=torch.channels_last))

    def learnt(self) -> dict[str, Tensor]:
        return {}

    def restore(self, learnt: Mapping[str, Tensor]) -> None:
        encoders.take(self.network, learnt, self.name)

    def verify(self) -> None:
        """Raises CrnetError if a weight or a buffer of the network changed since the encoder was built."""
        if encoders.digest(self.network) != self._in_use:
            raise CrnetError(
                f"encoder {self.name}: a weight or a batch-norm statistic changed while it was in use, so that "
                "nothing of this work is kept; its forward must change neither."
            )


def as_images(photos: list) -> Tensor:
    """Photos uint8 (H, W, 3) of one size -> tensor (N, 3, H, W)."""
    return torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos])
