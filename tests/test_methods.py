"""One conformance suite for every registered method: a new one is tested without writing a test."""

import pytest
import torch
from parts import BATCH, CHANNELS, MAP, SIZE, gradients

from crnet import methods
from crnet.config.settings import components
from crnet.methods import PAIRS, PIXELS, SHARE, Method, Pairs, each, listed


@pytest.fixture(params=sorted(components("method")))
def method(request) -> Method:
    component = components("method")[request.param]
    small = {
        k: v
        for k, v in {"width": 8, "gate_width": 4, "initialisation": "kaiming"}.items()
        if k in component.literals["SETTINGS"]
    }
    torch.manual_seed(0)
    built = methods.build(component.name, CHANNELS, component.settings(small, "test"))
    built.trained = component.literals.get("TRAINS", True)
    return built


def given(method, count=2):
    generator = torch.Generator().manual_seed(1)
    photos = [torch.randn(3 * count, CHANNELS[i], MAP, MAP, generator=generator) for i in method.maps]
    # What is to be found can be seen in one channel of each map, so that a method that learns gets somewhere in a few
    # steps whatever it takes which map for.
    for maps in photos:
        maps[:, 0] = photos[-1][:, 0]
    embedded = method.embed(photos)
    visible = (photos[-1][:, :1] > 0).float()
    masks = torch.nn.functional.interpolate(visible, (SIZE, SIZE))[:, 0].byte()
    query, support, masked = (each(embedded, lambda m, i=i: m[i * count : (i + 1) * count]) for i in range(3))
    classes = torch.zeros(count, dtype=torch.int64)
    return Pairs(query, support, masked, masks[count : 2 * count], masks[:count], class_index=classes)


def test_embeds_each_photo_by_itself(method):
    method.eval()
    photos = [torch.randn(3, CHANNELS[i], MAP, MAP) for i in method.maps]
    alone, together = (listed(method.embed(each)) for each in ([p[1:2] for p in photos], photos))
    assert alone[0].shape[-2:] == (MAP, MAP)
    torch.testing.assert_close([maps[1:2] for maps in together], alone, rtol=1e-4, atol=1e-5)


def test_predicts_two_channels_deterministically(method):
    method.eval()
    pairs = given(method)
    logits = method.predict(pairs, 2)
    assert logits.shape == (2, 2, MAP, MAP)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, method.predict(pairs, 2))
    support = method.predict_support(pairs, 2)
    assert support is None or support.shape == logits.shape


def test_learns_if_it_trains(method):
    parameters = list(method.parameters())
    assert bool(parameters) is method.trained
    if not method.trained:
        return
    method.train()
    optimiser = torch.optim.Adam(parameters, 1e-2)
    losses = []
    for _ in range(20):
        step = method.losses(given(method))
        optimiser.zero_grad()
        step.loss.backward()
        optimiser.step()
        losses.append(step.loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(part.ndim == 0 for part in step.parts.values())


def adds_up(method: Method) -> None:
    """Torch's own dropout draws for a part alone; it is switched off where the trainer weighs the parts."""
    method.double().train()
    for module in method.modules():
        if method.mean_over != SHARE and isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    whole, expected = gradients(method, BATCH)
    for at_once in (1, 2, 3):
        parts, found = gradients(method, at_once)
        advice = "a batch in parts gives other {}: let mean_over say what the losses are means over; no batch norm"
        torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-5, atol=1e-8, msg=advice.format("losses"))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8, msg=advice.format("gradients"))


def test_a_batch_in_parts_is_the_batch(method):
    if method.trained:
        adds_up(method)


@pytest.mark.parametrize("wrong", [PAIRS, PIXELS])
def test_a_method_whose_parts_do_not_add_up_is_found(wrong):
    method = methods.build(
        "crnet",
        CHANNELS,
        components("method")["crnet"].settings({"width": 8, "dropout": 0.0, "path_dropout": 0.0}, "t"),
    )
    method.mean_over = wrong  # queries, supports and void pixels each have another share
    adds_up_not = pytest.raises(AssertionError, match="let mean_over say")
    with adds_up_not:
        adds_up(method)


def test_survives_an_empty_support_mask(method):
    method.eval()
    pairs = given(method)
    pairs.support_mask[:] = 0
    assert torch.isfinite(method.predict(pairs, 1)).all()


def test_controls_know_what_they_are():
    pairs_map = torch.zeros(1, 3, 4, 4)
    pairs_map[0, 0, :, :2], pairs_map[0, 1, :, 2:] = 1, 1  # two regions with orthogonal features
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, :, :16] = 1
    prototype = methods.build("prototype", (3,), components("method")["prototype"].settings({}, "test"))
    logits = prototype.predict(Pairs(pairs_map, pairs_map, pairs_map, mask), 1)
    assert torch.equal(logits[0, 1] > logits[0, 0], mask[0, ::8, ::8].bool())
    everything = methods.build("all-foreground", (3,), {})
    logits = everything.predict(Pairs(everything.embed([pairs_map]), None, None, mask), 1)
    assert (logits[0, 1] > logits[0, 0]).all()
