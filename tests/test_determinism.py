"""What does not change a single bit on one CPU: job order, processes side by side, order of episodes, saved states."""

import subprocess
import sys
from pathlib import Path

import faults
import pytest
import torch
from faults import encode, paths, training, untrained

from crnet.data import episodes
from crnet.data.index import Index
from crnet.evaluation.evaluate import _row
from crnet.evaluation.predict import Predictor
from crnet.runtime.limits import PAIRS_TOGETHER

LIVE = {"features": "live", "views": "flip", "augment": "both", "epochs": 1, "epoch_episodes": 8}


def trained(tiny, folder: Path, spec: dict, threads: int = 1, **options) -> bytes:
    return (faults.trained(tiny, folder, spec, threads, **options) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_order_of_trainings_and_processes_side_by_side(tiny, tmp_path, precision):
    """One after the other here, in either order; and both at once in processes of their own."""
    specs = [tiny.training(seed=seed, train={"precision": precision, "epochs": 1}) for seed in (0, 1)]
    forward = [trained(tiny, tmp_path / f"a{i}", spec) for i, spec in enumerate(specs)]
    backward = [trained(tiny, tmp_path / f"b{i}", specs[i]) for i in (1, 0)][::-1]
    jobs = []
    for i, spec in enumerate(specs):
        where = paths(tiny, tmp_path / f"c{i}")
        command = [sys.executable, "-m", "crnet", *training(spec, where)]
        jobs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    beside = [(tmp_path / f"c{i}/run/model.safetensors").read_bytes() for i in (0, 1)]
    assert forward == backward == beside
    assert forward[0] != forward[1]


@pytest.mark.parametrize("train", [{}, LIVE], ids=["cached", "live"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_number_of_threads_again(tiny, tmp_path, train, threads):
    """Another number of threads is another order of sums: that gives other bits, and is no part of the promise."""
    spec = tiny.training(train={"epochs": 1, **train})
    assert trained(tiny, tmp_path / "a", spec, threads) == trained(tiny, tmp_path / "b", spec, threads)


def test_saving_after_every_step_changes_nothing(tiny, tmp_path):
    spec = tiny.training(train={"epochs": 1})
    seldom = trained(tiny, tmp_path / "seldom", spec, checkpoint_seconds=1000.0)
    assert trained(tiny, tmp_path / "often", spec, checkpoint_seconds=0.0) == seldom


def test_features_again(tiny, tmp_path):
    encode(tiny, tmp_path)
    made = sorted(path.name for path in tiny.features.glob("map*.npy"))
    assert len(made) == 2
    for name in made:
        assert (tmp_path / name).read_bytes() == (tiny.features / name).read_bytes()


@pytest.fixture(scope="module")
def predictor(tiny, tmp_path_factory):
    """Makes a new predictor, which has encoded nothing yet, of an untrained network."""
    spec = tiny.evaluation(tiny.training(), shots=2, scales=[0.75, 1.0])
    weights = untrained(tiny, tmp_path_factory.mktemp("weights"))
    return lambda: Predictor(spec, tiny.data, tiny.encoder, weights, "cpu")


def test_order_of_episodes(tiny, predictor):
    """Other neighbours in a batch, batches of the same size: the same counts."""
    index = Index.load(tiny.data)
    table = episodes.draw(index, 0, 5 * PAIRS_TOGETHER, [0], 2, "leave out").episodes
    torch.set_num_threads(1)

    def counts(order) -> dict[int, dict]:
        return {p.episode.number: _row(p, index) for p in predictor().fused(list(order))}

    first = counts(table)
    assert len({tuple(row["query"]) for row in first.values()}) > PAIRS_TOGETHER
    assert counts(table[::-1]) == counts([*table[1::2], *table[::2]]) == first
