"""Several supports seen by one prediction: in any order, alike for one, and the same in every way that leads there."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_ring import MAP, pairs, small

from crnet import methods
from crnet.config.defaults import FINETUNE
from crnet.config.settings import components, k_shot, sees_all_supports
from crnet.data import episodes
from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Predictor
from crnet.methods import Method, Pairs, each
from crnet.model.grid import at_own_size
from crnet.runtime.limits import Limits

OWN = sorted(name for name in components("method") if sees_all_supports(name))


def taken(given: Pairs, queries: slice, supports: list[int], shots: int) -> Pairs:
    """Some queries, with supports by their places: those of the first query first."""
    query = each(given.query, lambda m: m[queries])
    support, masked = (each(side, lambda m: m[supports]) for side in (given.support, given.masked))
    return Pairs(query, support, masked, given.support_mask[supports], shots=shots)


@pytest.fixture(params=OWN)
def method(request) -> Method:
    return small(request.param).eval()


@torch.no_grad()
def test_the_order_of_supports_does_not_count(method):
    given = pairs(method)
    one = method.predict(taken(given, slice(2), [0, 1, 2, 3, 4, 5], 3), 2)
    other = method.predict(taken(given, slice(2), [2, 0, 1, 4, 5, 3], 3), 2)
    assert one.shape == (2, 2, MAP, MAP)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    mixed = method.predict(taken(given, slice(2), [0, 1, 3, 2, 4, 5], 3), 2)  # a support given to the other query
    assert not torch.allclose(one, mixed, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_query_sees_its_own_supports(method):
    given = pairs(method)
    together = method.predict(taken(given, slice(2), [0, 1, 2, 3], 2), 2)
    alone = [method.predict(taken(given, slice(i, i + 1), [2 * i, 2 * i + 1], 2), 2) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_support_shown_thrice_is_one_support(method):
    given = pairs(method)
    single = method.predict(taken(given, slice(2), [0, 1], 1), 2)
    thrice = method.predict(taken(given, slice(2), [0, 0, 0, 1, 1, 1], 3), 2)
    torch.testing.assert_close(*(each[:, 1] - each[:, 0] for each in (thrice, single)), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_an_empty_mask_among_the_supports_is_survived(method):
    given = taken(pairs(method), slice(2), [0, 1, 2, 3], 2)
    given.support_mask[0] = 0
    assert torch.isfinite(method.predict(given, 1)).all()


def test_every_method_says_what_it_makes_of_several_supports():
    for name in (*OWN, "a-mcg"):
        assert k_shot(name) != k_shot("crnet")
    assert k_shot("crnet") == "mean of probabilities"
    assert not sees_all_supports("crnet")
    assert not sees_all_supports("prototype")


def test_a_fusion_that_is_neither_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "odd.py").write_text('SETTINGS = {"rev": 1}\nFUSION = "vote"\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CrnetError, match=r"method odd:build: FUSION is 'vote'; it is 'average' or 'own'\."):
        sees_all_supports("odd:build")


@pytest.fixture
def made(tiny, tmp_path):
    """An evaluation with untrained weights: name and settings -> predictor, and its episodes with three supports."""

    def make(name: str, limits: Limits = Limits(), **how) -> tuple[Predictor, list]:  # noqa: B008
        declared = components("method")[name].literals["SETTINGS"]
        given = {key: value for key, value in {"width": 16, "side_width": 16, "hashed": 16}.items() if key in declared}
        training = tiny.training() | {"method": name, "model": components("method")[name].settings(given, "test")}
        torch.manual_seed(0)
        channels = (64, 96)
        save_file(methods.build(name, channels, training["model"]).state_dict(), tmp_path / "model.safetensors")
        spec = tiny.evaluation(training, **how)
        table = episodes.draw(Index.load(tiny.data), 0, 6, [0], 3, "leave out")
        episodes.write(tmp_path / "f0.csv", table)
        predictor = Predictor(spec, tiny.data, tiny.encoder, Path(tmp_path / "model.safetensors"), "cpu", limits=limits)
        return predictor, list(episodes.read(tmp_path / "f0.csv").episodes)

    return make


@pytest.mark.parametrize("name", ["oslsm", "sg-one", "hsnet"])  # one asks for masked photos, two embed several maps
def test_a_predictor_shows_all_supports_at_once(made, name):
    predictor, chosen = made(name, shots=3)
    assert predictor.sees_all_supports
    found = [probability for _, probability in predictor.probabilities(chosen)]
    index, size = predictor.index, predictor.settings["size"]
    for episode, probability in zip(chosen[:3], found, strict=False):
        predictor.maps.fill(predictor.keys(episode, 1.0))
        query, *supports = [(photo, None, 1.0) for photo in (episode.query, *episode.supports[:3])]
        masked = [(photo, episode.class_id, 1.0) for photo in episode.supports[:3]]
        with torch.no_grad():
            embed = lambda keys: predictor.embed(predictor.maps.take(keys))  # noqa: E731
            masks = [torch.from_numpy(predictor.support_mask(photo, label, size)) for photo, label, _ in masked]
            seen = embed(masked if predictor.method.needs_masked else supports)
            logits = predictor.method.predict(
                Pairs(embed([query]), embed(supports), seen, torch.stack(masks), shots=3), 5
            )
        large = at_own_size(logits.float(), (size, size), index.size(episode.query))
        torch.testing.assert_close(probability, large[0].softmax(0), rtol=1e-3, atol=1e-4)
    little, _ = made(name, Limits(2, 2), shots=3)
    for (_, a), b in zip(little.probabilities(chosen), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_finetuned_networks_are_read_with_the_first_support_and_with_all(made):
    predictor, chosen = made("panet", shots=3)
    finetuner = Finetuner(predictor, predictor_training(predictor), FINETUNE)
    single, _ = made("panet", shots=1)
    for episode in chosen[:2]:
        first, every = finetuner.probabilities(episode)
        [(_, expected)] = single.probabilities([episode])
        torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-4)
        [(_, expected)] = predictor.probabilities([episode])
        torch.testing.assert_close(every, expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(first, every, rtol=1e-3, atol=1e-4)
    [adapted] = finetuner.predictions(chosen[:1], 1e-3, 2)
    assert adapted.support_loss[0] != adapted.support_loss[1]


def predictor_training(predictor: Predictor) -> dict:
    return {"dataset": {"name": predictor.index.name}, "fold": 0, "seed": 0, "model": {}}
