"""The Siamese encoder (paper 4.2): one frozen network for support and query, named by the study.

A built-in encoder is a file of this folder with ``SETTINGS``, ``LAYERS``, ``DEFAULT_LAYERS`` and ``ALIGNMENT`` as
literals, ``network(layers)`` and ``prepare(settings, archives, out, threads)``. ``timm:MODEL`` is a model of the
library timm, see ``timm.py``. Any other is ``package.module:factory``, a function without arguments whose result turns
images (N, 3, H, W) into a list of stride-8 maps and has ``.channels``; where its cells lie (``crnet/data/grid.py``) the
study says: ``alignment``.
"""

import hashlib
import importlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from crnet.config.encoders import learns
from crnet.config.settings import brings_weights, component, is_timm
from crnet.data.grid import CORNERS, STRIDE, fitted
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write
from crnet.runtime.out_of_memory import ran_out

# Channel statistics of ImageNet, RGB in [0, 1]; every encoder gets images normalised with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build(spec: dict, weights: Path | None) -> nn.Module:
    """The frozen encoder of a specification, in eval mode (batch norm uses its stored statistics).

    Args:
        weights: The safetensors file that ``prepare`` wrote; unused for a factory, which brings its own.

    Raises:
        CrnetError: The factory cannot be imported or breaks its contract, or the weights do not fit.
    """
    if brings_weights(spec["name"]):
        encoder = _from_factory(spec)
    else:
        encoder = network(spec)
        try:
            encoder.load_state_dict(load_file(weights), strict=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            if ran_out(error):
                raise
            raise CrnetError(f"{weights}: does not hold the weights of {spec['name']} ({error}).") from error
    return encoder.eval().requires_grad_(False)


def without_values(spec: dict) -> nn.Module:
    """The encoder as a job uses it, but on the ``meta`` device: its shapes, for counting.

    Raises:
        CrnetError: A factory cannot be imported or breaks its contract.
    """
    if brings_weights(spec["name"]):
        return _from_factory(spec).requires_grad_(learns(spec)).to("meta")
    with torch.device("meta"):
        encoder = network(spec).eval().requires_grad_(learns(spec))
    if may_fold(spec["name"]) and not learns(spec):
        fold_batch_norm(encoder)
    return encoder


def network(spec: dict) -> nn.Module:
    """A built-in encoder, or one of timm, with values of chance."""
    module = _module(spec["name"])
    return module.network(spec if is_timm(spec["name"]) else spec["layers"])


def may_fold(name: str) -> bool:
    """Whether ``fold_batch_norm`` holds for an encoder: timm's batch norms may have an activation in them."""
    return ":" not in name


def _module(name: str) -> ModuleType:
    """The file of a built-in encoder, or of timm's."""
    return importlib.import_module(component("encoder", name, "encoder").module)


def _from_factory(spec: dict) -> nn.Module:
    name, alignment = spec["name"], spec.get("alignment", CORNERS)
    module, factory = name.split(":")
    try:
        encoder = getattr(importlib.import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise CrnetError(f"encoder {name}: cannot be imported ({error}); put its folder on PYTHONPATH.") from error
    channels = getattr(encoder, "channels", None)
    if not isinstance(encoder, nn.Module) or not channels:
        raise CrnetError(f"encoder {name}: must return an nn.Module with .channels, one number a map.")
    side = fitted(64, alignment)
    with torch.no_grad():
        maps = encoder.eval()(torch.zeros(1, 3, side, side))
    shapes, cells = [tuple(m.shape) for m in maps], -(-side // STRIDE)
    expected = [(1, c, cells, cells) for c in channels]
    if shapes != expected:
        raise CrnetError(
            f"encoder {name}: for a (1, 3, {side}, {side}) input its maps are {shapes}, not {expected} (stride 8, "
            f"alignment: {alignment}; say in the study's encoders where its cells lie, corners or tiles)."
        )
    return encoder


def digest(encoder: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights *and buffers*: a drifting batch-norm statistic shows."""
    state = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        state.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def take(network: nn.Module, learnt: Mapping[str, Tensor], name: str) -> None:
    """Give a network the weights that were learnt; raises CrnetError if it has no such weights."""
    own = dict(network.named_parameters())
    if wrong := [key for key, weight in learnt.items() if key not in own or own[key].shape != weight.shape]:
        raise CrnetError(f"encoder {name}: has no weight {wrong[0]} of the shape that was trained; bring the same one.")
    with torch.no_grad():
        for key, weight in learnt.items():
            own[key].copy_(weight)


def fold_batch_norm(network: nn.Module) -> None:
    """Take each batch norm of a frozen network into the convolution registered before it, which has to be its input.

    True of the built-in encoders (a test holds it), unknown of a factory's. Saves a pass over every map: 10 to 17 % of
    ResNet-50's time on a CPU in bfloat16, at 225 px.
    """
    for parent in list(network.modules()):
        children = list(parent.named_children())
        for (name, conv), (after, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, nn.Identity())


def normalise(images: Tensor) -> Tensor:
    """RGB bytes (N, 3, H, W) to float32 with ImageNet's channel statistics."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def convert_torchvision(source: Path, network: nn.Module, out: Path, classifier: str, prefix: str = "") -> None:
    """Check torchvision's weights against ``network`` and write them as safetensors.

    Args:
        classifier: Prefix of the tensors that have no place in an encoder.
        prefix: What ``network`` puts before torchvision's names of tensors.

    Raises:
        CrnetError: A tensor is missing, unexpected or of another shape: these are other weights.
    """
    state = torch.load(source, map_location="cpu", weights_only=True)
    state = {f"{prefix}{key}": value for key, value in state.items() if not key.startswith(classifier)}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CrnetError(f"{source}: are not the expected torchvision weights ({error}).") from error
    atomic_write(out, save({key: value.contiguous() for key, value in network.state_dict().items()}))


def prepare(spec: dict, archives: Path, out: Path, threads: int) -> None:
    """Write the weights file of an encoder that is no factory; see the ``prepare`` of its file."""
    if is_timm(spec["name"]):
        _module(spec["name"]).prepare(spec, archives, out, threads)
        return
    settings = {key: value for key, value in spec.items() if key not in ("name", "layers")}
    _module(spec["name"]).prepare(settings, archives, out, threads)
