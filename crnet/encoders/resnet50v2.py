"""Pre-activation ResNet-50 (v2) with the ONNX model zoo's ImageNet weights; layer3 and layer4 dilated, at 1/8.

It is not torchvision's ResNet-50. Units are those of He et al., Identity Mappings in Deep Residual Networks (2016), in
GluonCV's form: the stride is the 3 x 3 convolution's, and a projection takes what batch norm and ReLU gave. Maps are
the sums that a stage ends with, before the next one's batch norm.
"""

from pathlib import Path

from torch import nn
from torch.nn import functional as F

SETTINGS = {
    "rev": 1,
    "archive": "resnet50-v2-7.onnx",  # Apache-2.0
}
LIMITS = {"archive": {"resnet50-v2-7.onnx"}}
LAYERS = {"layer2": 512, "layer3": 1024, "layer4": 2048}
DEFAULT_LAYERS = ["layer2", "layer3"]  # as the photo studies take them
ALIGNMENT = "corners"  # of its cells: see crnet/data/grid.py


class Unit(nn.Module):
    """Three convolutions, each behind batch norm and ReLU, and a shortcut: (N, C, h, w) -> (N, 4 * width, h', w')."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, project: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.project = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False) if project else None

    def forward(self, x):
        active = F.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(active)
        inner = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return self.conv3(F.relu(self.bn3(inner))) + shortcut


def _stage(units: int, inputs: int, width: int, stride: int = 1, dilation: int = 1, first: int = 1) -> nn.Sequential:
    """Units of one width; the ``first`` one keeps the dilation of its input, as torchvision's dilated stages do."""
    entry = Unit(inputs, width, stride, first, project=True)
    return nn.Sequential(entry, *(Unit(4 * width, width, 1, dilation, project=False) for _ in range(units - 1)))


class ResNet50V2(nn.Module):
    """Images (N, 3, H, W) to the requested maps (N, C, ceil(H/8), ceil(W/8)), in the order asked for."""

    def __init__(self, layers: list[str]):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv0 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(3, 64, 64)
        self.layer2 = _stage(4, 256, 128, stride=2)
        self.layer3 = _stage(6, 512, 256, dilation=2)
        self.layer4 = _stage(3, 1024, 512, dilation=4, first=2)
        self.layers = layers
        self.channels = tuple(LAYERS[layer] for layer in layers)
        self._stages = ["layer1", *list(LAYERS)[: 1 + max(list(LAYERS).index(layer) for layer in layers)]]

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.bn1(self.conv0(self.bn0(images)))), 3, stride=2, padding=1)
        maps = {}
        for name in self._stages:
            x = maps[name] = getattr(self, name)(x)
        return [maps[layer] for layer in self.layers]


network = ResNet50V2

# Of batch norm: ours -> the file's.
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"}
_PREFIX = "resnetv24_"


def names() -> dict[str, str]:
    """Our name of each tensor -> its name in the file, which counts convolutions and batch norms stage by stage."""
    found = {"conv0.weight": f"{_PREFIX}conv0_weight"}
    norms = {"bn0": f"{_PREFIX}batchnorm0", "bn1": f"{_PREFIX}batchnorm1"}
    for stage, units in enumerate((3, 4, 6, 3), 1):
        convolution = 0
        for unit in range(units):
            ours, theirs = f"layer{stage}.{unit}", f"{_PREFIX}stage{stage}_"
            norms |= {f"{ours}.bn{i + 1}": f"{theirs}batchnorm{3 * unit + i}" for i in range(3)}
            for layer in ("conv1", "conv2", "conv3", *(["project"] if unit == 0 else [])):
                found[f"{ours}.{layer}.weight"] = f"{theirs}conv{convolution}_weight"
                convolution += 1
    for ours, theirs in norms.items():
        found |= {f"{ours}.{key}": f"{theirs}_{value}" for key, value in _NORM.items()}
    return found


def prepare(settings: dict, archives: Path, out: Path, threads: int) -> None:
    """Write the encoder's weights, without the classifier, from the model zoo's file in ``archives``.

    Raises:
        CrnetError: The file is no ONNX file, or a tensor is missing or of another shape: these are other weights.
    """
    from safetensors.torch import save

    from crnet.encoders.onnx_weights import read
    from crnet.errors import CrnetError
    from crnet.runtime.files import atomic_write

    source, body = archives / settings["archive"], network(DEFAULT_LAYERS)
    tensors = read(source)
    state = {ours: tensors[theirs] for ours, theirs in names().items() if theirs in tensors}
    counters = {name: value for name, value in body.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        body.load_state_dict(state | counters, strict=True)
    except RuntimeError as error:
        raise CrnetError(f"{source}: are not the weights of the model zoo's ResNet-50 v2 ({error}).") from error
    atomic_write(out, save({key: value.contiguous() for key, value in body.state_dict().items()}))
