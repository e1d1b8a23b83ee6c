"""Predicted memory against the measured peaks of the committed runs, and the check before a job starts."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from committed import demand, demand_of_runs

from crnet.cost import memory
from crnet.cost.memory import Need, check, free_bytes
from crnet.errors import CrnetError
from crnet.runtime.limits import GIB, Limits

ROOT = Path(__file__).resolve().parents[1]
PAPER, LIMITS = ROOT / "configs/studies/paper.yaml", ROOT / "configs/limits"


pytestmark = pytest.mark.usefixtures("outside_encoder")


@pytest.mark.parametrize("name", ["demo", "photos"])
def test_no_committed_run_took_more_than_predicted_nor_less_than_a_third(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    predicted, rows = demand_of_runs(name, ROOT)
    assert len(rows) > 60
    for job, row in rows.items():
        need, peak = predicted.memory(job), int(row["peak_memory_bytes"])
        own = need.on(row["device"])
        assert own <= 3 * peak, job
        assert peak <= own + need.mapped, job


def test_limits_make_the_papers_study_fit_eight_gigabytes():
    whole, small, laptop = demand(PAPER), *(demand(PAPER, LIMITS / f"{name}.yaml") for name in ("8gb-gpu", "laptop"))
    assert set(whole.specs) == set(small.specs)  # the same runs
    assert max(whole.memory(job).on("cuda") for job in whole.specs) > 8e9
    assert max(small.memory(job).on("cuda") for job in small.specs) < 0.9 * 8e9
    assert max(laptop.memory(job).on("cpu") for job in laptop.specs) < 0.8 * 8e9


@pytest.mark.parametrize("limits", [Limits(pairs_at_once=1), Limits(photos_at_once=1), Limits(pool_gib=0.1)])
def test_each_limit_lowers_what_it_is_for(limits):
    specs = demand(PAPER).specs.items()
    train, finetune = (next(spec for (rule, _), spec in specs if rule == kind) for kind in ("train", "finetune"))
    assert memory.evaluation(finetune, limits, 1000, False).own < memory.evaluation(finetune, Limits(), 1000, False).own
    if limits.pool_gib == Limits.pool_gib:
        assert memory.training(train, limits).own < memory.training(train, Limits()).own


def test_too_little_memory_is_one_sentence(monkeypatch):
    need = Need("train", {"maps": 3 * GIB})
    free = {"cpu": 2 * GIB}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[device])
    with pytest.raises(CrnetError) as caught:
        check(need, "cpu", "crnet-f0-s0")
    assert str(caught.value) == (
        "crnet-f0-s0: needs about 5.6 GiB of memory and this machine has 2.0 GiB free; lower limits.pairs_at_once and "
        "limits.photos_at_once in the study, or let fewer jobs run at once."
    )
    free["cpu"] = 6 * GIB
    check(need, "cpu", "crnet-f0-s0")
    free["cpu"] = None  # a system that does not say
    check(need, "cpu", "crnet-f0-s0")


def test_free_memory_is_the_devices(monkeypatch):
    assert 0 < free_bytes("cpu") < 2**50
    fake = SimpleNamespace(cuda=SimpleNamespace(mem_get_info=lambda device: (5 * GIB, 8 * GIB)))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert free_bytes("cuda") == 5 * GIB
    with pytest.raises(CrnetError, match=r"the GPU has 5\.0 GiB free; lower limits\.pool_gib"):
        check(Need("evaluate", {"pool": 6 * GIB}), "cuda", "run")
