"""``crnet score``: masks that another program predicted are checked, counted, and join the study's tables and claims.

All that is wrong with the folder is listed before anything is counted. Counting is ``crnet.metrics.iou``, as for the
study's own runs.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crnet.config import elsewhere
from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.config.settings import is_text
from crnet.data.findings import Finding
from crnet.data.pixels import opened
from crnet.errors import CrnetError
from crnet.metrics.iou import PAIRS, QUERY_COLUMNS, episode_counts
from crnet.runtime.files import sha256_file, write_csv, write_json
from crnet.yours.places import Place

EPISODE_COLUMNS = ("episode_seed", "episode", "class", "query")
OTHER_FILES = {"episodes.json", "Thumbs.db", ".DS_Store"}  # no predictions, and no mistake either


class Refused(CrnetError):
    """Predictions that do not fit the episodes.

    Attributes:
        findings: All of them, a line each.
    """

    def __init__(self, folder: Path, findings: list[str]):
        self.findings = findings
        count = f"{len(findings)} finding{'' if len(findings) == 1 else 's'}"
        super().__init__(f"{folder}: does not hold one proper mask an episode, {count}; nothing was scored.")


def score(
    plan: Plan,
    places: list[Place],
    every: list[Place],
    predictions: Path,
    label: str,
    seed: int = 0,
    force: bool = False,
) -> list[Path]:
    """Count the predictions of all places, folds of one table, and store them; returns the folders.

    Args:
        every: Places of all folds of the table: predictions of theirs are not called strange.
        label: What the row is called.
        seed: Of the method's training, where several are scored under one label.

    Raises:
        Refused: Missing, extra, unreadable masks, or of another size, or not of two values: all are listed.
        CrnetError: No such folder, no proper label, counts are stored already and ``force`` is not given, or the
            data or episodes are not here.
    """
    if not label.strip() or len(label) > 60 or not is_text(label) or "\n" in label:
        raise CrnetError(f"--label: {label[:80]!r} has to be one line of 1 to 60 characters; choose another.")
    if not predictions.is_dir():
        raise CrnetError(f"--predictions {predictions}: is no folder; give the one that holds a PNG for each episode.")
    results, row = Layout(plan).results, elsewhere.row_id(label)
    targets = [elsewhere.folder(results, row, place.table, place.shots, place.fold, seed) for place in places]
    if not force and (there := [target for target in targets if (target / elsewhere.ABOUT).is_file()]):
        raise CrnetError(f"{there[0]}: {label!r} is scored there already; add --force to replace it.")
    read = [(place, *place.read()) for place in places]
    known = {f"{p.episode_id(e.seed, e.number)}.png" for p in every for e in p.read()[1].episodes}
    findings = [f"{name}: is no prediction of an episode; take it out" for name in _extra(predictions, known)]
    counted: list[list[list[Any]]] = []
    for place, index, table in read:
        rows: list[list[Any]] = []
        for episode in tqdm(table.episodes, desc=f"fold {place.fold}", unit="episode", mininterval=1):
            path = predictions / f"{place.episode_id(episode.seed, episode.number)}.png"
            try:
                prediction = read_prediction(path, index.size(episode.query))
            except CrnetError as error:
                findings.append(_line(error))
                continue
            mask = index.class_mask(episode.query, episode.class_id)
            counts = episode_counts(prediction, mask)
            rows.append([episode.seed, episode.number, episode.class_id, episode.query, *counts])
        counted.append(rows)
    if findings:
        raise Refused(predictions, findings)
    digest = folder_digest(predictions, known)
    for (place, index, table), target, rows in zip(read, targets, counted, strict=True):
        write_csv(target / elsewhere.COUNTS, (*EPISODE_COLUMNS, *QUERY_COLUMNS), rows)
        write_json(target / elsewhere.ABOUT, {
            "label": label,
            "row": row,
            "table": place.table,
            "shots": place.shots,
            "fold": place.fold,
            "seed": seed,
            "episodes": place.episodes_name,
            "episodes_digest": sha256_file(place.episodes_file),
            "dataset_digest": index.digest,
            PAIRS: index.class_pairs(table.fold),
            "predictions_digest": digest,
            "counts_sha256": sha256_file(target / elsewhere.COUNTS),
        })  # fmt: skip
    return targets


def read_prediction(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A predicted mask as bool (H, W); ``size`` is (height, width).

    Raises CrnetError for one that is absent, unreadable, of another size, or of other values than 0 and 255 or 0 and 1.
    """
    if not path.is_file():
        raise Finding(path.name, "is missing", "predict this episode too")
    try:
        with opened(path, path.name, "mask") as picture:
            if picture.size != size[::-1]:
                what = f"is {picture.width}x{picture.height} px but its query is {size[1]}x{size[0]} px"
                raise Finding(path.name, what, "write it at the query's own size")
            if picture.mode not in ("1", "L", "P"):
                what = f"is of mode {picture.mode}"
                raise Finding(path.name, what, "write it as a grey PNG of one channel")
            values = np.array(picture)
    except Finding as error:
        remedy = error.remedy if error.remedy.startswith("write it") else "write it again"
        raise Finding(path.name, error.what, remedy) from error
    there = set(np.unique(values).tolist())
    if not (there <= {0, 255} or there <= {0, 1}):
        other = min(there - {0, 255}) if there - {0, 255} else max(there)
        what = f"is not binary, it holds the value {other}"
        raise Finding(path.name, what, "write 0 and 255, or 0 and 1, and no smooth edges")
    return values > 0


def folder_digest(folder: Path, names: set[str]) -> str:
    """SHA-256 over names and bytes of the predictions that are there."""
    sha = hashlib.sha256()
    for name in sorted(name for name in names if (folder / name).is_file()):
        sha.update(f"{name}\n{sha256_file(folder / name)}\n".encode())
    return sha.hexdigest()


def _extra(folder: Path, known: set[str]) -> Iterator[str]:
    """Names in the folder that are no prediction of an episode."""
    return (path.name for path in sorted(folder.iterdir()) if path.name not in known | OTHER_FILES)


def _line(error: CrnetError) -> str:
    if isinstance(error, Finding):
        return f"{error.file}: {error.what}; {error.remedy}"
    return str(error)
