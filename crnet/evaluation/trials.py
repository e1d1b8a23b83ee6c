"""Steps and learning rate of finetuning, chosen by trial on classes that are not tested; every trial is stored.

The episodes are of the fold's base classes, or of the split's own validation classes where it has some, on test-split
photos, which training has never seen. Test classes take no part.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crnet.config import sources
from crnet.cost import memory
from crnet.data.episodes import Episode, draw_trials
from crnet.evaluation.finetune import Diverged, Finetuner
from crnet.evaluation.predict import Predictor
from crnet.metrics.iou import fg_counts, miou
from crnet.runtime import provenance
from crnet.runtime.files import sha256_file, write_csv, write_json
from crnet.runtime.limits import NONE, Limits
from crnet.runtime.machine import configure
from crnet.runtime.saved_rows import SavedRows

COLUMNS = ("lr", "steps", "miou", "support_loss_before", "support_loss_after", "episodes", "diverged", "chosen")


@dataclass
class Trial:
    """One rate and number of steps.

    Attributes:
        miou: Of the queries, in [0, 1], void ignored, predicted with the first support; NaN if any episode diverged.
        before, after: Loss on the supports, mean over episodes.
    """

    lr: float
    steps: int
    miou: float
    before: float
    after: float
    diverged: int = 0


def choose(
    spec: dict,
    data: Path,
    encoder: Path | None,
    weights: Path,
    state: Path | None,
    out: Path,
    device: str,
    threads: int,
    features: Sequence[Path] = (),
    limits: Limits = NONE,
) -> None:
    """Try every rate with every number of steps; write ``trials.csv`` and ``choice.json`` into ``out``.

    The highest mIoU wins, the fewest steps and then the lowest rate among equals.

    Args:
        state: Where a killed run leaves the rows it has, and goes on from.
        features, limits: See :class:`crnet.evaluation.predict.Predictor`.

    Raises:
        CrnetError: Too few photos for the trial's shots, too little memory, or every trial diverged.
        Preempted: SIGTERM arrived; the rows are saved.
    """
    configure(device, threads)
    origin = provenance.record(device, threads) | sources.recorded(spec["train"])
    settings = spec["finetune"]
    predictor = Predictor(spec, data, encoder, weights, device, features, limits)
    table = draw_trials(predictor.index, spec["train"]["fold"], settings["trial_episodes"], settings["trial_shots"])
    memory.check(memory.evaluation(spec, limits, predictor.named(table.episodes), bool(features)), device, out.name)
    finetuner = Finetuner(predictor, spec["train"], settings)
    digests = {
        "dataset_digest": predictor.index.digest,
        "encoder_digest": predictor.encoder.digest,
        "weights_sha256": sha256_file(weights),
    }
    steps = sorted(set(settings["steps"]))
    rates = {0.0: [0], **dict.fromkeys(settings["lr"], steps)}  # at first no step at all, for comparison
    attempts = [(lr, episode) for lr in rates for episode in table.episodes]
    done = SavedRows(state, [spec, digests], "attempts", before_save=predictor.encoder.verify)
    remaining = attempts[len(done.rows) :]
    with done:
        for lr, episode in tqdm(remaining, total=len(attempts), initial=len(done.rows), unit="attempt", mininterval=5):
            done.add(_attempt(predictor, finetuner, episode, lr, rates[lr]))
    predictor.encoder.verify()
    trials = _trials(done.rows, table.episodes, rates)
    best = best_trial(trials[1:])
    rows = [
        (t.lr, t.steps, f"{100 * t.miou:.4f}", f"{t.before:.6f}", f"{t.after:.6f}", len(table.episodes), t.diverged,
         int(t is best)) for t in trials
    ]  # fmt: skip
    write_csv(out / "trials.csv", COLUMNS, rows)
    classes = sorted({predictor.index.class_name(e.class_id) for e in table.episodes})
    write_json(out / "choice.json", {
        "run": out.name,
        "spec": spec,
        **origin,
        "lr": best.lr,
        "steps": best.steps,
        "miou": round(100 * best.miou, 4),
        "miou_untouched": round(100 * trials[0].miou, 4),
        "classes": classes,
        "left_out": table.left_out,
        "seconds": round(done.seconds, 2),
        "cpu_seconds": round(done.cpu_seconds, 2),
        "peak_memory_bytes": provenance.peak_memory_bytes(device),
        **digests,
        "trials_sha256": sha256_file(out / "trials.csv"),
    })  # fmt: skip
    done.remove()


def best_trial(trials: list[Trial]) -> Trial:
    """The trial with the highest mIoU; raises Diverged if there is none that stayed finite."""
    finite = [trial for trial in trials if not math.isnan(trial.miou)]
    if not finite:
        raise Diverged("finetuning: every trial diverged; lower finetune.lr in the study.")
    return max(finite, key=lambda trial: (trial.miou, -trial.steps, -trial.lr))


def _attempt(predictor: Predictor, finetuner: Finetuner, episode: Episode, lr: float, steps: list[int]) -> dict:
    """One episode finetuned at one rate: the loss before, and at each number of steps the loss and the query's counts.

    All numbers of steps at once: the fewer are stations on the way to the most. Those from where the loss is no longer
    finite are absent from ``reached``.
    """
    supports = finetuner.supports(episode)
    before, reached = finetuner.loss(supports), {}

    def score(count: int, loss: float) -> None:
        query = finetuner.predict(episode, fuse=False)[0]
        counts = fg_counts(query, predictor.index.class_mask(episode.query, episode.class_id))
        reached[str(count)] = [loss, *map(int, counts)]

    if steps == [0]:
        score(0, before)
        return {"before": before, "reached": reached}
    with suppress(Diverged):  # what was not reached is counted as diverged
        for count in finetuner.adapt(episode, supports, lr, steps):
            score(count, finetuner.loss(supports))
    return {"before": before, "reached": reached}


def _trials(rows: list[dict[str, Any]], episodes: tuple[Episode, ...], rates: dict[float, list[int]]) -> list[Trial]:
    """The trial of each rate and number of steps, from the rows of all episodes at the first rate, the second, ..."""
    trials = []
    for number, (lr, steps) in enumerate(rates.items()):
        own = rows[number * len(episodes) : (number + 1) * len(episodes)]
        before = float(np.mean([row["before"] for row in own]))
        for count in steps:
            reached = [row["reached"].get(str(count)) for row in own]
            losses = [station[0] for station in reached if station]
            diverged = len(own) - len(losses)
            score = math.nan if diverged else _miou(reached, episodes)
            trials.append(Trial(lr, count, score, before, float(np.mean(losses)) if losses else math.nan, diverged))
    return trials


def _miou(reached: list[list], episodes: tuple[Episode, ...]) -> float:
    sums: defaultdict[int, np.ndarray] = defaultdict(lambda: np.zeros(2, int))
    for episode, (_, *counts) in zip(episodes, reached, strict=True):
        sums[episode.class_id] += counts
    return float(miou(*np.transpose(list(sums.values()))))
