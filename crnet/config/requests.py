"""What a study's jobs ask a cluster for: memory, minutes, and which short jobs go there together.

The predictions are those of ``crnet job requests``, which counts by torch; here its file is read, where Snakemake
parses and no torch may be imported. Nothing that a result depends on is decided here.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crnet.config.resolve import Plan
from crnet.runtime.files import canonical, read_mapping, sha256_text

# A job whose work is not predicted: (MB, minutes). Extraction and COCO's annotations, of 0.5 GB of JSON, take the most.
# The sheet's memory is predicted.
NOT_PREDICTED = {"data": (8000, 240), "encoder": (4000, 120), "sheet": (16_000, 60)}
UNKNOWN = 16_000  # MB
ALLOWANCE = 5  # minutes until Snakemake has started on a node, twice, and read the data
MARGIN = 3  # times the predicted seconds: nodes differ, and share disks
MOST_MEMORY = 2.0  # times the first try's, reached by the third: later tries follow preemptions, not too little memory
BATCHED = ("features", "train", "trials", "evaluate", "finetune", "probe")
# Short jobs of a rule go together until they have so many predicted seconds, or are so many. Where one of them fails,
# all of them are done again: short enough for that, and long enough not to be mostly waiting.
BATCH_SECONDS, BATCH_JOBS = 900.0, 50
LONGEST = 24 * 60  # minutes, where `default-resources` name none


class Requests:
    """Of one study.

    Attributes:
        jobs: Name of a job -> its ``rule``, ``mem_mb`` and ``seconds``; those of unknown work have ``seconds`` None.
        longest: Minutes that a job may ask for; longer trainings go on in their next try.
    """

    def __init__(self, jobs: Mapping[str, Mapping[str, Any]], longest: int):
        self.jobs, self.longest = jobs, longest
        self._batches = {name: batch for rule in BATCHED for name, batch in self._batches_of(rule).items()}

    def memory(self, rule: str, name: str, attempt: int = 1) -> int:
        """MB of a job at its ``attempt``."""
        first = self.jobs[name]["mem_mb"] if name in self.jobs else NOT_PREDICTED.get(rule, (UNKNOWN, 0))[0]
        return math.ceil(first * min(MOST_MEMORY, 1 + (attempt - 1) / 2))

    def minutes(self, rule: str, name: str, attempt: int = 1) -> int:
        """Minutes of a job at its ``attempt``."""
        seconds = self.jobs[name]["seconds"] if name in self.jobs else None
        first = NOT_PREDICTED.get(rule, (0, self.longest))[1]
        if seconds is not None:
            first = ALLOWANCE + math.ceil(MARGIN * seconds / 60)
        return min(self.longest, first * attempt)

    def batch(self, name: str) -> str | None:
        """Which short jobs of its rule a job is submitted with; None: it goes alone."""
        return self._batches.get(name)

    @property
    def batches(self) -> set[str]:
        return set(self._batches.values())

    def submissions(self, rule: str) -> int:
        """How many jobs of the cluster those of a rule are."""
        batches = [self.batch(name) for name, asked in self.jobs.items() if asked["rule"] == rule]
        return len(set(batches) - {None}) + batches.count(None)

    def resources(self, rule: str) -> dict[str, Callable]:
        """As a rule's ``resources`` take them. A job's name is the one wildcard of its rule, or else the rule's."""
        return {
            "mem_mb": lambda wildcards, attempt: self.memory(rule, "".join(wildcards) or rule, attempt),
            "runtime": lambda wildcards, attempt: self.minutes(rule, "".join(wildcards) or rule, attempt),
        }

    def _batches_of(self, rule: str) -> dict[str, str]:
        groups: list[list[str]] = [[]]
        total = 0.0
        for name, asked in sorted(self.jobs.items()):
            seconds = asked["seconds"]
            if asked["rule"] != rule or seconds is None or seconds > BATCH_SECONDS / 2:
                continue
            if groups[-1] and (total + seconds > BATCH_SECONDS or len(groups[-1]) >= BATCH_JOBS):
                groups.append([])
                total = 0.0
            groups[-1].append(name)
            total += seconds
        return {name: f"{rule}-{i}" for i, group in enumerate(groups, 1) if len(group) > 1 for name in group}


def identity(plan: Plan, prepared: list[str]) -> str:
    """Of all that the predictions follow from: jobs, whose names hold their settings; limits; data that are known."""
    names = [sorted(each) for each in (plan.features, plan.trainings, plan.trials, plan.evaluations, plan.probes)]
    study = plan.study
    sheet = study.sheet and study.sheet.model_dump()
    settings = [study.limits.model_dump(), study.threads, study.device, sheet]
    return sha256_text(canonical([names, *settings, sorted(prepared)]))


def is_of(path: Path, wanted: str) -> bool:
    """Whether a file of predictions is there, and of the ``wanted`` identity."""
    return path.is_file() and read_mapping(path)["identity"] == wanted


def load(path: Path, longest: int) -> Requests:
    """Of a file that ``crnet job requests`` wrote; where there is none, no job's work is known."""
    return Requests(read_mapping(path)["jobs"] if path.is_file() else {}, longest)
