"""ResNet-50 with torchvision's ImageNet weights; layer3 and layer4 dilated, at 1/8 of the input (paper 5.1)."""

from functools import partial
from pathlib import Path

from torch import nn

SETTINGS = {
    "rev": 1,
    "archive": "resnet50-0676ba61.pth",  # torchvision's IMAGENET1K_V1, the weights of the paper's years
}
LIMITS = {"archive": {"resnet50-0676ba61.pth"}}
LAYERS = {"layer2": 512, "layer3": 1024, "layer4": 2048}
DEFAULT_LAYERS = ["layer3", "layer4"]  # [P 5.1]; its group's habit is layer2 + layer3
ALIGNMENT = "corners"  # of its cells: see crnet/data/grid.py


class DilatedResNet(nn.Module):
    """Images (N, 3, H, W) to the requested maps (N, C, ceil(H/8), ceil(W/8)), in the order asked for.

    Args:
        name: Of torchvision's network of bottleneck blocks, ``resnet50`` or a deeper one.
    """

    def __init__(self, name: str, layers: list[str]):
        super().__init__()
        from torchvision.models import get_model

        self.body = get_model(name, weights=None, replace_stride_with_dilation=[False, True, True])
        del self.body.fc
        self.layers = layers
        self.channels = tuple(LAYERS[layer] for layer in layers)
        self._stages = ["layer1", *list(LAYERS)[: 1 + max(list(LAYERS).index(layer) for layer in layers)]]

    def forward(self, images):
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        maps = {}
        for name in self._stages:
            x = maps[name] = getattr(body, name)(x)
        return [maps[layer] for layer in self.layers]


network = partial(DilatedResNet, "resnet50")


def prepare(settings: dict, archives: Path, out: Path, threads: int) -> None:
    """Write the encoder's weights, without the classifier, from torchvision's file in ``archives``."""
    write_weights(network(DEFAULT_LAYERS), archives / settings["archive"], out)


def write_weights(body: DilatedResNet, source: Path, out: Path) -> None:
    """Those of a file of torchvision, without the classifier."""
    from crnet.encoders import convert_torchvision

    convert_torchvision(source, body, out, prefix="body.", classifier="fc.")
