"""A residual encoder of a quarter million weights for the demo, pre-trained on generated kinds of object.

Its plan is that of the paper's ResNet-50 (section 4.1) at a tenth of the width, with basic blocks: stem and layer1 to
stride 4, layer2 to stride 8; layer3 and layer4 keep stride 8 and dilate by 2 and 4.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from crnet.errors import CrnetError

# Of its pre-training, see crnet/encoders/pretrain.py.
SETTINGS = {
    "rev": 1,
    "steps": 1200,  # ours: more did not lower the loss
    "lr": 4e-3,  # ours: peak of a one-cycle schedule, AdamW
    "weight_decay": 1e-2,  # ours
    "batch": 16,  # ours
    "size": 96,  # ours: side in pixels of a generated scene
    "images": 4000,  # ours: scenes generated once; each is seen several times, turned and mirrored
    "precision": "bfloat16",  # autocast, where the CPU has it: a third less time
    "seed": 0,  # ours
}
LIMITS = {
    "steps": (1, 1_000_000),
    "lr": (1e-8, 1.0),
    "weight_decay": (0.0, 1.0),
    "batch": (1, 1024),
    "size": (32, 512),
    "images": (1, 1_000_000),
    "precision": {"float32", "bfloat16"},
    "seed": (0, 2_147_483_647),
}
LAYERS = {"layer2": 48, "layer3": 64, "layer4": 96}  # channels of the maps that may be asked for, all at stride 8
DEFAULT_LAYERS = ["layer3", "layer4"]  # as in resnet50
ALIGNMENT = "corners"  # of its cells: see crnet/data/grid.py


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
    """Images (N, 3, H, W) to the requested maps (N, C, ceil(H/8), ceil(W/8)), in the order asked for.

    Images are RGB with ImageNet's statistics, see ``crnet.encoders.normalise``. All layers exist whichever are asked
    for, so that one weights file fits every choice.

    Raises:
        CrnetError: A layer is unknown.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        unknown = [layer for layer in layers if layer not in LAYERS]
        if unknown:
            raise CrnetError(f"encoder small: has no layer {unknown[0]!r}; known: {', '.join(LAYERS)}.")
        self.layers = tuple(layers)
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


network = SmallEncoder


def prepare(settings: dict, archives: Path, out: Path, threads: int) -> None:
    """Pre-train the encoder and write its weights; it needs no archive."""
    from crnet.encoders.pretrain import pretrain

    pretrain(network(DEFAULT_LAYERS), {**SETTINGS, **settings}, out, threads)
