"""The audit: it passes what a study published, and finds and names each fault that is planted."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from crnet.audit import CHECKS, audit
from crnet.audit.at_hand import encoder_digest
from crnet.audit.counts import row_problem
from crnet.audit.ledger import Ledger, first_difference, shown
from crnet.cli import cli
from crnet.config import sources, study, tuning
from crnet.data import episodes
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.errors import CrnetError
from crnet.planning.plan import describe
from crnet.report.partial import render
from crnet.runtime.files import read_csv, read_json, sha256_file, write_csv, write_json

STUDY = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
SEED = 5
FOLDS = {"pascal": [0], "k-shot": [0, 1]}


class Study:
    """The tiny study without COCO in a folder: 1-shot on one fold, 5-shot on two, finetuned too, and a control."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "study.yaml"
        self.results, self.work = folder / "results/tiny", folder / "work"
        content = {
            **STUDY,
            "tables": ["table2", "table4"],
            "shots": [1, 5],
            "benchmarks": {name: STUDY["benchmarks"][name] | {"folds": folds} for name, folds in FOLDS.items()},
            "sheet": None,
            "probe": {"table": "table2", "rows": ["condition", "cross-reference", "both"], "episodes": 4},
            "train": STUDY["train"] | {"epochs": 1, "base_episodes": 0},
            "folders": {"results": str(folder / "results"), "work": str(self.work)},
        }
        self.file.write_text(yaml.safe_dump(content))
        self.plan = study.load([self.file])
        self.at = study.Layout(self.plan)

    def make(self) -> None:
        """What the workflow does, in this process, from data to page."""
        import torch

        from crnet.encoders import prepare as prepare_encoder
        from crnet.encoders.features import write_store
        from crnet.encoders.frozen import FrozenEncoder
        from crnet.evaluation import evaluate as scoring
        from crnet.evaluation import probe as probing
        from crnet.evaluation import trials
        from crnet.evaluation.choice import choose
        from crnet.training.loop import Paths, train

        plan, at, none = self.plan, self.at, self.folder / "none"

        def inputs(spec: dict) -> tuple[Path, Path]:
            return Path(at.data(spec["dataset"])), Path(at.encoder(spec["encoder"]))

        for spec in plan.datasets.values():
            prepare(spec, none, none, Path(at.data(spec)))
        for spec in plan.encoders.values():
            prepare_encoder(spec, none, Path(at.encoder(spec)), 1)
        for spec in plan.features.values():
            data, path = inputs(spec)
            encoder = FrozenEncoder(spec["encoder"], path, torch.device("cpu"), "float32")
            write_store(spec, data, encoder, Path(at.features_folder(spec)))
        for name, spec in plan.trainings.items():
            out, state = Path(at.training(name)), self.folder / "state.pt"
            train(spec, Paths(*inputs(spec), Path(at.features(spec)), out, state), "cpu", 1)
        for name, spec in plan.trials.items():
            out = Path(at.finetuning(name))
            trials.run(spec, *inputs(spec["train"]), Path(at.weights(spec)), None, out, "cpu", 1)
        for name, spec in plan.choices.items():
            tried = [Path(at.finetuning(tuning.trials_name(each))) for each in tuning.trials_specs(spec)]
            choose(spec, tried, Path(at.finetuning(name)))
        for name, spec in plan.evaluations.items():
            data, encoder = inputs(spec["train"])
            table, asked = Path(at.episodes(spec)), {k: v for k, v in spec["episodes"].items() if k != "rev"}
            if not table.exists():
                episodes.write(table, episodes.draw(Index.load(data), spec["train"]["fold"], **asked))
            weights, choice = (Path(path) if path else None for path in (at.weights(spec), at.choice(spec)))
            out = Path(at.evaluation(name))
            scoring.evaluate(spec, data, table, encoder, weights, choice, None, out, "cpu", 1)
        for name, spec in plan.probes.items():
            files = (Path(path) for path in (at.episodes(spec), at.encoder(spec["train"]["encoder"]), at.weights(spec)))
            data, out = Path(at.data(spec["train"]["dataset"])), Path(at.probe(name))
            probing.probe(spec, data, *files, None, out, "cpu", 1)
        render([self.file])

    def evaluation(self) -> Path:
        """One of Table 2."""
        names = {c.evaluation for c in self.plan.cells if c.table == "table2" and c.evaluation.startswith("crnet-")}
        return self.results / "evaluate" / min(names)

    def probe(self) -> Path:
        return sorted(self.results.glob("probe/*-probe-*"))[0]

    def training(self, number: int = 0) -> Path:
        return sorted(self.work.glob("train/*"))[number]

    def audit(self, sample: int = 0) -> tuple[str, int]:
        return audit(self.results, [self.file], [self.work], sample, SEED, everything=True)

    def finds(self, *faults: tuple[str, ...], sample: int = 0) -> str:
        """What an audit prints, in which a difference begins with the first text of each fault and holds the others."""
        text, _ = self.audit(sample)
        for start, *words in faults:
            lines = [line for line in differences(text) if line.startswith(start)]
            assert any(all(word in line for word in words) for line in lines), f"{start}, {words}\n{text}"
        return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Study:
    made = Study(tmp_path_factory.mktemp("audited"))
    made.make()
    return made


@pytest.fixture
def copy(finished, tmp_path) -> Study:
    """A copy of the finished study that a test may spoil."""
    return Study(shutil.copytree(finished.folder, tmp_path / "copy"))


def edit(path: Path, **values: object) -> None:
    write_json(path, read_json(path) | values)


def edit_row(path: Path, line: int, **values: str) -> None:
    rows = read_csv(path)
    rows[line - 2] |= values
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def hits_all(row: dict[str, str]) -> dict[str, str]:
    """Counts of a prediction that hits all: possible, and a lie."""
    hit = int(row["ignore_fg_union"])
    total = int(row["void_fg_union"]) + int(row["void_bg_intersection"])
    seen = int(row["ignore_fg_union"]) + int(row["ignore_bg_intersection"])
    counts = {"ignore_fg_intersection": hit, "void_fg_intersection": hit}
    counts |= {"ignore_bg_union": seen - hit, "void_bg_union": total - hit}
    return {name: str(count) for name, count in counts.items()} | {
        "void_fg_union": str(hit),
        "void_bg_intersection": str(total - hit),
    }


def differences(text: str) -> list[str]:
    return [line.strip() for line in text.partition("\ndiffers\n")[2].splitlines() if line.startswith("  ")]


def counts_of(text: str, name: str) -> list[str]:
    """verified, differ, not checked of a check, as they stand in the table."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


class TestUntouched:
    def test_nothing_differs_and_everything_is_checked(self, finished):
        text, count = finished.audit(sample=6)
        assert count == 0, text
        assert text.endswith("result: nothing differs")
        assert counts_of(text, "sample: episodes predicted again") == ["6", "-", "-"]
        assert counts_of(text, "tables: cells made again from counts")[0] != "-"
        for name in set(CHECKS) - {"data: pairs are the published lists"}:
            assert counts_of(text, name)[0] != "-", name
            assert counts_of(text, name)[1:] == ["-", "-"], name

    def test_it_fits_a_terminal_and_says_how_to_sample_the_same(self, finished):
        text, _ = finished.audit(sample=1)
        assert max(map(len, text.partition("\n\n")[2].splitlines())) <= 110
        assert f"--seed {SEED}" in text

    def test_the_sample_is_a_function_of_its_seed(self):
        from crnet.audit.sample import _choose

        table = episodes.EpisodeTable(0, "", 3, (0,), 1, {}, tuple(range(3)))
        usable = dict.fromkeys("abc", table)
        assert _choose(usable, 5, 1) == _choose(usable, 5, 1)
        assert len({json.dumps(_choose(usable, 5, seed)) for seed in range(8)}) > 1
        chosen = _choose(usable, 99, 1)
        assert {name: sorted(numbers) for name, numbers in chosen.items()} == {name: [0, 1, 2] for name in "abc"}

    def test_without_a_work_folder_it_says_what_it_could_not_check(self, copy):
        shutil.rmtree(copy.work)
        copy.work.mkdir()
        text, count = copy.audit(sample=4)
        assert count == 0, text
        assert "weights: files are the reports': not at hand in a work folder" in text
        assert counts_of(text, "sample: episodes predicted again")[0] == "-"
        assert counts_of(text, "tables: cells made again from counts")[0] != "-"

    def test_torch_is_imported_for_the_sample_only(self, finished):
        code = (
            "import sys; from pathlib import Path; from crnet.audit import audit; "
            f"audit(Path({str(finished.results)!r}), [Path({str(finished.file)!r})], (), 0); "
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


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


class TestCommandLine:
    def run(self, *arguments: object):
        return CliRunner().invoke(cli, ["audit", *map(str, arguments)])

    def test_status(self, copy):
        options = [copy.results, "--configfile", copy.file, "--work", copy.work, "--sample", 0]
        assert self.run(*options).exit_code == 0
        edit_row(copy.results / "tables/table2.csv", 2, value="99.99")
        done = self.run(*options)
        assert done.exit_code == 3
        assert "'99.99'" in done.output

    def test_counts_without_digest_are_not_called_verified(self, copy):
        path = copy.evaluation() / "evaluation.json"
        edit(path, counts_sha256=None)
        text, _ = copy.audit()
        assert "was written by an earlier version" in " ".join(text.split())
        assert counts_of(text, "counts: digest is the run's")[1:] == ["-", "1"]

    def test_wrong_use_is_one_sentence(self, tmp_path):
        with pytest.raises(CrnetError, match="is no folder"):
            audit(tmp_path / "absent")
        with pytest.raises(CrnetError, match=f"there is no configs/studies/{tmp_path.name}.yaml"):
            audit(tmp_path)
        with pytest.raises(CrnetError, match=r"--work .*absent: is no folder"):
            audit(tmp_path, [study.ROOT / study.DEFAULT_STUDY], [tmp_path / "absent"])


def test_the_digest_of_an_encoder_is_made_without_torch_as_with_it(tiny):
    from crnet.encoders import build, digest

    assert encoder_digest(tiny.encoder) == digest(build(tiny._encoder(), tiny.encoder))


def test_what_no_prediction_can_have_given():
    parts = itertools.product(("ignore", "void"), ("fg", "bg"), ("intersection", "union"))
    good = dict(zip(map("_".join, parts), ("3", "5", "4", "6", "3", "6", "6", "9"), strict=True))
    assert row_problem(good) is None
    assert "not a number" in row_problem(good | {"void_fg_union": "-6"})
    assert "more than" in row_problem(good | {"ignore_fg_intersection": "6"})
    assert "add up" in row_problem(good | {"ignore_bg_union": "7"})
    assert "equal" in row_problem(good | {"void_fg_intersection": "2", "void_bg_union": "10"})


def test_lines_of_differences():
    assert first_difference("a\nb\n", "a\nc\n") == "line 2 holds 'b', made again 'c'"
    assert first_difference("a\n", "a\nc\n") == "line 2 holds nothing, made again 'c'"
    assert shown("ab" * 32) == "abababababab..."
    ledger = Ledger(["one"])
    for number in range(30):
        ledger["one"].differs(f"file {number}", "x")
    assert "and 21 more of 'one' (--all lists them)" in ledger.text()
    assert "more of" not in ledger.text(everything=True)


def test_another_source_is_warned_of_by_audit_plan_and_page_and_no_difference(copy, monkeypatch):
    """As after an edit of a method's file that raised no ``rev``; runs that recorded nothing are passed over."""
    before = (copy.results / "README.md").read_bytes()
    reports = [*copy.results.glob("evaluate/crnet-*/evaluation.json"), *copy.results.glob("finetune/*/*.json")]
    reports += copy.work.glob("train/*/train.json")
    probes = list(copy.results.glob("probe/*/probe.json"))  # no runs of the page's list
    assert "WARNING" not in copy.audit()[0] + describe([copy.file])
    monkeypatch.setattr(sources, "digest", lambda kind, name: "0" * 64 if name == "crnet" else "")
    text, number = copy.audit()
    assert number == 0, text
    said = "source of method crnet is not the one that {} runs were made by"
    for found in (text, describe([copy.file])):
        assert "WARNING" in found and said.format(len(reports) + len(probes)) in " ".join(found.split())
    render([copy.file])
    assert said.format(len(reports)) in (copy.results / "README.md").read_text()
    assert copy.audit()[1] == 0
    for path in reports + probes:
        report = read_json(path)
        write_json(path, {key: value for key, value in report.items() if not key.endswith("_source")})
    render([copy.file])
    assert "WARNING" not in copy.audit()[0] + describe([copy.file])
    assert (copy.results / "README.md").read_bytes() == before
