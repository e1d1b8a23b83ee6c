"""Finetuning on supports: what it does, that it leaves no trace, and how its settings are chosen."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import drawn, untrained
from safetensors.torch import load_file

from crnet.config import tuning
from crnet.config.defaults import FINETUNE, FINETUNE_LIMITS
from crnet.config.settings import check
from crnet.data import episodes
from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.evaluation import evaluate as evaluation
from crnet.evaluation import finetune, trials
from crnet.evaluation.choice import choose
from crnet.evaluation.evaluate import evaluate
from crnet.evaluation.finetune import Finetuner, ordered_pairs
from crnet.evaluation.predict import Predictor
from crnet.runtime.files import read_csv, read_json, sha256_file, write_json
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
    settings = check(SETTINGS | TRIALS, FINETUNE, FINETUNE_LIMITS, "test")
    return spec | {"finetune": tuning.with_folds(settings, 0, [0, 1, 2])}


def try_out(tiny, weights, spec: dict, folder: Path, state: Path | None = None) -> Path:
    """Run trials; returns their folder."""
    out = folder / tuning.trials_name(spec)
    trials.run(spec, tiny.data, tiny.encoder, weights, state, out, "cpu", 1)
    return out


@pytest.fixture(scope="module")
def choice(tiny, weights, tmp_path_factory) -> Path:
    folder, spec = tmp_path_factory.mktemp("choice"), tuning.choice_spec(specification(tiny))
    choose(spec, [try_out(tiny, weights, each, folder) for each in tuning.trials_specs(spec)], folder)
    return folder / "choice.json"


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


def test_each_branch_has_its_own_cache_and_each_step_its_own_chance(tuner, table, monkeypatch):
    episode, seeds, touched = episodes.read(table).episodes[0], [], []
    accumulate = finetune.accumulate

    class Cache(finetune.ProbabilityCache):
        def read(self, branch, keys, *others):
            touched.append(("read", branch, tuple(keys)))
            return super().read(branch, keys, *others)

        def write(self, branch, keys, *others):
            touched.append(("write", branch, tuple(keys)))
            return super().write(branch, keys, *others)

    monkeypatch.setattr(finetune, "ProbabilityCache", Cache)
    monkeypatch.setattr(finetune, "accumulate", lambda *given: seeds.append(given[-1]) or accumulate(*given))
    list(tuner.adapt(episode, tuner.supports(episode), 1e-3, [3]))
    assert len(set(seeds)) == 3
    for step in range(3):
        (_, *query), (_, *support), *written = touched[4 * step : 4 * step + 4]
        assert (query[0], support[0]) == ("query", "support") and query[1] != support[1]
        assert written == [("write", *query), ("write", *support)]


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
    assert about["choice"] == {key: read_json(choice)[key] for key in tuning.CHOSEN}
    assert (about["run"], about["choice_sha256"]) == (tmp_path.name, sha256_file(choice))
    assert about["subset"] == ""  # all of the data set


def test_trials_for_the_fold_itself_take_classes_that_it_does_not_test_and_photos_that_did_not_train(tiny):
    index = Index.load(tiny.data)
    table = episodes.draw_trials(index, 0, 50, 2)
    photos = {photo for e in table.episodes for photo in (e.query, *e.supports)}
    assert {index.photos[photo].split for photo in photos} == {"val"}
    assert not {e.class_id for e in table.episodes} & set(index.novel_classes(0))


def test_trials_for_other_folds_take_the_folds_test_classes_and_are_no_test_episodes(tiny):
    index = Index.load(tiny.data)
    table = episodes.draw_trials(index, 1, 50, 2, episodes.NOVEL)
    assert {e.class_id for e in table.episodes} <= set(index.novel_classes(1))
    tested = episodes.draw(index, 1, 50, [0], 2, "leave out")
    assert [e.query for e in table.episodes] != [e.query for e in tested.episodes], "the seed has another name"
    with pytest.raises(CrnetError, match="unknown classes of trials 'all'"):
        episodes.draw_trials(index, 1, 50, 2, "all")


def test_every_trial_of_the_other_folds_is_stored_and_the_best_is_chosen(tiny, choice):
    about, index = read_json(choice), Index.load(tiny.data)
    tried = [(0, 0), (1e-3, 2), (1e-3, 5), (4e-3, 2), (4e-3, 5)]
    assert [(trial["lr"], trial["steps"]) for trial in about["trials"]] == tried
    best = max(about["trials"], key=lambda trial: trial["miou"])
    assert about["miou"] == best["miou"] and about["miou_untouched"] == about["trials"][0]["miou"]
    assert about["folds"] == [1, 2]
    for name in about["trials_sha256"]:
        folder = choice.with_name(name)
        rows, report = read_csv(folder / "trials.csv"), read_json(folder / "trials.json")
        assert len(rows) == 5 * TRIALS["trial_episodes"]
        assert {int(row["class"]) for row in rows} <= set(index.novel_classes(report["spec"]["train"]["fold"]))
        assert {index.class_name(int(row["class"])) for row in rows} == set(report["classes"]) <= set(about["classes"])
        assert (report["run"], report["tried_on"]) == (name, episodes.NOVEL)


def test_trials_count_the_pixels_of_their_own_class(tiny, weights, tmp_path):
    """Those of no step, against the untouched network and a count of one pixel after the other's."""
    spec = tuning.trials_specs(tuning.choice_spec(specification(tiny)))[0]
    folder, index = try_out(tiny, weights, spec, tmp_path), Index.load(tiny.data)
    assert read_json(folder / "trials.json")["weights_sha256"] == sha256_file(weights)
    rows = [row for row in read_csv(folder / "trials.csv") if row["steps"] == "0"]
    table = episodes.draw_trials(index, spec["train"]["fold"], len(rows), TRIALS["trial_shots"], episodes.NOVEL)
    predictor = Predictor(spec, tiny.data, tiny.encoder, weights, "cpu")
    tuner = Finetuner(predictor, spec["train"], spec["finetune"])
    for row, episode in zip(rows, table.episodes, strict=True):
        found, truth = tuner.predict(episode, fuse=False)[0], index.class_mask(episode.query, episode.class_id)
        both = sum(bool(f) and t == 1 for f, t in zip(found.flat, truth.flat, strict=True))
        either = sum((bool(f) or t == 1) and t != 255 for f, t in zip(found.flat, truth.flat, strict=True))
        assert (int(row["class"]), int(row["intersection"]), int(row["union"])) == (episode.class_id, both, either)
        assert float(row["loss"]) == pytest.approx(tuner.loss(tuner.supports(episode)), abs=1e-6)


def test_interrupted_trials_go_on_with_the_same_bytes(tiny, weights, tmp_path, monkeypatch):
    spec = tuning.trials_specs(tuning.choice_spec(specification(tiny)))[0]
    whole = try_out(tiny, weights, spec, tmp_path / "whole")
    attempt, made = trials._attempt, []

    def stop_at_the_sixth(*arguments):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(None)
        return attempt(*arguments)

    state = tmp_path / "state.json"
    monkeypatch.setattr(trials, "_attempt", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        try_out(tiny, weights, spec, tmp_path / "parts", state)
    assert len(read_json(state)["rows"]) == 5
    again = []
    monkeypatch.setattr(trials, "_attempt", lambda *arguments: again.append(None) or attempt(*arguments))
    parts = try_out(tiny, weights, spec, tmp_path / "parts", state)
    assert len(again) == 3 * TRIALS["trial_episodes"] - 5
    assert (parts / "trials.csv").read_bytes() == (whole / "trials.csv").read_bytes()
    assert not state.exists()


def test_no_step_gives_the_bits_of_the_network_as_it_was_trained(tiny, table, weights, choice, tmp_path):
    """With the first support those of one shot, fused those of fusion: where the table has both they are equal."""
    untouched = tmp_path / "choice.json"
    write_json(untouched, read_json(choice) | {"lr": 0.0, "steps": 0})
    run(tiny, table, weights, untouched, tmp_path / "finetuned")
    for name, shots in (("counts", 1), ("counts-fusion", SHOTS)):
        spec = tiny.evaluation(tiny.training(), shots=shots)
        evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, tmp_path / name, "cpu", 1)
        fused = read_csv(tmp_path / name / "counts.csv")
        finetuned = read_csv(tmp_path / "finetuned" / f"{name}.csv")
        assert [{key: row[key] for key in fused[0]} for row in finetuned] == fused
        assert all(row["support_loss_before"] == row["support_loss_after"] for row in finetuned)


def test_no_step_leaves_the_network_as_it_is(tuner, table):
    episode = episodes.read(table).episodes[0]
    assert list(tuner.adapt(episode, tuner.supports(episode), 0.0, [0])) == [0]
    assert all(torch.equal(value, tuner.trained[name]) for name, value in tuner.method.state_dict().items())


def test_a_rate_that_diverges_is_counted_and_not_chosen(tiny, weights, tmp_path):
    spec = specification(tiny)
    spec["finetune"] |= {"optimizer": "sgd", "momentum": 0.99, "lr": [1e-3, 10.0], "steps": [30], "folds": [1]}
    choice = tuning.choice_spec(spec)
    choose(choice, [try_out(tiny, weights, each, tmp_path) for each in tuning.trials_specs(choice)], tmp_path)
    about = read_json(tmp_path / "choice.json")
    assert [trial["diverged"] > 0 for trial in about["trials"]] == [False, False, True]
    assert about["trials"][2]["miou"] is None and about["lr"] != 10.0
    stored = [row for path in tmp_path.glob("*/trials.csv") for row in read_csv(path) if float(row["lr"]) == 10.0]
    lost = [(row["intersection"], row["union"]) for row in stored if not row["loss"]]
    assert lost and set(lost) == {("", "")}


def test_a_loss_that_is_not_finite_is_said_with_its_step(tuner, table):
    episode = episodes.read(table).episodes[0]
    supports = tuner.supports(episode)
    supports.maps[0].fill_(float("nan"))
    with pytest.raises(finetune.Diverged, match=r"the loss on the supports is nan at step 0; lower finetune\.lr"):
        list(tuner.adapt(episode, supports, 1e-3, [2]))
    assert all(torch.equal(value, tuner.trained[name]) for name, value in tuner.method.state_dict().items())


def test_a_choice_on_a_class_that_is_tested_is_refused(tiny, table, weights, choice, tmp_path):
    index, other = Index.load(tiny.data), tmp_path / "choice.json"
    tested = index.class_name(index.novel_classes(0)[0])
    write_json(other, read_json(choice) | {"classes": [tested]})
    with pytest.raises(CrnetError, match=rf"choice.json: was chosen on {tested}, which fold 0 tests; run crnet job"):
        run(tiny, table, weights, other, tmp_path)
    assert not (tmp_path / "evaluation.json").exists()


def test_a_choice_of_another_specification_is_refused(tiny, table, weights, choice, tmp_path):
    spec = specification(tiny)
    spec["finetune"]["batch"] = 2
    with pytest.raises(CrnetError, match="was chosen for another specification"):
        evaluate(spec, tiny.data, table, tiny.encoder, weights, choice, None, tmp_path, "cpu", 1)


def test_too_few_photos_for_the_trials_is_one_sentence(tiny):
    with pytest.raises(CrnetError, match="too few test photos for 40-shot trial episodes"):
        episodes.draw_trials(Index.load(tiny.data), 0, 5, 40)
