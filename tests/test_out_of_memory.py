"""Out of memory on a GPU or a CPU: one sentence, nothing is lost or marked as failed, and on with more room."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from faults import drawn, features_spec, paths, training, untrained

from crnet.cli import main
from crnet.cost import memory
from crnet.encoders.frozen import FrozenEncoder
from crnet.methods.crnet import CRNet
from crnet.runtime.checkpoint import load_json, load_state
from crnet.runtime.files import canonical
from crnet.runtime.limits import NONE
from crnet.training.loop import train

GIB = 2**30
# As torch 2.9 says it.
CUDA = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 23.65 GiB of which 1.19 GiB is "
    "free. Process 3121 has 22.45 GiB memory in use. Of the allocated memory 21.10 GiB is allocated by PyTorch, and "
    "918.38 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
MEASURED = "this job held up to 21.5 GiB and 2.25 GiB more was asked for, and NVIDIA L4 has 23.6 GiB, of which 1.19 GiB"
# Runs a command with as much more address space as is said than a process has that imported all it needs.
LIMITED = """
import resource, sys
import crnet.evaluation.evaluate, crnet.encoders.features, crnet.training.loop, crnet.evaluation.trials
from crnet.cli import main
more = int(sys.argv.pop(1))
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
main()
"""


@pytest.fixture
def gpu(monkeypatch):
    """What a GPU's driver and torch's counters would say."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    about = SimpleNamespace(name="NVIDIA L4", total_memory=int(23.65 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: int(21.5 * GIB))


def exhausted_after(calls: int, function):
    """``function``, which meets a full GPU after so many calls."""
    left = [calls]

    def call(*arguments, **options):
        if not left[0]:
            raise torch.OutOfMemoryError(CUDA)
        left[0] -= 1
        return function(*arguments, **options)

    return call


def run(command: list[str], monkeypatch, capsys) -> str:
    """The command in this process; returns its one sentence."""
    monkeypatch.setattr(sys, "argv", ["crnet", *command])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("crnet: ")]
    assert len(said) == 1
    return said[0]


def evaluate(spec: dict, files: list[str]) -> list[str]:
    return ["job", "evaluate", "--spec", canonical(spec), *files]


@pytest.fixture
def evaluated(tiny, tmp_path) -> list[str]:
    files = {"data": tiny.data, "encoder": tiny.encoder, "state": tmp_path / "e.json", "out": tmp_path / "e"}
    files |= {"weights": untrained(tiny, tmp_path), "episodes": drawn(tiny, tmp_path, 40, 1)}
    return [f"--{name}={path}" for name, path in files.items()]


class TestGpu:
    def test_a_training_keeps_its_state_and_goes_on(self, tiny, tmp_path, gpu, monkeypatch, capsys):
        spec, where, undisturbed = tiny.training(), paths(tiny, tmp_path), paths(tiny, tmp_path / "undisturbed")
        train(spec, undisturbed, "cpu", 1)
        command = training(spec, where, "--checkpoint-seconds=0")
        whole = CRNet.losses
        monkeypatch.setattr(CRNet, "losses", exhausted_after(7, whole))
        said = run(command, monkeypatch, capsys)
        advice = "lower limits.pairs_at_once, train.batch or train.size or use a larger"
        assert f"the GPU's memory ran out: {MEASURED} was free; {advice}" in said
        assert load_state(where.state)["progress"]["step"] == 7
        assert not (where.out / "failed.json").exists(), "a small GPU is no divergence"
        monkeypatch.setattr(CRNet, "losses", whole)
        train(spec, where, "cpu", 1)
        weights = [w.out / "model.safetensors" for w in (where, undisturbed)]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    def test_an_evaluation_keeps_its_rows(self, tiny, evaluated, tmp_path, gpu, monkeypatch, capsys):
        spec = tiny.evaluation(tiny.training())
        memory.evaluation(spec, NONE, 1, False)  # its one prediction, from which it counts, is none of these
        monkeypatch.setattr(CRNet, "predict", exhausted_after(4, CRNet.predict))
        said = run(evaluate(spec, evaluated), monkeypatch, capsys)
        assert f"{MEASURED} was free; lower limits.pool_gib, limits.pairs_at_once or evaluate.size" in said
        assert len(load_json(tmp_path / "e.json")["rows"]) == 32

    def test_features(self, tiny, tmp_path, gpu, monkeypatch, capsys):
        spec = features_spec(tiny, views="flip")
        monkeypatch.setattr(FrozenEncoder, "__call__", exhausted_after(2, FrozenEncoder.__call__))
        files = {"data": tiny.data, "encoder": tiny.encoder, "out": tmp_path / "f"}
        command = ["job", "features", "--spec", canonical(spec), *(f"--{name}={path}" for name, path in files.items())]
        said = run(command, monkeypatch, capsys)
        assert f"{MEASURED} was free; lower limits.photos_at_once or train.size" in said
        assert load_json(tmp_path / "f/progress.json")["rows"] == [0, 16]

    def test_a_library_that_cannot_say_how_much(self, tiny, evaluated, gpu, monkeypatch, capsys):
        def fail(*_):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

        monkeypatch.setattr(FrozenEncoder, "__call__", fail)
        said = run(evaluate(tiny.evaluation(tiny.training()), evaluated), monkeypatch, capsys)
        assert "held up to 21.5 GiB and more was asked for, and NVIDIA L4 has 23.6 GiB; lower limits.pool_gib" in said

    def test_another_error_stays_what_it_is(self, tiny, evaluated, monkeypatch):
        def fail(*_):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(FrozenEncoder, "__call__", fail)
        command = evaluate(tiny.evaluation(tiny.training()), evaluated)
        monkeypatch.setattr(sys, "argv", ["crnet", *command])
        with pytest.raises(RuntimeError, match="illegal memory access"):
            main()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs to know how much a process has")
class TestCpu:
    """Real: the address space of the process ends."""

    def test_a_training_that_does_not_fit_goes_on_where_it_does(self, tiny, tmp_path):
        spec = tiny.training(model={"width": 256}, train={"batch": 40, "epochs": 2, "base_episodes": 0})
        where = paths(tiny, tmp_path)
        command = training(spec, where)
        done = limited(command, 200 << 20)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("crnet: memory ran out: this job held up to "), done.stderr
        advice = "lower limits.pairs_at_once, train.batch or train.size or run fewer jobs at once"
        assert f"(ulimit -v); {advice}" in done.stderr
        assert not (where.out / "failed.json").exists()
        done = limited(command, 20 << 30)
        assert done.returncode == 0, done.stderr

    def test_an_evaluation_that_does_not_fit(self, tiny, evaluated):
        spec = tiny.evaluation(tiny.training(), size=1024)
        done = limited(evaluate(spec, evaluated), 200 << 20)
        assert done.returncode == 2, done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("crnet: memory ran out: ")]
        assert len(said) == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert " more was asked for, and the machine has " in said[0]
        assert "lower limits.pool_gib, limits.pairs_at_once or evaluate.size" in said[0]

    def test_python_itself(self):
        """Where no torch is: tables, claims, data sets."""
        script = LIMITED.replace("main()\n", "import crnet.cli as c\nc.cli = lambda **_: bytearray(1 << 34)\nmain()\n")
        done = limited([], 64 << 20, script)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("crnet: memory ran out: "), done.stderr
        assert done.stderr.count("\n") == 1


def limited(command: list[str], more: int, script: str = LIMITED) -> subprocess.CompletedProcess:
    limit = [sys.executable, "-c", script, str(more)]
    return subprocess.run([*limit, *command], capture_output=True, text=True, check=False)
