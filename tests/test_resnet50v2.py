"""The pre-activation ResNet-50: its dilated stages, its weights from an ONNX file, the maps of the photo studies."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from crnet import encoders
from crnet.encoders import onnx_weights, resnet50v2
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError

CPU = torch.device("cpu")
SPEC = {"name": "resnet50v2", "layers": ["layer2", "layer3"], **resnet50v2.SETTINGS}


@pytest.fixture(scope="module")
def network() -> resnet50v2.ResNet50V2:
    """Random weights, and statistics that differ from channel to channel."""
    torch.manual_seed(0)
    network = resnet50v2.network(list(resnet50v2.LAYERS))
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.0), norm.bias.normal_(0, 0.1)
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.8, 1.2)
    return network.eval()


@torch.no_grad()
def test_dilated_stages_hold_the_maps_of_the_strided_network(network):
    """With the strides of classification, 2 in stages 3 and 4, the maps are every second and every fourth cell."""
    strided = copy.deepcopy(network)
    for stage in (strided.layer3, strided.layer4):
        for unit in stage:
            unit.conv2.dilation = unit.conv2.padding = (1, 1)
        stage[0].conv2.stride = stage[0].project.stride = (2, 2)
    images = torch.randn(1, 3, 128, 96)
    for one, other, step in zip(network(images), strided(images), (1, 2, 4), strict=True):
        torch.testing.assert_close(one[..., ::step, ::step], other, rtol=1e-3, atol=1e-4)


def test_a_unit_is_batch_norm_then_relu_then_convolution():
    """By hand for one pixel, where convolutions are products: the projection takes what was activated."""
    unit = resnet50v2.Unit(2, 1, 1, 1, project=True).eval()
    with torch.no_grad():
        for weights in unit.parameters():
            weights.copy_(torch.arange(1.0, weights.numel() + 1).view_as(weights) / 4)
    x = torch.tensor([3.0, -2.0])
    scale = 1 / np.sqrt(1 + 1e-5)
    active = (x * scale * torch.tensor([0.25, 0.5]) + torch.tensor([0.25, 0.5])).clamp(min=0)
    inner = active @ unit.conv1.weight.view(2)
    inner = (inner * scale * 0.25 + 0.25).clamp(min=0) * unit.conv2.weight[0, 0, 1, 1]
    inner = (inner * scale * 0.25 + 0.25).clamp(min=0)
    expected = inner * unit.conv3.weight.view(4) + unit.project.weight.view(4, 2) @ active
    torch.testing.assert_close(unit(x.view(1, 2, 1, 1)).view(4), expected.float())


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, value: Tensor, packed: bool = True, raw: bool = True, kind: int = 1) -> bytes:
    shape = list(value.shape)
    dims = field(1, b"".join(map(varint, shape))) if packed else b"".join(field(1, size) for size in shape)
    return (
        dims + field(2, kind) + field(8, name.encode()) + field(9 if raw else 4, value.numpy().astype("<f4").tobytes())
    )


def onnx(tensors: list[bytes]) -> bytes:
    """A model of initializers, with fields around them as a real one has."""
    node = field(1, b"data") + field(4, b"Conv")
    graph = field(1, node) + b"".join(field(5, each) for each in tensors) + field(2, b"mxnet_converted_model")
    return field(1, 3) + varint(3 << 3 | 5) + b"abcd" + field(7, graph)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_an_onnx_file(tmp_path, packed, raw):
    weights = {"a": torch.randn(3, 200, 1), "b": torch.randn(130), "scalar": torch.tensor(2.5)}
    file = tmp_path / "x.onnx"
    shape = tensor("shape", torch.zeros(2), kind=7)  # int64: passed over
    file.write_bytes(onnx([*(tensor(name, value, packed, raw) for name, value in weights.items()), shape]))
    torch.testing.assert_close(onnx_weights.read(file), weights, rtol=0, atol=0)


def test_what_is_no_onnx_file_is_one_sentence(tmp_path):
    file = tmp_path / "x.onnx"
    whole = onnx([tensor("a", torch.randn(40))])
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1e80\n"
    for content in (b"", b"<html></html>", pointer, whole[:-30], whole[:50], b"\xff" * 99, onnx([])):
        file.write_bytes(content)
        with pytest.raises(CrnetError, match=r"x\.onnx: is no ONNX file") as caught:
            onnx_weights.read(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(CrnetError, match=r"absent\.onnx: cannot be read"):
        onnx_weights.read(tmp_path / "absent.onnx")


def test_weights_come_from_the_model_zoos_file_and_another_file_is_refused(network, tmp_path):
    state = network.state_dict()
    file, out = tmp_path / resnet50v2.SETTINGS["archive"], tmp_path / "encoder.safetensors"
    classifier = tensor("resnetv24_dense0_weight", torch.zeros(10, 4))
    file.write_bytes(onnx([*(tensor(theirs, state[ours]) for ours, theirs in resnet50v2.names().items()), classifier]))
    resnet50v2.prepare(resnet50v2.SETTINGS, tmp_path, out, 1)
    encoder = FrozenEncoder(SPEC, out, CPU, "float32")
    photo = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(encoders.normalise(photo))[:2]
    torch.testing.assert_close(encoder(photo), expected, rtol=1e-3, atol=1e-4)

    names = list(resnet50v2.names().items())
    wrong = state["conv0.weight"][:32]
    for tensors in (
        [tensor(theirs, state[ours]) for ours, theirs in names[1:]],
        [tensor(theirs, wrong if ours == "conv0.weight" else state[ours]) for ours, theirs in names],
    ):
        file.write_bytes(onnx(tensors))
        with pytest.raises(CrnetError, match="are not the weights of the model zoo's ResNet-50 v2"):
            resnet50v2.prepare(resnet50v2.SETTINGS, tmp_path, out, 1)


def test_every_tensor_has_one_name_in_the_file(network):
    ours = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    names = resnet50v2.names()
    assert set(names) == ours
    assert len(set(names.values())) == len(ours)
    # One of a kind by hand: the second unit of stage 2 counts on behind four convolutions and three norms.
    assert names["layer2.1.conv2.weight"] == "resnetv24_stage2_conv5_weight"
    assert names["layer2.1.bn2.running_var"] == "resnetv24_stage2_batchnorm4_running_var"
    assert names["layer2.0.project.weight"] == "resnetv24_stage2_conv3_weight"


@torch.no_grad()
def test_maps_are_those_of_the_practice_encoder(shared, monkeypatch):
    """The one that the committed photo studies ran with; its file holds the model zoo's weights up to stage 3."""
    network = resnet50v2.network(["layer2", "layer3"]).eval()
    with np.load(next((shared / "real/encoders").glob("resnet50v2*.npz"))) as stored:
        state = {name.replace("stage", "layer"): torch.from_numpy(stored[name].astype(np.float32)) for name in stored}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("layer4") or name.endswith("num_batches_tracked") for name in missing)
    monkeypatch.syspath_prepend(shared / "real" / "encoders")
    theirs = encoders.build({"name": "resnet50v2:build"}, None)
    images = torch.randn(2, 3, 225, 161)
    for one, other in zip(network(images), theirs(images), strict=True):
        # The same bits, as a rule: where tensors lie in memory may change how a sum is taken (seen once).
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * other.abs().max().item())
