"""Killed and preempted at random moments, every long job goes on and ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from faults import drawn, encode, features_spec, paths, training, untrained

from crnet.cli import cli
from crnet.config import tuning
from crnet.config.defaults import FINETUNE, FINETUNE_LIMITS
from crnet.config.settings import check
from crnet.encoders.features import write_store
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError
from crnet.runtime.checkpoint import load_json, load_state, remove_state, save_json, written_by
from crnet.runtime.files import canonical, read_csv, read_json
from crnet.runtime.ownership import SUFFIX, Owner
from crnet.runtime.preemption import Notice, Preempted
from crnet.runtime.saved_rows import SavedRows
from crnet.training import base_classes
from crnet.training.loop import train

# A job as it is, but it saves after every piece and takes its time, so that a random moment meets it at work.
SLOWLY = """
import time
from crnet.encoders import pretrain
from crnet.runtime import saved_rows
from crnet.cli import main

def slow(piece):
    def run(*arguments):
        time.sleep(0.02)
        return piece(*arguments)
    return run

saved_rows.SAVE_SECONDS = pretrain.SAVE_SECONDS = 0.05
saved_rows.SavedRows.add = slow(saved_rows.SavedRows.add)
pretrain._step = slow(pretrain._step)
main()
"""


@dataclass
class Job:
    """One command, what it writes besides provenance, and where its state lies."""

    command: list
    files: tuple[str, ...]
    state: str

    def start(self, folder: Path, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", SLOWLY, *self.arguments(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def arguments(self, folder: Path) -> list[str]:
        return [str(part).replace("{folder}", str(folder)) for part in self.command]

    def contents(self, folder: Path) -> list[bytes]:
        return [(folder / name).read_bytes() for name in self.files]


class Moments:
    """Random moments of a job at work, by a seed that a failure prints."""

    def __init__(self):
        self.seed = int.from_bytes(os.urandom(4))
        self._random = random.Random(self.seed)

    def wait(self, process: subprocess.Popen, state: Path) -> None:
        """Until up to half a second after the state was written anew."""
        before = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if state.exists() and state.stat().st_mtime_ns != before:
                break
            time.sleep(0.005)
        time.sleep(self.of(0.5))
        assert process.poll() is None, f"finished before its moment came, seed {self.seed}"

    def of(self, seconds: float) -> float:
        return self._random.uniform(0, seconds)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory) -> dict[str, Path]:
    """Weights and episodes to evaluate."""
    folder = tmp_path_factory.mktemp("made")
    return {"weights": untrained(tiny, folder), "episodes": drawn(tiny, folder, 100, 2)}


def features(tiny, made) -> Job:
    spec = canonical(features_spec(tiny))
    command = ["job", "features", "--spec", spec, "--data", tiny.data, "--encoder", tiny.encoder, "--out", "{folder}"]
    return Job(command, ("map0.npy", "map1.npy", "features.json"), "progress.json")


def pretraining(tiny, made) -> Job:
    settings = {"steps": 60, "batch": 2, "size": 32, "images": 6}
    spec = canonical({"name": "small", "layers": ["layer3"], **settings})
    command = ["job", "encoder", "--spec", spec, "--archives", "{folder}", "--out", "{folder}/small.safetensors"]
    return Job(command, ("small.safetensors",), "small.state")


def evaluation(tiny, made) -> Job:
    spec = tiny.evaluation(tiny.training(), shots=2, scales=[0.75, 1.0])
    return _scoring("evaluate", spec, tiny, made, "--episodes", made["episodes"], file="counts.csv")


def trials(tiny, made) -> Job:
    settings = {"optimizer": "adamw", "lr": [1e-3, 4e-3], "steps": [1, 2], "trial_episodes": 20, "trial_shots": 2}
    spec = tiny.evaluation(tiny.training(), shots=2, strategy="finetune")
    how = check({**settings, "batch": 2}, FINETUNE, FINETUNE_LIMITS, "test")
    spec = tuning.own_trials(tuning.choice_spec(spec | {"finetune": tuning.with_folds(how, 0, [0, 1])}))
    return _scoring("trials", spec, tiny, made, file="trials.csv")


def _scoring(name, spec, tiny, made, *options, file) -> Job:
    command = ["job", name, "--spec", canonical(spec), "--data", tiny.data, "--encoder", tiny.encoder, "--weights",
               made["weights"], "--state", "{folder}/state.json", "--out", "{folder}/out"]  # fmt: skip
    return Job([*command, *options], (f"out/{file}",), "state.json")


@pytest.mark.parametrize("kind", [features, pretraining, evaluation, trials])
def test_killed_and_preempted_it_ends_with_the_same_bytes(tiny, made, tmp_path, kind: Callable[..., Job]):
    job, moments = kind(tiny, made), Moments()
    cli(job.arguments(tmp_path / "undisturbed"), standalone_mode=False)
    folder = tmp_path / "disturbed"
    with job.start(folder) as process:
        moments.wait(process, folder / job.state)
        process.kill()
        process.communicate()
    with job.start(folder) as process:
        moments.wait(process, folder / job.state)
        told = time.monotonic()
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - told < 10, f"seed {moments.seed}"
    assert process.returncode == 143, errors
    notice = errors[errors.index("crnet: stopped by SIGTERM ") :]
    assert str(folder / job.state) in notice.splitlines()[0]
    assert "Traceback" not in errors
    assert not (folder / job.files[-1]).exists()
    with job.start(folder) as process:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
    assert "going on " in output, f"seed {moments.seed}: {output}"
    assert job.contents(folder) == job.contents(tmp_path / "undisturbed"), f"seed {moments.seed}"
    left = {path.relative_to(folder) for path in folder.rglob("*")}
    assert left == {path.relative_to(tmp_path / "undisturbed") for path in (tmp_path / "undisturbed").rglob("*")}


@pytest.mark.parametrize("kind", [features, pretraining, evaluation, trials])
def test_of_two_copies_the_later_one_goes_on_and_the_earlier_leaves_in_one_sentence(
    tiny, made, tmp_path, kind: Callable[..., Job]
):
    """As where a node that was thought dead is still at work."""
    job, moments = kind(tiny, made), Moments()
    cli(job.arguments(tmp_path / "alone"), standalone_mode=False)
    folder = tmp_path / "both"
    with job.start(folder) as earlier:
        moments.wait(earlier, folder / job.state)
        earlier.send_signal(signal.SIGSTOP)
        owner = Path(f"{folder / job.state}{SUFFIX}")
        name = owner.read_text(encoding="utf-8")
        with job.start(folder) as later:
            while later.poll() is None and owner.exists() and owner.read_text(encoding="utf-8") == name:
                time.sleep(0.01)
            earlier.send_signal(signal.SIGCONT)
            said = [each.communicate(timeout=120)[1] for each in (earlier, later)]
    assert (earlier.returncode, later.returncode) == (2, 0), f"seed {moments.seed}: {said}"
    sentence = said[0].strip().splitlines()[-1]
    assert sentence.startswith(f"crnet: {folder / job.state}: another copy of this job has ")
    assert sentence.endswith("; this one leaves, and has changed nothing since.")
    assert job.contents(folder) == job.contents(tmp_path / "alone"), f"seed {moments.seed}"
    left = {path.relative_to(folder) for path in folder.rglob("*")}
    assert left == {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*")}


def test_a_write_beside_a_copy_that_has_finished_is_told_as_that(tmp_path):
    state, told = tmp_path / "run.pt", "another copy of this job has finished"
    owner = Owner(state)

    def fail(other_finishes: bool) -> None:
        if other_finishes:
            remove_state(state)
        raise CrnetError("no room")

    def write() -> None:
        remove_state(state)
        state.write_text("an older one")

    owner.take()
    with pytest.raises(CrnetError, match="no room"), written_by(owner):
        fail(False)
    with pytest.raises(CrnetError, match=told), written_by(owner):
        fail(True)
    owner.take()
    with pytest.raises(CrnetError, match=told), written_by(owner):
        write()
    assert not list(tmp_path.iterdir())


def test_a_store_of_another_size_is_begun_anew(tiny, tmp_path):
    """What a killed run left is of no use to other settings, and a finished store is not taken for the new one."""
    out = tmp_path / "features"
    encode(tiny, out, size=48)
    finished = out / "features.json"

    class Once(FrozenEncoder):
        def __call__(self, *arguments):
            assert not finished.exists(), "a store under way says that it is whole"
            if (out / "map0.npy").stat().st_size == (tiny.features / "map0.npy").stat().st_size:
                raise KeyboardInterrupt
            return super().__call__(*arguments)

    once = Once(tiny.training()["encoder"], tiny.encoder, torch.device("cpu"), "float32")
    with pytest.raises(KeyboardInterrupt):
        write_store(features_spec(tiny), tiny.data, once, out)
    assert load_json(out / "progress.json")["rows"] == [0]
    save_json(out / "progress.json", {**load_json(out / "progress.json"), "identity": "other"})
    encode(tiny, out)
    for name in ("map0.npy", "map1.npy", "features.json"):
        assert (out / name).read_bytes() == (tiny.features / name).read_bytes()


class TestTraining:
    def test_preempted_while_it_scores_an_epoch_keeps_the_epochs_row(self, tiny, tmp_path, monkeypatch):
        spec = tiny.training(train={"base_episodes": 12})
        undisturbed = paths(tiny, tmp_path / "undisturbed")
        train(spec, undisturbed, "cpu", 1)
        counted = base_classes.fg_counts

        def at_its_first(*masks):
            os.kill(os.getpid(), signal.SIGTERM)
            monkeypatch.setattr(base_classes, "fg_counts", counted)
            return counted(*masks)

        monkeypatch.setattr(base_classes, "fg_counts", at_its_first)
        where = paths(tiny, tmp_path / "preempted")
        with pytest.raises(Preempted, match="stopped by SIGTERM after step 10"):
            train(spec, where, "cpu", 1)
        assert load_state(where.state)["progress"]["log"] == []
        train(spec, where, "cpu", 1)
        weights = [(w.out / "model.safetensors").read_bytes() for w in (undisturbed, where)]
        assert weights[0] == weights[1]
        same = ("epoch", "step", "loss", "base_miou")
        rows = [[[row[key] for key in same] for row in read_csv(w.out / "log.csv")] for w in (undisturbed, where)]
        assert rows[0] == rows[1]

    def test_of_two_copies_the_later_one_goes_on(self, tiny, tmp_path):
        """The earlier one stands still, as on a node that is thought dead, until the other has finished."""
        where = {name: paths(tiny, tmp_path / name) for name in ("alone", "both")}
        spec = tiny.training(train={"epochs": 12, "base_episodes": 1})  # long enough to be met at work
        train(spec, where["alone"], "cpu", 1)
        command = training(spec, where["both"], "--checkpoint-seconds=0")
        moments = Moments()
        with Job(command, (), "").start(tmp_path) as earlier:
            moments.wait(earlier, where["both"].state)
            earlier.send_signal(signal.SIGSTOP)
            train(spec, where["both"], "cpu", 1)
            finished = {path: path.stat().st_mtime_ns for path in where["both"].out.iterdir()}
            earlier.send_signal(signal.SIGCONT)
            errors = earlier.communicate(timeout=60)[1]
        assert earlier.returncode == 2, errors
        assert "another copy of this job has finished" in errors
        assert {path: path.stat().st_mtime_ns for path in where["both"].out.iterdir()} == finished
        weights = [(w.out / "model.safetensors").read_bytes() for w in where.values()]
        assert weights[0] == weights[1]
        assert not list((tmp_path / "both").glob("run.pt*"))

    def test_a_notice_to_all_its_processes_ends_it_as_one_to_itself(self, tiny, tmp_path):
        """A scheduler's SIGTERM reaches the photo loaders too."""
        how = {"features": "live", "views": "flip", "augment": "both", "epochs": 500, "base_episodes": 0}
        where = paths(tiny, tmp_path, features=None)
        command = training(tiny.training(train=how), where, "--workers=2", "--checkpoint-seconds=0")
        moments = Moments()
        with Job(command, (), "run.pt").start(tmp_path, start_new_session=True) as process:
            try:
                moments.wait(process, where.state)
                told = time.monotonic()
                os.killpg(process.pid, signal.SIGTERM)
                _, errors = process.communicate(timeout=30)
                assert time.monotonic() - told < 10, f"seed {moments.seed}"
            finally:
                process.kill()
        assert process.returncode == 143, errors
        assert "the state is in" in errors
        assert "Traceback" not in errors


class TestNotice:
    def test_a_notice_that_met_code_which_may_not_raise_is_seen_at_the_next_row(self, tmp_path):
        class Deaf:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # what is raised here, Python prints and drops

        def work() -> None:
            with SavedRows(tmp_path / "rows.json", "x", "rows") as done:
                Deaf()
                done.add(1)

        with pytest.raises(Preempted, match=r"with 1 of its rows done; they are in .*rows\.json"):
            work()
        assert load_json(tmp_path / "rows.json")["rows"] == [1]

    def test_a_second_notice_does_not_cut_the_saving(self):
        with Notice(interrupt=True) as notice:
            with pytest.raises(Preempted):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert notice.given

    def test_sigterm_is_as_before_afterwards(self):
        before = signal.getsignal(signal.SIGTERM)
        with Notice():
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before

    def test_rows_of_a_go_that_is_not_whole_are_made_again(self, tmp_path):
        identity = SavedRows(None, "x", "rows").identity
        save_json(tmp_path / "a.json", {"identity": identity, "rows": [1] * 7, "seconds": 1})
        assert len(SavedRows(tmp_path / "a.json", "x", "rows", together=3).rows) == 6
        assert SavedRows(tmp_path / "a.json", "y", "rows").rows == []


def test_a_preparation_killed_at_random_moments_ends_with_the_same_bytes(tiny, tmp_path):
    spec, moments = canonical({**tiny.dataset, "images_train": 300}), Moments()
    command = ["job", "prepare", "--spec", spec,
               "--archives", "{folder}/a", "--extracted", "{folder}/x", "--out", "{folder}/d"]  # fmt: skip
    job = Job(command, ("d/dataset.json", "d/images.csv", "d/pairs.csv"), "")
    started = time.monotonic()
    with job.start(tmp_path / "undisturbed") as process:
        assert process.wait() == 0
    took, folder = time.monotonic() - started, tmp_path / "disturbed"
    for _ in range(3):
        with job.start(folder) as process:
            time.sleep(moments.of(took))
            process.kill()
            process.communicate()
    with job.start(folder) as process:
        assert process.wait() == 0, process.stderr.read()
    trees = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")}
        for root in (folder, tmp_path / "undisturbed")
    ]
    assert trees[0] == trees[1], f"seed {moments.seed}"
    assert read_json(folder / "d/dataset.json")["name"]
