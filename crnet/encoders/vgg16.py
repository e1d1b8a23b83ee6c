"""VGG16 with torchvision's ImageNet weights, conv4 and conv5 at 1/8: pool4 without stride, conv5 dilated by 2."""

from pathlib import Path

from torch import nn

SETTINGS = {
    "rev": 1,
    "archive": "vgg16-397923af.pth",  # torchvision's IMAGENET1K_V1
}
LIMITS = {"archive": {"vgg16-397923af.pth"}}
LAYERS = {"conv3": 256, "conv4": 512, "conv5": 512}
DEFAULT_LAYERS = ["conv4", "conv5"]  # unstated in the paper; the stride of SG-One and PANet
ALIGNMENT = "tiles"  # of its cells: see crnet/data/grid.py

# Index in torchvision's ``features`` -> the map taken behind it; conv3 is at 1/4 before its pool, so it is taken after.
_MAPS = {16: "conv3", 22: "conv4", 29: "conv5"}


class VGG16(nn.Module):
    """Images (N, 3, H, W) to the requested maps (N, C, ceil(H/8), ceil(W/8)), in the order asked for."""

    def __init__(self, layers: list[str]):
        super().__init__()
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features[:30]
        for index in (4, 9, 16):
            self.features[index].ceil_mode = True  # maps are ceil(H/8) wide, as those of the other encoders
        self.features[23] = nn.MaxPool2d(3, stride=1, padding=1)
        for index in (24, 26, 28):
            self.features[index].dilation = self.features[index].padding = (2, 2)
        self.layers = layers
        self.channels = tuple(LAYERS[layer] for layer in layers)

    def forward(self, images):
        x, maps = images, {}
        for index, module in enumerate(self.features):
            x = module(x)
            if index in _MAPS:
                maps[_MAPS[index]] = x
        return [maps[layer] for layer in self.layers]


network = VGG16


def prepare(settings: dict, archives: Path, out: Path, threads: int) -> None:
    """Write the encoder's weights, without the classifier, from torchvision's file in ``archives``."""
    from crnet.encoders import convert_torchvision

    convert_torchvision(archives / settings["archive"], network(DEFAULT_LAYERS), out, classifier="classifier.")
