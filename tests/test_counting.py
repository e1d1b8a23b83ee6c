"""Counted work and memory: by hand on networks of a few layers, and the figures of ResNet-50, VGG16 and the head."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from crnet import methods
from crnet.config.settings import component
from crnet.cost import networks as counted
from crnet.cost.counting import count
from crnet.cost.networks import encoder, networks
from crnet.errors import CrnetError
from crnet.methods import Method, Pairs, Step

OUTSIDE = {"name": "outside:build", "rev": 1, "alignment": "tiles"}
RESNET50 = {"name": "resnet50", "layers": ["layer3", "layer4"]}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(counted, "_counted", {})


def training(method="crnet", spec=RESNET50, **switches) -> dict:
    return {
        "method": method,
        "encoder": spec,
        "model": component("method", method, "test").settings(switches, "test"),
    }


def test_a_convolution_by_hand():
    """3 x 3 from 4 to 8 channels on 10 x 10 cells: forward, and as much again for its weights, and for its input."""
    conv, forward = nn.Conv2d(4, 8, 3, padding=1, bias=False, device="meta"), 4 * 8 * 9 * 100
    conv.weight.grad = torch.zeros_like(conv.weight)
    frozen, learnt = (torch.zeros(1, 4, 10, 10, device="meta", requires_grad=grad) for grad in (False, True))
    learnt.grad = torch.zeros_like(learnt)
    given = [conv.weight, conv.weight.grad, learnt, learnt.grad, frozen]
    with torch.no_grad():
        assert count(lambda: conv(frozen), given).multiply_adds == forward
    assert count(lambda: conv(frozen).sum().backward(), given).multiply_adds == 2 * forward
    assert count(lambda: conv(learnt).sum().backward(), given).multiply_adds == 3 * forward


def test_live_bytes_by_hand():
    """What is given counts nothing, what is let go makes room, what the backward pass needs stays."""
    x = torch.zeros(1000, device="meta")

    def chain() -> None:
        y = x + 1
        y = y * 2  # the one before is alive while this is made
        y.add_(1)
        y.view(10, 100)
        y = y[:500] * 1

    assert count(chain, [x]).peak_bytes == 8000
    weight = torch.zeros(1000, device="meta", requires_grad=True)
    weight.grad = torch.zeros_like(weight)

    def kept() -> torch.Tensor:
        return (weight.exp().exp().exp()).sum()  # each result is needed to go back

    assert count(kept, [weight, weight.grad]).peak_bytes == 12_000 + 4
    with torch.no_grad():
        assert count(kept, [weight]).peak_bytes == 8000


@pytest.mark.parametrize(
    ("spec", "size", "multiply_adds", "values"),
    [
        # Counted by hand, layer by layer: kernel x input channels x output channels x cells.
        (RESNET50, 321, 40_855_065_792, 23_454_912),
        ({"name": "resnet50", "layers": ["layer2", "layer3"]}, 321, 15_737_214_144, 23_454_912),
        ({"name": "vgg16", "layers": ["conv4", "conv5"]}, 321, 41_197_328_064, 14_710_464),
        ({"name": "small", "layers": ["layer3", "layer4"]}, 96, 46_946_304, 265_608),
    ],
)
def test_encoders_have_the_work_that_was_counted_by_hand(spec, size, multiply_adds, values):
    network = encoder(spec)
    assert network.photo(size).multiply_adds == pytest.approx(multiply_adds, rel=0.01)
    weights = sum(w.numel() for w in counted.encoders.without_values(spec).parameters() if w.ndim == 4)
    assert weights == values
    assert network.weight_bytes == pytest.approx(8 * weights, rel=0.01)


def test_the_papers_head_has_the_work_that_was_counted_by_hand():
    """As counted layer by layer for 256 channels at 321 px, on layers 3 and 4."""
    head = networks(training())
    embedded = 3 * head.embedding_training(321).multiply_adds
    assert head.pair(321, 4) + embedded == pytest.approx(186_342_383_616, rel=0.01)
    assert head.pair(321, 4, auxiliary=False) + embedded == pytest.approx(159_194_280_960, rel=0.01)
    assert head.prediction(321, 5, 1).multiply_adds == pytest.approx(48_348_656_640, rel=0.01)
    assert head.embedding(321).multiply_adds == pytest.approx(11_897_929_728, rel=0.01)
    assert head.parameters == 19_616_004


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


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_heads_have_the_work_that_torch_does(switches):
    """Against a step, and a prediction, on real numbers."""
    spec = training(spec={"name": "small", "layers": ["layer3", "layer4"]}, width=8, gate_width=4, **switches)
    predicted, size, n = networks(spec), 49, 2
    method = methods.build("crnet", (64, 96), spec["model"])
    maps = [torch.rand(n, (64, 96)[i], 7, 7) for i in method.maps]
    mask = torch.randint(0, 2, (n, size, size), dtype=torch.uint8)
    cache = torch.zeros(n, 2, 7, 7) if method.stores_cache else None
    assert predicted.parameters == sum(w.numel() for w in method.parameters())

    def step(auxiliary: bool) -> None:
        photos = [method.embed(maps) for _ in range(3 if method.needs_masked else 2)]
        method.losses(Pairs(*photos[:2], photos[-1], mask, mask, cache, cache), auxiliary).loss.backward()

    for auxiliary in (True, False):
        with FlopCounterMode(display=False) as counter:
            step(auxiliary)
        assert predicted.step(size, n, auxiliary).multiply_adds == counter.get_total_flops() // 2
        embedded = predicted.photos * predicted.embedding_training(size).multiply_adds
        assert predicted.pair(size, n, auxiliary) + embedded == counter.get_total_flops() / 2 / n
    with torch.no_grad():
        photos = method.embed(maps)
        for refinements in (1, 4):
            with FlopCounterMode(display=False) as counter:
                method.predict(Pairs(photos, photos, photos, mask), refinements)
            assert predicted.prediction(size, refinements, n).multiply_adds == counter.get_total_flops() // 2
    assert predicted.embedded_channels == photos.shape[1]
    assert predicted.embedding(size).multiply_adds == predicted.taken * 8 * method.enter.kernel_size[0] ** 2 * 49


def test_controls_and_networks_from_outside_are_counted_as_all_others(monkeypatch):
    class Outside(nn.Module):
        channels = (16,)

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 8, 8, bias=False)

        def forward(self, images):
            return [self.conv(images)]

    monkeypatch.setitem(sys.modules, "outside", SimpleNamespace(build=Outside))
    assert encoder(OUTSIDE).photo(80).multiply_adds == 3 * 16 * 64 * 100
    prototype = networks(training("prototype", OUTSIDE))
    assert (prototype.taken, prototype.photos, prototype.parameters) == (16, 2, 0)
    assert prototype.prediction(80, 1, 2).peak_bytes >= 2 * 16 * 100 * 4  # support times weight
    assert networks(training("all-foreground", OUTSIDE)).embedded_channels == 1


class Asking(Method):
    """Looks at values, which "meta" has none of."""

    maps, needs_masked = (0,), False

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1024, 2, 1, bias=False)

    def embed(self, maps):
        return maps[0]

    def losses(self, pairs, auxiliary=True):
        assert not pairs.query_mask.any()
        return Step(F.cross_entropy(self.conv(pairs.query), pairs.query_mask[:, ::8, ::8].long()))

    def predict(self, pairs, refinements):
        raise ValueError if pairs.query.mean() else RuntimeError("no object")


def test_what_cannot_run_without_values_runs_on_zeros_or_is_one_sentence(monkeypatch):
    monkeypatch.setattr(methods, "build", lambda *given: Asking())
    network = networks(training())
    assert network.step(64, 3, auxiliary=True).multiply_adds == 3 * 2 * 1024 * 2 * 64  # its input is frozen
    with pytest.raises(CrnetError, match=r"method crnet: fails on photos of zeros.*\(no object\); mend it\.$"):
        network.prediction(64, 1, 1)
