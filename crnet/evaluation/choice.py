"""Steps and learning rate of finetuning for one fold, chosen from stored trials; cheap, and made of counts alone.

Of which models and classes: ``crnet.config.tuning``. No step at all is among what can be chosen.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from crnet.config import sources, tuning
from crnet.config.settings import component
from crnet.errors import CrnetError
from crnet.metrics.iou import miou
from crnet.runtime import provenance
from crnet.runtime.files import read_csv, read_json, sha256_file, write_json

# Of trials.csv, a row an episode; the last three are empty where it diverged.
COLUMNS = ("lr", "steps", "episode", "class", "intersection", "union", "loss")
UNTOUCHED = (0.0, 0)  # no step at all


@dataclass(frozen=True)
class Trial:
    """One rate and number of steps, over all episodes of all folds.

    Attributes:
        miou: Of the queries, percent, void ignored, predicted with the first support: of each class intersections and
            unions are summed over its episodes, then the mean is over all classes. None if any episode diverged.
        loss: On the supports, mean over the episodes that did not diverge; None if all did.
        diverged: Episodes.
    """

    lr: float
    steps: int
    miou: float | None
    loss: float | None
    episodes: int
    diverged: int = 0


def choose(spec: dict, trials: Sequence[Path], out: Path) -> None:
    """Write ``choice.json`` into ``out``: the trial with the highest mIoU, and how it stands among the others.

    Args:
        spec: As ``crnet.config.tuning.choice_spec`` makes it.
        trials: Folders that ``crnet.evaluation.trials.run`` has filled, those of ``crnet.config.tuning.trials_specs``.

    Raises:
        CrnetError: Trials are missing, changed, of other settings or data; they took a class that the fold tests; or
            every one diverged.
    """
    reports = _reports(spec, trials)
    tried = pooled(row for folder in trials for row in read_csv(folder / "trials.csv"))
    best = best_trial(tried)
    classes = {name for report in reports for name in report["classes"]}
    if both := classes & set(tested(spec["train"])):
        raise CrnetError(f"{out.name}: trials took {min(both)}, which fold {spec['train']['fold']} tests.")
    write_json(out / "choice.json", {
        "run": out.name,
        "spec": spec,
        **provenance.record("cpu", 1),
        **sources.recorded(spec["train"]),
        **verdict(tried, best),
        "tried_on": reports[0]["tried_on"],
        "folds": [report["spec"]["train"]["fold"] for report in reports],
        "classes": sorted(classes),
        "trials": [asdict(trial) for trial in tried],
        "dataset_digest": reports[0]["dataset_digest"],
        "encoder_digest": reports[0]["encoder_digest"],
        "trials_sha256": {folder.name: sha256_file(folder / "trials.csv") for folder in trials},
    })  # fmt: skip


def _reports(spec: dict, trials: Sequence[Path]) -> list[dict]:
    """The ``trials.json`` of all folders, which are found to be what the choice is made of."""
    expected = [tuning.trials_name(each) for each in tuning.trials_specs(spec)]
    if lacking := [name for name in expected if name not in {folder.name for folder in trials}]:
        raise CrnetError(f"a choice is made of the trials of {', '.join(expected)}: {lacking[0]} is not given.")
    reports = []
    for folder in trials:
        report = read_json(folder / "trials.json")
        if folder.name not in expected or tuning.trials_name(report["spec"]) != folder.name:
            raise CrnetError(f"{folder}: are trials of other settings than the choice's; give {', '.join(expected)}.")
        if report["trials_sha256"] != sha256_file(folder / "trials.csv"):
            raise CrnetError(f"{folder}/trials.csv: was changed (its digest differs); delete the folder and try again.")
        reports.append(report)
    for key in ("dataset_digest", "encoder_digest"):
        if len({report[key] for report in reports}) > 1:
            raise CrnetError(f"{trials[0].parent}: trials differ in their {key}; delete them and try again.")
    return reports


def tested(training: dict) -> list[str]:
    """Names of the classes that a training's fold tests."""
    dataset = training["dataset"]
    return component("dataset", dataset["name"], "dataset").class_names(dataset)[training["fold"]]


def pooled(rows: Iterable[Mapping[str, str]]) -> list[Trial]:
    """The trial of each rate and number of steps, from rows of ``trials.csv`` of any number of folds; sorted."""
    groups: dict[tuple[float, int], list[Mapping[str, str]]] = defaultdict(list)
    for row in rows:
        groups[float(row["lr"]), int(row["steps"])].append(row)
    return [_pooled(*settings, group) for settings, group in sorted(groups.items())]


def _pooled(lr: float, steps: int, rows: Sequence[Mapping[str, str]]) -> Trial:
    sums: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(2, int))
    finite = [row for row in rows if row["loss"]]
    for row in finite:
        sums[int(row["class"])] += (int(row["intersection"]), int(row["union"]))
    diverged = len(rows) - len(finite)
    score = None if diverged else round(100 * float(miou(*np.transpose(list(sums.values())))), 4)
    loss = round(math.fsum(float(row["loss"]) for row in finite) / len(finite), 6) if finite else None
    return Trial(lr, steps, score, loss, len(rows), diverged)


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest mIoU; among equals the fewest steps, then the lowest rate.

    Raises:
        CrnetError: Every trial diverged but that of no step at all: the grid was of no use.
    """
    finite = [trial for trial in trials if trial.miou is not None]
    if not any(trial.steps for trial in finite):
        raise CrnetError("finetuning: every trial diverged; lower finetune.lr in the study.")
    return max(finite, key=lambda trial: (trial.miou, -trial.steps, -trial.lr))


def verdict(trials: Sequence[Trial], best: Trial) -> dict[str, object]:
    """What is said of a choice: rate, steps, mIoU with and without finetuning, and the ends of the grid it lies at.

    ``edge_steps`` is "fewest" or "most", ``edge_lr`` "lowest" or "highest": beyond it nothing was tried. They are ""
    for what lies between, where one value alone was tried, and where no step at all is best (``steps`` 0).
    """
    untouched = next(trial for trial in trials if (trial.lr, trial.steps) == UNTOUCHED)
    stepped = [trial for trial in trials if trial.steps]
    rates, steps = ({getattr(trial, name) for trial in stepped} for name in ("lr", "steps"))
    return {
        "lr": best.lr,
        "steps": best.steps,
        "miou": best.miou,
        "miou_untouched": untouched.miou,
        "edge_lr": tuning.edge(best.lr, rates, "lowest", "highest"),
        "edge_steps": tuning.edge(best.steps, steps, "fewest", "most"),
    }
