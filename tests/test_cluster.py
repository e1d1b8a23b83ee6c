"""The tiny study through a real SLURM, undisturbed and with its jobs ended in every way that a cluster has.

Slow, and only where a cluster is at hand that may be disturbed: CRNET_CLUSTER=1, or =START, a script that starts one.
The nodes need 2 CPUs each, and a partition `low` whose jobs those of the default one preempt. `make cluster` runs it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import yaml
from chaos import at_work, contents
from snake import ROOT, copy_workflow, environment, snakemake

CLUSTER = os.environ.get("CRNET_CLUSTER", "")
pytestmark = pytest.mark.skipif(not CLUSTER, reason="needs SLURM, and CRNET_CLUSTER to say that it may be disturbed")
SECONDS = 3600
STUDY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text(encoding="utf-8"))
# Few trainings, of many epochs: SLURM looks at time limits and lost nodes once in a while only.
LONG = STUDY | {
    "tables": ["table4"],
    "train": STUDY["train"] | {"epochs": 120},
    "benchmarks": {"k-shot": STUDY["benchmarks"]["k-shot"]},
    "sheet": None,
    "probe": None,
}
# Read by every Python where it is on the path. Each save of a state takes its time, and no CPU: a training saves after
# each epoch, so that it is met at work on an idle machine too.
SLOWLY = """
import os, time
rename = os.replace

def slow(source, target, **options):
    rename(source, target, **options)
    if "work/state/" in str(target) and str(target).endswith(".pt"):
        time.sleep(2)

os.replace = slow
"""


def slurm(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", autouse=True)
def cluster():
    if CLUSTER != "1":
        subprocess.run([CLUSTER], check=True)
    assert shutil.which("sbatch"), "CRNET_CLUSTER is set, and there is no SLURM here"
    assert "low" in slurm("sinfo", "-ho", "%R")


def folder_of(study: dict, folder: Path) -> Path:
    copy_workflow(folder)
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    return folder


class Study:
    """A study under way through SLURM."""

    def __init__(self, folder: Path, *options: str, path: Path | None = None):
        self.folder, self.log = folder, folder / "said.txt"
        command = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", "--cores", "2",
                   "--latency-wait", "20", *options, "--configfile", "study.yaml"]  # fmt: skip
        variables = environment()
        if path is not None:
            variables["PYTHONPATH"] = f"{path}{os.pathsep}{variables['PYTHONPATH']}"
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def job(self, rule: str, but: Collection[tuple[str, str]] = ()) -> tuple[str, str]:
        """Wait until a job of a rule is at work, as its state or log shows, none of those in ``but``.

        Returns:
            Its number, and how often it was requeued.
        """
        deadline, seen = time.monotonic() + SECONDS, {}
        written = "work/state/*.pt" if rule == "train" else f"logs/{rule}/*.log"
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said[-3000:]
            for line in slurm("squeue", "-hO", "JobID:20,RestartCnt:10,State:20,Comment:200").splitlines():
                number, again, state, comment = line.split(maxsplit=3)
                if state == "RUNNING" and (number, again) not in but and re.match(rf"(rule|group)_{rule}\b", comment):
                    # The jobs before it had half a minute to end, or are thought to have: what is written now is its.
                    begun = seen.setdefault((number, again), time.time())
                    if any(path.stat().st_mtime > begun for path in self.folder.glob(written)):
                        return number, again
            time.sleep(0.2)
        raise AssertionError(f"no job of {rule} came:\n{self.log.read_text(encoding='utf-8')[-3000:]}")

    def finish(self) -> None:
        assert self.process.wait(SECONDS) == 0, self.said[-3000:]

    def end(self) -> None:
        """Told to end, Snakemake waits for the jobs that run: they are cancelled."""
        if self.process.poll() is None:
            self.process.terminate()
            slurm("scancel", "--me", "--name", re.search(r"SLURM run ID: (\S+)", self.said)[1])
            self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[dict], Path]:
    """Where a study has been run on this machine alone."""
    known: dict[str, Path] = {}

    def run(study: dict) -> Path:
        if (key := yaml.safe_dump(study)) not in known:
            folder = known[key] = folder_of(study, tmp_path_factory.mktemp("alone"))
            done = snakemake(folder)
            assert done.returncode == 0, done.output
        return known[key]

    return run


def results(folder: Path) -> dict[str, str]:
    """Files of results, data, features, weights -> digests, without times; a state that is left shows as one more."""
    wanted = ("out/", "work/data/", "work/encoders/", "work/features/", "work/train/", "work/state/")
    return {name: digest for name, digest in contents(folder).items() if name.startswith(wanted)}


def test_the_study_has_the_same_bytes_as_alone(tmp_path, alone):
    study = Study(folder_of(STUDY, tmp_path / "study"))
    study.finish()
    assert results(study.folder) == results(alone(STUDY))
    submitted = re.findall(r"submitted with SLURM jobid \d+ \(log: .*slurm_logs/((?:group|rule)_\w+)", study.said)
    assert len(submitted) < 16, f"the many short jobs go together: {submitted}"


def cancel(number: str) -> None:
    slurm("scancel", number)


def time_out(number: str) -> None:
    """As where less was asked for than the job needs."""
    slurm("scontrol", "update", f"JobId={number}", "TimeLimit=0:01")


def preempt(number: str) -> None:
    """A job of the better partition takes the node for a while."""
    slurm("sbatch", "-p", default_partition(), "-w", node_of(number), "-c2", "-t1", "-o/dev/null", "--wrap", "sleep 20")


def requeue(number: str) -> None:
    slurm("scontrol", "update", f"JobId={number}", "Requeue=1")  # it was submitted as one that is not to be
    slurm("scontrol", "requeue", number)


def lose(number: str) -> None:
    """The node's daemon is killed and its job is not: two copies of the job are at work when it has begun elsewhere."""
    node = node_of(number)
    os.kill(daemon(node), signal.SIGKILL)
    LOST.append(node)


LOST: list[str] = []
# A requeued job is one that SLURM brings back when its node dies too: that fault comes last.
FAULTS = [("train", cancel), ("train", time_out), ("train", preempt), ("train", lose), ("train", requeue),
          ("evaluate", cancel), ("evaluate", preempt)]  # fmt: skip
# How SLURM records it. A preempted job leaves within its grace, by itself.
ENDS = {cancel: "CANCELLED", time_out: "TIMEOUT", preempt: "FAILED", lose: "NODE_FAIL", requeue: "REQUEUED"}


def default_partition() -> str:
    return next(name[:-1] for name in slurm("sinfo", "-ho", "%P").split() if name.endswith("*"))


def node_of(number: str) -> str:
    return slurm("squeue", "-hj", number, "-o", "%N").strip()


def daemon(node: str) -> int:
    """The process of a node's slurmd, where the nodes are this machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended
            words = file.read_bytes().split(b"\0")
            if words[0].endswith(b"slurmd") and node.encode() in words:
                return int(file.parent.name)
    raise AssertionError(f"no slurmd of {node} runs here")


def test_ended_in_every_way_the_jobs_go_on_by_themselves(tmp_path, alone):
    low = ("--retries", "9", "--default-resources", "slurm_partition=low", "runtime=60", "mem_mb=2000")
    folder = folder_of(LONG, tmp_path / "study")
    for made in ("work/data", "work/encoders", "work/features", "work/feasible", "out/tiny/episodes"):
        shutil.copytree(alone(LONG) / made, folder / made)  # what takes no trainings
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOWLY, encoding="utf-8")
    study, hit = Study(folder, *low, path=tmp_path / "slow"), {}
    try:
        for rule, fault in FAULTS:
            number, again = study.job(rule, hit)
            hit[number, again] = fault
            fault(number)
            print(f"{time.strftime('%X')} {fault.__name__} {rule}: SLURM job {number}", flush=True)
        study.finish()
    finally:
        for node in LOST:
            subprocess.run(["slurmd", "-N", node], check=True)
        study.end()
    for (number, again), fault in hit.items():
        rows = slurm("sacct", "-XnDj", number, "-o", "state%20,elapsed,nodelist").splitlines()
        print(f"{fault.__name__}: SLURM job {number}: {rows[int(again)]}")
        assert rows[int(again)].split()[0] == ENDS[fault]
    assert not at_work(study.folder), "processes of jobs that were ended are left"
    assert results(study.folder) == results(alone(LONG))
