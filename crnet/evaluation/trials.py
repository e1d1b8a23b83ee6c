"""Trials of finetuning: one model at every rate and number of steps, and untouched; every episode's counts are stored.

Episodes are of test-split photos, which training has never seen, and of classes that ``crnet.config.tuning`` names.
What is chosen of them, and for which fold, is ``crnet.evaluation.choice``'s.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from crnet.config import sources
from crnet.cost import memory
from crnet.data.episodes import NOVEL, Episode, draw_trials
from crnet.evaluation.choice import COLUMNS, UNTOUCHED
from crnet.evaluation.finetune import Diverged, Finetuner
from crnet.evaluation.predict import Predictor
from crnet.metrics.iou import fg_counts
from crnet.runtime import provenance
from crnet.runtime.files import sha256_file, write_csv, write_json
from crnet.runtime.limits import NONE, Limits
from crnet.runtime.machine import configure
from crnet.runtime.saved_rows import SavedRows


def run(
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
    """Try every rate with every number of steps; write ``trials.csv`` and ``trials.json`` into ``out``.

    Args:
        spec: As ``crnet.config.tuning.trials_specs`` makes it.
        state: Where a killed run leaves the rows it has, and goes on from.
        features, limits: See :class:`crnet.evaluation.predict.Predictor`.

    Raises:
        CrnetError: Too few photos for the trial's shots, or too little memory.
        Preempted: SIGTERM arrived; the rows are saved.
    """
    configure(device, threads)
    origin = provenance.record(device, threads) | sources.recorded(spec["train"])
    settings, fold = spec["finetune"], spec["train"]["fold"]
    predictor = Predictor(spec, data, encoder, weights, device, features, limits)
    index, count = predictor.index, settings["trial_episodes"]
    table = draw_trials(index, fold, count, settings["trial_shots"], spec["trial_classes"])
    memory.check(memory.evaluation(spec, limits, predictor.named(table.episodes), bool(features)), device, out.name)
    finetuner = Finetuner(predictor, spec["train"], settings)
    digests = {
        "dataset_digest": index.digest,
        "encoder_digest": predictor.encoder.digest,
        "weights_sha256": sha256_file(weights),
    }
    steps = sorted(set(settings["steps"]))
    rates = {UNTOUCHED[0]: [UNTOUCHED[1]], **dict.fromkeys(sorted(set(settings["lr"])), steps)}
    attempts = [(lr, episode) for lr in rates for episode in table.episodes]
    done = SavedRows(state, [spec, digests], "attempts", before_save=predictor.encoder.verify)
    remaining = attempts[len(done.rows) :]
    with done:
        for lr, episode in tqdm(remaining, total=len(attempts), initial=len(done.rows), unit="attempt", mininterval=5):
            done.add(_attempt(finetuner, episode, lr, rates[lr]))
    predictor.encoder.verify()
    rows = [
        (lr, int(number), episode.number, episode.class_id, *station)
        for (lr, episode), reached in zip(attempts, done.rows, strict=True)
        for number, station in reached.items()
    ]
    write_csv(out / "trials.csv", COLUMNS, sorted(rows, key=lambda row: row[:3]))
    write_json(out / "trials.json", {
        "run": out.name,
        "spec": spec,
        **origin,
        "tried_on": NOVEL if spec["trial_classes"] == NOVEL else "validation" if index.held_out[fold] else "base",
        "classes": sorted({index.class_name(e.class_id) for e in table.episodes}),
        "left_out": table.left_out,
        "seconds": round(done.seconds, 2),
        "cpu_seconds": round(done.cpu_seconds, 2),
        "peak_memory_bytes": provenance.peak_memory_bytes(device),
        **digests,
        "trials_sha256": sha256_file(out / "trials.csv"),
    })  # fmt: skip
    done.remove()


def _attempt(finetuner: Finetuner, episode: Episode, lr: float, steps: list[int]) -> dict[str, list]:
    """One episode finetuned at one rate: number of steps -> the query's intersection and union, the loss on supports.

    All numbers of steps at once: the fewer are stations on the way to the most. Those from where the loss is no longer
    finite hold nothing.
    """
    supports, index = finetuner.supports(episode), finetuner.predictor.index
    reached: dict[str, list] = {str(count): ["", "", ""] for count in steps}
    with suppress(Diverged):
        for count in finetuner.adapt(episode, supports, lr, steps):
            if math.isfinite(loss := finetuner.loss(supports)):
                query, _ = finetuner.predict(episode, fuse=False)
                counts = fg_counts(query, index.class_mask(episode.query, episode.class_id))
                reached[str(count)] = [*map(int, counts), round(loss, 6)]
    return reached
