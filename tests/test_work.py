"""Counted multiply-adds and weights against PyTorch's own count."""

import importlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crnet import methods
from crnet.config.settings import component
from crnet.cost import work
from crnet.methods import Pairs

SWITCHES = [
    {},
    {"cross_reference": False},
    {"condition": False},
    {"refinement": False},
    {"multi_level": False},
    {"mask_input": False},
    {"enter_kernel": 1},
    {"cache": "unrolled", "unroll": 3},
    {"normalisation": "group", "gate_tied": True},
]


def counted(run) -> int:
    """Multiply-adds of convolutions and matrix products; PyTorch counts both halves."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("small", ["layer2", "layer3"]),
        ("resnet50", ["layer3", "layer4"]),
        ("resnet50", ["layer2", "layer3"]),
        ("vgg16", ["conv4", "conv5"]),
        ("vgg16", ["conv3"]),
    ],
)
@pytest.mark.parametrize("size", [64, 51])
def test_encoders(name, layers, size):
    network = importlib.import_module(f"crnet.encoders.{name}").network(layers).eval()
    convs = work.encoder({"name": name, "layers": layers}, size)
    with torch.no_grad():
        assert counted(lambda: network(torch.zeros(1, 3, size, size))) == work.forward(convs)
    weights = sum(w.numel() for w in network.parameters() if w.ndim == 4)
    assert weights >= sum(conv.weights for conv in convs)
    if layers[-1] in ("layer4", "conv5", "conv3") or name == "small":
        assert weights == sum(conv.weights for conv in convs)


def head(switches, size=64):
    model = component("method", "crnet", "test").settings({"width": 8, "gate_width": 4, **switches}, "test")
    channels = [12, 20]
    return methods.build("crnet", tuple(channels), model), work.Head(channels, model, size), channels


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("size", [64, 72])
def test_head(switches, size):
    network, expected, channels = head(switches, size)
    side, n = work.map_side(size), 2
    maps = [torch.rand(n, channels[i], side, side) for i in network.maps]
    masks = torch.randint(0, 2, (n, size, size), dtype=torch.uint8)
    assert sum(w.numel() for w in network.parameters()) == expected.parameters

    def step(auxiliary=True):
        embedded = [network.embed(maps) for _ in range(3 if network.needs_masked else 2)]
        cache = torch.zeros(n, 2, side, side) if network.stores_cache else None
        pairs = Pairs(*embedded[:2], embedded[-1], masks, masks, cache, cache)
        network.losses(pairs, auxiliary).loss.backward()

    assert counted(step) == n * expected.pair_training()
    assert counted(lambda: step(auxiliary=False)) == n * expected.pair_training(auxiliary=False)
    with torch.no_grad():
        embedded = network.embed(maps)
        assert counted(lambda: network.embed(maps)) == n * work.forward(expected.embed)
        pairs = Pairs(embedded, embedded, embedded, masks)
        for refinements in (1, 4):
            assert counted(lambda r=refinements: network.predict(pairs, r)) == n * expected.prediction(refinements)
            assert counted(lambda r=refinements: network.predict_support(pairs, r)) == n * expected.prediction(
                refinements
            )
