"""A few episodes predicted again from encoder, weights and data: the one check that no consistent lie passes.

Episodes are predicted one by one, in the run itself in batches: kernels may then round differently, and a pixel whose
two scores are equal to the last digits may change sides. So counts are called *exact* if all are equal, and *within
tolerance* if none is further off than a share of the query's pixels, at least ``LEAST``; see ``tolerance``.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError

from crnet.audit.folder import Folder
from crnet.audit.ledger import Check
from crnet.config import encoders, resolve
from crnet.config.settings import brings_weights
from crnet.data.episodes import Episode, EpisodeTable
from crnet.encoders.frozen import compute_dtype
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Prediction, Predictor
from crnet.metrics.iou import QUERY_COLUMNS, episode_counts
from crnet.runtime import provenance
from crnet.runtime.files import read_csv
from crnet.runtime.machine import configure

# Of the query's pixels, by the type that is computed with. Where processor and torch were the run's, 124 episodes of a
# tiny study in float32 and 36 of COCO photos in bfloat16 came out exact; float32 in place of bfloat16, more than any
# rounding, moved counts of the latter by up to 1.2 %.
SHARES = {"float32": 0.0005, "bfloat16": 0.0025}
FINETUNED = 4  # times as much: rounding grows over the steps of finetuning
ELSEWHERE = 8  # times as much on another device, processor or version of torch than the run's
LEAST = 4  # pixels


def check_sample(
    folder: Folder,
    check: Check,
    notes: list[str],
    tables: Mapping[str, EpisodeTable],
    count: int,
    seed: int,
    device: str,
) -> None:
    """Predict ``count`` random episodes of random evaluations again and compare all counts.

    Args:
        tables: Episode tables by name.
        seed: Of the choice of episodes.
        device: cpu or cuda.

    Raises:
        CrnetError: The device is not there.
    """
    configure(device, 1)
    usable = {}
    for name in sorted(set(folder.evaluations) & set(folder.plan.evaluations)):
        if reason := _missing(folder, name, tables, device):
            check.unknown(f"evaluations of which {reason}")
        else:
            usable[name] = _table(folder, name, tables)
    if not usable:
        check.unknown("nothing to predict episodes from")
        return
    offs = []
    for name, numbers in _choose(usable, count, seed).items():
        offs += _evaluation(folder, check, name, [usable[name].episodes[i] for i in numbers], numbers, device)
    if offs:
        exact = sum(off == 0 for off in offs)
        text = f"sample: {exact} exact, {len(offs) - exact} with other rounding"
        notes.append(text + (f", at most {max(offs)} pixels off in a count" if exact < len(offs) else ""))


def _choose(usable: Mapping[str, EpisodeTable], count: int, seed: int) -> dict[str, list[int]]:
    """Evaluation -> positions in its table; evaluations in random order, so that many are looked at."""
    generator = random.Random(seed)
    names = generator.sample(sorted(usable), len(usable))
    chosen: dict[str, list[int]] = {}
    for number in range(min(count, sum(len(table.episodes) for table in usable.values()))):
        rotation = [*names[number % len(names) :], *names[: number % len(names)]]
        name = next(name for name in rotation if len(chosen.get(name, [])) < len(usable[name].episodes))
        free = set(range(len(usable[name].episodes))) - set(chosen.get(name, []))
        chosen.setdefault(name, []).append(generator.choice(sorted(free)))
    return chosen


def _table(folder: Folder, name: str, tables: Mapping[str, EpisodeTable]) -> EpisodeTable | None:
    return tables.get(resolve.episodes_name(resolve.episodes_spec(folder.plan.evaluations[name])))


def _missing(folder: Folder, name: str, tables: Mapping[str, EpisodeTable], device: str) -> str | None:
    """Why an evaluation cannot be repeated here; None if it can."""
    spec, about = folder.plan.evaluations[name], folder.evaluations[name]
    train = spec["train"]
    if about.get("failed"):
        return "the run failed"
    if not _table(folder, name, tables) or not all(
        about["path"].with_name(file).is_file() for file in folder.counts_files(name)
    ):
        return "counts or episodes are not here"
    if folder.index(train["dataset"]) is None:
        return f"the data set {train['dataset']['name']} of the runs is not at hand"
    if absent := encoders.absent(train["encoder"]["name"]):
        return absent.removesuffix(".")
    if not brings_weights(train["encoder"]["name"]) and folder.encoder(train["encoder"]) is None:
        return f"the encoder {train['encoder']['name']} is not at hand"
    if "train" in train and folder.weights(train) is None:
        return "the weights are not at hand"
    dtype = _dtype(spec, device)
    if about.get("dtype", dtype) != dtype:
        return f"the type was {about['dtype']}, here it is {dtype}"
    return None


def _dtype(spec: dict, device: str) -> str:
    return str(compute_dtype(torch.device(device), spec["evaluate"]["precision"])).removeprefix("torch.")


def _evaluation(
    folder: Folder, check: Check, name: str, episodes: list[Episode], numbers: list[int], device: str
) -> list[int]:
    """Check episodes of one evaluation; returns by how many pixels those within tolerance are off."""
    spec, about = folder.plan.evaluations[name], folder.evaluations[name]
    train, where, offs = spec["train"], f"evaluate/{name}", []
    weights = folder.weights(train) if "train" in train else None
    with check.reading(where, "cannot be predicted again", RuntimeError, SafetensorError):
        predictor = Predictor(spec, folder.data(train["dataset"]), folder.encoder(train["encoder"]), weights, device)
        predictions = [_predict(predictor, spec, about, episode) for episode in episodes]
        if predictor.encoder.digest != about.get("encoder_digest"):
            check.differs(f"{where}/evaluation.json", "names another encoder than the one at hand")
        stored = {file: read_csv(about["path"].with_name(file)) for file in folder.counts_files(name)}
        for number, prediction in zip(numbers, predictions, strict=True):
            rows = {file: rows[number] for file, rows in stored.items() if number < len(rows)}
            off, place, text = _farthest(predictor, prediction, rows)
            pixels = math.prod(predictor.index.size(prediction.episode.query))
            allowed = max(LEAST, int(tolerance(spec, about, device) * pixels))
            problem = f"{text} (tolerance {allowed} pixels)" if off > allowed else None
            if check.judge(f"{where}/{place}, line {number + 2}", problem):
                offs.append(off)
    return offs


def tolerance(spec: dict, about: Mapping[str, Any], device: str) -> float:
    """Share of a query's pixels by which a count may be off."""
    share = SHARES[_dtype(spec, device)] * (FINETUNED if "finetune" in spec else 1)
    here = (device, torch.__version__, provenance.cpu_name())
    run = (about.get("device"), about.get("versions", {}).get("torch"), about.get("cpu"))
    return share * (1 if here == run else ELSEWHERE)


def _predict(predictor: Predictor, spec: dict, about: Mapping[str, Any], episode: Episode) -> Prediction:
    if "finetune" not in spec:
        return next(predictor.fused([episode]))
    finetuner = Finetuner(predictor, spec["train"], spec["finetune"])
    return next(finetuner.predictions([episode], about["choice"]["lr"], about["choice"]["steps"]))


def _farthest(
    predictor: Predictor, prediction: Prediction, stored: Mapping[str, Mapping[str, str]]
) -> tuple[int, str, str]:
    """By how many pixels the count of an episode that is farthest off is so, its file, and both values.

    Args:
        stored: File -> row of the episode, as ``crnet.evaluation.evaluate`` writes it.
    """
    index, episode = predictor.index, prediction.episode
    mask, worst = index.class_mask(episode.query, episode.class_id), (0, "", "")
    for file, reading in (("counts.csv", prediction.query), ("counts-fusion.csv", prediction.fused)):
        made = episode_counts(reading, mask) if reading is not None else ()
        for column, value in zip(QUERY_COLUMNS, made, strict=False):
            text = stored.get(file, {}).get(column, "")
            known = text.isascii() and text.isdigit()
            off = abs(int(text) - value) if known else math.prod(index.size(episode.query))
            if off > worst[0]:
                worst = off, file, f"{column} is {text or 'absent'}, predicted again {value}"
    return worst
