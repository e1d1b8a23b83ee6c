"""Several GPUs in one machine: each job takes one, before torch is loaded. Pretended devices."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.profiles import ProfileConfigFileParser

from crnet.runtime import gpu_lease
from crnet.runtime.gpu_lease import VISIBLE

ROOT = Path(__file__).resolve().parents[1]
FOUR = "".join(f"GPU {i}: NVIDIA A100-SXM4-40GB (UUID: GPU-{i}{i}{i}{i}-aa)\n" for i in range(4))
SPLIT = (
    "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0000-aa)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-1111-bb)\n"
    "  MIG 3g.20gb     Device  1: (UUID: MIG-2222-bb)\n"
    "GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-3333-aa)\n"
)
# A job: what its options leave visible, said before anything imports torch, and then the end when it is told to.
JOB = """
import json, os, sys
import click
from crnet.jobs import device_option

@click.command()
@device_option
def job(device):
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    print(json.dumps([seen, "torch" in sys.modules]), flush=True)
    sys.stdin.read()

job()
"""


@pytest.fixture
def machine(tmp_path):
    """Makes the environment of a machine whose ``nvidia-smi -L`` says ``listed``."""

    def make(listed: str, **variables: str) -> dict[str, str]:
        program = tmp_path / "bin/nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
        program.chmod(0o755)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        clean = {k: v for k, v in os.environ.items() if k != VISIBLE and not k.startswith("SLURM_")}
        path = f"{program.parent}{os.pathsep}{clean['PATH']}"
        return clean | {"PATH": path, "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)} | variables

    return make


class Jobs:
    """Jobs that run side by side until they are ended."""

    def __init__(self):
        self.running: list[subprocess.Popen] = []

    def start(self, environment: dict[str, str], device: str = "cuda") -> str | None:
        """Start one; returns what it sees."""
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, "--device", device],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(job)
        seen, torch_is_there = json.loads(job.stdout.readline())
        assert not torch_is_there
        return seen

    def end(self, number: int, how: signal.Signals = signal.SIGKILL) -> None:
        job = self.running.pop(number)
        job.send_signal(how)
        job.communicate(timeout=30)


@pytest.fixture
def jobs():
    side_by_side = Jobs()
    yield side_by_side
    while side_by_side.running:
        side_by_side.end(0)


def test_four_jobs_at_once_have_four_devices(machine, jobs):
    here = machine(FOUR)
    assert [jobs.start(here) for _ in range(4)] == [f"GPU-{i}{i}{i}{i}-aa" for i in range(4)]


@pytest.mark.parametrize("preset", ["2,3", "GPU-77,GPU-88", " MIG-a/1/0 , MIG-b "])
def test_a_preset_list_is_parted_as_it_stands(machine, jobs, preset):
    here = machine(FOUR, **{VISIBLE: preset})
    first, second = (entry.strip() for entry in preset.split(","))
    assert [jobs.start(here) for _ in range(2)] == [first, second]


def test_a_killed_job_gives_its_device_back(machine, jobs):
    here = machine(FOUR)
    seen = [jobs.start(here) for _ in range(4)]
    jobs.end(2)
    assert jobs.start(here) == seen[2]


def test_more_jobs_than_devices_share_them_evenly(machine, jobs):
    here = machine("", **{VISIBLE: "0,1"})
    assert [jobs.start(here) for _ in range(5)] == ["0", "1", "0", "1", "0"]
    jobs.end(1)
    jobs.end(2)  # both of device 1
    assert [jobs.start(here) for _ in range(2)] == ["1", "1"]


@pytest.mark.parametrize("given", ["1", "GPU-77", "MIG-a/1/0", "", "-1", "3,-1,2"])
def test_what_leaves_no_choice_stays_as_it_is(machine, jobs, given):
    """One device, as SLURM gives it; none; and a list that CUDA reads up to its first entry that is no device."""
    here = machine(FOUR, **{VISIBLE: given})
    assert [jobs.start(here) for _ in range(2)] == [given, given]


def test_a_job_on_the_cpu_takes_none(machine, jobs):
    assert jobs.start(machine(FOUR), device="cpu") is None


def test_the_devices_of_two_allocations_are_not_mixed_up(machine, jobs):
    """Both call their two devices 0 and 1; what one holds says nothing of the other."""
    one, other = (machine("", **{VISIBLE: "0,1", "SLURM_JOB_ID": number}) for number in "12")
    assert [jobs.start(each) for each in (one, other, one, other)] == ["0", "0", "1", "1"]


def test_parts_of_a_split_card_stand_for_it(machine, monkeypatch):
    for name, value in machine(SPLIT).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(VISIBLE, raising=False)
    assert gpu_lease.visible() == ["MIG-1111-bb", "MIG-2222-bb", "GPU-3333-aa"]


def test_a_machine_without_the_driver_has_none(machine, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert gpu_lease.visible() == []
    program = Path(machine("")["PATH"].split(os.pathsep)[0]) / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    monkeypatch.setenv("PATH", str(program.parent))
    assert gpu_lease.visible() == []


@pytest.mark.parametrize(("preset", "count"), [("2,3", 2), ("GPU-77", 1), ("MIG-a/1/0,MIG-b/1/0,MIG-c/1/0", 3)])
def test_the_profile_lets_as_many_jobs_run_as_there_are_devices(preset, count, monkeypatch):
    monkeypatch.setenv(VISIBLE, preset)
    with open(ROOT / "profiles/default/profile.yaml", encoding="utf-8") as profile:
        assert ProfileConfigFileParser().parse(profile)["resources"] == [f"gpu={count}"]
