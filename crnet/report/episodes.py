"""The episode sheet: test episodes predicted again from the weights and drawn as the paper's Figure 6."""

from collections.abc import Iterator
from pathlib import Path

from crnet.data.episodes import Episode
from crnet.data.episodes import read as read_episodes
from crnet.evaluation.predict import Predictor
from crnet.metrics.iou import fg_counts
from crnet.report.sheet import draw_sheet
from crnet.runtime.limits import NONE, Limits
from crnet.runtime.machine import configure


def draw(job: dict, out: Path, device: str, threads: int, limits: Limits = NONE) -> None:
    """Draw the sheet of ``crnet.config.study.sheet_job``: of each fold the same number of episodes, no choice by eye.

    Queries that hold several classes come first, as they show whether the support decides what is segmented.
    """
    configure(device, threads)
    columns = [column for model in job["models"] for column in _columns(model, job["episodes"], device, limits)]
    draw_sheet(columns, out, job["title"])


def _columns(model: dict, count: int, device: str, limits: Limits) -> Iterator[dict]:
    encoder, weights = (Path(model[key]) if model[key] else None for key in ("encoder", "weights"))
    predictor = Predictor(model["spec"], Path(model["data"]), encoder, weights, device, limits=limits)
    index = predictor.index
    table = read_episodes(Path(model["episodes"]), index)
    for prediction in predictor.fused(_first_of_each_class(table.episodes, index, count)):
        episode, support = prediction.episode, prediction.episode.supports[0]
        truth = index.class_mask(episode.query, episode.class_id)
        intersection, union = fg_counts(prediction.query, truth)
        yield {
            "support": index.read_image(support),
            "support_mask": index.class_mask(support, episode.class_id),
            "query": index.read_image(episode.query),
            "truth": truth,
            "prediction": prediction.query,
            "class_name": index.class_name(episode.class_id),
            "fold": table.fold,
            "iou": intersection / union if union else None,
        }


def _first_of_each_class(episodes: tuple[Episode, ...], index, count: int) -> list[Episode]:
    """The first episodes of the table, of classes not shown yet, those with queries of several classes first."""
    several = [e for e in episodes if len(index.photos[e.query].classes) > 1]
    chosen: list[Episode] = []
    for episode in [*several, *episodes]:
        if len(chosen) < count and episode.class_id not in {e.class_id for e in chosen}:
            chosen.append(episode)
    return chosen
