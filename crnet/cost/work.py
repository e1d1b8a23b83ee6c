"""Counted work: multiply-adds, weights and outputs of the encoders and of CRNet's head. Imports no torch.

A frozen encoder runs forward only. Of a trained convolution the backward pass costs as much again for its weights, and
as much again for its input where that is not frozen itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from crnet.config.settings import component

CHANNELS = 1536  # assumed of an encoder from outside: resnet50v2's
RESNET50 = {"layer1": (64, 3), "layer2": (128, 4), "layer3": (256, 6), "layer4": (512, 3)}  # name -> width, blocks
ALL_LAYERS = {"resnet50": ("layer4",), "vgg16": ("conv5",), "small": ("layer4",)}  # what is loaded, asked for or not
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True)
class Conv:
    """One convolution of a photo, or a fully connected layer as one of a single cell.

    Attributes:
        kernel: Cells of the kernel, e.g. 9.
        cells: Of the output map.
        frozen_input: Its input asks for no gradient.
    """

    inputs: int
    outputs: int
    kernel: int
    cells: int
    frozen_input: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel

    @property
    def forward(self) -> int:
        return self.weights * self.cells

    @property
    def training(self) -> int:
        return self.forward * (2 if self.frozen_input else 3)


def forward(convs: Iterable[Conv]) -> int:
    """Multiply-adds of one pass."""
    return sum(conv.forward for conv in convs)


def training(convs: Iterable[Conv]) -> int:
    """Multiply-adds of one pass forward and backward."""
    return sum(conv.training for conv in convs)


def map_side(size: int) -> int:
    """Cells along a side of the encoder's maps, for an input of ``size`` pixels."""
    return ceil(size / 8)


def encoder_channels(spec: dict) -> list[int]:
    """Of the maps asked for; assumed for an encoder from outside, which is not imported here."""
    if ":" in spec["name"]:
        return [CHANNELS]
    layers = component("encoder", spec["name"], "encoder").literals["LAYERS"]
    return [layers[layer] for layer in spec["layers"]]


def encoder(spec: dict, size: int) -> list[Conv]:
    """Convolutions of one photo of ``size`` pixels; an encoder from outside is taken for a ResNet-50 up to layer3."""
    if spec["name"] == "small":
        return _small(size)
    if spec["name"] == "vgg16":
        return _vgg16(size)
    return _resnet50(["layer3"] if ":" in spec["name"] else spec["layers"], size)


def _resnet50(layers: list[str], size: int) -> list[Conv]:
    half, quarter, eighth = (ceil(size / step) ** 2 for step in (2, 4, 8))
    convs, inputs, before = [Conv(3, 64, 49, half)], 64, quarter
    for name, (width, blocks) in RESNET50.items():
        if all(list(RESNET50).index(name) > list(RESNET50).index(layer) for layer in layers):
            break
        after = quarter if name == "layer1" else eighth
        convs.append(Conv(inputs, 4 * width, 1, after))  # the shortcut
        for _ in range(blocks):
            convs += [Conv(inputs, width, 1, before), Conv(width, width, 9, after), Conv(width, 4 * width, 1, after)]
            inputs, before = 4 * width, after
    return convs


def _vgg16(size: int) -> list[Conv]:
    convs, inputs = [], 3
    for level, widths in enumerate(VGG16):
        for width in widths:
            convs.append(Conv(inputs, width, 9, ceil(size / 2 ** min(level, 3)) ** 2))
            inputs = width
    return convs


def _small(size: int) -> list[Conv]:
    half, quarter, eighth = (ceil(size / step) ** 2 for step in (2, 4, 8))
    convs = [Conv(3, 24, 9, half)]
    for inputs, width, cells in ((24, 32, quarter), (32, 48, eighth), (48, 64, eighth), (64, 96, eighth)):
        convs += [Conv(inputs, width, 9, cells), Conv(width, width, 9, cells), Conv(inputs, width, 1, cells)]
    return convs


class Head:
    """Convolutions of CRNet's head, by where they run: for a photo, a branch, or a pass of the refinement.

    Attributes:
        embed: Of one photo's maps.
        gates: Of a pair, both branches.
        branch: Of one branch, what every pass of the refinement shares.
        recur: Of one branch and pass.
        cooccurrence: Of one branch, in training only.
        photos: Photos embedded for a training pair: with the support without background, three.
    """

    def __init__(self, channels: list[int], model: dict, size: int):
        side, width = map_side(size), model["width"]
        self.cells, quarter, self.width = side**2, ceil(side / 2) ** 2, width
        self.taken = sum(channels) if model["multi_level"] else channels[-1]
        self.embed = [Conv(self.taken, width, model["enter_kernel"] ** 2, self.cells, frozen_input=True)]
        self.gates, self.cooccurrence, self.branch = [], [], []
        if model["cross_reference"]:
            self.gates = 2 * [Conv(width, model["gate_width"], 1, 1), Conv(model["gate_width"], width, 1, 1)]
            pyramid = [Conv(width, width, kernel, self.cells) for kernel in (1, 9, 9, 9)]
            self.cooccurrence = [Conv(width, width, 9, self.cells), Conv(width, width, 1, 1), *pyramid]
            join = [Conv(4 * width, width, 1, self.cells), Conv(width, width, 1, 1)]
            self.cooccurrence += [*join, Conv(width, 2, 9, self.cells)]
        read = width
        if model["condition"]:
            read = 2 * width
            self.branch = [Conv(read, width, 9, self.cells), *2 * [Conv(width, width, 9, self.cells)]]
        self.branch += [Conv(read, width, 9, self.cells), Conv(width, width, 9, quarter)]
        streams = 2 if model["refinement"] else 1
        self.recur = 4 * streams * [Conv(width, width, 7, self.cells)]
        self.recur += [Conv(streams * width, width, 9, self.cells), Conv(width, 2, 9, self.cells)]
        if model["refinement"]:
            self.recur += [Conv(2, width, 9, self.cells, frozen_input=True), Conv(width, width, 9, quarter)]
        self.photos = 3 if model["condition"] and model["mask_input"] else 2
        self.tied, self.refines = model["gate_tied"], model["refinement"]
        self.unbiased = width if model["cross_reference"] else 0  # the join of the pyramid is counted in two
        self.normalised = 0
        if model["normalisation"] == "group":
            self.normalised = 2 + model["cross_reference"] + 2 * model["condition"]
        self.passes = model["unroll"] if model["refinement"] and model["cache"] == "unrolled" else 1

    @property
    def parameters(self) -> int:
        """Weights and biases; both branches have the same, but for gates that are not tied."""
        convs = [*self.embed, *self.branch, *self.recur, *self.cooccurrence]
        gates = sum(gate.weights + gate.outputs for gate in self.gates)
        biases = sum(conv.outputs for conv in convs) - self.unbiased
        norms = 2 * self.width * self.normalised
        return sum(conv.weights for conv in convs) + biases + norms + (gates // 2 if self.tied else gates)

    def pair_training(self, embedded: float | None = None, auxiliary: bool = True) -> int:
        """Multiply-adds of a training pair, forward and backward.

        Args:
            embedded: Photos embedded a pair; finetuning embeds each support of a batch once.
        """
        both = training(self.branch) + self.passes * training(self.recur)
        both += training(self.cooccurrence) if auxiliary else 0
        photos = self.photos if embedded is None else embedded
        return int(photos * training(self.embed)) + training(self.gates) + 2 * both

    def prediction(self, refinements: int) -> int:
        """Multiply-adds of one branch of an embedded pair."""
        passes = refinements if self.refines else 1
        return forward(self.gates) + forward(self.branch) + passes * forward(self.recur)
