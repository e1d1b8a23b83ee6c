"""An encoder that learns with the method, where the study gives its role an ``lr_factor``; the paper's own is frozen.

Only its convolutions and the gains of its norms learn: batch norm stays in eval mode, as where few pairs make a batch.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from crnet import encoders
from crnet.config.encoders import learns
from crnet.encoders.frozen import FrozenEncoder, autocast
from crnet.errors import CrnetError
from crnet.runtime.limits import Limits

PREFIX = "encoder/"  # of the names of its weights in the file of the method's


class LearningEncoder:
    """Stands in a training where a frozen encoder else does; its maps are made in the step, under its gradients.

    Attributes:
        channels: Of each map.
        digest: SHA-256 of weights and buffers before training, as of a frozen one.
    """

    learns = True

    def __init__(self, spec: dict, weights: Path | None, device: torch.device, precision: str):
        network = encoders.build(spec, weights)
        self.name: str = spec["name"]
        self.channels = tuple(network.channels)
        self.digest = encoders.digest(network)
        self.network = network.to(device, memory_format=torch.channels_last)
        self._statistics = _statistics(self.network)
        self.device, self.precision = device, precision

    def reach(self, places: Iterable[int], size: int) -> None:
        """Let those weights learn on which the maps at ``places`` depend, for photos of ``size`` pixels.

        Raises:
            CrnetError: They depend on none.
        """
        self.network.requires_grad_(True)
        photo = torch.zeros(1, 3, size, size, device=self.device)
        total = torch.stack([level.float().sum() for level in self.maps(photo, places)]).sum()
        if not total.requires_grad:
            raise CrnetError(
                f"encoder {self.name}: its forward leaves no gradient, so it cannot be trained; take lr_factor out."
            )
        total.backward()
        for weight in self.network.parameters():
            weight.requires_grad_(weight.grad is not None)
            weight.grad = None

    def __call__(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        """Photos uint8 (N, 3, H, W) -> what ``maps`` takes, in a list, as a frozen encoder gives maps.

        Args:
            keep: (N, H, W) bool; False pixels are removed: set to the mean colour, which the encoder sees as zero.
        """
        inputs = encoders.normalise(images.to(self.device, non_blocking=True))
        return [inputs if keep is None else inputs * keep.to(self.device, non_blocking=True)[:, None]]

    def maps(self, inputs: Tensor, places: Iterable[int]) -> list[Tensor]:
        """Normalised photos (N, 3, H, W) -> those of the maps [(N, C_i, h, w)] that are at ``places``."""
        with autocast(self.device, self.precision):
            maps = self.network(inputs.contiguous(memory_format=torch.channels_last))
        return [maps[place] for place in places]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that learn."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def learnt(self) -> dict[str, Tensor]:
        """The weights that learn, by name."""
        return {name: weight.detach() for name, weight in self.network.named_parameters() if weight.requires_grad}

    def restore(self, learnt: Mapping[str, Tensor]) -> None:
        encoders.take(self.network, learnt, self.name)

    def verify(self) -> None:
        """Raises CrnetError if a statistic of a norm changed: when it predicts, it has those that were given."""
        if _statistics(self.network) != self._statistics:
            raise CrnetError(
                f"encoder {self.name}: a batch-norm statistic changed while it learnt, so that nothing of this work is "
                "kept; its forward must change none."
            )


def of_training(
    spec: dict, weights: Path | None, device: torch.device, limits: Limits
) -> FrozenEncoder | LearningEncoder:
    """The encoder of a training's specification, as it begins."""
    given = (spec["encoder"], weights, device, spec["train"]["precision"])
    return LearningEncoder(*given) if learns(spec["encoder"]) else FrozenEncoder(*given, limits.photos_at_once)


def of_method(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A training's weights without those of an encoder that learnt."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}


def _statistics(network: nn.Module) -> list[tuple[str, bytes]]:
    return [(name, buffer.detach().cpu().float().numpy().tobytes()) for name, buffer in network.named_buffers()]
