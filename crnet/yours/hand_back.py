"""``crnet predictions``: the masks of one of the study's own runs as PNGs, in the form that ``crnet score`` takes."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from crnet.config.layout import Layout
from crnet.config.resolve import Cell, Plan
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Predictor
from crnet.metrics.iou import QUERY_COLUMNS, episode_counts
from crnet.runtime.files import read_csv, read_mapping
from crnet.runtime.machine import configure
from crnet.yours.hand_out import fresh_folder, save_png
from crnet.yours.places import Place, files_of, require


def write_predictions(
    plan: Plan, cell: Cell, out: Path, device: str = "cpu", threads: int = 1, force: bool = False
) -> str:
    """Predict the episodes of a cell again and write a PNG each, 0 and 255; returns how many have the stored counts.

    Raises:
        CrnetError: Data, episodes, weights, encoder or a finetuned run's report are not here, or ``out`` has content.
    """
    layout, spec = Layout(plan), plan.evaluations[cell.evaluation]
    place = Place(
        cell.table, cell.shots, cell.fold, spec,
        Path(layout.episodes(spec)), Path(layout.data(spec["train"]["dataset"])),
    )  # fmt: skip
    index, table = place.read()
    files = files_of(layout, spec)
    require(files["encoder"], files["weights"])
    report = Path(layout.evaluation(cell.evaluation)) / "evaluation.json"
    require(report if "finetune" in spec else None)
    fresh_folder(out, force)
    configure(device, threads)
    predictor = Predictor(spec, device=device, limits=plan.study.limits.values(), **files)
    if "finetune" in spec:
        choice = read_mapping(report)["choice"]
        finetuner = Finetuner(predictor, spec["train"], spec["finetune"])
        predictions = finetuner.predictions(table.episodes, choice["lr"], choice["steps"])
    else:
        predictions = predictor.fused(list(table.episodes))
    stored, same = _stored(Path(layout.counts_of(cell))), 0
    for prediction in tqdm(predictions, total=len(table.episodes), unit="episode", mininterval=1):
        episode = prediction.episode
        mask = prediction.fused if cell.fused else prediction.query
        save_png(mask.astype(np.uint8) * 255, out / f"{place.episode_id(episode.seed, episode.number)}.png")
        counts = episode_counts(mask, index.class_mask(episode.query, episode.class_id))
        same += stored.get((episode.seed, episode.number)) == counts
    text = f"{out}: {len(table.episodes)} masks of {cell.evaluation}"
    return f"{text}, {same} of them with the counts that are stored" if stored else f"{text}, which has no counts here"


def _stored(counts: Path) -> dict[tuple[int, int], tuple[int, ...]]:
    rows = read_csv(counts) if counts.is_file() else []
    keys = ("episode_seed", "episode")
    return {tuple(int(row[k]) for k in keys): tuple(int(row[name]) for name in QUERY_COLUMNS) for row in rows}
