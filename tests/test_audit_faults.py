"""Each fault that is planted into a published study is found by the audit, and named."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from audited import counts_of, differences, edit, edit_row, hits_all

from crnet.config import study
from crnet.data import episodes
from crnet.data.index import Index
from crnet.report.partial import render
from crnet.runtime.files import read_csv, read_json, sha256_file, write_csv, write_json


class TestPlanted:
    def test_a_changed_count(self, copy):
        path = copy.evaluation() / "counts.csv"
        row, name = read_csv(path)[2], f"evaluate/{path.parent.name}/counts.csv"
        edit_row(path, 4, **{column: str(int(row[column]) + 7) for column in row if column.endswith("_union")})
        copy.finds(
            (f"{name}: holds", "evaluation.json has"),
            (f"{name}, line 4", "pixels"),
            ("tables/table2.csv, line", "made again"),
            ("runs.csv, line", path.parent.name),
        )

    def test_a_changed_count_with_all_digests_and_tables_made_to_fit_is_found_by_predicting_again(self, copy):
        for name in copy.plan.evaluations:
            path = Path(copy.at.evaluation(name)) / "counts.csv"
            rows = read_csv(path)
            for row in rows:
                row |= hits_all(row)
            write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
            edit(path.with_name("evaluation.json"), counts_sha256=sha256_file(path))
        render([copy.file])
        text = copy.finds(("evaluate/", "predicted again", "tolerance"), sample=4)
        assert counts_of(text, "counts: possible, image sizes agree")[1] == "-"
        assert counts_of(text, "counts: digest is the run's")[1] == "-"
        assert counts_of(text, "tables: cells made again from counts")[1] == "-"
        assert int(counts_of(text, "sample: episodes predicted again")[1]) >= 1

    def test_a_changed_count_of_the_probe(self, copy):
        path = copy.probe() / "counts.csv"
        row, name = read_csv(path)[1], f"probe/{path.parent.name}/counts.csv"
        edit_row(path, 3, **hits_all(row))
        copy.finds((f"{name}: holds", "probe.json has"), ("probe/table.csv, line", "made again"))
        edit_row(path, 3, **{column: str(int(row[column]) + 7) for column in row if column.endswith("_union")})
        copy.finds((f"{name}, line 3", "pixels"))

    def test_an_untouched_count_of_the_probe_that_is_not_the_evaluations(self, copy):
        path = copy.probe() / "counts.csv"
        row, name = read_csv(path)[0], f"probe/{path.parent.name}/counts.csv"
        edit_row(path, 2, **hits_all(row))
        copy.finds((f"{name}, line 2", "is", "evaluate/crnet-"))

    def test_another_support_in_the_probe(self, copy):
        path = copy.probe() / "counts.csv"
        rows, name = read_csv(path), f"probe/{path.parent.name}/counts.csv"
        edit_row(path, 3, other_class=rows[1]["class"])
        copy.finds((f"{name}, line 3", "drawn again"))
        shutil.rmtree(copy.work)
        copy.work.mkdir()
        copy.finds((f"{name}, line 3", "no support of another class"))

    def test_a_probe_that_is_shortened_or_missing(self, copy):
        path = copy.probe() / "counts.csv"
        rows = read_csv(path)
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows[:-1]])
        copy.finds((f"probe/{path.parent.name}/counts.csv, line {len(rows) + 1}", "no episode"))
        shutil.rmtree(path.parent)
        copy.finds((f"probe/{path.parent.name}/probe.json: is missing", "the study probes that row"))

    def test_an_impossible_count(self, copy):
        path = copy.evaluation() / "counts.csv"
        edit_row(path, 3, ignore_fg_intersection="99999999")
        where = f"evaluate/{path.parent.name}/counts.csv, line 3"
        copy.finds((f"{where}: ignore_fg_intersection 99999999 is more than",))

    def test_a_changed_cell(self, copy):
        path = copy.results / "tables/table2.csv"
        before = read_csv(path)[0]["value"]
        edit_row(path, 2, value="99.99")
        text, count = copy.audit()
        where = "tables/table2.csv, line 2, row condition, 1-shot, fold 0, miou, background"
        assert f"{where}: value is '99.99', made again '{before}'" in differences(text)
        assert count == 2, "the cell, and the file that holds it"

    @pytest.mark.parametrize("name", ["tables/table2.md", "tables/table4.tex", "classes.csv", "claims.md", "README.md"])
    def test_a_text_edited_by_hand(self, copy, name):
        path = copy.results / name
        lines = path.read_text().splitlines(keepends=True)
        lines[4] = lines[4].rstrip("\n") + " best\n"
        path.write_text("".join(lines))
        copy.finds((f"{name}: line 5 holds", "best"))

    def test_a_changed_verdict(self, copy):
        edit_row(copy.results / "claims.csv", 2, verdict="supported")
        copy.finds(("claims.csv, line 2, id", "verdict is 'supported', made again"))

    def test_an_episode_file_of_another_seed(self, copy):
        path = sorted(copy.results.glob("episodes/*.csv"))[0]
        table, index = episodes.read(path), Index.load(next(copy.work.glob("data/*")))
        other = episodes.draw(index, table.fold, table.count, [9], table.shots, "leave out")
        pretended = tuple(replace(episode, seed=0) for episode in other.episodes)
        episodes.write(path, replace(other, seeds=(0,), episodes=pretended))
        where = f"episodes/{path.name}"
        text = copy.finds(
            (f"{where}: line", "made again"),
            ("evaluate/", "episodes_digest", f"{where} is"),
            ("evaluate/", "counts.csv, line", where),
        )
        assert counts_of(text, "episodes: as the study asks")[1] == "-", "it looks like one of the right seed"

    def test_an_episode_whose_support_is_its_query(self, copy):
        path = sorted(copy.results.glob("episodes/*.csv"))[0]
        edit_row(path, 2, support_1=read_csv(path)[0]["query"])
        edit(path.with_suffix(".json"), digest=sha256_file(path))
        copy.finds((f"episodes/{path.name}, line 2: has the photo", "twice"))

    def test_weights_of_another_run(self, copy):
        path = copy.training(0) / "model.safetensors"
        shutil.copy(copy.training(1) / path.name, path)
        copy.finds((str(path), "train.json has"), (str(path), "specification in its head"), sample=8)

    def test_broken_weights_and_encoder_do_not_stop_the_sample(self, copy):
        for path in (copy.training() / "model.safetensors", next(copy.work.glob("encoders/*"))):
            path.write_bytes(path.read_bytes()[:100])
        copy.finds(("evaluate/", "cannot be predicted again"), sample=8)

    def test_weights_of_another_run_with_all_reports_made_to_fit(self, copy):
        weights = copy.training(0) / "model.safetensors"
        before = sha256_file(weights)
        shutil.copy(copy.training(1) / weights.name, weights)
        after = sha256_file(weights)
        for path in [*copy.work.rglob("train.json"), *copy.results.rglob("*.json"), copy.results / "runs.csv"]:
            path.write_text(path.read_text().replace(before, after))
        copy.finds(("", "has the weights", "of another training"))

    def test_a_changed_choice(self, copy):
        path = next(copy.results.glob("finetune/*/choice.json"))
        edit(path, steps=2 if read_json(path)["steps"] == 1 else 1)
        name = f"finetune/{path.parent.name}"
        copy.finds((f"{name}/choice.json, steps: holds",), ("evaluate/", "choice_sha256", "choice.json is"))

    def test_a_choice_that_is_not_the_best(self, copy):
        """Counts that give another choice, with every digest of them as it should be."""
        path = next(copy.results.glob("finetune/*/trials.csv"))
        choice = next(
            file for file in copy.results.glob("finetune/*/choice.json")
            if path.parent.name in read_json(file)["trials_sha256"]
        )  # fmt: skip
        other = 2 if read_json(choice)["steps"] == 1 else 1
        for line, row in enumerate(read_csv(path), 2):
            if int(row["steps"]) == other:
                edit_row(path, line, intersection=row["union"])
        edit(path.with_name("trials.json"), trials_sha256=sha256_file(path))
        edit(choice, trials_sha256={path.parent.name: sha256_file(path)})
        name = f"finetune/{choice.parent.name}/choice.json"
        copy.finds((f"{name}, steps: holds", f"the trials' counts give {other}"), (f"{name}, miou: holds", "100.0"))

    def test_a_choice_made_on_a_test_class(self, copy):
        path = next(path for path in copy.results.glob("finetune/*/choice.json") if "-f0-" in path.parent.name)
        edit(path, classes=[*read_json(path)["classes"], "striped-star"])
        copy.finds(("finetune/", "was chosen on striped-star, which fold 0 tests"))

    def test_other_weights_of_classes(self, copy):
        path = copy.evaluation() / "evaluation.json"
        pairs = read_json(path)["class_pairs"]
        edit(path, class_pairs=pairs | {next(iter(pairs)): 99})
        where = f"evaluate/{path.parent.name}/evaluation.json, class_pairs"
        copy.finds((where, ":99", "the data have"), ("tables/", "made again"))

    def test_weights_that_an_earlier_version_did_not_record(self, copy):
        for path in copy.results.glob("evaluate/*/evaluation.json"):
            write_json(path, {key: value for key, value in read_json(path).items() if key != "class_pairs"})
        text = copy.audit()[0]
        reason = "weights of classes are the data's: evaluation.json holds no class_pairs: it was written by an earlier"
        assert reason in " ".join(text.split())
        assert counts_of(text, "counts: weights of classes are the data's")[:2] == ["-", "-"]

    def test_trials_that_took_the_class_of_another_fold(self, copy):
        """Class 1 is fold 0's: what was chosen for it by these trials of fold 1 saw what it tests."""
        path = next(path for path in copy.results.glob("finetune/*/trials.csv") if "-f1-" in path.parent.name)
        name = f"finetune/{path.parent.name}"
        for line, row in enumerate(read_csv(path), 2):
            if row["episode"] == "0":
                edit_row(path, line, **{"class": "1"})
        edit(path.with_name("trials.json"), trials_sha256=sha256_file(path))
        copy.finds((f"{name}/trials.csv", "has ", ", which fold 1 does not test"), (f"{name}/trials.json, classes",))

    def test_a_trial_that_is_missing(self, copy):
        path = next(copy.results.glob("finetune/*/trials.csv"))
        rows = read_csv(path)
        write_csv(path, list(rows[0]), [list(row.values()) for row in rows if row["steps"] != "2"])
        edit(path.with_name("trials.json"), trials_sha256=sha256_file(path))
        copy.finds((f"finetune/{path.parent.name}/trials.csv: is not 3 trials on 2 episodes",))

    def test_a_missing_evaluation(self, copy):
        folder = copy.evaluation()
        shutil.rmtree(folder)
        where = f"evaluate/{folder.name}/evaluation.json"
        found = differences(copy.finds((f"{where}: is missing; the study has it for table",)))
        assert any(line.startswith("tables/") and "made again 'missing" not in line for line in found)

    def test_a_setting_that_is_not_the_plans(self, copy):
        path = copy.evaluation() / "evaluation.json"
        spec = read_json(path)["spec"]
        edit(path, spec=spec | {"evaluate": spec["evaluate"] | {"refinements": 9}})
        copy.finds((f"evaluate/{path.parent.name}/evaluation.json: evaluate.refinements is 9, in the plan 2",))

    def test_a_setting_that_the_plan_has_not(self, copy):
        path = copy.evaluation() / "evaluation.json"
        edit(path, spec=read_json(path)["spec"] | {"more": {}})
        copy.finds((f"evaluate/{path.parent.name}/evaluation.json: more is {{}}, in the plan absent",))

    def test_a_run_that_is_not_in_the_plan(self, copy):
        folder = copy.evaluation()
        shutil.copytree(folder, folder.with_name("crnet-best-00000000"))
        text, count = copy.audit()
        assert count == 1, "its report names another run"
        assert "not in the plan, and no table is made from it: evaluate/crnet-best-00000000" in " ".join(text.split())
        edit_row(copy.results / "runs.csv", 2, run="crnet-best-00000000")
        copy.finds(("runs.csv, line 2: holds the run 'crnet-best-00000000', which the plan has not",))

    def test_a_changed_row_of_runs(self, copy):
        path = copy.results / "runs.csv"
        line = next(line for line, row in enumerate(read_csv(path), 2) if row["kind"] == "evaluate")
        edit_row(path, line, miou_background="77.0")
        copy.finds((f"runs.csv, line {line}, ", "miou_background is '77.0', made again"))

    def test_a_row_taken_out_of_runs(self, copy):
        path = copy.results / "runs.csv"
        rows = read_csv(path)
        for line in (0, next(i for i, row in enumerate(rows) if row["run"].endswith("+fusion"))):
            write_csv(path, list(rows[0]), [list(row.values()) for i, row in enumerate(rows) if i != line])
            assert f"runs.csv: lacks the run {rows[line]['run']}" in differences(copy.audit()[0])

    def test_a_changed_photo(self, copy):
        data = next(copy.work.glob("data/*"))
        photo = data / read_csv(data / "images.csv")[0]["path"]
        photo.write_bytes(photo.read_bytes() + b" ")
        text = copy.finds((f"{data}/dataset.json, digest: holds",))
        assert "the data set shapes5i of the runs is not at hand" in text, "results are not held against other data"

    def test_another_encoder(self, copy):
        from safetensors.torch import load_file, save_file

        path = next(copy.work.glob("encoders/*"))
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
        copy.finds(("evaluate/", "encoder_digest", f"{path} has"), sample=1)

    def test_a_rate_that_was_not_the_best(self, copy):
        rows = read_csv(copy.results / "runs.csv")
        line, row = next((n, r) for n, r in enumerate(rows, 2) if r["choice.trials"])
        trials = json.loads(row["choice.trials"])
        other = next(trial["lr"] for trial in trials if f"{trial['lr']}" != row["choice.lr"])
        edit_row(copy.results / "runs.csv", line, **{"choice.lr": f"{other}"})
        copy.finds((f"runs.csv, line {line}, choice.lr: holds", f"{other}", "the trials give"))
        text, _ = copy.audit()
        assert counts_of(text, "training: the best learning rate was chosen")[1] != "-"

    def test_a_broken_report(self, copy):
        path = copy.evaluation() / "evaluation.json"
        path.write_text("{")
        copy.finds((f"evaluate/{path.parent.name}/evaluation.json: is not the report of a run",))


def test_a_training_that_failed_is_no_difference(copy):
    """Its cells say so, and its evaluations are not expected."""
    plan, why = copy.plan, "the loss is nan at step 1 (lr 1)"
    name, spec = next(iter(plan.trainings.items()))
    for evaluation, lost in plan.evaluations.items():
        if study.resolve.training_name(lost["train"]) == name:
            shutil.rmtree(copy.at.evaluation(evaluation))
    for file in ("train.json", "model.safetensors"):
        (Path(copy.at.training(name)) / file).unlink()
    write_json(Path(copy.at.training(name)) / "failed.json", {"run": name, "spec": spec, "failed": why})
    render([copy.file])
    text, _ = copy.audit()
    assert f"the training failed: {why}" in " ".join(text.split())
    assert not [line for line in differences(text) if line.startswith(("evaluate/", "tables/"))], text
    assert "failed" in (copy.results / "tables/table2.csv").read_text()


GARBAGE = (lambda old: b"", lambda old: bytes(range(256)), lambda old: old[: len(old) // 2], lambda old: b"[]",
           lambda old: b"run\nx,y\n")  # fmt: skip
IN_RESULTS = (
    *("runs.csv", "training.csv", "claims.csv", "claims.md", "README.md", "tables/table2.csv", "episodes/*.csv"),
    *("episodes/*.json", "evaluate/*/counts.csv", "evaluate/*/evaluation.json", "evaluate/*/counts-fusion.csv"),
    *("finetune/*/choice.json", "finetune/*/trials.csv", "finetune/*/trials.json"),
    *("probe/*/counts.csv", "probe/*/probe.json", "probe/table.csv"),
)
IN_WORK = (
    *("train/*/train.json", "train/*/log.csv", "train/*/model.safetensors", "encoders/*.safetensors"),
    *("data/*/dataset.json", "data/*/images.csv", "data/*/pairs.csv"),
)


def test_files_that_are_not_what_they_should_be_are_differences_and_no_traceback(copy):
    every = len(GARBAGE) if os.environ.get("CRNET_SLOW_TESTS") else 1
    for number, pattern in enumerate([*(f"results/tiny/{p}" for p in IN_RESULTS), *(f"work/{p}" for p in IN_WORK)]):
        path = sorted(copy.folder.glob(pattern))[0]
        content = path.read_bytes()
        for kind in range(number, number + every):
            path.write_bytes(GARBAGE[kind % len(GARBAGE)](content))
            text, count = copy.audit()
            assert count, f"{kind} {pattern}\n{text}"
            listed = "\n".join(differences(text))
            name = "training" if path.name == "log.csv" else path.stem
            assert name in listed or str(path.parent) in listed, f"{kind} {pattern}\n{text}"
        path.write_bytes(content)
