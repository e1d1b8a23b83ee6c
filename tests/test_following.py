"""Trainings are shown in MLflow while they are under way, and nothing of that is left or lost at their end."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from snake import ROOT, command, copy_workflow, environment, snakemake
from stores import client, dump, runs_of

from crnet.config import study as studies
from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.config.tuning import CHOSEN
from crnet.metrics.iou import QUERY_COLUMNS
from crnet.report import following, tracking
from crnet.report.following import _Following
from crnet.report.runs import collect, counts_files
from crnet.report.tracking import sync
from crnet.runtime.files import write_csv, write_json

pytest.importorskip("mlflow", reason="needs MLflow, which training and evaluation do without")

LOG = ("epoch", "step", "loss", "query", "cooccurrence", "lr", "images_per_second", "base_miou", "seconds")
EXPERIMENT = "tiny · shapes5i"
ORIGIN = {"commit": "c0ffee", "dirty": False, "device": "cpu", "dataset_digest": "ab" * 32, "seconds": 40.0}
CLAIM = Path("work/.in-use")


class Study:
    """The tiny study in the current folder; its jobs' files are written by hand."""

    def __init__(self, uri: str):
        self.plan: Plan = studies.load([ROOT / "tests/tiny.yaml"])
        self.layout, self.uri = Layout(self.plan), uri
        self.begin_run()

    def begin_run(self) -> None:
        """As ``snakemake`` does that has the folder for itself, a while after what was written before."""
        CLAIM.parent.mkdir(exist_ok=True)
        CLAIM.touch()
        before = CLAIM.stat().st_mtime
        for path in Path("work").rglob("*"):
            os.utime(path, (before - 1000, before - 1000))
        CLAIM.touch()
        self.following = _Following(self.plan, self.uri)

    def of_row(self, row: str) -> list[str]:
        """The trainings of a row of Table 3, by fold."""
        cells = {cell.fold: cell for cell in self.plan.cells if (cell.table, cell.row) == ("table3", row)}
        specs = [self.plan.evaluations[cells[fold].evaluation]["train"] for fold in sorted(cells)]
        return [name for spec in specs for name, other in self.plan.trainings.items() if other == spec]

    def log(self, name: str, epochs: int, loss: float = 1.0) -> None:
        rows = [[e, 2 * e, loss / e, 0.6, 0.4, 0.1, 8, 0.3 + e / 10, 10 * e] for e in range(1, epochs + 1)]
        write_csv(self.layout.log_so_far(name), LOG, rows)

    def finish(self, name: str, epochs: int = 4) -> None:
        folder, log = Path(self.layout.training(name)), Path(self.layout.log_so_far(name))
        self.log(name, epochs)
        folder.mkdir(parents=True, exist_ok=True)
        log.rename(folder / "log.csv")
        spec = self.plan.trainings[name]
        report = {"run": name, "spec": spec, "started": "2026-01-02T03:04:05Z", "images_per_second": 8.0, **ORIGIN}
        write_json(folder / "train.json", report)

    def finish_all(self) -> Path:
        """Every job's files, and the index; returns the folder of results."""
        at, results = self.layout, Path(self.layout.results)
        for name in self.plan.trainings:
            self.finish(name)
        for name, spec in self.plan.trials.items():
            write_json(f"{at.finetuning(name)}/trials.json", {"run": name, "spec": spec, **ORIGIN})
        chosen = dict.fromkeys(CHOSEN) | {"lr": 1e-3, "steps": 2}
        for name, spec in self.plan.choices.items():
            choice = {"run": name, "spec": spec, "miou": 40.0, **chosen, "trials": [], "trials_sha256": [], **ORIGIN}
            write_json(f"{at.finetuning(name)}/choice.json", choice)
        for name, spec in self.plan.evaluations.items():
            folder = Path(at.evaluation(name))
            choice = chosen if "finetune" in spec else {}
            write_json(folder / "evaluation.json", {"run": name, "spec": spec, "choice": choice, **ORIGIN})
            for counts in counts_files(folder, spec):
                header = ("episode_seed", "episode", "class", "query", *QUERY_COLUMNS)
                write_csv(counts, header, [[0, 0, 1, "a", *(10, 20, 60, 80), *(10, 40, 60, 100)]])
        self.index(results)
        return results

    def index(self, results: Path) -> None:
        trained = sorted([*Path("work/train").glob("*/train.json"), *Path("work/train").glob("*/failed.json")])
        logs = [path.with_name("log.csv") for path in trained if path.name == "train.json"]
        kinds = ("finetune/*/trials.json", "finetune/*/choice.json", "evaluate/*/evaluation.json")
        others = [sorted(results.glob(kind)) for kind in kinds]
        collect(trained, logs, *others, results / "runs.csv", results / "training.csv")


@pytest.fixture
def study(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return Study(store)


def deleted(uri: str) -> list:
    from mlflow.entities import ViewType

    ids = [experiment.experiment_id for experiment in client(uri).search_experiments()]
    return list(client(uri).search_runs(ids, "", ViewType.DELETED_ONLY))


def curve(uri: str, run) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client(uri).get_metric_history(run.info.run_id, "train/loss")]


def shown(uri: str) -> dict[str, tuple]:
    """All of a run but the parent's id and the times of its points, by experiment and key."""
    found = {}
    for name in (EXPERIMENT, "tiny · shapes80"):
        runs = runs_of(uri, name)
        keys = {run.info.run_id: key for key, run in runs.items()}
        for key, run in runs.items():
            tags = {tag: keys.get(value, value) for tag, value in run.data.tags.items()}
            metrics = {metric: [(p.step, p.value) for p in client(uri).get_metric_history(run.info.run_id, metric)]
                       for metric in run.data.metrics}  # fmt: skip
            datasets = [each.dataset.digest for each in run.inputs.dataset_inputs]
            found[name, key] = (run.info.run_name, run.info.status, run.data.params, tags, metrics, datasets)
    return found


def test_a_training_under_way_is_called_as_at_its_end_and_becomes_it(study: Study, tmp_path: Path, empty_store) -> None:
    first, second = study.of_row("full")
    study.log(first, 2)
    study.log(second, 0)
    study.following.bring_to_date()
    assert client(study.uri).get_experiment_by_name("tiny · shapes80") is None  # none of its trainings has begun
    live = runs_of(study.uri, EXPERIMENT)
    (above,) = set(live) - {first, second}  # no other training has begun
    assert {run.info.status for run in live.values()} == {"RUNNING"}
    assert curve(study.uri, live[first]) == [(1, 1.0), (2, 0.5)]
    assert live[first].data.metrics == {
        "train/loss": 0.5,
        "train/lr": 0.1,
        "train/images_per_second": 8.0,
        "train/base_miou": 50.0,
        "train/query": 0.6,
        "train/cooccurrence": 0.4,
    }
    assert live[second].data.metrics == {}
    assert {live[name].data.tags["mlflow.parentRunId"] for name in (first, second)} == {live[above].info.run_id}
    assert live[above].data.tags["mlflow.note.content"].startswith("No mean yet: 0 of 2 are finished.")

    study.log(first, 3)
    for name in (second, *study.of_row("base")):
        study.finish(name)
    study.following.bring_to_date()
    (base,) = (run for run in runs_of(study.uri, EXPERIMENT).values() if run.info.run_name == "table3 base train")
    assert base.data.metrics["train/base_miou"] == pytest.approx(70.0)  # its mean needs no other run
    later = runs_of(study.uri, EXPERIMENT)
    statuses = {first: "RUNNING", second: "FINISHED", above: "RUNNING"}
    assert {key: later[key].info.status for key in statuses} == statuses
    assert curve(study.uri, later[first])[-1] == (3, pytest.approx(1 / 3))
    assert len(curve(study.uri, later[second])) == 4

    results = study.finish_all()
    assert sync(results, study.uri, study.plan)
    final = runs_of(study.uri, EXPERIMENT)
    for key, run in live.items():
        now = final[key]
        assert (now.info.run_id, now.info.run_name, now.info.status) == (run.info.run_id, run.info.run_name, "FINISHED")
        assert now.data.params == run.data.params
        kept = {name: value for name, value in run.data.tags.items() if name != "mlflow.note.content" or key != above}
        assert kept.items() <= now.data.tags.items()
    assert deleted(study.uri) == []
    (tmp_path / "other.db").write_bytes(empty_store.read_bytes())
    at_once = f"sqlite:///{tmp_path}/other.db"
    assert sync(results, at_once, study.plan)
    assert shown(study.uri) == shown(at_once)
    before = dump(study.uri)
    study.following.bring_to_date()  # all is there
    assert dump(study.uri) == before


def test_another_curve_replaces_the_one_that_was_shown(study: Study) -> None:
    """A training whose state was damaged may repeat epochs, with other times."""
    (name, _) = study.of_row("full")
    study.log(name, 3)
    study.following.bring_to_date()
    study.log(name, 2, loss=1.5)
    study.following.bring_to_date()
    run = runs_of(study.uri, EXPERIMENT)[name]
    assert (curve(study.uri, run), run.info.status) == ([(1, 1.5), (2, 0.75)], "RUNNING")
    (former,) = deleted(study.uri)
    assert sync(study.finish_all(), study.uri, study.plan)  # whose losses are those of the first again
    assert runs_of(study.uri, EXPERIMENT)[name].info.status == "FINISHED"
    assert len(curve(study.uri, runs_of(study.uri, EXPERIMENT)[name])) == 4
    assert former.info.run_name == run.info.run_name


def test_an_interrupted_study_leaves_killed_runs_and_the_next_goes_on_with_them(study: Study) -> None:
    first, second = study.of_row("full")
    study.log(first, 2)
    study.following.bring_to_date()
    study.finish(second)  # between two looks
    study.following.end()
    killed = runs_of(study.uri, EXPERIMENT)
    (above,) = set(killed) - {first, second}
    states = {key: run.info.status for key, run in killed.items()}
    assert states == {first: "KILLED", second: "FINISHED", above: "KILLED"}
    started, ended = killed[first].info.start_time, killed[first].info.end_time
    assert ended - started == 20_000  # what it took until its last epoch

    study.begin_run()
    study.following.bring_to_date()
    assert runs_of(study.uri, EXPERIMENT)[first].info.status == "KILLED"  # its job has not begun again
    study.log(first, 2)
    study.following.bring_to_date()
    again = runs_of(study.uri, EXPERIMENT)
    assert {key: run.info.status for key, run in again.items()} == states | {first: "RUNNING", above: "RUNNING"}
    assert {key: run.info.run_id for key, run in again.items()} == {k: run.info.run_id for k, run in killed.items()}
    assert sync(study.finish_all(), study.uri, study.plan)
    assert deleted(study.uri) == []


def test_runs_of_a_machine_that_went_down_are_killed_by_the_next_run(study: Study) -> None:
    (name, _) = study.of_row("full")
    study.log(name, 2)
    study.following.bring_to_date()
    study.begin_run()
    study.following.bring_to_date()
    assert runs_of(study.uri, EXPERIMENT)[name].info.status == "KILLED"


def test_who_ends_late_leaves_the_runs_to_the_next_run(study: Study) -> None:
    (name, _) = study.of_row("full")
    study.log(name, 2)
    study.following.bring_to_date()
    os.utime(CLAIM, (time.time() + 5,) * 2)  # another has the folder
    study.following.end()
    assert runs_of(study.uri, EXPERIMENT)[name].info.status == "RUNNING"


def test_a_finished_study_is_left_to_its_last_job(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in study.plan.trainings:
        study.finish(name)
    write_csv("work/tracked/tiny.txt", ["MLflow has all"], [])
    monkeypatch.setattr(following, "opened", None)  # fails when it is called
    study.following.end()
    assert not study.following._warned


def test_a_training_that_failed_keeps_its_curve(study: Study) -> None:
    (name, _) = study.of_row("full")
    study.log(name, 2)
    mark = Path(study.layout.training(name), "failed.json")
    write_json(mark, {"run": name, "spec": study.plan.trainings[name], "failed": "the loss is nan"})
    study.following.bring_to_date()
    failed = runs_of(study.uri, EXPERIMENT)[name]
    assert (failed.info.status, failed.data.tags["failed"]) == ("FAILED", "the loss is nan")
    study.index(Path("out/tiny"))
    assert sync(Path("out/tiny"), study.uri, study.plan)
    kept = runs_of(study.uri, EXPERIMENT)[name]
    assert (kept.info.run_id, curve(study.uri, kept)) == (failed.info.run_id, [(1, 1.0), (2, 0.5)])
    os.utime(mark, (1, 1))  # it was started again, with another learning rate or data type
    study.following.bring_to_date()
    again = runs_of(study.uri, EXPERIMENT)[name]
    assert again.info.status == "RUNNING" and "failed" not in again.data.tags


def test_a_broken_store_costs_one_warning_and_is_tried_again(study: Study, tmp_path: Path, capsys) -> None:
    (name, _) = study.of_row("full")
    path = tmp_path / "mlflow.db"
    store = path.read_bytes()
    path.write_bytes(b"not a database, but long enough to be read as one" * 50)
    for epochs in (1, 2, 3):
        study.log(name, epochs)
        study.following.bring_to_date()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow does not show the trainings under way (") and "database" in line
    path.write_bytes(store)
    study.following.bring_to_date()
    assert len(curve(study.uri, runs_of(study.uri, EXPERIMENT)[name])) == 3
    assert capsys.readouterr().err == ""


def test_mlflow_is_not_asked_where_there_is_nothing_new(study: Study, monkeypatch, capsys) -> None:
    Path("mlflow.db").unlink()
    study.following.bring_to_date()  # nothing has begun; but a store is there for who opens it
    assert runs_in(study.uri) == 0 and len(client(study.uri).search_experiments()) == 1
    (name, _) = study.of_row("full")
    study.log(name, 1)
    study.following.bring_to_date()
    monkeypatch.setattr(following, "opened", None)  # fails when it is called
    study.following.bring_to_date()
    assert capsys.readouterr().err == ""
    study.log(name, 2)
    study.following.bring_to_date()
    assert "warning" in capsys.readouterr().err


def runs_in(uri: str) -> int:
    return sum(line.startswith('INSERT INTO "runs"') for line in dump(uri))


def states(uri: str) -> dict[str, str]:
    return {key: run.info.status for key, run in runs_of(uri, EXPERIMENT).items()}


def test_a_study_is_shown_while_it_runs_and_after_ctrl_c_goes_on_in_the_same_runs(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    folder = copy_workflow(tmp_path / "study")
    study = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    study |= {"tables": ["table3"], "benchmarks": {"pascal": study["benchmarks"]["pascal"] | {"folds": [0]}}}
    study["train"]["epoch_episodes"] = 400  # some time to look
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    said = tmp_path / "said.txt"
    with said.open("w") as out:
        job = subprocess.Popen(command(), cwd=folder, env=environment(), stdout=out, stderr=out, start_new_session=True)
    while not any(path.read_text().count("\n") > 1 for path in folder.glob("work/state/*.csv")):
        assert job.poll() is None
        time.sleep(0.05)
    (follower,) = [p for p in psutil.Process(job.pid).children() if p.cmdline()[3:5] == ["job", "follow"]]
    assert follower.nice() == following.NICENESS
    os.killpg(job.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to all of them
    assert job.wait(timeout=600) != 0
    follower.wait(timeout=600)
    assert "warning: " not in said.read_text() and "Traceback" not in said.read_text()
    uri = f"sqlite:///{folder}/mlflow.db"
    left = states(uri)
    assert "KILLED" in left.values() and "RUNNING" not in left.values()
    killed = {key: run.info.run_id for key, run in runs_of(uri, EXPERIMENT).items() if left[key] == "KILLED"}
    done = snakemake(folder)
    assert done.returncode == 0, done.output
    after = runs_of(uri, EXPERIMENT)
    assert set(states(uri).values()) == {"FINISHED"}
    assert {key: after[key].info.run_id for key in killed} == killed
    assert deleted(uri) == []
    assert tracking.store_uri(folder) == uri or os.environ.get("MLFLOW_TRACKING_URI")
