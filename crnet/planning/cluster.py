"""What a study's jobs ask a cluster for, predicted: memory and seconds of each, and the sums that a plan prints.

Where no step times of the device are on file, seconds follow from counted multiply-adds at a slow device's pace.
"""

import math
from pathlib import Path
from typing import Any

from crnet.config.jobs import sheet_job
from crnet.config.layout import ROOT, Layout
from crnet.config.requests import BATCHED, LONGEST, Requests, identity
from crnet.config.resolve import Plan
from crnet.cost.memory import evaluation
from crnet.cost.networks import networks
from crnet.planning.disk import DataSet
from crnet.planning.makespan import Job
from crnet.planning.rates import FOLDER, Rates, load, of_this_machine
from crnet.planning.stages import Demand
from crnet.runtime.files import write_json

# Multiply-adds a second where nothing was measured. CPUs, one thread in float32: half of what an EPYC with AVX-512 does
# on the smallest networks. GPUs: a fifth of a V100's float32 peak; none was at hand to measure.
ASSUMED = {"cpu": 2e10, "cuda": 1.5e12}
START_SECONDS = 10.0  # where it was not measured: import of torch from a shared file system
# MB beside what a job's prediction counts. On a CPU: both Snakemakes of a node and the process that holds torch. With a
# GPU the prediction is of the card: host memory is that of CUDA's libraries and of each loader; not measured.
BESIDE_CPU, BESIDE_GPU, LOADER, DRAWING = 1000, 6000, 1000, 500


def predict(plan: Plan, demand: Demand, rates: Rates | None) -> dict[str, dict[str, Any]]:
    """Name -> ``rule``, ``mem_mb`` and ``seconds`` of each job that runs a network; seconds are None if unknown."""
    predicted = {
        name: {
            "rule": rule,
            "mem_mb": _memory(plan, demand, (rule, name)),
            "seconds": _seconds(plan, demand, (rule, name), rates),
        }
        for rule, name in demand.specs
    }
    if sheet := sheet_job(plan, Layout(plan)):
        predicted["sheet"] = {"rule": "sheet", "mem_mb": _sheet_memory(plan, demand, sheet), "seconds": None}
    return predicted


def _memory(plan: Plan, demand: Demand, job: Job) -> int:
    if plan.study.device == "cuda":
        loaders = plan.study.threads if job[0] == "train" else 0
        return BESIDE_GPU + LOADER * loaders
    return BESIDE_CPU + math.ceil(demand.memory(job).on("cpu") / 1e6)


def _sheet_memory(plan: Plan, demand: Demand, sheet: dict[str, Any]) -> int:
    """It predicts a few episodes of each of its models as an evaluation that encodes their photos, and draws them."""
    if plan.study.device == "cuda":
        return BESIDE_GPU
    needs = [0]
    for spec in (model["spec"] for model in sheet["models"]):
        photos = sheet["episodes"] * (1 + spec["evaluate"]["shots"] * (networks(spec["train"]).photos - 1))
        needs.append(evaluation(spec, demand.limits, photos, stored=False).on("cpu"))
    return BESIDE_CPU + DRAWING + math.ceil(max(needs) / 1e6)


def _seconds(plan: Plan, demand: Demand, job: Job, rates: Rates | None) -> float | None:
    if (work := demand.stages(job)) is None:
        return None
    if rates and not rates.missing(work):
        return rates.seconds(work, plan.study.threads)
    device, threads = plan.study.device, plan.study.threads
    pace = ASSUMED[device] * (threads if device == "cpu" else 1)
    return START_SECONDS + sum(stage.units * stage.multiply_adds for stage in work) / pace


def write(plan: Plan, out: Path) -> None:
    """Write the predictions where the workflow reads them: JSON of ``identity`` and ``jobs``."""
    layout = Layout(plan)
    data = [DataSet(spec, layout) for spec in plan.datasets.values()]
    files = of_this_machine(plan.study.device, ROOT / FOLDER)
    jobs = predict(plan, Demand(plan, layout, data), load(files) if files else None)
    write_json(out, {"identity": identity(plan, [str(each.folder) for each in data if each.prepared]), "jobs": jobs})


def sums(plan: Plan, demand: Demand, rates: Rates | None) -> list[tuple[str, int, int, int, int]]:
    """Of each kind of job: rule, jobs, submissions, minutes and MB of the neediest."""
    requests = Requests(predict(plan, demand, rates), LONGEST)
    rows = []
    for rule in BATCHED:
        if names := [job[1] for job in demand.specs if job[0] == rule]:
            minutes = max(requests.minutes(rule, name) for name in names)
            memory = max(requests.memory(rule, name) for name in names)
            rows.append((rule, len(names), requests.submissions(rule), minutes, memory))
    return rows


def hours(plan: Plan, demand: Demand, rates: Rates | None) -> float | None:
    """Of all jobs together but the sheet's, without any margin; None if the work of one is unknown."""
    seconds = [asked["seconds"] for asked in predict(plan, demand, rates).values() if asked["rule"] in BATCHED]
    return None if None in seconds else sum(seconds) / 3600
