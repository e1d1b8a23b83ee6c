"""Scoring one model on stored test episodes: counts per episode, from which every table and interval is made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crnet.config import sources
from crnet.config.tuning import CHOSEN
from crnet.cost import memory
from crnet.data.episodes import EpisodeTable
from crnet.data.episodes import read as read_episodes
from crnet.data.index import Index
from crnet.encoders.frozen import compute_dtype
from crnet.errors import CrnetError
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Prediction, Predictor
from crnet.metrics.iou import PAIRS, QUERY_COLUMNS, episode_counts
from crnet.runtime import provenance
from crnet.runtime.files import read_json, sha256_file, write_csv, write_json
from crnet.runtime.limits import NONE, Limits
from crnet.runtime.machine import configure
from crnet.runtime.saved_rows import SavedRows

EPISODE_COLUMNS = ("episode_seed", "episode", "class", "query")
LOSS_COLUMNS = ("support_loss_before", "support_loss_after")


def evaluate(
    spec: dict,
    data: Path,
    episodes: Path,
    encoder: Path | None,
    weights: Path | None,
    choice: Path | None,
    state: Path | None,
    out: Path,
    device: str,
    threads: int,
    features: Sequence[Path] = (),
    limits: Limits = NONE,
) -> None:
    """Score all test episodes and write ``counts.csv`` and ``evaluation.json`` into ``out``.

    A finetuned network is scored twice: ``counts.csv`` with the first support, ``counts-fusion.csv`` over all of them.
    Where no step at all was chosen, both are those of the network as it was trained.

    Args:
        choice: ``choice.json`` of ``crnet.evaluation.choice``, if the specification finetunes.
        state: Where a killed run leaves the rows it has, and goes on from.
        features, limits: See :class:`crnet.evaluation.predict.Predictor`.

    Raises:
        CrnetError: Data, episodes, encoder, weights or choice do not belong to the specification; or there is too
            little memory.
        Preempted: SIGTERM arrived; the rows are saved.
    """
    configure(device, threads)
    origin = provenance.record(device, threads) | sources.recorded(spec["train"])
    chosen = _read_choice(choice, spec) if "finetune" in spec else None
    predictor = Predictor(spec, data, encoder, weights, device, features, limits)
    index, table = predictor.index, read_table(episodes, predictor.index, spec["train"]["fold"])
    memory.check(memory.evaluation(spec, limits, predictor.named(table.episodes), bool(features)), device, out.name)
    if table.left_out:
        named = ", ".join(f"{name} ({size})" for name, size in table.left_out.items())
        print(f"classes left out for want of test photos: {named}", flush=True)
    if index.subset:
        print(f"data: {index.subset}", flush=True)
    digests = digests_of(predictor, weights, episodes) | {"choice_sha256": sha256_file(choice) if chosen else ""}
    # Finetuned episodes are made one by one, untouched ones in chunks, whose bits are the chunk's.
    together = 1 if chosen and chosen["steps"] else predictor.together
    done = SavedRows(state, [spec, digests], "episodes", together, before_save=predictor.encoder.verify)
    if chosen:
        _check_choice(choice, chosen, index, table.fold)
    remaining = list(table.episodes)[len(done.rows) :]
    if chosen:
        finetuner = Finetuner(predictor, spec["train"], spec["finetune"])
        predictions = finetuner.predictions(remaining, chosen["lr"], chosen["steps"])
    else:
        predictions = predictor.fused(remaining)
    progress = tqdm(predictions, total=len(table.episodes), initial=len(done.rows), unit="episode", mininterval=5)
    with done:
        for prediction in progress:
            done.add(_row(prediction, index))
    predictor.encoder.verify()
    written = _write_counts(out, done.rows, bool(chosen))
    write_json(out / "evaluation.json", {
        "run": out.name,
        "spec": spec,
        **origin,
        "choice": {key: chosen[key] for key in CHOSEN} if chosen else {},
        **effort(done, predictor),
        **digests,
        **written,
        PAIRS: index.class_pairs(table.fold),
        "left_out": table.left_out,
        "subset": index.subset or "",
        "split_note": index.split_note or "",
    })  # fmt: skip
    done.remove()


def read_table(path: Path, index: Index, fold: int) -> EpisodeTable:
    """The test episodes of a fold; raises CrnetError if they are of another fold or of other data."""
    table = read_episodes(path, index)
    if table.fold != fold:
        raise CrnetError(f"{path}: holds episodes of fold {table.fold}, not {fold}.")
    return table


def digests_of(predictor: Predictor, weights: Path | None, episodes: Path) -> dict[str, str]:
    """Of all files from which a prediction follows."""
    return {
        "dataset_digest": predictor.index.digest,
        "encoder_digest": predictor.encoder.digest,
        "weights_sha256": sha256_file(weights) if weights else "",
        "episodes_digest": sha256_file(episodes),
    }


def effort(done: SavedRows, predictor: Predictor) -> dict[str, Any]:
    """What the rows took, and in which type they were computed."""
    return {
        "seconds": round(done.seconds, 2),
        "cpu_seconds": round(done.cpu_seconds, 2),
        "peak_memory_bytes": provenance.peak_memory_bytes(predictor.device.type),
        "episodes_per_second": len(done.rows) / max(done.seconds, 1e-9),
        "dtype": str(compute_dtype(predictor.device, predictor.settings["precision"])).removeprefix("torch."),
    }


def _row(prediction: Prediction, index: Index) -> dict[str, Any]:
    """All that is counted of one episode, as JSON can hold it."""
    episode = prediction.episode
    mask = index.class_mask(episode.query, episode.class_id)
    return {
        "episode": [episode.seed, episode.number, episode.class_id, episode.query],
        "query": list(episode_counts(prediction.query, mask)),
        "fused": None if prediction.fused is None else list(episode_counts(prediction.fused, mask)),
        "support_loss": None if prediction.support_loss is None else [round(x, 6) for x in prediction.support_loss],
    }


def _write_counts(out: Path, rows: list[dict[str, Any]], finetuned: bool) -> dict[str, str]:
    """Write the counts; returns their digests as ``evaluation.json`` holds them, so that a changed count shows."""
    header = (*EPISODE_COLUMNS, *QUERY_COLUMNS, *(LOSS_COLUMNS if finetuned else ()))
    readings = {"counts": "query", "counts-fusion": "fused"} if finetuned else {"counts": "query"}
    digests = {}
    for name, reading in readings.items():
        lines = [[*r["episode"], *r[reading], *(r["support_loss"] or [])] for r in rows]
        write_csv(out / f"{name}.csv", header, lines)
        digests[f"{name.replace('-', '_')}_sha256"] = sha256_file(out / f"{name}.csv")
    return digests


def _read_choice(choice: Path | None, spec: dict) -> dict:
    if choice is None or not choice.is_file():
        raise CrnetError(f"{choice}: the choice of how to finetune is absent; run crnet job choice first.")
    chosen = read_json(choice)
    for key in ("train", "finetune"):
        if chosen["spec"][key] != spec[key]:
            raise CrnetError(f"{choice}: was chosen for another specification ({key}); run crnet job choice again.")
    return chosen


def _check_choice(path: Path, chosen: dict, index: Index, fold: int) -> None:
    """Guard: no setting is chosen on classes that are tested."""
    tested = {index.class_name(class_id) for class_id in index.novel_classes(fold)}
    if both := tested & set(chosen["classes"]):
        raise CrnetError(f"{path}: was chosen on {min(both)}, which fold {fold} tests; run crnet job choice again.")
