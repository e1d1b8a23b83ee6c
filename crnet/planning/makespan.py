"""The graph of a study's jobs, and how long it takes on any number of workers, by simulation.

Jobs and edges are those of ``workflow/rules`` without ``report.smk``, whose jobs take seconds;
``tests/test_makespan.py`` holds them against a dry run of Snakemake.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath

from crnet.config import resolve, tuning
from crnet.config.layout import Layout
from crnet.config.resolve import Plan

Job = tuple[str, str]  # rule, and the name of what it makes
Graph = dict[Job, list[Job]]  # job -> jobs whose files it reads, which stand before it
ON_GPU = ("features", "train", "trials", "evaluate", "finetune", "probe")


def graph_of(plan: Plan, layout: Layout) -> Graph:
    """All jobs of a study that has run nothing yet."""
    feasible = ("feasible", plan.study.study)
    graph: Graph = {}

    def downloads(kind: str, spec: dict) -> list[Job]:
        jobs = [("download", archive) for archive in layout.archive_names(kind, spec)]
        graph.update({job: [] for job in jobs})
        return jobs

    def data_files(spec: dict) -> list[Job]:
        weights = layout.encoder(spec["encoder"])
        return [_data_job(layout, spec), *([("encoder", PurePath(weights).stem)] if weights else [])]

    def stores(predicted: dict) -> list[Job]:
        return [("features", PurePath(folder).name) for folder in layout.test_features(predicted)]

    for spec in plan.datasets.values():
        graph["data", PurePath(layout.data(spec)).name] = downloads("dataset", spec)
    for name, spec in plan.encoders.items():
        if layout.encoder(spec):
            graph["encoder", name] = downloads("encoder", spec)
    for name, spec in plan.episodes.items():
        graph["episodes", name] = [_data_job(layout, spec)]
    graph[feasible] = [("episodes", name) for name in plan.episodes]
    for spec in plan.features.values():
        graph["features", PurePath(layout.features_folder(spec)).name] = data_files(spec)
    for name, spec in plan.trainings.items():
        stored = layout.features(spec)
        features = [("features", PurePath(stored).name)] if stored else []
        graph["train", name] = [*data_files(spec), feasible, *features]
    for name, spec in plan.trials.items():
        graph["trials", name] = [*data_files(spec["train"]), *stores(spec), *_training(spec["train"])]
    for name, spec in plan.choices.items():
        graph["choice", name] = [("trials", tuning.trials_name(each)) for each in tuning.trials_specs(spec)]
    for name, spec in plan.evaluations.items():
        before = [*data_files(spec["train"]), *stores(spec), *_training(spec["train"])]
        before.append(("episodes", PurePath(layout.episodes(spec)).stem))
        if choice := tuning.choice_spec(spec):
            before.append(("choice", tuning.choice_name(choice)))
        graph["finetune" if choice else "evaluate", name] = before
    for name, spec in plan.probes.items():
        before = [*data_files(spec["train"]), *stores(spec), *_training(spec["train"])]
        graph["probe", name] = [*before, ("episodes", PurePath(layout.episodes(spec)).stem)]
    return graph


def _data_job(layout: Layout, spec: dict) -> Job:
    return "data", PurePath(layout.data(spec["dataset"])).name


def _training(spec: dict) -> list[Job]:
    return [("train", resolve.training_name(spec))] if "train" in spec else []


def ancestors(graph: Graph, jobs: Iterable[Job]) -> set[Job]:
    """``jobs`` and all that they wait for."""
    found, waiting = set(), list(jobs)
    while waiting:
        job = waiting.pop()
        if job not in found:
            found.add(job)
            waiting += graph[job]
    return found


def tails(graph: Graph, seconds: Mapping[Job, float]) -> dict[Job, float]:
    """Of each job, the seconds from its start to the end of the longest chain that begins with it."""
    longest = {job: seconds.get(job, 0.0) for job in graph}
    for job in reversed(graph):  # jobs stand behind those that they wait for
        for before in graph[job]:
            longest[before] = max(longest[before], seconds.get(before, 0.0) + longest[job])
    return longest


def critical_path(graph: Graph, seconds: Mapping[Job, float]) -> list[Job]:
    """The longest chain of jobs: no number of workers is quicker."""
    longest = tails(graph, seconds)
    path, candidates = [], list(graph)
    while candidates:
        path.append(max(candidates, key=longest.__getitem__))
        candidates = [job for job, before in graph.items() if path[-1] in before]
    return path


def makespan(
    graph: Graph, seconds: Mapping[Job, float], workers: int, occupies: Callable[[Job], bool] = lambda job: True
) -> float:
    """Seconds until the last job ends. A free worker takes the ready job with the longest chain behind it.

    Args:
        seconds: Of each job; those without an entry take none.
        occupies: Whether a job takes a worker; the others start as soon as they are ready.
    """
    priority = tails(graph, seconds)
    waits = {job: len(before) for job, before in graph.items()}
    after: dict[Job, list[Job]] = {job: [] for job in graph}
    for job, before in graph.items():
        for each in before:
            after[each].append(job)
    ready = [job for job in graph if not waits[job]]
    queue: list[tuple[float, Job]] = []  # of those that need a worker
    running: list[tuple[float, Job]] = []
    now, free = 0.0, workers
    while ready or queue or running:
        for job in ready:
            if occupies(job):
                heapq.heappush(queue, (-priority[job], job))
            else:
                heapq.heappush(running, (now + seconds.get(job, 0.0), job))
        while free and queue:
            _, job = heapq.heappop(queue)
            heapq.heappush(running, (now + seconds.get(job, 0.0), job))
            free -= 1
        now, done = heapq.heappop(running)
        free += occupies(done)
        for job in after[done]:
            waits[job] -= 1
        ready = [job for job in dict.fromkeys(after[done]) if not waits[job]]
    return now
