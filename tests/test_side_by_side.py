"""Two at once: in one folder, in two clones that share archives, in two clones that share the work folder."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import chaos_study
import pytest
import yaml
from chaos_study import make_archives, served

from crnet.config.yaml_files import load_yaml
from crnet.data.archives.extract import STAMP
from crnet.data.sets.pascal5i import ARCHIVES
from crnet.runtime.files import sha256_file

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("base", "full")
GENERATED = {"name": "shapes5i", "images_train": 40, "images_val": 60, "size": 64, "rule_grid": 8}
STUDY = {
    "study": "pair",
    "title": "Two at once",
    "caption": "A test on a handful of generated scenes.",
    "orientation_only": True,
    "tables": ["table3"],
    "benchmarks": {"pascal": {"dataset": GENERATED, "folds": [0], "episodes": {"count": 6, "shots": 1}}},
    "encoders": {"main": {"name": "small", "steps": 4, "images": 16, "size": 48, "batch": 4}},
    "seeds": [0],
    "controls": [],
    "methods": {"crnet": {"width": 8, "gate_width": 4}},
    "train": {
        "size": 64, "batch": 4, "epochs": 2, "epoch_episodes": 8, "features": "cached", "augment": "none",
        "precision": "float32", "base_episodes": 2,
    },
    "evaluate": {"size": 64, "precision": "float32", "refinements": 2},
}  # fmt: skip


def checkout(folder: Path, **changes) -> Path:
    """A clone in which two rows of Table 3 are run."""
    for name in ("workflow", "configs", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder)
    table, claims = load_yaml(folder / "configs/tables/table3.yaml"), load_yaml(folder / "configs/claims.yaml")
    table["rows"] = [row for row in table["rows"] if row["id"] in ROWS]
    known = {("table3", row) for row in ROWS}
    claims["claims"] = [
        claim
        for claim in claims["claims"]
        if {(claim[s]["table"], claim[s]["row"]) for s in ("first", "second")} <= known
    ]
    for path, content in {"configs/tables/table3": table, "configs/claims": claims, "study": STUDY | changes}.items():
        (folder / f"{path}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


class Snakemake:
    """`snakemake` at work in a folder; its output goes to a file, so that no pipe fills."""

    def __init__(self, folder: Path, *arguments: str):
        command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments, "--configfile", "study.yaml"]
        self.log = folder / f"snakemake-{time.monotonic_ns()}.log"
        with open(self.log, "w", encoding="utf-8") as stream:
            self.process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=stream, stderr=stream)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(timeout=400)

    def wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + 120
        while not path.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.02)


def results(folder: Path) -> dict[str, bytes]:
    """What a study's numbers are, by file: counts, episodes, tables, claims."""
    kinds = ("counts.csv", "table3.csv", "table3.md", "claims.csv")
    root = folder / "out/pair"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.name in kinds or path.parent.name == "episodes"
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A clone whose study was run with nobody beside it."""
    folder = checkout(tmp_path_factory.mktemp("alone") / "clone")
    run = Snakemake(folder)
    assert run.wait() == 0, run.output
    assert len(results(folder)) == 7
    return folder


def test_a_second_workflow_on_the_same_files_is_refused_and_the_first_undisturbed(alone, tmp_path):
    shared = {"folders": {"work": str(tmp_path / "shared")}}
    one, other = checkout(tmp_path / "one", **shared), checkout(tmp_path / "other", **shared)
    first = Snakemake(one)
    first.wait_for(tmp_path / "shared/encoders")
    beside, elsewhere = Snakemake(one), Snakemake(other)
    assert beside.wait() != 0
    assert "Directory cannot be locked" in beside.output
    assert elsewhere.wait() != 0
    sentence = f"crnet: another snakemake is at work in {(tmp_path / 'shared').resolve()}: wait for it to end"
    assert sentence in elsewhere.output
    assert "Traceback" not in beside.output + elsewhere.output
    assert first.process.poll() is None, "the first was over too early to show anything"
    assert first.wait() == 0, first.output
    assert results(one) == results(alone)

    weights = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared/train").rglob("*.safetensors")}
    assert len(weights) == 2
    again = Snakemake(other)
    assert again.wait() == 0, again.output
    assert results(other) == results(alone)
    assert weights == {path: path.stat().st_mtime_ns for path in weights}, "trainings are taken over, not made again"


def test_a_killed_workflow_leaves_no_claim(alone, tmp_path):
    """The work folder's lock ends with its holder, whatever ended it."""
    one = checkout(tmp_path / "one")
    first = Snakemake(one)
    first.wait_for(one / "work/.in-use")
    first.process.kill()
    first.process.wait()
    unlock = Snakemake(one, "--unlock")
    assert unlock.wait() == 0, unlock.output
    second = Snakemake(one, "work/feasible/pair.txt")
    assert second.wait() == 0, second.output


@pytest.fixture(scope="module")
def served_archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    make_archives(folder)
    with served(folder) as address:
        yield {name: {"url": address, "checksum": f"sha256:{sha256_file(folder / name)}"} for name in ARCHIVES}


def test_clones_that_share_archives(served_archives, tmp_path, monkeypatch):
    """The second does not download what the first is downloading; started again, it takes what is there."""
    pascal = {
        "dataset": {"name": "pascal5i", "pairs": "rule", "rule_grid": 8},
        "folds": [0],
        "episodes": {"count": 6, "shots": 1, "too_few": "leave out"},
    }
    folders = {"archives": str(tmp_path / "archives")}
    changes = {"archives": served_archives, "folders": folders, "benchmarks": {"pascal": pascal}}
    episodes = "work/feasible/pair.txt"  # all that reads archives; trainings have nothing to do with them
    one, other = checkout(tmp_path / "one", **changes), checkout(tmp_path / "other", **changes)
    monkeypatch.setattr(chaos_study, "BYTES_PER_SECOND", chaos_study.CHUNK_BYTES)  # the first will still be at it
    first = Snakemake(one, episodes)
    first.wait_for(tmp_path / f"archives/{ARCHIVES[0]}.part")
    second = Snakemake(other, episodes)
    assert second.wait() != 0
    monkeypatch.undo()
    assert re.search(r"Another process is downloading \S+: wait for it to end", second.output)
    assert "Traceback" not in second.output
    assert first.wait() == 0, first.output
    again = Snakemake(other, episodes)
    assert again.wait() == 0, again.output
    for kind in ("pairs.csv", "dataset.json"):
        made = [next((folder / "work/data").rglob(kind)).read_bytes() for folder in (one, other)]
        assert made[0] == made[1]
    assert results(one) == results(other) != {}


def runs_in_store(folder: Path) -> set[tuple[str, str, str]]:
    """Experiment, key and state of every run."""
    query = (
        "SELECT experiments.name, tags.value, runs.status FROM runs JOIN experiments USING (experiment_id) "
        "JOIN tags ON tags.run_uuid = runs.run_uuid WHERE tags.key = 'crnet.key'"
    )
    with sqlite3.connect(folder / "mlflow.db") as connection:
        rows = connection.execute(query).fetchall()
    assert len(set(rows)) == len(rows) > 0
    return set(rows)


def test_a_store_that_is_locked_all_the_time_costs_a_warning(alone, tmp_path):
    pytest.importorskip("mlflow")
    folder = tmp_path / "clone"
    shutil.copytree(alone, folder, symlinks=True)
    before, logged = results(folder), runs_in_store(folder)
    for path in (folder / "work/tracked/pair.txt", folder / "out/pair/runs.csv"):
        path.unlink()
    with sqlite3.connect(folder / "mlflow.db") as holder:
        holder.execute("BEGIN EXCLUSIVE")
        run = Snakemake(folder)
        assert run.wait() == 0, run.output
        holder.rollback()
    warnings = [line for line in run.output.splitlines() if line.startswith("warning: the MLflow store")]
    assert len(warnings) == 1
    assert "locked" in warnings[0] and "`crnet track out/pair`" in warnings[0]
    assert results(folder) == before
    assert (folder / "out/pair/runs.csv").is_file()
    (folder / "mlflow.db").unlink()
    track = [sys.executable, "-m", "crnet", "track", "out/pair"]
    for _ in range(2):
        done = subprocess.run(track, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert runs_in_store(folder) == logged


EXTRACT = """
import sys
from pathlib import Path
from crnet.data.archives.archives import extract
print("ready", flush=True)
sys.stdin.readline()
extract(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_two_that_extract_one_archive_into_one_folder(tmp_path):
    make_archives(tmp_path)
    archive, folder = tmp_path / ARCHIVES[0], tmp_path / "shared/extracted"
    with tarfile.open(archive) as source:
        files = {member.name: member.size for member in source.getmembers() if member.isfile()}
    assert len(files) > 1000
    command = [sys.executable, "-c", EXTRACT, str(archive), str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    for job in jobs:
        assert job.stdout.readline() == "ready\n"
    for number, job in enumerate(jobs):
        time.sleep(0.05 * number)  # the first is in the middle of it
        job.stdin.write("go\n")
        job.stdin.flush()
    ends = [(job.communicate(timeout=120)[1], job.returncode) for job in jobs]
    assert [end[1] for end in ends] == [0, 0, 0], ends
    made = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert {name: size for name, size in made.items() if name != STAMP} == files
    assert [path.name for path in folder.parent.iterdir()] == ["extracted"]
