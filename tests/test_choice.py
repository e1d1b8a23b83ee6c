"""How finetuning is chosen from stored trials: on what, by hand-made numbers, and what of it readers are told."""

from pathlib import Path

import pytest
import yaml

from crnet.config import resolve, study, tuning
from crnet.config.defaults import FINETUNE, FINETUNE_LIMITS
from crnet.config.settings import check, component
from crnet.errors import CrnetError
from crnet.evaluation.choice import COLUMNS, Trial, best_trial, choose, pooled, verdict
from crnet.report.choices import sentences
from crnet.runtime.files import read_csv, read_json, sha256_file, write_csv, write_json

GRID = {"lr": [1e-3, 4e-3], "steps": [2, 5, 9], "trial_episodes": 2, "trial_shots": 2}
FILES = [Path(__file__).with_name("tiny.yaml")]


def specification(tiny, fold=0, folds=(0, 1, 2)) -> dict:
    spec = tiny.evaluation(tiny.training(fold), shots=3, strategy="finetune")
    settings = check(GRID, FINETUNE, FINETUNE_LIMITS, "test")
    return tuning.choice_spec(spec | {"finetune": tuning.with_folds(settings, fold, folds)})


def classes_of(spec: dict) -> tuple[list[int], list[str]]:
    splits = component("dataset", "shapes5i", "test").splits(spec["train"]["dataset"])
    ids = splits.folds[spec["train"]["fold"]]
    return list(ids), [splits.classes[i - 1] for i in ids]


def write_trials(folder: Path, spec: dict, counts: dict, classes=None, tried_on="novel") -> Path:
    """``counts``: (rate, steps) -> (intersection, union) of each of two episodes; what is absent hits 10 of 100."""
    ids, names = classes or classes_of(spec)
    out = folder / tuning.trials_name(spec)
    tried = [(0.0, 0), *((lr, count) for lr in GRID["lr"] for count in GRID["steps"])]
    rows = [
        (*settings, number, ids[number], *(counts.get(settings, [(10, 100)] * 2)[number]), 0.5)
        for settings in tried
        for number in range(2)
    ]
    write_csv(out / "trials.csv", COLUMNS, rows)
    about = {"run": out.name, "spec": spec, "tried_on": tried_on, "classes": sorted(names[:2]), "left_out": {}}
    digests = {"dataset_digest": "d", "encoder_digest": "e", "trials_sha256": sha256_file(out / "trials.csv")}
    write_json(out / "trials.json", about | digests)
    return out


def chosen(tmp_path: Path, spec: dict, *counts: dict) -> dict:
    trials = [write_trials(tmp_path, each, own) for each, own in zip(tuning.trials_specs(spec), counts, strict=True)]
    choose(spec, trials, tmp_path / "choice")
    return read_json(tmp_path / "choice/choice.json")


def test_a_fold_is_chosen_by_the_other_folds_on_their_classes_and_never_by_its_own(tiny, tmp_path):
    """Fold 0's own trials, which lie there, would choose otherwise."""
    spec = specification(tiny)
    trap = tuning.own_trials(spec)
    assert trap["trial_classes"] == "novel"
    write_trials(tmp_path, trap, {(4e-3, 9): [(100, 100)] * 2})
    about = chosen(tmp_path, spec, {(1e-3, 5): [(60, 100)] * 2}, {(1e-3, 5): [(20, 100)] * 2})
    assert (about["lr"], about["steps"], about["folds"], about["tried_on"]) == (1e-3, 5, [1, 2], "novel")
    assert not set(classes_of(trap)[1]) & set(about["classes"])
    assert set(about["trials_sha256"]) == {tuning.trials_name(each) for each in tuning.trials_specs(spec)}
    folders = [tmp_path / name for name in (*about["trials_sha256"], tuning.trials_name(trap))]
    with pytest.raises(CrnetError, match="are trials of other settings than the choice's"):
        choose(spec, folders, tmp_path / "leak")
    assert not (tmp_path / "leak").exists()


def test_the_specifications_of_a_choice_and_its_trials(tiny):
    spec = specification(tiny, fold=1)
    tried = tuning.trials_specs(spec)
    assert [each["train"]["fold"] for each in tried] == [0, 2]
    assert all({**each["train"], "fold": 1} == spec["train"] for each in tried)
    assert all(each["finetune"] == check(GRID, FINETUNE, FINETUNE_LIMITS, "test") for each in tried)
    # The other folds' choices take the very trials of this fold's model.
    assert tuning.own_trials(spec) in tuning.trials_specs(specification(tiny, fold=0))
    assert tuning.trials_name(tried[0]).startswith("crnet-shapes5i-f0-s0-trials-")
    assert tuning.choice_name(spec).startswith("crnet-shapes5i-f1-s0-choice-")


def test_miou_is_pooled_over_classes_of_all_folds():
    """One class of two episodes, and one each of the other fold's: (30 + 10) / 200, 50 / 100 and 90 / 100."""
    rows = [
        dict(zip(COLUMNS, map(str, row), strict=True))
        for row in [
            (1e-3, 2, 0, 6, 30, 100, 0.4),
            (1e-3, 2, 1, 6, 10, 100, 0.2),
            (1e-3, 2, 0, 11, 50, 100, 0.6),
            (1e-3, 2, 1, 12, 90, 100, 0.8),
            (0.0, 0, 0, 6, 10, 100, 0.9),
            (4e-3, 2, 0, 6, "", "", ""),
            (4e-3, 2, 1, 6, 10, 100, 0.1),
            (9e-3, 2, 0, 6, "", "", ""),
        ]
    ]
    untouched, pooled_both, diverged, all_diverged = pooled(rows)
    assert pooled_both == Trial(1e-3, 2, pytest.approx(100 * (0.2 + 0.5 + 0.9) / 3, abs=1e-4), 0.5, 4)
    assert untouched == Trial(0.0, 0, 10.0, 0.9, 1)
    assert diverged == Trial(4e-3, 2, None, 0.1, 2, diverged=1)
    assert all_diverged == Trial(9e-3, 2, None, None, 1, diverged=1)


def test_the_best_is_finite_and_the_cheapest_among_equals():
    def trial(lr, steps, miou):
        return Trial(lr, steps, miou, 1.0, 1)

    assert best_trial([trial(1, 5, 50.0), trial(1, 2, 50.0), trial(2, 2, 50.0), trial(9, 9, None)]) == trial(1, 2, 50.0)
    assert best_trial([trial(0.0, 0, 50.0), trial(1, 2, 50.0)]).steps == 0
    with pytest.raises(CrnetError, match="every trial diverged; lower finetune"):
        best_trial([trial(0.0, 0, 50.0), trial(1, 5, None)])


def test_no_step_is_chosen_where_it_is_best(tiny, tmp_path):
    best = {(0.0, 0): [(50, 100)] * 2}
    about = chosen(tmp_path, specification(tiny), best, best)
    assert (about["lr"], about["steps"], about["miou"], about["miou_untouched"]) == (0.0, 0, 50.0, 50.0)
    assert (about["edge_lr"], about["edge_steps"]) == ("", "")


@pytest.mark.parametrize(
    ("best", "edges"),
    [
        ((1e-3, 2), ("lowest", "fewest")),
        ((1e-3, 5), ("lowest", "")),
        ((4e-3, 5), ("highest", "")),
        ((4e-3, 9), ("highest", "most")),
    ],
)
def test_an_end_of_the_grid_is_said(tiny, tmp_path, best, edges):
    about = chosen(tmp_path, specification(tiny), {best: [(50, 100)] * 2}, {})
    assert (about["lr"], about["steps"]) == best
    assert (about["edge_lr"], about["edge_steps"]) == edges
    assert len(about["trials"]) == 7 and {trial["episodes"] for trial in about["trials"]} == {4}


def test_one_value_alone_has_no_ends():
    trials = [Trial(0.0, 0, 10.0, 1.0, 2), Trial(1e-3, 5, 20.0, 1.0, 2)]
    told = verdict(trials, trials[1])
    assert (told["edge_lr"], told["edge_steps"], told["miou_untouched"]) == ("", "", 10.0)


def test_where_a_study_runs_one_fold_its_own_model_is_tried_on_classes_that_it_does_not_test(tiny, tmp_path):
    spec = specification(tiny, folds=[0])
    (tried,) = tuning.trials_specs(spec)
    assert tried == tuning.own_trials(spec) and tried["trial_classes"] == "selection"
    base = classes_of(specification(tiny, fold=1))
    folder = write_trials(tmp_path, tried, {(1e-3, 5): [(60, 100)] * 2}, base, "base")
    choose(spec, [folder], tmp_path / "choice")
    about = read_json(tmp_path / "choice/choice.json")
    assert (about["folds"], about["tried_on"], about["steps"]) == ([0], "base", 5)
    assert "as the study runs no other fold" in sentences([about])[0]


def test_trials_on_a_tested_class_are_refused(tiny, tmp_path):
    spec = specification(tiny)
    first, second = tuning.trials_specs(spec)
    leak = classes_of(spec)
    trials = [write_trials(tmp_path, first, {}), write_trials(tmp_path, second, {}, leak)]
    with pytest.raises(CrnetError, match=f"trials took {min(leak[1][:2])}, which fold 0 tests"):
        choose(spec, trials, tmp_path / "choice")
    assert not (tmp_path / "choice").exists()


def test_changed_or_missing_trials_are_one_sentence(tiny, tmp_path):
    spec = specification(tiny)
    trials = [write_trials(tmp_path, each, {}) for each in tuning.trials_specs(spec)]
    with pytest.raises(CrnetError, match=f"{trials[1].name} is not given"):
        choose(spec, trials[:1], tmp_path / "choice")
    first, *others = (list(row.values()) for row in read_csv(trials[0] / "trials.csv"))
    write_csv(trials[0] / "trials.csv", COLUMNS, [[*first[:-2], "99", first[-1]], *others])
    with pytest.raises(CrnetError, match=r"trials\.csv: was changed"):
        choose(spec, trials, tmp_path / "choice")


def test_a_plan_has_trials_of_every_fold_and_a_choice_for_each(tmp_path):
    file = tmp_path / "study.yaml"
    content = yaml.safe_load(FILES[0].read_text())
    content["benchmarks"]["k-shot"]["folds"] = [0, 1, 3]
    file.write_text(yaml.safe_dump(content))
    plan = study.load([file])
    finetuned = [spec for spec in plan.evaluations.values() if "finetune" in spec]
    assert len(plan.trials) == len(plan.choices) == len(finetuned) == 6  # stripped and full, each of 3 folds
    for spec in finetuned:
        choice = tuning.choice_spec(spec)
        assert choice["finetune"]["folds"] == [fold for fold in (0, 1, 3) if fold != spec["train"]["fold"]]
        for tried in tuning.trials_specs(choice):
            assert plan.trials[tuning.trials_name(tried)] == tried
            assert resolve.training_name(tried["train"]) in plan.trainings
    assert {spec["trial_classes"] for spec in plan.trials.values()} == {"novel"}
    alone = study.load(FILES)
    assert {spec["trial_classes"] for spec in alone.trials.values()} == {"selection"}


def test_readers_are_told_one_sentence_a_kind():
    def choice(steps="20", lr="", end="", tried_on="novel"):
        return {"lr": "0.1", "steps": steps, "edge_lr": lr, "edge_steps": end, "tried_on": tried_on}

    assert sentences([]) == []
    (only,) = sentences([choice()])
    assert only.startswith("In the one choice of finetuning's settings, steps and learning rate were chosen by trials")
    how, own, untouched, edge = sentences(
        [choice(end="most", lr="highest"), choice(end="most"), choice("0"), choice(tried_on="validation")]
    )
    assert how.startswith("In 3 of 4 choices")
    assert own.startswith("In 1 of 4 choices") and "validation classes of its split" in own
    assert untouched.startswith("In 1 of 4 choices of finetuning's settings, no step at all was best")
    assert edge.startswith("In 2 of 4 choices") and "(the most steps 2 times, the highest rate once)" in edge
