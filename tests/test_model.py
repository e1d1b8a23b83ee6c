"""Every module of the paper: its shapes, what it must do, and the effect of its switch."""

import pytest
import torch
from torch.nn import functional as F

from crnet import methods
from crnet.config.settings import component
from crnet.errors import CrnetError
from crnet.methods import Pairs
from crnet.model.condition import Condition, foreground_average_pooling, foreground_share
from crnet.model.cross_reference import CooccurrenceHead, CrossReference
from crnet.model.layers import ASPP, ChannelDropout, initialise
from crnet.model.refinement import MaskRefinement

CHANNELS, SIZE, MAP = (6, 10), 64, 8


def crnet(**switches):
    torch.manual_seed(0)
    given = {"width": 8, "gate_width": 4, "initialisation": "kaiming", "dropout": 0.0, "path_dropout": 0.0, **switches}
    return methods.build("crnet", CHANNELS, component("method", "crnet", "test").settings(given, "test")).eval()


def pairs(method, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    photos = [torch.randn(3 * count, c, MAP, MAP, generator=generator) for c in CHANNELS]
    embedded = method.embed([photos[i] for i in method.maps])
    masks = (torch.rand(2, count, SIZE, SIZE, generator=generator) > 0.7).byte()
    masks[:, :, :4] = 255
    return Pairs(embedded[:count], embedded[count : 2 * count], embedded[2 * count :], masks[0], masks[1])


def test_cross_reference_keeps_shapes_and_only_fades_channels():
    module = CrossReference(8, hidden=4, tied=False)
    support, query = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7)
    reinforced_support, reinforced_query = module(support, query)
    assert reinforced_support.shape == support.shape
    ratio = reinforced_query / query
    assert ((ratio > 0) & (ratio < 1)).all()
    torch.testing.assert_close(ratio, reinforced_support / support, msg="both maps are weighted by one fused vector")
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio), msg="one weight a channel")


def test_cross_reference_tied_halves_the_gates():
    count = {tied: sum(p.numel() for p in CrossReference(8, 4, tied).parameters()) for tied in (False, True)}
    assert count[False] == 2 * count[True]


def test_a_residual_gate_adds_the_map_itself():
    plain, residual = CrossReference(8, 4, tied=False), CrossReference(8, 4, tied=False, residual=True)
    residual.load_state_dict(plain.state_dict())
    support, query = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7)
    for given, gated, both in zip((support, query), plain(support, query), residual(support, query), strict=True):
        torch.testing.assert_close(both, given + gated)


@pytest.mark.parametrize("gate", ["plain", "residual", "masked"])
def test_only_a_masked_gate_reads_the_support_without_its_background(gate):
    method = crnet(gate=gate, gate_width=32, condition=False)
    assert method.needs_masked == (gate == "masked")
    given = pairs(method)
    before = method.predict(given, 1)
    given.masked = given.masked.flip(0)
    assert torch.equal(method.predict(given, 1), before) == (gate != "masked")


def test_a_masked_gate_leaves_the_category_to_its_own_switch():
    """``mask_input: false`` takes the category from the whole photo, also where the gate reads the masked one."""
    method = crnet(gate="masked", mask_input=False)
    given = pairs(method)
    expected = foreground_average_pooling(given.support, given.support_mask)
    torch.testing.assert_close(method._category(given), expected)


@pytest.mark.parametrize("how", ["normal", "kaiming"])
def test_fully_connected_layers_keep_their_own_start(how):
    """A gate whose FC layers are drawn as narrowly as convolutions has one importance for all channels."""
    torch.manual_seed(0)
    module = CrossReference(256, 128, tied=False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    initialise(module, how)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    convolution = torch.nn.Conv2d(64, 64, 3)
    initialise(convolution, how)
    expected = {"normal": 0.01, "kaiming": (2 / (64 * 9)) ** 0.5}[how]
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not convolution.bias.any()


@pytest.mark.parametrize("place", ["embedded", "condition", "combine"])
def test_path_dropout_acts_at_each_place_in_training_alone(place, monkeypatch):
    method = crnet(path_dropout=0.5, cross_reference=False)
    given = pairs(method)
    torch.testing.assert_close(method.losses(given).loss, method.losses(given).loss, msg="eval mode has no chance")
    method.train()
    seen = []
    forward = ChannelDropout.forward

    def only(module, x, rows=None):
        """Dropout where ``place`` says, none at the other two."""
        seen.append(x)
        where = "combine" if module is method.refine.combine.dropout else "embedded" if len(seen) <= 3 else "condition"
        return forward(module, x, rows) if where == place else x

    monkeypatch.setattr(ChannelDropout, "forward", only)
    torch.manual_seed(1)
    dropped = method.losses(given).loss
    assert len(seen) == 5
    method.eval()
    assert not torch.equal(dropped, method.losses(given).loss)


def test_common_channels_are_symmetric_when_tied():
    module = CrossReference(8, 4, tied=True)
    a, b = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(module(a, b), module(b, a)[::-1])


def test_foreground_share_finds_a_single_pixel():
    mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
    mask[0, 37, 5] = 1
    share = foreground_share(mask, (8, 8))
    assert share[0, 0, 4, 0] == pytest.approx(1 / 64)
    assert share.sum() == pytest.approx(1 / 64)


def test_foreground_average_pooling_by_hand():
    features = torch.arange(8.0).view(1, 2, 2, 2)
    mask = torch.tensor([[[1, 0], [255, 1]]], dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    torch.testing.assert_close(
        foreground_average_pooling(features, mask), torch.tensor([[1.5, 5.5]]), rtol=1e-3, atol=0
    )


def test_empty_mask_gives_a_zero_category():
    features, mask = torch.randn(1, 4, 8, 8), torch.zeros(1, 64, 64, dtype=torch.uint8)
    assert foreground_average_pooling(features, mask).abs().max() == 0


def test_condition_depends_on_the_category():
    module, features = Condition(8), torch.randn(2, 8, 5, 5)
    first, second = (module(features, torch.full((2, 8), v)) for v in (0.0, 1.0))
    assert first.shape == features.shape
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("cached", [True, False])
def test_refinement_shapes_and_whether_the_cache_is_read(cached):
    module = MaskRefinement(16, 8, cached)
    read = module.read(torch.randn(2, 16, 9, 9))
    zeros, ones = torch.zeros(2, 2, 9, 9), torch.ones(2, 2, 9, 9)
    assert module(read, zeros).shape == (2, 2, 9, 9)
    assert torch.equal(module(read, zeros), module(read, ones)) is not cached


def test_aspp_and_cooccurrence_shapes():
    assert ASPP(8, 0.5)(torch.randn(2, 8, 5, 6)).shape == (2, 8, 5, 6)
    assert CooccurrenceHead(8, 0.5)(torch.randn(2, 8, 5, 6)).shape == (2, 2, 5, 6)


def test_without_condition_the_support_mask_is_not_read():
    for switch in (False, True):
        method = crnet(condition=switch)
        given = pairs(method)
        logits = method.predict(given, 1)
        given.support_mask = 1 - given.support_mask.clamp(max=1)
        assert torch.equal(logits, method.predict(given, 1)) is not switch


def test_without_cross_reference_the_query_cannot_reach_the_support():
    for switch in (False, True):
        method = crnet(cross_reference=switch)
        given = pairs(method)
        before = method.predict_support(given, 1)
        given.query = given.query + 1
        assert torch.equal(before, method.predict_support(given, 1)) is not switch


def test_without_refinement_one_pass_is_all():
    for switch in (False, True):
        method = crnet(refinement=switch)
        given = pairs(method)
        assert torch.equal(method.predict(given, 1), method.predict(given, 5)) is not switch


def test_without_multi_level_only_the_last_map_is_used():
    assert crnet().maps == (0, 1)
    assert crnet(multi_level=False).maps == (1,)


def test_the_losses_that_each_switch_brings():
    assert set(crnet().losses(pairs(crnet())).parts) == {"query", "support", "cooccurrence"}
    without = crnet(cross_reference=False)
    assert set(without.losses(pairs(without)).parts) == {"query", "support"}
    method = crnet(support_weight=0.0, cooccurrence_weight=0.0)
    step = method.losses(pairs(method))
    torch.testing.assert_close(step.loss, step.parts["query"])


def test_the_loss_is_that_of_both_branches_and_of_what_is_common_by_their_weights():
    method = crnet(support_weight=0.5, cooccurrence_weight=0.25)
    given = pairs(method)
    step = method.losses(given)
    expected = step.parts["query"] + 0.5 * step.parts["support"] + 0.25 * step.parts["cooccurrence"]
    torch.testing.assert_close(step.loss, expected)
    for branch, logits, mask in (
        ("query", method.predict(given, 1), given.query_mask),
        ("support", method.predict_support(given, 1), given.support_mask),
    ):
        enlarged = F.interpolate(logits, (SIZE, SIZE), mode="bilinear")
        by_hand = F.cross_entropy(enlarged, mask.long(), ignore_index=255)
        torch.testing.assert_close(step.parts[branch], by_hand, msg=branch)


def test_the_category_comes_from_the_support_without_its_background():
    """Without the cross-reference nothing else of the support may reach the query."""
    method = crnet(cross_reference=False)
    given = pairs(method)
    before = method.predict(given, 1)
    given.support = given.support + 1
    assert torch.equal(before, method.predict(given, 1))
    given.masked = given.masked + 1
    assert not torch.equal(before, method.predict(given, 1))


def test_a_pass_gets_the_probabilities_of_the_one_before(monkeypatch):
    method, caches = crnet(), []
    whole = method.refine.forward
    monkeypatch.setattr(method.refine, "forward", lambda read, cache, rows: caches.append(cache) or whole(read, cache))
    first = method.predict(pairs(method), 1)
    method.predict(pairs(method), 3)
    zeros, _, probabilities, last = caches
    assert not zeros.any()
    torch.testing.assert_close(probabilities, first.softmax(1))
    torch.testing.assert_close(last.sum(1), torch.ones(3, MAP, MAP))


def test_void_pixels_do_not_reach_the_loss():
    method = crnet()
    given = pairs(method)
    void = given.query_mask == 255
    given.query_mask[void] = 0
    with_void_as_background = method.losses(given).parts["query"]
    given.query_mask[void] = 255
    ignored = method.losses(given).parts["query"]
    assert not torch.equal(ignored, with_void_as_background)
    given.query_mask[:] = 255
    assert method.losses(given).parts["query"] == 0


def test_every_weight_gets_a_gradient():
    method = crnet(cache="unrolled").train()
    method.losses(pairs(method)).loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


def test_cache_in_training():
    stored, unrolled, none = crnet(), crnet(cache="unrolled"), crnet(refinement=False)
    assert (stored.stores_cache, unrolled.stores_cache, none.stores_cache) == (True, False, False)
    probability = stored.losses(pairs(stored)).query_probability
    assert not probability.requires_grad
    torch.testing.assert_close(probability.sum(1), torch.ones(3, MAP, MAP))


def test_both_modules_off_is_refused():
    with pytest.raises(CrnetError, match=r"model\.cross_reference or model\.condition"):
        crnet(cross_reference=False, condition=False)


def test_a_prediction_does_not_depend_on_its_batch():
    method = crnet()
    together = pairs(method, count=4)
    alone = Pairs(*(t[2:3] for t in (together.query, together.support, together.masked, together.support_mask)))
    torch.testing.assert_close(method.predict(together, 3)[2:3], method.predict(alone, 3), rtol=1e-4, atol=1e-5)
