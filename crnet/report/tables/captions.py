"""The words below a table: first what only this table needs, then how all tables of a study are read."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crnet.metrics.intervals import METHOD
from crnet.report import choices
from crnet.report.tables.cells import METRIC_MEANINGS, NOT_AVAILABLE, REPORTED, VOIDS, Cell
from crnet.report.tables.layout import all_folds, row_label, shown_shots, total
from crnet.runtime.files import read_mapping


def own_notes(job: dict[str, Any], cells: Sequence[Cell]) -> list[str]:
    """Paragraphs on this table: source, folds, sizes, encoders, data, absences, how finetuning was chosen, notes."""
    quoted = any(cell.paper is not None for cell in cells)
    encoders = [f"{role}: {text}" for role, text in job.get("encoders", {}).items()]
    about = [f"Encoder{'' if len(encoders) == 1 else 's'}: {'; '.join(encoders)}."] if encoders else []
    paragraphs = [
        f"Paper: {job['source']}." if quoted else f"Not a table of the paper; see {job['source']}.",
        " ".join(filter(None, [_folds_sentence(job), _sizes(job, cells)])),
        " ".join([*about, *_data_sentences(job)]),
        _absent_sentences(job, cells),
        " ".join(choices.sentences(_choices(job))),
        *job.get("notes", []),
    ]
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def reading(job: dict[str, Any]) -> list[str]:
    """Paragraphs that tables of one study share: the study, scores, intervals, void, the paper's values, controls."""
    score = (
        "Percent. Each fold is tested on classes that its training never labelled, though its photos may show "
        "them; a fold's value is the mean over its training seeds. mIoU: IoU accumulated over the episodes of a class, "
        "then averaged over classes."
    )
    pooled = " ".join(METRIC_MEANINGS[metric] for metric in job["metrics"] if metric in METRIC_MEANINGS)
    interval = f"[low, high] is {METHOD}."
    void = (
        "Void pixels: the paper does not say how it treats them. Counted as background, as the code of its "
        "time did, is the headline; ignored, as in later work, stands beside it."
    )
    paper = "The paper's values are as printed, without an interval; on PASCAL they are means over all four folds."
    if job["orientation_only"]:
        paper += " They are for orientation only, because the data here differ from the paper's."
    paragraphs = [job["caption"], score, pooled, interval, void, paper]
    if any(row["control"] for row in job["rows"]):
        paragraphs.append(
            "Controls are never trained and have no seeds: floors that a method must clear. The prototype takes all "
            "maps that the encoder gives, also where a row takes the last alone."
        )
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def _folds_sentence(job: dict) -> str:
    if total(job) == 1:
        return "The data set has one fold."
    folds = [str(fold) for fold in job["folds"]]
    if all_folds(job):
        return f"The mean is over folds {', '.join(folds[:-1])} and {folds[-1]}."
    if len(folds) == 1:
        return f"Here it is fold {folds[0]} alone, of the data set's {total(job)}."
    return f"Here the mean is over folds {', '.join(folds[:-1])} and {folds[-1]} of the data set's {total(job)}."


def _sizes(job: dict, cells: Sequence[Cell]) -> str:
    controls = {row["id"] for row in job["rows"] if row["control"]}
    known = [cell for cell in cells if cell.value is not None and cell.fold != "mean"]
    seeds = {cell.seeds for cell in known if cell.row not in controls}
    if not known:
        return ""
    text = f"{training_seeds(seeds)} and " if seeds else ""
    sizes = ({getattr(cell, name) for cell in known} for name in ("episodes", "photos", "pairs"))
    text += f"{episode_sizes(*sizes)}, the same for every row."
    if 1 in seeds:
        text += " With one training seed an interval covers the choice of these photos only."
    return f"{text}{_deviations(cells)}"


def _deviations(cells: Sequence[Cell]) -> str:
    """How far the rows' means over folds move when they are trained again, on the same episodes."""
    means = [c for c in cells if (c.fold, c.metric, c.void) == ("mean", "miou", VOIDS[0]) and c.seed_sd is not None]
    if not means:
        return ""
    low, high = (f"{extreme(c.seed_sd for c in means):.1f}" for extreme in (min, max))
    size = f"{low} points" if low == high else f"{low} to {high} points, by row"
    return f" Standard deviation of the mean mIoU between training seeds: {size}."


def episode_sizes(episodes: set[int], photos: set[int], pairs: set[int]) -> str:
    """How many episodes, query photos, and pairs of a photo and a class each fold has."""
    text = f"{span(episodes)} episodes a fold on {span(photos)} query photos"
    return text if photos == pairs else f"{text} ({span(pairs)} pairs of a photo and a class)"


def span(values: set[int]) -> str:
    return f"{min(values)}" if len(values) == 1 else f"{min(values)} to {max(values)}"


def training_seeds(values: set[int]) -> str:
    return f"{span(values)} training seed{'' if values == {1} else 's'}"


def evaluations(cells: Iterable[Mapping[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Fold and report of every evaluation that is there behind a job's cells."""
    files = {Path(cell["counts"]).with_name("evaluation.json"): cell["fold"] for cell in cells}
    return [(fold, read_mapping(file)) for file, fold in files.items() if file.is_file()]


def data_sentences(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What evaluations say of their data: that it is a subset, and their note on its split as it stands."""
    subsets, splits = (sorted({report.get(key) or "" for report in reports} - {""}) for key in ("subset", "split_note"))
    return [*(f"The data are {subset}." for subset in subsets), *splits]


def _data_sentences(job: dict) -> list[str]:
    """As above, and which classes have too few photos."""
    found = evaluations(cell for row in job["rows"] for cell in row["cells"])
    left_out = {(fold, name): size for fold, about in found for name, size in about.get("left_out", {}).items()}
    sentences = [f"{text.rstrip('.')}." for text in data_sentences([about for _, about in found])]
    if left_out:
        named = ", ".join(f"{name} ({size}) of fold {fold}" for (fold, name), size in sorted(left_out.items()))
        sentences.append(f"Classes left out because they have too few test photos (their number): {named}.")
    return sentences


def _choices(job: dict) -> list[dict[str, Any]]:
    """How the finetuned evaluations behind a table's cells were chosen, each choice once."""
    found = evaluations(cell for row in job["rows"] for cell in row["cells"])
    return list({about["choice_sha256"]: about["choice"] for _, about in found if about.get("choice")}.values())


def _absent_sentences(job: dict, cells: Sequence[Cell]) -> str:
    """Why cells hold no value; each reason once, rows that share it together."""
    labels = {row["id"]: row_label(row) for row in job["rows"]}
    shown = shown_shots(job)
    gaps: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.fold == "mean" and cell.note and cell.shots in shown:
            gaps.setdefault(cell.note, {})[f"{labels[cell.row]} {cell.shots}-shot"] = None
    sentences = []
    reasons = [note for note in gaps if note.startswith(NOT_AVAILABLE)]
    for note, names in gaps.items():
        named = ", ".join(names)
        if note in reasons:
            # one reason needs no names: the cells that say N/A are those it explains
            which = f" ({named})" if len(reasons) > 1 else ""
            sentences.append(f"{NOT_AVAILABLE}{which}: {note.partition(': ')[2] or 'not part of this study'}.")
        elif note != REPORTED:
            sentences.append(f"Without a value: {named}: {note}.")
    hidden = [f"{shots}-shot" for shots in job["shots"] if shots not in shown]
    sentences += [f"Not part of this study: {', '.join(hidden)}."] if hidden else []
    return " ".join(sentences)
