"""Hours of a study: by table, saved by shared runs, and until the end on any number of workers."""

from collections.abc import Collection

from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.planning.makespan import ON_GPU, Graph, Job, ancestors, critical_path, graph_of, makespan
from crnet.planning.rates import Rates
from crnet.planning.stages import Demand, Stage

WORKERS = (1, 4, 8, 64)
KINDS = {
    **{"features": "features", "train": "training", "trials": "trials", "finetune": "finetuning", "evaluate": "test"},
    "probe": "probe",
}


class Hours:
    """Predicted seconds of the jobs that compute; downloads and the preparation of data are not predicted.

    Args:
        rates: None: counted multiply-adds stand in for seconds, so that shares and speed-ups are still known.
    """

    def __init__(self, plan: Plan, layout: Layout, demand: Demand, rates: Rates | None):
        self.plan, self.rates = plan, rates
        self.graph: Graph = graph_of(plan, layout)
        stages = {job: demand.stages(job) for job in demand.specs}
        self.unknown = [job for job, work in stages.items() if work is None]
        self.seconds = {job: self._seconds(work) for job, work in stages.items() if work is not None}
        self.missing = rates.missing(stage for work in stages.values() for stage in work or []) if rates else set()

    def _seconds(self, work: list[Stage]) -> float:
        if self.rates:
            return self.rates.seconds(work, self.plan.study.threads)
        return sum(stage.units * stage.multiply_adds for stage in work)

    def jobs_of(self, table: str) -> set[Job]:
        """All jobs that fill a table's cells, and those that probe its rows."""
        cells = {cell.evaluation for cell in self.plan.cells if cell.table == table}
        last = [job for job in self.graph if job[0] in ("evaluate", "finetune") and job[1] in cells]
        if self.plan.study.probe and self.plan.study.probe.table == table:
            last += [job for job in self.graph if job[0] == "probe"]
        return ancestors(self.graph, last)

    def sums(self, jobs: Collection[Job]) -> dict[str, float]:
        """Seconds by kind of job."""
        return {kind: sum(self.seconds.get(job, 0.0) for job in jobs if job[0] == kind) for kind in KINDS}

    def occupies(self, job: Job) -> bool:
        """Whether a job takes a worker: a GPU where the study wants one, else a place among the jobs at once."""
        return self.plan.study.device == "cpu" or job[0] in ON_GPU

    def until_the_end(self, workers: int) -> float:
        return makespan(self.graph, self.seconds, workers, self.occupies)

    def longest_chain(self) -> list[Job]:
        return [job for job in critical_path(self.graph, self.seconds) if self.seconds.get(job)]


def time_text(seconds: float) -> str:
    """E.g. ``36 s``, ``12 min``, ``4.2 h``, ``1,234 h``: two digits are as much as such a prediction is worth."""
    if not seconds:
        return "-"
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"
