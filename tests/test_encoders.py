"""Encoders: stride-8 maps from torchvision's weights, frozen, and anything from outside held to the contract."""

import re
from importlib import import_module

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.feature_extraction import create_feature_extractor

from crnet import encoders
from crnet.config.settings import components
from crnet.encoders import resnet50, resnet101, vgg16
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError

CPU = torch.device("cpu")
BUILT_IN = sorted(name for name, about in components("encoder").items() if "LAYERS" in about.literals)


@pytest.mark.parametrize("size", [(64, 64), (65, 63), (113, 50)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_maps_are_at_an_eighth_of_the_input_in_the_order_asked_for(name, size):
    module = import_module(f"crnet.encoders.{name}")
    last, *others = module.LAYERS
    layers = [*others[::-1], last]
    network = module.network(layers).eval()
    with torch.no_grad():
        maps = network(torch.zeros(2, 3, *size))
    assert network.channels == tuple(module.LAYERS[layer] for layer in layers)
    cells = tuple(-(-side // 8) for side in size)
    assert [tuple(m.shape) for m in maps] == [(2, channels, *cells) for channels in network.channels]


@pytest.mark.parametrize(
    ("module", "model"),
    [
        (resnet50, torchvision.models.resnet50),
        (resnet101, torchvision.models.resnet101),
        (vgg16, torchvision.models.vgg16),
    ],
)
def test_weights_come_from_torchvisions_file_and_another_file_is_refused(module, model, tmp_path):
    torch.manual_seed(0)
    source = model(weights=None)
    archive, out = tmp_path / module.SETTINGS["archive"], tmp_path / "encoder.safetensors"
    torch.save(source.state_dict(), archive)
    module.prepare(module.SETTINGS, tmp_path, out, 1)
    spec = {"name": module.__name__.rsplit(".", 1)[1], "layers": module.DEFAULT_LAYERS, **module.SETTINGS}
    encoder = FrozenEncoder(spec, out, CPU, "float32")
    first = next(p for p in source.parameters() if p.ndim == 4)
    assert any(torch.equal(first, p) for p in load_file(out).values())
    assert not any(p.requires_grad for p in encoder.network.parameters())

    broken = dict(list(source.state_dict().items())[1:])
    torch.save(broken, archive)
    with pytest.raises(CrnetError, match="not the expected torchvision weights"):
        module.prepare(module.SETTINGS, tmp_path, out, 1)


@pytest.mark.parametrize("name", BUILT_IN)
def test_batch_norm_folded_gives_the_same_maps(name):
    module = import_module(f"crnet.encoders.{name}")
    torch.manual_seed(0)
    network, images = module.network(list(module.LAYERS)), torch.randn(2, 3, 64, 64)

    def left(network: torch.nn.Module) -> list[str]:
        return [place for place, m in network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]

    # Of a pre-activation network the norm of the photo and the first of each unit follow no convolution.
    first = re.compile(r"bn0|layer\d\.\d\.bn1")
    before_activation = [place for place in left(network) if name == "resnet50v2" and first.fullmatch(place)]
    with torch.no_grad():
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5), norm.bias.normal_()
        network.train()(images)  # statistics that differ from channel to channel
        maps = network.eval()(images)
        encoders.fold_batch_norm(network)
        assert left(network) == before_activation
        for one, other in zip(maps, network(images), strict=True):
            assert (one - other).abs().max() < 1e-4 * one.abs().max()


@pytest.mark.parametrize(
    ("module", "model"), [(resnet50, torchvision.models.resnet50), (resnet101, torchvision.models.resnet101)]
)
def test_resnet_is_torchvisions_dilated_one(module, model):
    torch.manual_seed(0)
    ours = module.network(["layer2", "layer4"]).eval()
    theirs = model(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict({k.removeprefix("body."): v for k, v in ours.state_dict().items()}, strict=False)
    extract = create_feature_extractor(theirs, ["layer2", "layer4"])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours_map, theirs_map in zip(ours(images), extract(images).values(), strict=True):
            torch.testing.assert_close(ours_map, theirs_map)


def test_missing_weights_are_one_sentence(tmp_path):
    spec = {"name": "small", "layers": ["layer3"]}
    with pytest.raises(CrnetError, match="does not hold the weights of small"):
        encoders.build(spec, tmp_path / "absent.safetensors")


FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    channels = (4,)
    def __init__(self, stride):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, stride, stride)
    def forward(self, x):
        return [self.conv(x)]

def good(): return Net(8)
def coarse(): return Net(16)
def bare(): return nn.Identity()
"""


def test_an_encoder_from_outside_is_held_to_the_contract(tmp_path, monkeypatch):
    (tmp_path / "outside_encoder.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    tiles = {"name": "outside_encoder:good", "alignment": "tiles"}
    assert FrozenEncoder(tiles, None, CPU, "float32").channels == (4,)
    with pytest.raises(CrnetError, match=r"\(1, 3, 65, 65\) input .* alignment: corners; say in the study's encoders"):
        encoders.build({"name": "outside_encoder:good"}, None)
    for name, reason in {"coarse": "stride 8", "bare": r"\.channels", "absent": "cannot be imported"}.items():
        with pytest.raises(CrnetError, match=reason):
            encoders.build({**tiles, "name": f"outside_encoder:{name}"}, None)


def test_the_practice_encoder_fits(shared, monkeypatch):
    monkeypatch.syspath_prepend(shared / "real" / "encoders")
    encoder = FrozenEncoder({"name": "resnet50v2:build"}, None, CPU, "bfloat16")
    maps = encoder(torch.zeros(1, 3, 225, 225, dtype=torch.uint8), torch.zeros(1, 225, 225, dtype=torch.bool))
    assert [tuple(m.shape) for m in maps] == [(1, 512, 29, 29), (1, 1024, 29, 29)]


def test_digest_sees_weights_and_statistics():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    before = encoders.digest(network)
    network[1].running_mean += 1e-3
    assert encoders.digest(network) != before
