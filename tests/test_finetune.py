"""Finetuning on supports: what it does, that it leaves no trace, and how its settings are chosen."""

import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import drawn, untrained
from safetensors.torch import load_file

from crnet.config.defaults import FINETUNE, FINETUNE_LIMITS
from crnet.config.settings import check
from crnet.data import episodes
from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.evaluation import evaluate as evaluation
from crnet.evaluation import finetune, trials
from crnet.evaluation.evaluate import evaluate
from crnet.evaluation.finetune import Diverged, Finetuner, ordered_pairs
from crnet.evaluation.predict import Predictor
from crnet.evaluation.trials import Trial, best_trial, choose
from crnet.metrics.iou import fg_counts, miou
from crnet.runtime.files import read_csv, read_json
from crnet.runtime.limits import NONE, Limits

SHOTS = 3
SETTINGS = {"optimizer": "adamw", "lr": [1e-3, 4e-3], "steps": [2, 5], "batch": 4}
TRIALS = {"trial_episodes": 4, "trial_shots": 2}


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory) -> Path:
    return untrained(tiny, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory) -> Path:
    return drawn(tiny, tmp_path_factory.mktemp("episodes"), count=8, shots=SHOTS)


def specification(tiny, **changes) -> dict:
    spec = tiny.evaluation(tiny.training(), shots=SHOTS, strategy="finetune", **changes)
    return spec | {"finetune": check(SETTINGS | TRIALS, FINETUNE, FINETUNE_LIMITS, "test")}


@pytest.fixture(scope="module")
def choice(tiny, weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("choice")
    choose(specification(tiny), tiny.data, tiny.encoder, weights, None, out, "cpu", 1)
    return out / "choice.json"


@pytest.fixture
def tuner_of(tiny, weights):
    """Makes a new one, which has encoded nothing yet."""
    spec = specification(tiny)

    def made(limits: Limits = NONE) -> Finetuner:
        predictor = Predictor(spec, tiny.data, tiny.encoder, weights, "cpu", limits=limits)
        return Finetuner(predictor, spec["train"], spec["finetune"])

    return made


@pytest.fixture
def tuner(tuner_of) -> Finetuner:
    return tuner_of()


def run(tiny, table, weights, choice, out, state=None) -> bytes:
    evaluate(specification(tiny), tiny.data, table, tiny.encoder, weights, choice, state, out, "cpu", 1)
    return (out / "counts.csv").read_bytes() + (out / "counts-fusion.csv").read_bytes()


def test_pairs_are_ordered_and_never_of_one_support_by_default():
    assert len(ordered_pairs(5, "distinct")) == 20
    assert len(ordered_pairs(5, "all")) == 25
    assert set(ordered_pairs(5, "all")) - set(ordered_pairs(5, "distinct")) == {(i, i) for i in range(5)}
    with pytest.raises(CrnetError, match="at least 2 supports, not 1"):
        ordered_pairs(1, "distinct")


def test_all_pairs_come_equally_often():
    pairs = ordered_pairs(3, "distinct")
    drawn = [pair for batch in islice(finetune.batches_of_pairs(pairs, 4, seed=1), 9) for pair in batch]
    assert set(Counter(drawn).values()) == {6}, "36 draws of 6 pairs"


def test_finetuning_lowers_the_loss_on_the_supports_and_moves_everything_but_the_encoder(tuner, table):
    episode = episodes.read(table).episodes[0]
    supports = tuner.supports(episode)
    before = tuner.loss(supports)
    moved = {}
    for _ in tuner.adapt(episode, supports, 4e-3, [20]):
        after = tuner.loss(supports)
        moved = {n: not torch.equal(v, tuner.trained[n]) for n, v in tuner.method.state_dict().items()}
    assert after < before
    still = {name for name, changed in moved.items() if not changed}
    # Heads of auxiliary losses serve training only and get no gradient here.
    assert all(name.startswith("cooccurrence.") for name in still), still
    tuner.predictor.encoder.verify()


def test_weights_are_restored_bit_by_bit(tuner, table, weights):
    list(tuner.predictions(episodes.read(table).episodes[:2], lr=4e-3, steps=3))
    trained = load_file(weights)
    for name, value in tuner.method.state_dict().items():
        assert torch.equal(value, trained[name]), name
    assert not any(p.requires_grad for p in tuner.method.parameters()) and not tuner.method.training


def test_order_of_episodes_does_not_matter(tuner_of, table):
    chosen = episodes.read(table).episodes[:4]

    def predict(order):
        return {p.episode.number: p for p in tuner_of().predictions(order, lr=4e-3, steps=3)}

    forward, backward = predict(chosen), predict(chosen[::-1])
    for number, prediction in forward.items():
        other = backward[number]
        assert np.array_equal(prediction.query, other.query) and np.array_equal(prediction.fused, other.fused)
        assert prediction.support_loss == other.support_loss


def test_in_parts_it_ends_where_the_whole_does(tuner_of, table):
    chosen = episodes.read(table).episodes[:3]
    made = [tuner_of(limits).predictions(chosen, lr=4e-3, steps=3) for limits in (NONE, Limits(1, 2, 0.0))]
    for whole, parts in zip(*made, strict=True):
        assert parts.support_loss == pytest.approx(whole.support_loss, rel=1e-4)
        assert np.mean(parts.query != whole.query) < 0.002 and np.mean(parts.fused != whole.fused) < 0.002


def test_an_interrupted_evaluation_goes_on_with_the_same_bits(tiny, table, weights, choice, tmp_path, monkeypatch):
    whole = run(tiny, table, weights, choice, tmp_path / "whole")
    finished = evaluation._row

    def stop_at_the_fifth(prediction, index):
        if prediction.episode.number == 4:
            raise KeyboardInterrupt
        return finished(prediction, index)

    state = tmp_path / "state.json"
    monkeypatch.setattr(evaluation, "_row", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, table, weights, choice, tmp_path / "parts", state)
    assert len(read_json(state)["rows"]) == 4
    monkeypatch.setattr(evaluation, "_row", finished)
    assert run(tiny, table, weights, choice, tmp_path / "parts", state) == whole
    assert not state.exists()


def test_support_losses_are_logged(tiny, table, weights, choice, tmp_path):
    run(tiny, table, weights, choice, tmp_path)
    rows = read_csv(tmp_path / "counts.csv")
    assert len(rows) == 8
    for row in rows:
        assert float(row["support_loss_before"]) > 0 and float(row["support_loss_after"]) > 0
    about = read_json(tmp_path / "evaluation.json")
    assert about["choice"] == {key: read_json(choice)[key] for key in ("lr", "steps")}


def test_trials_take_classes_that_are_not_tested_and_photos_that_did_not_train(tiny, choice):
    index, about = Index.load(tiny.data), read_json(choice)
    tested = {index.class_name(c) for c in index.novel_classes(0)}
    assert about["classes"] and not tested & set(about["classes"])
    table = episodes.draw_trials(index, 0, 50, 2)
    photos = {photo for e in table.episodes for photo in (e.query, *e.supports)}
    assert {index.photos[photo].split for photo in photos} == {"val"}
    assert not {e.class_id for e in table.episodes} & set(index.novel_classes(0))


def test_every_trial_is_stored_and_the_best_is_chosen(choice):
    rows, about = read_csv(choice.with_name("trials.csv")), read_json(choice)
    assert [(float(r["lr"]), int(r["steps"])) for r in rows] == [(0, 0), (1e-3, 2), (1e-3, 5), (4e-3, 2), (4e-3, 5)]
    best = max(rows[1:], key=lambda row: float(row["miou"]))
    chosen = [row for row in rows if row["chosen"] == "1"]
    assert len(chosen) == 1 and float(chosen[0]["miou"]) == float(best["miou"]) == about["miou"]


def test_the_best_trial_is_finite_and_the_cheapest_among_equals():
    def trial(lr, steps, miou):
        return Trial(lr, steps, miou, 1.0, 1.0)

    assert best_trial([trial(1, 5, 0.5), trial(1, 2, 0.5), trial(9, 9, math.nan)]).steps == 2
    with pytest.raises(Diverged, match="every trial diverged; lower finetune"):
        best_trial([trial(1, 5, math.nan)])


def test_a_rate_that_diverges_is_counted_and_not_chosen(tiny, weights, tmp_path):
    spec = specification(tiny)
    spec["finetune"] |= {"optimizer": "sgd", "momentum": 0.99, "lr": [1e-3, 10.0], "steps": [30]}
    choose(spec, tiny.data, tiny.encoder, weights, None, tmp_path, "cpu", 1)
    rows = read_csv(tmp_path / "trials.csv")
    assert any(int(row["diverged"]) for row in rows if float(row["lr"]) == 10.0)
    assert read_json(tmp_path / "choice.json")["lr"] == 1e-3


def test_a_choice_of_another_specification_is_refused(tiny, table, weights, choice, tmp_path):
    spec = specification(tiny)
    spec["finetune"]["batch"] = 2
    with pytest.raises(CrnetError, match="was chosen for another specification"):
        evaluate(spec, tiny.data, table, tiny.encoder, weights, choice, None, tmp_path, "cpu", 1)


def test_too_few_photos_for_the_trials_is_one_sentence(tiny):
    with pytest.raises(CrnetError, match="too few test photos for 40-shot trial episodes"):
        episodes.draw_trials(Index.load(tiny.data), 0, 5, 40)


def test_choosing_reports_the_untouched_network_first(tiny, weights, tuner, table):
    """Row 0 of the trials is what finetuning has to beat: no step at all."""
    chosen = tuple(episodes.read(table).episodes)
    rows = [trials._attempt(tuner.predictor, tuner, episode, 0.0, [0]) for episode in chosen]
    untouched = trials._trials(rows, chosen, {0.0: [0]})[0]
    spec = tiny.evaluation(tiny.training(), shots=1, strategy="finetune")
    one_shot, sums = Predictor(spec, tiny.data, tiny.encoder, weights, "cpu"), {}
    for prediction in one_shot.fused(list(chosen)):
        class_id = prediction.episode.class_id
        counts = fg_counts(prediction.query, one_shot.index.class_mask(prediction.episode.query, class_id))
        sums[class_id] = np.add(sums.get(class_id, (0, 0)), counts)
    assert untouched.miou == pytest.approx(miou(*np.transpose(list(sums.values()))), abs=1e-3)
