"""The audit: it passes what a study published, and finds and names each fault that is planted."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from crnet.audit import audit
from crnet.audit.audit import CHECKS
from crnet.audit.counts import row_problem
from crnet.audit.datasets import encoder_digest
from crnet.audit.folder import STUDIES
from crnet.audit.ledger import Ledger, first_difference, shown
from crnet.cli import cli
from crnet.config import claims, study
from crnet.data import episodes
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv, read_json, sha256_file, write_csv, write_json

STUDY = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text())
SEED = 5


def _study(folder: Path) -> Path:
    """The tiny study without COCO: one fold, 1-shot and 5-shot, fused and finetuned, and a control."""
    benchmark = STUDY["benchmarks"]["k-shot"] | {"folds": [0]}
    content = {
        **STUDY,
        "tables": ["table2", "table4"],
        "shots": [1, 5],
        "benchmarks": {"pascal": STUDY["benchmarks"]["pascal"] | {"folds": [0]}, "k-shot": benchmark},
        "sheet": None,
        "train": STUDY["train"] | {"epochs": 1, "base_episodes": 0},
        "folders": {"results": str(folder / "results"), "work": str(folder / "work")},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _make(folder: Path) -> None:
    """What the workflow does, in this process, from data to page."""
    import torch

    from crnet.encoders import prepare as prepare_encoder
    from crnet.encoders.features import write_store
    from crnet.encoders.frozen import FrozenEncoder
    from crnet.evaluation import evaluate as scoring
    from crnet.evaluation import trials
    from crnet.report.claims import render_claims
    from crnet.report.page.page import write_page
    from crnet.report.runs import collect
    from crnet.report.tables.render import render_table
    from crnet.training.loop import Paths, train

    plan = study.load([_study(folder)])
    at, none = study.Layout(plan), folder / "none"
    for spec in plan.datasets.values():
        prepare(spec, none, none, Path(at.data(spec)))
    for spec in plan.encoders.values():
        prepare_encoder(spec, none, Path(at.encoder(spec)), 1)
    for spec in plan.evaluations.values():
        path, asked = Path(at.episodes(spec)), {k: v for k, v in spec["episodes"].items() if k != "rev"}
        if not path.exists():
            index = Index.load(at.data(spec["train"]["dataset"]))
            episodes.write(path, episodes.draw(index, spec["train"]["fold"], **asked))
    for spec in plan.features.values():
        encoder = FrozenEncoder(spec["encoder"], Path(at.encoder(spec["encoder"])), torch.device("cpu"), "float32")
        write_store(spec, Path(at.data(spec["dataset"])), encoder, Path(at.features_folder(spec)))
    for name, spec in plan.trainings.items():
        data, encoder = Path(at.data(spec["dataset"])), Path(at.encoder(spec["encoder"]))
        train(spec, Paths(data, encoder, Path(at.features(spec)), Path(at.training(name)), folder / "s.pt"), "cpu", 1)
    for name, spec in plan.tunings.items():
        data, encoder = Path(at.data(spec["train"]["dataset"])), Path(at.encoder(spec["train"]["encoder"]))
        trials.choose(spec, data, encoder, Path(at.weights(spec)), None, Path(at.tuning(name)), "cpu", 1)
    for name, spec in plan.evaluations.items():
        data, encoder = Path(at.data(spec["train"]["dataset"])), Path(at.encoder(spec["train"]["encoder"]))
        weights, choice = (Path(p) if p else None for p in (at.weights(spec), at.choice(spec)))
        out, table = Path(at.evaluation(name)), Path(at.episodes(spec))
        scoring.evaluate(spec, data, table, encoder, weights, choice, None, out, "cpu", 1)
    results = Path(at.results)
    for name in plan.tables:
        render_table(study.table_job(plan, at, name), results / "tables" / name)
    render_claims(claims.claims_job(plan, at, study.ROOT / claims.CLAIMS), results / "claims")
    collect(
        [Path(at.training(name)) / "train.json" for name in plan.trainings],
        [Path(at.training(name)) / "log.csv" for name in plan.trainings],
        [Path(at.tuning(name)) / "choice.json" for name in plan.tunings],
        [Path(at.evaluation(name)) / "evaluation.json" for name in plan.evaluations],
        results / "runs.csv",
        results / "training.csv",
    )
    write_page(study.page_job(plan), results)


@dataclass
class Study:
    """A copy of the finished study that a test may spoil."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results/tiny"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def evaluation(self, pattern: str = "crnet-*-1shot-????????") -> Path:
        return sorted(self.results.glob(f"evaluate/{pattern}"))[0]

    def training(self, number: int = 0) -> Path:
        return sorted(self.work.glob("train/*"))[number]

    def audit(self, sample: int = 0, everything: bool = True) -> tuple[str, int]:
        return audit(self.results, [self.folder / "study.yaml"], [self.work], sample, SEED, everything=everything)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    _make(folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Study:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return Study(folder)


def edit(path: Path, change: Callable[[dict], None]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def edit_row(path: Path, line: int, **values: str) -> None:
    rows = read_csv(path)
    rows[line - 2] |= values
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def differences(text: str) -> list[str]:
    return [line.strip() for line in text.partition("\ndiffers\n")[2].splitlines() if line.startswith("  ")]


def counts_of(text: str, name: str) -> list[str]:
    """verified, differ, not checked of a check, as they stand in the table."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return line.removeprefix(name).split()


class TestUntouched:
    def test_nothing_differs_and_everything_is_checked(self, finished):
        text, count = Study(finished).audit(sample=6)
        assert count == 0, text
        assert text.endswith("result: nothing differs")
        assert counts_of(text, "sample: episodes predicted again") == ["6", "-", "-"]
        assert counts_of(text, "tables: cells made again from counts")[0] != "-"
        for name in set(CHECKS) - {"data: pairs are the published lists"}:
            assert counts_of(text, name)[0] != "-", name
            assert counts_of(text, name)[1:] == ["-", "-"], name

    def test_it_fits_a_terminal_and_says_how_to_sample_the_same(self, finished):
        text, _ = Study(finished).audit(sample=1)
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
            f"audit(Path({str(finished / 'results/tiny')!r}), [Path({str(finished / 'study.yaml')!r})], (), 0); "
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestPlanted:
    def test_a_changed_count(self, copy):
        path = copy.evaluation() / "counts.csv"
        row = read_csv(path)[2]
        values = {
            c: str(int(row[c]) + 7) for c in ("void_fg_union", "void_bg_union", "ignore_fg_union", "ignore_bg_union")
        }
        edit_row(path, 4, **values)
        text, _ = copy.audit()
        found = differences(text)
        name = f"evaluate/{path.parent.name}"
        assert any(line.startswith(f"{name}/counts.csv: holds") and "evaluation.json has" in line for line in found)
        assert any(line.startswith(f"{name}/counts.csv, line 4") and "pixels" in line for line in found)
        assert any(line.startswith("tables/table2.csv, line") and "made again" in line for line in found)
        assert any(line.startswith("runs.csv, line") and path.parent.name in line for line in found)

    def test_a_changed_count_with_all_digests_and_tables_made_to_fit_is_found_by_predicting_again(self, copy):
        from crnet.report.tables.render import render_table

        plan = study.load([copy.folder / "study.yaml"])
        at = study.Layout(plan)
        at.results = str(copy.results)
        for name in plan.evaluations:
            path = Path(at.evaluation(name)) / "counts.csv"
            rows = read_csv(path)
            for row in rows:  # a prediction that hits all: possible, and a lie
                hit = int(row["ignore_fg_union"])
                total = int(row["void_fg_union"]) + int(row["void_bg_intersection"])
                seen = int(row["ignore_fg_union"]) + int(row["ignore_bg_intersection"])
                row |= {"ignore_fg_intersection": hit, "void_fg_intersection": hit}
                row |= {"ignore_bg_union": seen - hit, "void_bg_union": total - hit}
                row |= {"void_fg_union": hit, "void_bg_intersection": total - hit}
            write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
            edit(
                path.with_name("evaluation.json"),
                lambda about, path=path: about.update(counts_sha256=sha256_file(path)),
            )
        for name in plan.tables:
            render_table(study.table_job(plan, at, name), copy.results / "tables" / name)
        text, _ = copy.audit(sample=4)
        assert counts_of(text, "counts: possible, image sizes agree")[1] == "-"
        assert counts_of(text, "counts: digest is the run's")[1] == "-"
        assert counts_of(text, "tables: cells made again from counts")[1] == "-"
        assert int(counts_of(text, "sample: episodes predicted again")[1]) >= 1
        assert any("predicted again" in line and "tolerance" in line for line in differences(text))

    def test_an_impossible_count(self, copy):
        path = copy.evaluation() / "counts.csv"
        edit_row(path, 3, ignore_fg_intersection="99999999")
        assert any(
            line.startswith(
                f"evaluate/{path.parent.name}/counts.csv, line 3: ignore_fg_intersection 99999999 is more than"
            )
            for line in differences(copy.audit()[0])
        )

    def test_a_changed_cell(self, copy):
        path = copy.results / "tables/table2.csv"
        before = read_csv(path)[0]["value"]
        edit_row(path, 2, value="99.99")
        text, count = copy.audit()
        where = "tables/table2.csv, line 2, row condition, 1-shot, fold 0, miou, background"
        assert f"{where}: value is '99.99', made again '{before}'" in differences(text)
        assert count == 2, "the cell, and the file that holds it"

    @pytest.mark.parametrize("name", ["tables/table2.md", "tables/table4.tex", "claims.md", "README.md"])
    def test_a_text_edited_by_hand(self, copy, name):
        path = copy.results / name
        lines = path.read_text().splitlines(keepends=True)
        lines[4] = lines[4].rstrip("\n") + " best\n"
        path.write_text("".join(lines))
        found = differences(copy.audit()[0])
        assert any(line.startswith(f"{name}: line 5 holds") and "best" in line for line in found)

    def test_a_changed_verdict(self, copy):
        edit_row(copy.results / "claims.csv", 2, verdict="supported")
        assert any(
            line.startswith("claims.csv, line 2, id") and "verdict is 'supported', made again" in line
            for line in differences(copy.audit()[0])
        )

    def test_an_episode_file_of_another_seed(self, copy):
        path = sorted(copy.results.glob("episodes/*.csv"))[0]
        table = episodes.read(path)
        index = Index.load(next(copy.work.glob("data/*")))
        other = episodes.draw(index, table.fold, table.count, [9], table.shots, "leave out")
        pretended = [episodes.Episode(0, e.number, e.class_id, e.query, e.supports) for e in other.episodes]
        fields = {k: getattr(other, k) for k in ("fold", "dataset_digest", "count", "shots", "left_out")}
        episodes.write(path, episodes.EpisodeTable(**fields, seeds=(0,), episodes=tuple(pretended)))
        text, _ = copy.audit()
        found = differences(text)
        where = f"episodes/{path.name}"
        assert any(line.startswith(f"{where}: line") and "made again" in line for line in found)
        assert any("episodes_digest" in line and f"{where} is" in line for line in found)
        assert any("counts.csv, line" in line and where in line for line in found)
        assert counts_of(text, "episodes: as the study asks")[1] == "-", "it looks like one of the right seed"

    def test_an_episode_whose_support_is_its_query(self, copy):
        path = sorted(copy.results.glob("episodes/*.csv"))[0]
        edit_row(path, 2, support_1=read_csv(path)[0]["query"])
        edit(path.with_suffix(".json"), lambda about: about.update(digest=sha256_file(path)))
        assert any(
            line.startswith(f"episodes/{path.name}, line 2: has the photo") and "twice" in line
            for line in differences(copy.audit()[0])
        )

    def test_weights_of_another_run(self, copy):
        first, second = copy.training(0), copy.training(1)
        shutil.copy(second / "model.safetensors", first / "model.safetensors")
        text, _ = copy.audit(sample=8)
        found = [line for line in differences(text) if str(first / "model.safetensors") in line]
        assert any("train.json has" in line for line in found)
        assert any("specification in its head" in line for line in found)

    def test_broken_weights_and_encoder_do_not_stop_the_sample(self, copy):
        for path in (copy.training() / "model.safetensors", next(copy.work.glob("encoders/*"))):
            path.write_bytes(path.read_bytes()[:100])
        text, _ = copy.audit(sample=8)
        assert any("cannot be predicted again" in line for line in differences(text))

    def test_weights_of_another_run_with_all_reports_made_to_fit(self, copy):
        first, second = copy.training(0), copy.training(1)
        before = sha256_file(first / "model.safetensors")
        shutil.copy(second / "model.safetensors", first / "model.safetensors")
        after = sha256_file(first / "model.safetensors")
        for path in [*copy.work.rglob("train.json"), *copy.results.rglob("*.json"), copy.results / "runs.csv"]:
            path.write_text(path.read_text().replace(before, after))
        found = differences(copy.audit()[0])
        assert any("has the weights" in line and "of another training" in line for line in found)

    def test_a_changed_choice(self, copy):
        path = next(copy.results.glob("finetune/*/choice.json"))
        edit(path, lambda choice: choice.update(steps=2 if choice["steps"] == 1 else 1))
        found = differences(copy.audit()[0])
        name = f"finetune/{path.parent.name}"
        assert any(line.startswith(f"{name}/choice.json, steps: holds") for line in found)
        assert any("choice_sha256" in line and "choice.json is" in line for line in found)

    def test_a_choice_that_is_not_the_best(self, copy):
        path = next(copy.results.glob("finetune/*/trials.csv"))
        rows = read_csv(path)
        line = next(i for i, row in enumerate(rows) if row["chosen"] == "0" and row["steps"] != "0") + 2
        edit_row(path, line, miou="88.0000")
        edit(path.with_name("choice.json"), lambda choice: choice.update(trials_sha256=sha256_file(path)))
        assert any(
            "was chosen with mIoU" in entry and f"line {line} has 88.0000" in entry
            for entry in differences(copy.audit()[0])
        )

    def test_a_choice_made_on_a_test_class(self, copy):
        path = next(copy.results.glob("finetune/*/choice.json"))
        edit(path, lambda choice: choice.update(classes=[*choice["classes"], "striped-star"]))
        assert any("was chosen on striped-star, which fold 0 tests" in line for line in differences(copy.audit()[0]))

    def test_a_missing_evaluation(self, copy):
        folder = copy.evaluation()
        shutil.rmtree(folder)
        found = differences(copy.audit()[0])
        assert any(
            line.startswith(f"evaluate/{folder.name}/evaluation.json: is missing; the study has it for table")
            for line in found
        )
        assert any(line.startswith("tables/") and "made again 'missing" not in line for line in found)

    def test_a_setting_that_is_not_the_plans(self, copy):
        folder = copy.evaluation()
        edit(folder / "evaluation.json", lambda about: about["spec"]["evaluate"].update(refinements=9))
        where = f"evaluate/{folder.name}/evaluation.json"
        assert f"{where}: evaluate.refinements is 9, in the plan 2" in differences(copy.audit()[0])

    def test_a_run_that_is_not_in_the_plan(self, copy):
        folder = copy.evaluation()
        shutil.copytree(folder, folder.with_name("crnet-best-00000000"))
        text, count = copy.audit()
        assert count == 1, "its report names another run"
        assert "not in the plan, and no table is made from it: evaluate/crnet-best-00000000" in " ".join(text.split())
        edit_row(copy.results / "runs.csv", 2, run="crnet-best-00000000")
        assert "runs.csv, line 2: holds the run 'crnet-best-00000000', which the plan has not" in differences(
            copy.audit()[0]
        )

    def test_a_changed_row_of_runs(self, copy):
        rows = read_csv(copy.results / "runs.csv")
        line = next(i for i, row in enumerate(rows) if row["kind"] == "evaluate") + 2
        edit_row(copy.results / "runs.csv", line, miou_background="77.0")
        found = differences(copy.audit()[0])
        assert any(
            e.startswith(f"runs.csv, line {line}, ") and "miou_background is '77.0', made again" in e for e in found
        )

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
        text, _ = copy.audit()
        assert any(line.startswith(f"{data}/dataset.json, digest: holds") for line in differences(text))
        assert "the data set shapes5i of the runs is not at hand" in text, "results are not held against other data"

    def test_another_encoder(self, copy):
        import torch
        from safetensors.torch import load_file, save_file

        path = next(copy.work.glob("encoders/*"))
        state = load_file(path)
        save_file({name: value + torch.ones_like(value) for name, value in state.items()}, path)
        text, _ = copy.audit(sample=1)
        assert any("encoder_digest" in line and f"{path} has" in line for line in differences(text))

    def test_a_broken_report(self, copy):
        folder = copy.evaluation()
        (folder / "evaluation.json").write_text("{")
        found = differences(copy.audit()[0])
        assert any(
            line.startswith(f"evaluate/{folder.name}/evaluation.json: is not the report of a run") for line in found
        )


def test_a_training_that_failed_is_no_difference(copy):
    """Its cells say so, and its evaluations are not expected."""
    from crnet.report.tables.render import render_table

    plan = study.load([copy.folder / "study.yaml"])
    at = study.Layout(plan)
    at.results, at.work = str(copy.results), str(copy.work)
    name, why = next(iter(plan.trainings)), "the loss is nan at step 1 (lr 1)"
    lost = [e for e, spec in plan.evaluations.items() if study.resolve.training_name(spec["train"]) == name]
    for evaluation in lost:
        shutil.rmtree(at.evaluation(evaluation))
    for file in ("train.json", "model.safetensors"):
        (Path(at.training(name)) / file).unlink()
    write_json(Path(at.training(name)) / "failed.json", {"run": name, "spec": plan.trainings[name], "failed": why})
    gone = {at.counts_of(cell) for cell in plan.cells if cell.evaluation in lost}
    for table in plan.tables:
        job = study.table_job(plan, at, table)
        for cell in (cell for row in job["rows"] for cell in row["cells"] if cell["counts"] in gone):
            cell["failed"] = why
        render_table(job, copy.results / "tables" / table)
    text, _ = copy.audit()
    assert f"the training failed: {why}" in " ".join(text.split())
    assert not [line for line in differences(text) if line.startswith(("evaluate/", "tables/"))], text
    assert "failed" in (copy.results / "tables/table2.csv").read_text()


GARBAGE = (lambda old: b"", lambda old: bytes(range(256)), lambda old: old[: len(old) // 2], lambda old: b"[]",
           lambda old: b"run\nx,y\n")  # fmt: skip
IN_RESULTS = (
    *("runs.csv", "training.csv", "claims.csv", "claims.md", "README.md", "tables/table2.csv", "episodes/*.csv"),
    *("episodes/*.json", "evaluate/*/counts.csv", "evaluate/*/evaluation.json", "evaluate/*/counts-fusion.csv"),
    *("finetune/*/choice.json", "finetune/*/trials.csv"),
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

    def options(self, copy: Study) -> list:
        return [copy.results, "--configfile", copy.folder / "study.yaml", "--work", copy.work, "--sample", 0]

    def test_status(self, copy):
        assert self.run(*self.options(copy)).exit_code == 0
        edit_row(copy.results / "tables/table2.csv", 2, value="99.99")
        done = self.run(*self.options(copy))
        assert done.exit_code == 3
        assert "'99.99'" in done.output

    def test_counts_without_digest_are_not_called_verified(self, copy):
        path = copy.evaluation() / "evaluation.json"
        edit(path, lambda about: about.pop("counts_sha256"))
        text, _ = copy.audit()
        assert "was written by an earlier version" in " ".join(text.split())
        assert counts_of(text, "counts: digest is the run's")[1:] == ["-", "1"]

    def test_wrong_use_is_one_sentence(self, tmp_path):
        with pytest.raises(CrnetError, match="is no folder"):
            audit(tmp_path / "absent")
        with pytest.raises(CrnetError, match=f"there is no {STUDIES}/{tmp_path.name}.yaml"):
            audit(tmp_path)
        with pytest.raises(CrnetError, match=r"--work .*absent: is no folder"):
            audit(tmp_path, [study.ROOT / study.DEFAULT_STUDY], [tmp_path / "absent"])


def test_the_digest_of_an_encoder_is_made_without_torch_as_with_it(tiny):
    from crnet.encoders import build, digest

    assert encoder_digest(tiny.encoder) == digest(build(tiny._encoder(), tiny.encoder))


def test_what_no_prediction_can_have_given():
    names = [
        f"{void}_{part}_{kind}"
        for void in ("ignore", "void")
        for part in ("fg", "bg")
        for kind in ("intersection", "union")
    ]
    good = dict(zip(names, ("3", "5", "4", "6", "3", "6", "6", "9"), strict=True))
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
