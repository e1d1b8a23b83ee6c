"""ResNet-101 with torchvision's ImageNet weights; layer3 and layer4 dilated, at 1/8 of the input, as resnet50."""

from functools import partial
from pathlib import Path

from crnet.encoders.resnet50 import DilatedResNet, write_weights

SETTINGS = {
    "rev": 1,
    "archive": "resnet101-63fe2227.pth",  # torchvision's IMAGENET1K_V1
}
LIMITS = {"archive": {"resnet101-63fe2227.pth"}}
LAYERS = {"layer2": 512, "layer3": 1024, "layer4": 2048}
DEFAULT_LAYERS = ["layer3", "layer4"]  # as in resnet50
ALIGNMENT = "corners"  # of its cells: see crnet/data/grid.py

network = partial(DilatedResNet, "resnet101")


def prepare(settings: dict, archives: Path, out: Path, threads: int) -> None:
    """Write the encoder's weights, without the classifier, from torchvision's file in ``archives``."""
    write_weights(network(DEFAULT_LAYERS), archives / settings["archive"], out)
