"""The runs of a committed study, as they were specified and what they took; and what is predicted of a study's."""

from pathlib import Path

from crnet.config import resolve, study
from crnet.config.layout import Layout
from crnet.planning.disk import DataSet
from crnet.planning.makespan import Job
from crnet.planning.stages import Demand, dataset_of
from crnet.runtime.files import read_csv, read_json


def committed(results: Path) -> dict[Job, tuple[dict, dict]]:
    """Job -> its specification as it was run, and its row of runs.csv."""
    rows = {row["run"]: row for row in read_csv(results / "runs.csv") if row["peak_memory_bytes"]}
    specs: dict[Job, dict] = {}
    for file in [*results.glob("evaluate/*/evaluation.json"), *results.glob("finetune/*/trials.json")]:
        spec = read_json(file)["spec"]
        rule = "trials" if file.name == "trials.json" else "finetune" if "finetune" in spec else "evaluate"
        specs[rule, file.parent.name] = spec
        if "train" in spec["train"]:
            specs["train", resolve.training_name(spec["train"])] = spec["train"]
    assert {name for _, name in specs} == set(rows)
    return {job: (spec, rows[job[1]]) for job, spec in specs.items()}


def demand(*files: Path) -> Demand:
    """What the jobs of a study are predicted to take."""
    plan = study.load(files)
    layout = Layout(plan)
    return Demand(plan, layout, [DataSet(spec, layout) for spec in plan.datasets.values()])


def demand_of_runs(name: str, root: Path) -> tuple[Demand, dict[Job, dict]]:
    """Likewise of a committed study's jobs as they were run; with their rows of runs.csv."""
    runs = committed(root / f"results/{name}")
    plan = study.load([root / f"configs/studies/{name}.yaml"])
    data = {resolve.dataset_name(each): each for each in (dataset_of(spec) for spec, _ in runs.values())}
    predicted = Demand(plan, Layout(plan), [DataSet(spec, Layout(plan)) for spec in data.values()])
    predicted.specs = {job: spec for job, (spec, _) in runs.items()}
    return predicted, {job: row for job, (_, row) in runs.items()}
