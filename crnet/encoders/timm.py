"""Any model of the library timm that gives feature maps, named timm:MODEL; its maps are brought to stride 8.

A model with cells around corners is dilated to stride 8 where timm can (``output_stride=8``). Maps of other strides,
and the patch tokens of vision transformers as a map, are resized bilinearly to the one grid of stride 8: kernels of
even width, as in ConvNeXt's stages, would shift a dilated map by a cell or two. What timm does with a model is found by
trying it on the ``meta`` device, which computes no values.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.data.archives.archives import Archive, fetch
from crnet.encoders import MEAN, STD
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write, sha256_file
from crnet.runtime.out_of_memory import ran_out
from crnet.runtime.seeding import derive

SETTINGS = {
    "rev": 1,
    # Which maps, as timm counts them from 0, from the last with a minus: of ResNets 2 is layer2 and 3 is layer3; of
    # vision transformers they are blocks
    "layers": [-2, -1],
    # "pretrained": timm's own, from a hub; a file or URL of safetensors or torch (read with weights_only), with sha256;
    # "random" for tests
    "weights": "pretrained",
    "sha256": "",  # of the file of weights, 64 hexadecimal digits
    # Where cells lie: "corners" at pixels 0, 8, 16, ..., "tiles" in the middle of squares of 8 pixels. Default for
    # ResNets and the like is "corners"
    "alignment": "tiles",
}
LIMITS = {"layers": (-100, 100), "alignment": {"corners", "tiles"}}
# Of models whose kernels are all of odd width and padded on both sides, by how their names begin: a cell lies around
# its first pixel. Not those with a letter behind the depth, as resnet50d, which average pairs of pixels.
CORNERS = r"(wide_|se)?resne(t|xt)(v2_)?\d+(?![a-z\d])|regnet[xy]_|(tf_)?(efficientnet|mobilenet)"

STRIDE = 8
# Arguments that let models take inputs of any size, those of ``timm.create_model`` that a model knows.
WAYS: dict[str, tuple[dict[str, Any], ...]] = {
    "corners": ({"output_stride": STRIDE}, {}),
    "tiles": ({"dynamic_img_size": True}, {"strict_img_size": False}, {}),
}
TRIED = (225, 321)  # pixels
# What timm's models raise where they do not take an argument or an input.
REFUSALS = (TypeError, AssertionError, NotImplementedError, RuntimeError, ValueError, LookupError)


@dataclass(frozen=True)
class Fit:
    """How a model of timm is made to fit.

    Attributes:
        options: For ``timm.create_model``.
        layers: Those asked for, counted from 0, in timm's order.
        strides: Of their maps, as timm has them.
        step: Pixels of which the input's sides are made a multiple; 1: they are left as they are.
        fixed: The only (height, width) of the input that the model takes, or None.
    """

    options: dict[str, Any]
    layers: tuple[int, ...]
    strides: tuple[int, ...]
    step: int
    fixed: tuple[int, int] | None


class TimmModel(nn.Module):
    """Images (N, 3, H, W) to the requested maps (N, C, ceil(H/8), ceil(W/8)), in the order asked for.

    Args:
        spec: ``name``, ``layers`` and ``alignment``, as ``crnet.config.resolve`` makes them.
        created: Further arguments of ``timm.create_model``.

    Attributes:
        channels: Of each map.
        about: In a line, how the model was made to fit.

    Raises:
        CrnetError: timm is not installed, has no such model, or the model gives no such maps.
    """

    def __init__(self, spec: dict, **created: Any):
        super().__init__()
        self.model = spec["name"].partition(":")[2]
        self.fit = _fit(self.model, tuple(spec["layers"]), spec["alignment"])
        self.corners = spec["alignment"] == "corners"
        self.body = _create(self.model, self.fit.layers, **self.fit.options, **created)
        info = self.body.feature_info.info
        asked = [layer % len(info) for layer in spec["layers"]]
        self.channels = tuple(info[layer]["num_chs"] for layer in asked)
        self._places = [self.fit.layers.index(layer) for layer in asked]
        self.about = _about(asked, self.channels, self.fit)
        # From ImageNet's statistics to those of the weights.
        mean, std = _statistics(self.model)
        pairs = list(zip(MEAN, STD, mean, std, strict=True))
        self.register_buffer("scale", torch.tensor([s / t for _, s, _, t in pairs]).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([(m - n) / t for m, _, n, t in pairs]).view(1, 3, 1, 1))
        self._other_statistics = (mean, std) != (MEAN, STD)

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        x = images * self.scale + self.shift if self._other_statistics else images
        x = _resized(x, self.fit.fixed or (_multiple(height, self.fit.step), _multiple(width, self.fit.step)), False)
        maps = self.body(x)
        if str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC"):
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        grid = ceil(height / STRIDE), ceil(width / STRIDE)
        return [_resized(maps[place], grid, self.corners) for place in self._places]


network = TimmModel


def prepare(spec: dict, archives: Path, out: Path, threads: int) -> None:
    """Write the encoder's weights, without the classifier, as safetensors.

    Args:
        archives: Folder in which a file that a URL names is kept.

    Raises:
        CrnetError: timm's weights cannot be had, or a file is absent, has another checksum or is of another model.
    """
    torch.manual_seed(derive("timm encoder", spec["name"]))
    try:
        network = TimmModel(spec, **_weights(spec, archives))
    except OSError as error:
        raise CrnetError(
            f"encoder {spec['name']}: timm's weights could not be had ({_short(error)}); go where there is a "
            "network, or give a file as `weights` with its `sha256`."
        ) from error
    except REFUSALS as error:
        if ran_out(error):
            raise
        raise CrnetError(
            f"{spec['weights']}: does not hold the weights of {spec['name']} ({_short(error)})."
        ) from error
    atomic_write(out, save({key: value.contiguous() for key, value in network.state_dict().items()}))


def _weights(spec: dict, archives: Path) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` that bring the weights asked for."""
    if spec["weights"] in ("pretrained", "random"):
        return {"pretrained": spec["weights"] == "pretrained"}
    timm, model = _timm(spec["name"]), spec["name"].partition(":")[2]
    state, heads = _read(spec, archives), tuple(f"{name}." for name in _classifiers(model))
    if heads:  # of any number of classes, or none: it has no place here, but timm wants one
        with torch.device("meta"):
            own = {key: value.shape for key, value in timm.create_model(model).state_dict().items()}
        state = {key: value for key, value in state.items() if not key.startswith(heads)}
        state |= {key: torch.zeros(shape) for key, shape in own.items() if key.startswith(heads)}
    loaded = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state, "label_offset": 0}}
    # Once as a whole: of a network that gives maps timm takes what it finds, without a word of what is missing.
    timm.create_model(model, **loaded)
    return loaded


def licence(name: str) -> str:
    """What timm says of the licence of a model's weights, "" if nothing."""
    return getattr(_configuration(name.partition(":")[2]), "license", None) or ""


def _read(spec: dict, archives: Path) -> dict[str, Tensor]:
    """Tensors by name, of a file whose checksum is the specification's."""
    weights, checksum = spec["weights"], spec["sha256"]
    if "://" in weights:
        path = fetch(Archive(weights.rpartition("/")[2], weights, f"sha256:{checksum}"), archives)
    else:
        path = Path(weights)
        if not path.is_file():
            raise CrnetError(f"encoder {spec['name']}: there is no file of weights {path}; put it there.")
        if (found := sha256_file(path)) != checksum:
            raise CrnetError(f"{path}: has the SHA-256 {found}, not {checksum}; bring the file that is meant.")
    try:
        return _timm(spec["name"]).models.load_state_dict(str(path), weights_only=True)
    except (*REFUSALS, OSError, SafetensorError) as error:
        raise CrnetError(f"{path}: is no file of weights that is safe to read ({_short(error)}).") from error


@cache
def _fit(model: str, layers: tuple[int, ...], alignment: str) -> Fit:
    """Find how the model fits, by trying; see ``Fit``."""
    reason = ""
    for options in WAYS[alignment]:
        try:
            with torch.device("meta"):
                body = _create(model, layers, **options).eval()
        except IndexError as error:
            raise CrnetError(f"encoder timm:{model}: gives no maps {list(layers)}; choose lower numbers.") from error
        except REFUSALS as error:
            reason = _short(error)
            continue
        info = body.feature_info.info
        ordered = tuple(sorted({layer % len(info) for layer in layers}))
        if len(ordered) < len(layers) or not all(-len(info) <= layer < len(info) for layer in layers):
            raise CrnetError(f"encoder timm:{model}: layers {list(layers)} are not distinct ones of its {len(info)}.")
        strides = tuple(info[layer]["reduction"] for layer in ordered)
        step = 1 if alignment == "corners" else max(strides)
        sizes = [(_multiple(side, step),) * 2 for side in TRIED]
        if not (reason := _refuses(body, sizes)):
            return Fit(options, ordered, strides, step, None)
        fixed = tuple((getattr(_configuration(model), "input_size", None) or (3, 224, 224))[1:])
        if alignment == "tiles" and not (reason := _refuses(body, [fixed])):
            return Fit(options, ordered, strides, step, fixed)
    hint = "; try alignment: tiles" if alignment == "corners" else ""
    raise CrnetError(f"encoder timm:{model}: gives no maps {list(layers)} ({reason}){hint}.")


def _refuses(body: nn.Module, sizes: Sequence[tuple[int, int]]) -> str:
    """Why a model on the meta device does not take inputs of these sizes, "" if it does."""
    try:
        with torch.no_grad():
            for size in sizes:
                body(torch.zeros(1, 3, *size, device="meta"))
    except REFUSALS as error:
        return _short(error)
    return ""


def _create(model: str, layers: Sequence[int], **options: Any) -> nn.Module:
    """timm's network that gives maps; raises CrnetError if there is none of that name."""
    timm = _timm(f"timm:{model}")
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=5, cutoff=0.4)
        raise CrnetError(f"encoder timm:{model}: timm {timm.__version__} has no such model; near: {', '.join(close)}.")
    return timm.create_model(model, features_only=True, out_indices=tuple(layers), **options)


def _timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise CrnetError(
            f"encoder {name}: needs the library timm ({error}); `pip install 'crnet[timm]'` brings it."
        ) from error
    return timm


def _configuration(model: str) -> Any:
    """timm's description of a model's weights: statistics, size, classifier, licence; None if it has none."""
    return _timm(f"timm:{model}").models.get_pretrained_cfg(model)


def _classifiers(model: str) -> tuple[str, ...]:
    found = getattr(_configuration(model), "classifier", None) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _statistics(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the channels that the weights were trained with."""
    about = _configuration(model)
    return tuple(getattr(about, "mean", MEAN)), tuple(getattr(about, "std", STD))


def _multiple(side: int, step: int) -> int:
    """The nearest multiple of ``step``, at least one."""
    return max(1, round(side / step)) * step


def _resized(x: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    """Bilinear, where it is not of this size: on ``corners``, first and last cells stay where they are."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=corners)


def _about(layers: Sequence[int], channels: Sequence[int], fit: Fit) -> str:
    strides = [fit.strides[fit.layers.index(layer)] for layer in layers]
    maps = [f"map {i} has {c} channels at stride {s}" for i, c, s in zip(layers, channels, strides, strict=True)]
    if "output_stride" in fit.options:
        maps.append("dilated by timm (output_stride=8)")
    if any(stride != STRIDE for stride in strides) or fit.fixed:
        maps.append("maps resized to the grid of stride 8 (bilinear)")
    if fit.fixed:
        maps.append(f"photos resized to {fit.fixed[1]} x {fit.fixed[0]} px, the only size it takes")
    elif fit.step > 1:
        maps.append(f"photos resized to a multiple of {fit.step} px")
    return ", ".join(maps)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
