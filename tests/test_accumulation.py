"""A batch in parts: the gradients of the whole, void pixels and dropout included; losses are taken in float32."""

import faults
import pytest
import torch
from parts import BATCH, CHANNELS, batch, gradients
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from crnet import methods
from crnet.config.settings import components
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError
from crnet.methods import PAIRS, PIXELS, SHARE, Method, Pairs, Step
from crnet.model.layers import ChannelDropout, Rows
from crnet.runtime.files import read_csv
from crnet.runtime.limits import Limits
from crnet.training.accumulation import accumulate, shares


def build(name: str, **settings) -> Method:
    component = components("method")[name]
    small = {"width": 8, "gate_width": 4, "initialisation": "kaiming", "dropout": 0.5, **settings}
    given = {key: value for key, value in small.items() if key in component.literals["SETTINGS"]}
    torch.manual_seed(0)
    return methods.build(name, CHANNELS, component.settings(given, "test")).double().train()


@pytest.mark.parametrize(
    ("name", "switches", "at_once", "auxiliary"),
    [
        *(("crnet", {}, at_once, auxiliary) for at_once in (1, 2, 3) for auxiliary in (True, False)),
        ("crnet", {"cache": "unrolled"}, 2, True),
        ("crnet", {"cross_reference": False}, 2, True),
        ("crnet", {"condition": False}, 2, True),
        ("crnet", {"normalisation": "group"}, 2, True),
        ("crnet", {"dropout": 0.0, "path_dropout": 0.0}, 2, True),
        ("crnet", {"gate": "masked", "mask_input": False}, 2, True),
        ("crnet", {"gate": "residual"}, 2, True),
    ],
    ids=str,
)
def test_every_switch_adds_up(name, switches, at_once, auxiliary):
    method = build(name, **switches)
    whole, expected = gradients(method, BATCH, auxiliary)
    parts, found = gradients(method, at_once, auxiliary)
    assert expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(vars(parts), vars(whole))


def test_a_mean_of_the_parts_would_be_another_gradient():
    """The void pixels of this batch matter: parts that know nothing of each other do not add up."""
    method = build("crnet", dropout=0.0, path_dropout=0.0)
    maps, query_mask, support_mask, caches = batch()
    _, expected = gradients(method, BATCH)
    method.zero_grad(set_to_none=True)
    for row in range(BATCH):
        rows = slice(row, row + 1)
        embedded = [method.embed([maps[i][group, rows] for i in method.maps]) for group in range(3)]
        pairs = Pairs(*embedded, support_mask[rows], query_mask[rows], *(each[rows] for each in caches))
        (method.losses(pairs).loss / BATCH).backward()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(method.enter.weight.grad, expected["enter.weight"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channel_dropout_is_torchs_bit_by_bit(dtype):
    x = torch.randn(6, 10, 3, 3).to(dtype)
    ours, torchs = ChannelDropout(0.3), nn.Dropout2d(0.3)
    torch.manual_seed(3)
    expected = torchs(x)
    torch.manual_seed(3)
    assert torch.equal(ours(x), expected)
    torch.manual_seed(3)
    assert torch.equal(ours(x[[1, 4]], Rows([1, 4], 6)), expected[[1, 4]])
    assert torch.equal(ours.eval()(x), x)


def test_one_part_is_the_batch_itself():
    masks = torch.zeros(4, 8, 8, dtype=torch.uint8)
    assert shares(masks, masks, 4, SHARE) == shares(masks, masks, 9, PIXELS) == [None]
    assert [each.rows for each in shares(masks, masks, 3, SHARE)] == [slice(0, 3), slice(3, 4)]


def trained(tiny, out, limits: Limits, **train) -> tuple[dict, dict]:
    spec = tiny.training(train={"precision": "float32", "epochs": 1, "epoch_episodes": 10, **train})
    folder = faults.trained(tiny, out, spec, limits=limits)
    return load_file(folder / "model.safetensors"), read_csv(folder / "log.csv")[-1]


@pytest.mark.parametrize("train", [{}, {"features": "live", "views": "identity", "augment": "support"}], ids=str)
def test_a_training_in_parts_ends_where_the_whole_does(tiny, tmp_path, train):
    whole, log = trained(tiny, tmp_path / "whole", Limits(), optimizer="sgd", lr=1e-2, **train)
    parts, log_of_parts = trained(tiny, tmp_path / "parts", Limits(1, 2), optimizer="sgd", lr=1e-2, **train)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)
    for name in ("loss", "query", "support", "cooccurrence"):
        assert float(log_of_parts[name]) == pytest.approx(float(log[name]), rel=1e-3)


def test_the_encoder_in_chunks_gives_the_same_maps(tiny):
    images = torch.randint(0, 255, (5, 3, 64, 64), dtype=torch.uint8)
    keep = torch.rand(5, 64, 64) > 0.5
    whole, chunks = (
        FrozenEncoder(tiny.training()["encoder"], tiny.encoder, torch.device("cpu"), "float32", at_once)
        for at_once in (0, 2)
    )
    torch.testing.assert_close(chunks(images, keep), whole(images, keep), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunks(images), whole(images), rtol=1e-4, atol=1e-5)


class Plain(Method):
    """A method as a user writes one, who knows nothing of parts."""

    maps, needs_masked = (1,), False

    def __init__(self, mean_over: str, channels: int = CHANNELS[1]):
        super().__init__()
        self.mean_over = mean_over
        self.head = nn.Conv2d(2 * channels, 2, 1)

    def embed(self, maps):
        return maps[0]

    def predict(self, pairs, refinements):
        return self.head(torch.cat([pairs.query, pairs.support], 1))

    def losses(self, pairs, auxiliary=True):
        logits, masks = F.interpolate(self.predict(pairs, 1), pairs.query_mask.shape[-2:]), pairs.query_mask
        if self.mean_over == PIXELS:
            loss = F.cross_entropy(logits, masks.long(), ignore_index=255)
        else:
            found, sought = logits.softmax(1)[:, 1] * (masks != 255), masks == 1
            both = (found * sought).sum((1, 2)) / (found + sought).sum((1, 2)).clamp(min=1)
            loss = 1 - 2 * both.mean()
        return Step(loss, {"query": loss})


@pytest.mark.parametrize("mean_over", [PIXELS, PAIRS])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_plain_mean_is_weighed_by_the_trainer(mean_over, at_once):
    method = Plain(mean_over).double()
    whole, expected = gradients(method, BATCH)
    parts, found = gradients(method, at_once)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(vars(parts), vars(whole))


def test_a_training_of_a_plain_mean_in_parts_ends_where_the_whole_does(tiny, tmp_path, monkeypatch):
    def plain(name, channels, settings):
        return Plain(PIXELS, channels[1])

    monkeypatch.setattr(methods, "build", plain)
    whole, log = trained(tiny, tmp_path / "whole", Limits(), optimizer="sgd", lr=1e-2)
    parts, log_of_parts = trained(tiny, tmp_path / "parts", Limits(1, 2), optimizer="sgd", lr=1e-2)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert float(log_of_parts["loss"]) == pytest.approx(float(log["loss"]), rel=1e-4)


def test_parts_of_a_plain_method_draw_their_own_dropout():
    """With one seed for all, a method that does not draw for the whole batch would drop the same of every part."""
    drawn = []

    def losses(share):
        drawn.append(torch.rand(3))
        return Step(torch.ones((), requires_grad=True))

    masks = torch.zeros(3, 8, 8, dtype=torch.uint8)
    accumulate(losses, shares(masks, masks, 1, PAIRS), seed=7)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_mean_over_something_else_is_one_sentence(monkeypatch):
    monkeypatch.setattr("crnet.methods.crnet.CRNet.mean_over", "images")
    with pytest.raises(CrnetError, match="mean_over is 'images'"):
        build("crnet")
