"""A residual encoder of a quarter million weights for the demo, pre-trained by `crnet.pretrain`.

Its plan is that of the paper's ResNet-50 (section 4.1) at a tenth of the width: stem to stride 4, layer1 at stride 4,
layer2 at stride 8; layer3 and layer4 keep stride 8 and dilate by 2 and 4. Basic blocks instead of bottlenecks.
"""

import os

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.errors import CrnetError

SETTINGS = {
    "steps": 1400,  # ours: what fits in 90 s on 2 cores
    "learning_rate": 4e-3,  # ours: peak of a one-cycle schedule, AdamW
    "weight_decay": 1e-2,  # ours
    "batch": 16,  # ours
    "size": 96,  # ours: side in pixels of a generated scene
    "images": 6000,  # ours: scenes generated once; each is seen turned, mirrored and recoloured
    "seed": 0,  # ours
}
LIMITS = {
    "steps": (1, 1000000), "learning_rate": (1e-6, 1.0), "weight_decay": (0.0, 1.0), "batch": (1, 1024),
    "size": (32, 512), "images": (1, 1000000), "seed": (0, 2147483647),
}  # fmt: skip
LAYERS = {"layer2": 48, "layer3": 64, "layer4": 96}  # channels of the maps that can be asked for, all at stride 8


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut; the first may stride, both dilate."""

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.project = None
        if stride > 1 or inputs != width:
            self.project = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.project is None else self.project(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class SmallEncoder(nn.Module):
    """Images (N, 3, H, W), RGB, ImageNet mean/std, to the asked maps (N, C, ceil(H/8), ceil(W/8)), in asked order."""

    stride = 8

    def __init__(self, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.channels = tuple(LAYERS[layer] for layer in layers)
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.layer1 = Block(24, 32, stride=2)
        self.layer2 = Block(32, LAYERS["layer2"], stride=2)
        self.layer3 = Block(LAYERS["layer2"], LAYERS["layer3"], dilation=2)
        self.layer4 = Block(LAYERS["layer3"], LAYERS["layer4"], dilation=4)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = {}, self.layer1(self.stem(images))
        for name in LAYERS:
            x = maps[name] = getattr(self, name)(x)
        return [maps[layer] for layer in self.layers]


def build(weights: str | None, layers: tuple[str, ...]) -> SmallEncoder:
    """The encoder, frozen and in eval mode.

    Args:
        weights: safetensors file that `crnet.pretrain` wrote, or None for random weights.
        layers: names from ``LAYERS``; the maps come in this order.

    Raises:
        CrnetError: if a layer is unknown, none or one twice is asked for, or the weights are absent or do not fit.
    """
    unknown = [layer for layer in layers if layer not in LAYERS]
    if unknown or not layers or len(set(layers)) < len(layers):
        raise CrnetError(f"encoder small: layers {list(layers)} cannot be joined; name each once from {list(LAYERS)}.")
    model = SmallEncoder(tuple(layers))
    if weights is not None:
        if not os.path.isfile(weights):
            raise CrnetError(f"encoder small: no weights at {weights}; `crnet pretrain` makes them.")
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise CrnetError(f"encoder small: {weights} does not hold its weights ({error}).") from error
    return model.eval().requires_grad_(False)


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """He normal for convolutions, one and zero for norms, all drawn from ``generator``."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
