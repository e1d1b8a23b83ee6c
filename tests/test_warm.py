"""The process that holds torch: jobs handed over to it do, say and leave what jobs do on their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest

from crnet import warm
from crnet.runtime.checkpoint import load_state
from crnet.training.loop import Paths

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The environment of jobs that have a server."""
    before = {name: os.environ.get(name) for name in (warm.ADDRESS, "PYTHONPATH")}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), before["PYTHONPATH"] or ""])
    process = warm.start(str(tmp_path_factory.mktemp("warm") / "socket"))
    environment = dict(os.environ)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    wait_for(lambda: Path(environment[warm.ADDRESS].rpartition(os.pathsep)[2]).exists())
    yield process, environment
    process.stdin.close()
    assert process.wait(SECONDS) == 0
    assert not Path(environment[warm.ADDRESS].rpartition(os.pathsep)[2]).exists()


def wait_for(condition) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def children(process: subprocess.Popen) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()


def training(tiny, out: Path, **changes) -> list[str]:
    where = Paths(tiny.data, tiny.encoder, tiny.features, out, out.with_name(f"{out.name}.pt"))
    return [sys.executable, "-m", "crnet", *faults.training(tiny.training(**changes), where)]


def run(command: list[str], environment: dict, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)


def test_the_same_bits_and_words_as_without(tiny, tmp_path, server):
    alone = {name: value for name, value in server[1].items() if name != warm.ADDRESS}
    done = [run(training(tiny, tmp_path / name), environment) for name, environment in (("a", server[1]), ("b", alone))]
    assert [d.returncode for d in done] == [0, 0], done[0].stderr
    assert done[0].stdout.count("epoch") == done[1].stdout.count("epoch") == 2
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_relative_path_an_error_and_its_status(server, tmp_path):
    spec = '{"name": "none"}'
    job = [sys.executable, "-m", "crnet", "job"]
    done = run([*job, "encoder", "--spec", spec, "--archives", "x", "--out", "y"], server[1])
    assert done.returncode == 2
    assert done.stderr.startswith("crnet: encoder: unknown encoder 'none'; known: ")
    done = run([*job, "train", "--spec", "{"], server[1], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: crnet job train")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
def test_preempted_and_killed(tiny, tmp_path, server):
    process, environment = server
    command = training(tiny, tmp_path / "run", train={"epochs": 500})
    for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as face:
            assert "epoch" in "".join(face.stdout.readline() for _ in range(2))
            assert len(children(process)) == 1, "the job is the server's child"
            started = time.monotonic()
            face.send_signal(number)
            assert face.wait(SECONDS) == status
            wait_for(lambda: not children(process))
            assert time.monotonic() - started < 10
    assert load_state(tmp_path / "run.pt")["progress"]["step"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
def test_a_job_that_the_system_kills_is_reported(tiny, tmp_path, server):
    process, environment = server
    command = training(tiny, tmp_path / "run", train={"epochs": 500})
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as face:
        face.stdout.readline()
        os.kill(int(children(process)[0]), signal.SIGKILL)
        assert face.wait(SECONDS) == warm.LOST


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment")
def test_an_environment_reached_by_a_link_is_the_same(server, tmp_path):
    (tmp_path / "link").symlink_to(sys.prefix)
    code = "import sys; from crnet import warm; sys.exit(warm.hand_over(['job', 'train', '--spec', '{']) or 0)"
    python = tmp_path / "link/bin" / Path(sys.executable).name
    done = run([python, "-c", code], server[1])
    assert done.returncode == 2, "the server refused the specification"
    assert done.stderr.startswith("Usage: crnet job train")


def test_no_server_or_another_environment_is_no_loss(server, monkeypatch, tmp_path):
    here = server[1][warm.ADDRESS]
    gone = f"{os.path.realpath(sys.prefix)}{os.pathsep}{tmp_path / 'gone'}"
    for address, command in ((here, ["plan"]), (f"/other{here}", ["job", "train"]), (gone, ["job", "train"])):
        monkeypatch.setenv(warm.ADDRESS, address)
        assert warm.hand_over(command) is None
    monkeypatch.delenv(warm.ADDRESS)
    assert warm.hand_over(["job", "train"]) is None


def test_where_no_socket_can_be_it_says_so(tmp_path):
    done = run(
        [sys.executable, "-m", "crnet.warm", str(tmp_path / ("x" * 100))], dict(os.environ), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert "no process is kept warm" in done.stderr and "Traceback" not in done.stderr
