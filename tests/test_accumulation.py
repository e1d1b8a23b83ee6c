"""A batch in parts: the gradients of the whole, void pixels and dropout included; losses are taken in float32."""

import faults
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crnet import methods
from crnet.config.settings import components
from crnet.encoders.frozen import FrozenEncoder
from crnet.methods import Method, Pairs, Share
from crnet.model.layers import ChannelDropout, Rows
from crnet.runtime.files import read_csv
from crnet.runtime.limits import Limits
from crnet.training.accumulation import accumulate, shares

CHANNELS, MAP, SIZE, BATCH = (4, 6), 7, 50, 5
TRAINED = [name for name, each in components("method").items() if each.literals.get("TRAINS", True)]


def build(name: str, **settings) -> Method:
    component = components("method")[name]
    small = {"width": 8, "gate_width": 4, "initialisation": "kaiming", "dropout": 0.5, **settings}
    given = {key: value for key, value in small.items() if key in component.literals["SETTINGS"]}
    torch.manual_seed(0)
    return methods.build(name, CHANNELS, component.settings(given, "test")).double().train()


def batch() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps of queries, supports and supports without background; masks of uneven void, one of them all void."""
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(3, BATCH, c, MAP, MAP, generator=generator, dtype=torch.float64) for c in CHANNELS]
    masks = torch.randint(0, 2, (2, BATCH, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    masks[0, 1, :30] = masks[1, 3, :, :45] = masks[0, 4] = 255
    caches = torch.rand(2, BATCH, 2, MAP, MAP, generator=generator, dtype=torch.float64)
    return maps, *masks, caches


def gradients(method: Method, at_once: int, auxiliary: bool = True):
    maps, query_mask, support_mask, caches = batch()

    def losses(share: Share | None):
        rows = slice(None) if share is None else share.rows
        query, support, masked = (method.embed([maps[i][group, rows] for i in method.maps]) for group in range(3))
        cache = [each[rows] if method.stores_cache else None for each in caches]
        pairs = Pairs(query, support, masked, support_mask[rows], query_mask[rows], *cache, share)
        return method.losses(pairs, auxiliary)

    method.zero_grad(set_to_none=True)
    step = accumulate(losses, shares(query_mask, support_mask, at_once), seed=7)
    return step, {name: weight.grad for name, weight in method.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    ("name", "switches", "at_once", "auxiliary"),
    [
        *((name, {}, at_once, auxiliary) for name in TRAINED for at_once in (1, 2, 3) for auxiliary in (True, False)),
        ("crnet", {"cache": "unrolled"}, 2, True),
        ("crnet", {"cross_reference": False}, 2, True),
        ("crnet", {"condition": False}, 2, True),
        ("crnet", {"normalisation": "group"}, 2, True),
        ("crnet", {"dropout": 0.0}, 2, True),
    ],
    ids=str,
)
def test_every_method_adds_up(name, switches, at_once, auxiliary):
    method = build(name, **switches)
    whole, expected = gradients(method, BATCH, auxiliary)
    parts, found = gradients(method, at_once, auxiliary)
    assert expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(vars(parts), vars(whole))


def test_a_mean_of_the_parts_would_be_another_gradient():
    """The void pixels of this batch matter: parts that know nothing of each other do not add up."""
    method = build("crnet", dropout=0.0)
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
    assert shares(masks, masks, 4) == shares(masks, masks, 9) == [None]
    assert [each.rows for each in shares(masks, masks, 3)] == [slice(0, 3), slice(3, 4)]


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
