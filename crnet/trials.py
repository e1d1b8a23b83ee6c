"""Steps and learning rate of finetuning, chosen by trial on classes that are not tested; every trial is stored.

The episodes are of the fold's base classes, or of the split's own validation classes where it has some, on test-split
photos, which training has never seen. Test classes take no part.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from crnet import provenance
from crnet.data.episodes import Episode, draw_trials
from crnet.data.index import Index
from crnet.files import sha256_file, write_csv, write_json
from crnet.finetune import Diverged, Finetuner
from crnet.machine import configure
from crnet.metrics import fg_counts, miou
from crnet.predict import Predictor

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


def choose(spec: dict, data: Path, encoder: Path | None, weights: Path, out: Path, device: str, threads: int) -> None:
    """Try every rate with every number of steps; write ``trials.csv`` and ``choice.json`` into ``out``.

    The highest mIoU wins, the fewest steps and then the lowest rate among equals.

    Raises:
        CrnetError: Too few photos for the trial's shots, or every trial diverged.
    """
    configure(device, threads)
    origin = provenance.record(device, threads)
    settings = spec["finetune"]
    predictor = Predictor(spec, data, encoder, weights, device)
    table = draw_trials(predictor.index, spec["train"]["fold"], settings["trial_episodes"], settings["trial_shots"])
    finetuner = Finetuner(predictor, spec["train"], settings)
    started = time.monotonic()
    trials = [_untouched(predictor, finetuner, table.episodes)]
    for lr in tqdm(settings["lr"], unit="rate", mininterval=5):
        trials += _try(predictor, finetuner, table.episodes, lr, sorted(set(settings["steps"])))
    predictor.encoder.verify()
    best = best_trial(trials[1:])
    rows = [
        (t.lr, t.steps, f"{100 * t.miou:.4f}", f"{t.before:.6f}", f"{t.after:.6f}", len(table.episodes), t.diverged,
         int(t is best)) for t in trials
    ]  # fmt: skip
    write_csv(out / "trials.csv", COLUMNS, rows)
    index = predictor.index
    classes = sorted({index.class_name(e.class_id) for e in table.episodes})
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
        "seconds": round(time.monotonic() - started, 2),
        "peak_memory_bytes": provenance.peak_memory_bytes(device),
        "dataset_digest": index.digest,
        "encoder_digest": predictor.encoder.digest,
        "weights_sha256": sha256_file(weights),
        "trials_sha256": sha256_file(out / "trials.csv"),
    })  # fmt: skip


def best_trial(trials: list[Trial]) -> Trial:
    """The trial with the highest mIoU; raises Diverged if there is none that stayed finite."""
    finite = [trial for trial in trials if not math.isnan(trial.miou)]
    if not finite:
        raise Diverged("finetuning: every trial diverged; lower finetune.lr in the study.")
    return max(finite, key=lambda trial: (trial.miou, -trial.steps, -trial.lr))


class _Score:
    """Counts of queries by class."""

    def __init__(self, index: Index):
        self.index, self.sums = index, {}

    def add(self, episode: Episode, prediction: np.ndarray) -> None:
        counts = fg_counts(prediction, self.index.class_mask(episode.query, episode.class_id))
        hit, union = self.sums.get(episode.class_id, (0, 0))
        self.sums[episode.class_id] = (hit + counts[0], union + counts[1])

    def miou(self) -> float:
        intersections, unions = zip(*self.sums.values(), strict=True)
        return float(miou(np.array(intersections), np.array(unions)))


def _untouched(predictor: Predictor, finetuner: Finetuner, episodes: tuple[Episode, ...]) -> Trial:
    """No step at all, for comparison: the trained network with the first support."""
    score, losses = _Score(predictor.index), []
    for episode in episodes:
        losses.append(finetuner.loss(finetuner.supports(episode)))
        score.add(episode, finetuner.predict(episode, fuse=False)[0])
    return Trial(0.0, 0, score.miou(), float(np.mean(losses)), float(np.mean(losses)))


def _try(
    predictor: Predictor, finetuner: Finetuner, episodes: tuple[Episode, ...], lr: float, steps: list[int]
) -> list[Trial]:
    """All numbers of steps of one rate: the fewer are stations on the way to the most."""
    scores = {count: _Score(predictor.index) for count in steps}
    after: dict[int, list[float]] = {count: [] for count in steps}
    before, diverged = [], dict.fromkeys(steps, 0)
    for episode in episodes:
        supports = finetuner.supports(episode)
        before.append(finetuner.loss(supports))
        reached = set()
        try:
            for count in finetuner.adapt(episode, supports, lr, steps):
                reached.add(count)
                after[count].append(finetuner.loss(supports))
                scores[count].add(episode, finetuner.predict(episode, fuse=False)[0])
        except Diverged:
            for count in set(steps) - reached:
                diverged[count] += 1
    return [
        Trial(
            lr,
            count,
            math.nan if diverged[count] else scores[count].miou(),
            float(np.mean(before)),
            float(np.mean(after[count])) if after[count] else math.nan,
            diverged[count],
        )
        for count in steps
    ]
