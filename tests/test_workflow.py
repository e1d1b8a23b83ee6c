"""The whole chain through Snakemake: what runs, what does not run again, and what stops it."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from snake import ROOT, command, copy_workflow, environment, snakemake

from crnet.config import study as studies
from crnet.config.layout import Layout
from crnet.report.partial import render
from crnet.runtime.files import read_csv

STUDY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())


def planned(folder: Path, *arguments: str, **options) -> Counter:
    """How many jobs of each rule a dry run schedules."""
    done = snakemake(folder, *arguments, "--dry-run", **options)
    assert done.returncode == 0, done.output
    counts = Counter(re.findall(r"^(?:local)?rule (\w+):", done.output, re.MULTILINE))
    return Counter({rule: count for rule, count in counts.items() if rule not in ("all", "tables")})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the tiny study has been run once."""
    folder = copy_workflow(tmp_path_factory.mktemp("workflow"))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    done = snakemake(folder)
    assert done.returncode == 0, done.output
    return folder


def test_everything_is_there(finished):
    results = finished / "out/tiny"
    tables, pictures = ("table3", "table4", "table7"), ("claims", "classes", "k-shot", "losses", "episodes")
    names = {
        "README.md",
        "claims.csv",
        "claims.md",
        "classes.csv",
        *(f"tables/{t}.{kind}" for t in tables for kind in ("csv", "md", "tex")),
        *("probe/table.csv", "probe/table.md"),
    }
    names |= {f"figures/{picture}.{kind}" for picture in (*tables, *pictures) for kind in ("png", "svg")}
    assert not [name for name in names if not (results / name).is_file()]
    runs = Counter(row["kind"] for row in read_csv(results / "runs.csv"))
    assert runs == {"train": 10, "trials": 2, "choice": 2, "evaluate": 28 + 2}  # two readings a finetuned one
    assert (finished / "mlflow.db").exists()
    assert len(list(results.glob("probe/crnet-*-probe-*/counts.csv"))) == 2  # folds of one row
    assert "Another class's photo in the gate changes mIoU by" in (results / "README.md").read_text()


def test_the_table_holds_every_cell_with_an_interval(finished):
    rows = read_csv(finished / "out/tiny/tables/table3.csv")
    wanted = {"row", "fold", "shots", "metric", "void", "value", "low", "high", "seeds", "paper"}
    assert wanted <= set(rows[0])
    assert len(rows) == 5 * 3 * 2 * 2  # rows, folds and mean, metrics, void conventions
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in rows)
    mean = [r for r in rows if r["fold"] == "mean" and r["row"] == "full" and r["metric"] == "miou"]
    assert {r["void"]: r["paper"] for r in mean} == {"background": "55.20", "ignore": ""}


def test_the_report_opens_on_a_description_and_has_page_and_tables_as_html(finished):
    done = snakemake(finished, "--report", "report.zip")
    assert done.returncode == 0, done.output
    with ZipFile(finished / "report.zip") as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".html")}
    assert {"page.html", "claims.html", "table3.html", "table4.html", "table7.html"} <= set(texts)
    assert "<table>" in texts["table3.html"] and "Details by fold" in texts["table3.html"]
    for words in (
        STUDY["title"],
        "showResultInfo('work/report/tiny/page.html')",
        "Table 3: ",
        "IoU by class",
        "1 Page",
    ):
        assert words in texts["report.html"]


def test_a_second_call_does_nothing_and_says_so(finished):
    done = snakemake(finished)
    assert done.returncode == 0
    assert "Nothing to be done" in done.output


def test_tables_again_without_training(finished):
    shutil.rmtree(finished / "out/tiny/tables")
    done = snakemake(finished, "tables")
    assert done.returncode == 0, done.output
    assert (finished / "out/tiny/tables/table3.md").exists()
    assert planned(finished) == Counter()


def test_a_checkout_with_results_but_no_work_renders_tables_and_would_train_for_all(finished, tmp_path, monkeypatch):
    copy = tmp_path / "clone"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("work", "logs", ".snakemake", "mlflow.db"))
    shutil.rmtree(copy / "out/tiny/tables")
    rendering = {"job": 5, "table": 3, "claims": 1, "classes": 1, "probe_table": 1, "k_shot": 1, "page": 1}
    assert planned(copy, "tables") == rendering
    assert planned(copy)["train"] == 10
    for number, path in enumerate(sorted(p for p in copy.rglob("*") if p.is_file())):
        os.utime(path, (1.7e9 + number, 1.7e9 + number))  # as git writes them: in the order of their names
    assert set(planned(copy, "tables")) - {"losses"} == set(rendering)
    done = snakemake(copy, "tables")
    assert done.returncode == 0, done.output
    assert planned(copy, "tables") == Counter()
    data = next(finished.glob("work/data/shapes5i-*"))
    shutil.copytree(data, copy / data.relative_to(finished))
    (copy / data.relative_to(finished) / "dataset.json").touch()
    assert planned(copy, "tables") == Counter()  # data that were made anew are the same

    monkeypatch.chdir(copy)
    evaluation = next(copy.glob("out/tiny/evaluate/crnet-shapes80-*"))
    held = evaluation.rename(tmp_path / "held")
    render([Path("study.yaml")], root=copy)
    assert "missing (fold" in (copy / "out/tiny/tables/table7.md").read_text()
    held.rename(evaluation)  # with its old times, as rsync would bring it
    assert planned(copy, "tables") == {"job": 2, "table": 1, "claims": 1, "page": 1}


def test_ctrl_c_leaves_the_checkout_as_it_was_and_says_how_to_go_on(finished, tmp_path):
    clone, stale = tmp_path / "clone", shutil.ignore_patterns(".snakemake", "mlflow.db*")
    shutil.copytree(finished, clone, ignore=stale)
    shutil.copytree(finished / "out", clone / "results")
    shutil.copy(ROOT / ".gitignore", clone)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "published"]):
        subprocess.run([*git, *words], cwd=clone, check=True)
    shutil.rmtree(clone / "out")
    options = {"cwd": clone, "env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    job = subprocess.Popen(command(), start_new_session=True, **options)
    while not list(clone.glob("out/tiny/evaluate/*/counts.csv")):
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to all of them
    said = job.communicate(timeout=60)[0]
    (tmp_path / "said.txt").write_text(said, encoding="utf-8")
    assert job.returncode != 0
    assert said.count("the same command goes on from here, and `crnet status` says how far it is") == 1
    assert "Traceback" not in said and "Error in rule" not in said
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True)
    assert changed.stdout == ""


def change_table(folder: Path, change) -> None:
    path = folder / "configs/tables/table3.yaml"
    table = yaml.safe_load(path.read_text())
    change(table)
    path.write_text("# a comment\n" + yaml.safe_dump(table, sort_keys=False))


@pytest.fixture
def table_restored(finished):
    path = finished / "configs/tables/table3.yaml"
    before = path.read_bytes()
    yield
    path.write_bytes(before)


@pytest.mark.usefixtures("table_restored")
class TestWhatRunsAgain:
    def test_a_comment_nothing(self, finished):
        change_table(finished, lambda table: None)
        (finished / "commented.yaml").write_text("# comment\n" + yaml.safe_dump(STUDY))
        assert planned(finished, study="commented.yaml") == Counter()

    def test_other_limits_nothing(self, finished):
        limits = {"pairs_at_once": 1, "photos_at_once": 2, "pool_gib": 0.5}
        (finished / "limited.yaml").write_text(yaml.safe_dump({**STUDY, "limits": limits}))
        assert planned(finished, study="limited.yaml") == Counter()

    def test_a_label_its_table(self, finished):
        change_table(finished, lambda table: table["rows"][0].update(label="Base"))
        once = dict.fromkeys(("table", "classes", "losses", "probe_table", "page", "track"), 1)
        assert planned(finished) == once | {"job": 2}  # of the table and of the probe of its row

    def test_a_variant_its_own_jobs(self, finished):
        change_table(finished, lambda table: table["rows"][3]["set"].update(model={"gate_tied": True}))
        once = dict.fromkeys(("table", "classes", "claims", "runs", "losses", "sheet", "track", "page"), 1)
        assert planned(finished) == once | dict.fromkeys(("job", "train", "evaluate"), 2)

    def test_a_new_row_its_own_jobs(self, finished):
        switches = {"evaluate": {"scales": [0.75, 1.0, 1.25], "refinements": 10}}
        row = {"id": "ten", "label": "10 refinements", "set": switches}
        change_table(finished, lambda table: table["rows"].append(row))
        assert planned(finished) == Counter(job=1, evaluate=2, table=1, classes=1, runs=1, track=1, losses=1, page=1)


def stopped(folder: Path, **changes) -> str:
    (folder / "wrong.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
    done = snakemake(folder, study="wrong.yaml")
    assert done.returncode != 0
    assert "Traceback" not in done.output
    return done.output


def test_a_typo_stops_before_anything_runs(finished):
    output = stopped(finished, methods={"crnet": {"conditon": True}})
    assert "conditon" in output
    assert "did you mean 'condition'" in output
    assert "rule " not in output


def test_a_file_where_a_folder_has_to_be(finished, tmp_path):
    (tmp_path / "file").touch()
    said = stopped(finished, folders={"work": str(tmp_path / "file/work")})
    assert f"{tmp_path}/file: a file stands where a folder has to be; move it away." in said


def test_a_study_for_a_gpu_stops_on_a_machine_without(finished):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU")
    output = stopped(finished, device="cuda", study="gpu")
    assert "needs a GPU" in output
    assert not (finished / "out/gpu").exists()


def test_a_class_with_too_few_photos_stops_before_training(finished):
    benchmark = {**STUDY["benchmarks"]["pascal"], "episodes": {"count": 6, "seeds": [0], "shots": 20}}
    output = stopped(finished, study="few", tables=["table3"], benchmarks={"pascal": benchmark})
    assert "too few test photos" in output
    assert not list((finished / "out").glob("few/evaluate"))
    assert "rule train" not in output


def test_what_was_asked_for_and_is_not_made_is_said_and_no_success(finished, tmp_path):
    """After a study's folds were changed, Snakemake notes that they are feasible, and passes over what waits for it."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    pascal = {**STUDY["benchmarks"]["pascal"], "folds": [1]}
    (copy / "other.yaml").write_text(yaml.safe_dump({**STUDY, "benchmarks": {**STUDY["benchmarks"], "pascal": pascal}}))
    plan = studies.load([copy / "other.yaml"])
    at = Layout(plan)
    name, spec = next(
        (name, spec)
        for name, spec in plan.evaluations.items()
        if "train" in spec["train"] and spec["train"]["fold"] == 1
    )
    shutil.rmtree(copy / at.evaluation(name))
    shutil.rmtree((copy / at.weights(spec)).parent)
    asked = f"{at.evaluation(name)}/counts.csv"
    first, second = (snakemake(copy, asked, study="other.yaml") for _ in range(2))
    assert first.returncode != 0, first.output
    assert f"1 of the files asked for is not made yet, e.g. {asked}; call snakemake again to go on" in first.output
    assert "Traceback" not in first.output
    assert second.returncode == 0, second.output
    assert (copy / asked).exists()


def test_lint_and_paper_dry_run(finished):
    assert "GPU" not in snakemake(finished, "--dry-run", study="configs/studies/paper.yaml").stderr
    assert planned(finished, study="configs/studies/paper.yaml")["download"] == 7


def test_a_new_encoder_in_a_second_file_does_not_meet_the_settings_of_the_first(tmp_path):
    """Snakemake's own merging keeps them; --config still wins over both files."""
    copy_workflow(tmp_path)
    first = {"main": {"name": "small", "layers": ["layer3", "layer4"]}, "vgg16": None}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "encoders": first}))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"encoders": {"main": {"name": "vgg16"}}}))
    for extra, status in (([], 0), (["--config", "device=tpu"], 1)):
        asked = [*command("--dry-run", *extra), "other.yaml"]
        done = subprocess.run(asked, check=False, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
    assert "device: " in done.stdout + done.stderr
