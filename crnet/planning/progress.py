"""How far a study is, from the files that are there: for ``crnet status``, and for whoever watches a run."""

import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from crnet.config.layout import ROOT, Layout
from crnet.config.resolve import Plan
from crnet.planning.disk import DataSet, jobs_at_once
from crnet.planning.hours import Hours, time_text
from crnet.planning.makespan import Graph, Job, graph_of
from crnet.planning.rates import FOLDER, load, of_this_machine
from crnet.planning.stages import Demand

STAGES = {
    **{"download": "downloads", "data": "data", "encoder": "encoders", "episodes": "episodes", "features": "features"},
    **{"train": "trainings", "trials": "trials", "evaluate": "evaluations", "finetune": "finetuned evaluations"},
    "probe": "probes",
}
START_WORK = 2e11  # multiply-adds of a core while a job starts, where no step times are known
FIRST_WORD, POLL = 20.0, 2.0  # seconds until a run is spoken of, and between two looks at its files


class Progress:
    """Of a study's jobs, which are done.

    Attributes:
        graph: Its jobs.
        hours: What they take, once ``predict`` was called.
    """

    def __init__(self, plan: Plan):
        self.plan, self.layout = plan, Layout(plan)
        self.graph: Graph = {job: before for job, before in graph_of(plan, self.layout).items() if job[0] in STAGES}
        self._files = {job: self._file(*job) for job in self.graph}
        self.hours: Hours | None = None

    def _file(self, rule: str, name: str) -> Path:
        """The last file that a job writes."""
        at = self.layout
        folders = {"evaluate": at.evaluation(name), "finetune": at.evaluation(name)}
        files = {
            "download": at.verified(name),
            "data": f"{at.work}/data/{name}/dataset.json",
            "encoder": f"{at.work}/encoders/{name}.safetensors",
            "episodes": f"{at.results}/episodes/{name}.json",
            "features": f"{at.work}/features/{name}/features.json",
            "train": f"{at.training(name)}/train.json",
            "trials": f"{at.finetuning(name)}/trials.json",
            "probe": f"{at.probe(name)}/probe.json",
        }
        return Path(files.get(rule) or f"{folders[rule]}/evaluation.json")

    def predict(self) -> None:
        """Count what the jobs compute, which imports torch and takes seconds."""
        data = [DataSet(spec, self.layout) for spec in self.plan.datasets.values()]
        rates = of_this_machine(self.plan.study.device, ROOT / FOLDER)
        demand = Demand(self.plan, self.layout, data)
        self.hours = Hours(self.plan, self.layout, demand, load(rates) if rates else None)

    def done(self) -> set[Job]:
        return {job for job, file in self._files.items() if file.is_file()}

    def share(self, done: set[Job]) -> float:
        """Of the predicted work and the jobs' starts, in [0, 1]; of the jobs before anything is predicted."""
        start = 1.0 if self.hours is None or self.hours.rates else START_WORK
        seconds = self.hours.seconds if self.hours else {}
        weights = {job: start + seconds.get(job, 0.0) for job in self.graph}
        return sum(weights[job] for job in done) / sum(weights.values())

    def counts(self, done: set[Job]) -> dict[str, tuple[int, int]]:
        """Stage -> jobs done and in all, of stages that the study has."""
        found = {}
        for rule, stage in STAGES.items():
            if jobs := [job for job in self.graph if job[0] == rule]:
                found[stage] = len(done & set(jobs)), len(jobs)
        return found

    def last_words(self) -> str:
        """What the training that wrote last has logged of its last epoch."""
        logs = [log for job in self.graph if job[0] == "train" and (log := Path(f"logs/train/{job[1]}.log")).is_file()]
        if not logs:
            return ""
        newest = max(logs, key=lambda log: log.stat().st_mtime)
        epochs = [
            line
            for line in newest.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.startswith("epoch ")
        ]
        return f"{newest.stem}: {epochs[-1]}" if epochs else ""


def describe(plan: Plan) -> str:
    """How far the study is, stage by stage, and how long the rest will take."""
    progress = Progress(plan)
    progress.predict()
    done = progress.done()
    lines = [f"{plan.study.study}: {plan.study.title}"]
    width = max(map(len, progress.counts(done)))
    lines += [f"{stage:<{width}}  {some:>4} of {every}" for stage, (some, every) in progress.counts(done).items()]
    lines.append(f"{100 * progress.share(done):.0f} % of the work is done" + _rest(progress, done))
    if words := progress.last_words():
        lines.append(words)
    return "\n".join(lines)


def _rest(progress: Progress, done: set[Job]) -> str:
    hours = progress.hours
    if len(done) == len(progress.graph):
        return f"; page: {progress.layout.results}/README.md"
    if not hours.rates:
        return "; its end is not known: no step times of this machine are on file, `crnet bench --json` measures them"
    hours.seconds = {job: 0.0 if job in done else seconds for job, seconds in hours.seconds.items()}
    workers = jobs_at_once(progress.plan)
    return f"; by step times on file the rest takes about {time_text(hours.until_the_end(workers))}, {workers} at once"


def watch(plan: Plan, out=sys.stdout) -> None:
    """Say how far a run is, now and then, until standard input closes: more seldom the longer it takes."""
    progress, started = Progress(plan), time.monotonic()
    begun, said, due = progress.done(), None, FIRST_WORD
    for seconds in _ticks(started):
        if seconds < due:
            continue
        if progress.hours is None:
            progress.predict()
        done = progress.done()
        if done != said:
            print(_line(progress, begun, done, seconds), file=out, flush=True)
            said, due = done, seconds + max(30.0, 0.1 * seconds)


def _ticks(started: float) -> Iterator[float]:
    while not select.select([sys.stdin], [], [], POLL)[0]:
        yield time.monotonic() - started


def _line(progress: Progress, begun: set[Job], done: set[Job], seconds: float) -> str:
    """E.g. ``crnet  4 min  features 10/10  trainings 3/28  ...  21 %, ends in about 12 min``."""
    counts = progress.counts(done)
    stages = [f"{stage} {some}/{every}" for stage, (some, every) in counts.items() if some < every]
    share = progress.share(done)
    gained = share - progress.share(begun)
    ends = f", ends in about {time_text((1 - share) * seconds / gained)}" if gained > 0 and share < 1 else ""
    line = f"crnet {time_text(seconds):>7}  {'  '.join(stages or ['tables'])}  {100 * share:.0f} %{ends}"
    trained, trainings = counts.get("trainings", (0, 0))
    words = progress.last_words() if trained < trainings else ""
    return f"{line}\n{'':15}{words}" if words else line
