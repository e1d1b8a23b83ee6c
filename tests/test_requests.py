"""What jobs ask a cluster for: memory and time by attempt, and which short ones go together."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from snake import ROOT, copy_workflow, environment, snakemake

from crnet.config import requests, study
from crnet.config.layout import Layout
from crnet.config.requests import BATCH_JOBS, BATCH_SECONDS, Requests
from crnet.planning import cluster
from crnet.planning.disk import DataSet
from crnet.planning.plan import describe
from crnet.planning.stages import Demand

DAY = 1440
# Snakemake, and SIGTERM while it holds its lock.
TOLD = """
import os, signal
from snakemake.cli import main
from snakemake.scheduling.job_scheduler import JobScheduler

finish = JobScheduler._finish_jobs

def told(scheduler):
    os.kill(os.getpid(), signal.SIGTERM)
    finish(scheduler)

JobScheduler._finish_jobs = told
main()
"""


def of(rule: str, *seconds: float | None, mem_mb: int = 1000) -> dict:
    return {f"{rule}-{i:03}": {"rule": rule, "mem_mb": mem_mb, "seconds": each} for i, each in enumerate(seconds)}


def test_memory_grows_with_the_attempt_and_no_further_than_twice():
    asked = Requests(of("train", 60.0), DAY)
    assert [asked.memory("train", "train-000", attempt) for attempt in (1, 2, 3, 6)] == [1000, 1500, 2000, 2000]


def test_time_grows_with_the_attempt_up_to_what_the_partition_allows():
    asked = Requests(of("train", 3600.0), 500)
    assert [asked.minutes("train", "train-000", attempt) for attempt in (1, 2, 3, 6)] == [185, 370, 500, 500]


def test_a_job_of_unknown_work_asks_for_all_that_the_partition_allows():
    asked = Requests(of("train", None), DAY)
    assert asked.minutes("train", "train-000") == asked.minutes("train", "another") == DAY
    assert asked.memory("train", "another") == requests.UNKNOWN
    assert asked.batch("train-000") is None


def test_what_is_not_predicted_asks_by_its_rule():
    asked = Requests({}, DAY)
    assert (asked.memory("data", "pascal5i-1234"), asked.minutes("data", "pascal5i-1234")) == (8000, 240)


def test_short_jobs_of_a_rule_go_together_and_long_ones_alone():
    seconds = [1.0] * 60 + [BATCH_SECONDS / 3] * 7 + [BATCH_SECONDS, BATCH_SECONDS / 2 + 1]
    asked = Requests(of("evaluate", *seconds) | of("train", 2.0), DAY)
    batches = [asked.batch(name) for name in asked.jobs if name.startswith("evaluate")]
    sizes = Counter(batches)
    assert sizes == {"evaluate-1": BATCH_JOBS, "evaluate-2": 12, "evaluate-3": 3, "evaluate-4": 2, None: 2}
    assert batches[-2:] == [None, None]
    assert asked.batch("train-000") is None, "one job is no batch"
    assert (asked.submissions("evaluate"), asked.submissions("train")) == (6, 1)


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_every_job_of_a_network_has_a_prediction(name):
    plan = study.load([ROOT / f"configs/studies/{name}.yaml"])
    layout = Layout(plan)
    demand = Demand(plan, layout, [DataSet(spec, layout) for spec in plan.datasets.values()])
    asked = Requests(cluster.predict(plan, demand, None), DAY)
    jobs = Counter(each["rule"] for each in asked.jobs.values())
    assert jobs["train"] == len(plan.trainings) and jobs["trials"] == len(plan.trials)
    assert jobs["evaluate"] + jobs["finetune"] == len(plan.evaluations)
    for job, each in asked.jobs.items():
        assert 1500 < asked.memory(each["rule"], job) < 64_000
        assert 5 < asked.minutes(each["rule"], job) <= DAY
    assert asked.submissions("evaluate") < jobs["evaluate"] / 2


def test_the_plan_says_what_the_cluster_is_asked_for():
    lines = describe([ROOT / "configs/studies/paper.yaml"]).splitlines()
    rows = {line.split()[1]: line.split() for line in lines if line.startswith("cluster")}
    assert rows["train"][2:4] == ["180", "180"] and rows["train"][-2:] == ["1", "4"]  # jobs, submissions, GPU, CPUs
    assert int(rows["evaluate"][3]) < int(rows["evaluate"][2]) == 456
    assert any(line.startswith("GPU-hours") and "multiply-adds a second, which is assumed" in line for line in lines)


class TestSnakemake:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory) -> Path:
        folder = copy_workflow(tmp_path_factory.mktemp("cluster"))
        (folder / "study.yaml").write_text((ROOT / "tests/tiny.yaml").read_text(encoding="utf-8"))
        return folder

    @staticmethod
    def resources(said: str) -> dict[str, list[dict[str, str]]]:
        """Rule -> the resources of each of its jobs, as a dry run shows them."""
        found: dict[str, list[dict[str, str]]] = {}
        for rule, line in re.findall(r"rule (\w+):.*?\n +resources: ([^\n]+)", said, re.DOTALL):
            found.setdefault(rule, []).append(dict(re.findall(r"(\w+)=(\S+?)(?:,|$)", line)))
        return found

    def test_with_a_cluster_every_kind_of_job_asks_for_what_was_predicted(self, folder):
        done = snakemake(folder, "--dry-run", "--default-resources", "runtime=300", "mem_mb=4000")
        assert done.returncode == 0, done.output
        found = self.resources(done.output)
        for rule in ("features", "train", "trials", "evaluate", "finetune", "probe"):
            assert {each["runtime"] for each in found[rule]} <= {"6", "7"}, "minutes: seconds of work, and an allowance"
            assert all(1500 < int(each["mem_mb"]) < 4000 for each in found[rule])
        assert found["data"][0]["runtime"] == "240"
        assert found["sheet"][0]["runtime"] == "60" and 1500 < int(found["sheet"][0]["mem_mb"]) < 4000
        assert Counter(re.findall(r"Group job (\w+)-1 ", done.output)).keys() >= {"train", "evaluate", "features"}

    def test_without_one_nothing_is_predicted_or_grouped(self, folder):
        (folder / "work/requests/tiny.json").unlink(missing_ok=True)
        done = snakemake(folder, "--dry-run")
        assert done.returncode == 0, done.output
        assert "runtime" not in self.resources(done.output)["train"][0]
        assert "Group job" not in done.output
        assert not (folder / "work/requests").exists() or not list((folder / "work/requests").iterdir())

    def test_a_node_that_is_told_to_end_in_the_midst_of_its_scheduling_ends(self, folder):
        done = subprocess.run(
            [sys.executable, "-c", TOLD, "--cores", "1", "--no-hooks", "--configfile", "study.yaml"],
            check=False, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "Will exit after finishing currently running jobs" in done.stderr, done.stderr

    def test_machines_that_share_no_files_are_refused_in_one_sentence(self, folder):
        done = snakemake(folder, "--dry-run", "--shared-fs-usage", "persistence")
        assert done.returncode != 0
        assert "crnet: the jobs of a study need a file system that all machines share" in done.output
        assert "Traceback" not in done.output


def test_the_profile_names_what_snakemake_and_its_plugin_know():
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    assert profile["executor"] == "slurm" and profile["slurm-status-command"] == "squeue"
    assert profile["retries"] >= 3 and profile["keep-incomplete"] and profile["default-resources"]["runtime"] == DAY
