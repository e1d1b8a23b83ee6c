"""The runs of a committed study, as they were specified and what they took."""

from pathlib import Path

from crnet.config import resolve
from crnet.planning.makespan import Job
from crnet.runtime.files import read_csv, read_json


def committed(results: Path) -> dict[Job, tuple[dict, dict]]:
    """Job -> its specification as it was run, and its row of runs.csv."""
    rows = {row["run"]: row for row in read_csv(results / "runs.csv") if row["peak_memory_bytes"]}
    specs: dict[Job, dict] = {}
    for file in [*results.glob("evaluate/*/evaluation.json"), *results.glob("finetune/*/choice.json")]:
        spec = read_json(file)["spec"]
        rule = "tune" if file.name == "choice.json" else "finetune" if "finetune" in spec else "evaluate"
        specs[rule, file.parent.name] = spec
        if "train" in spec["train"]:
            specs["train", resolve.training_name(spec["train"])] = spec["train"]
    assert {name for _, name in specs} == set(rows)
    return {job: (spec, rows[job[1]]) for job, spec in specs.items()}
