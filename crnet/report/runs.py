"""The index of a study: one row a run with everything that defines it, and all training logs in one table.

Both files are made from what the jobs left (``train.json``, ``log.csv``, ``trials.json``, ``choice.json``,
``evaluation.json`` with ``counts.csv``) and can be made again at any time; tables do not depend on them. A finetuned
evaluation is two rows, as its network is scored with the first support and over all of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from crnet.config.tuning import CHOSEN
from crnet.errors import CrnetError
from crnet.metrics import iou
from crnet.metrics.intervals import estimate, read_fold, unknown
from crnet.runtime.files import canonical, read_csv, read_json, write_csv

Row = dict[str, Any]
Labels = Sequence[tuple[str, Sequence[str]]]  # what readers call runs, and the runs' names

IDENTITY = [
    *("run", "kind", "status", "failed", "train_run"),
    *("method", "variant", "dataset.name", "fold", "seed", "shots"),
]
# Percent; the suffix: void pixels.
METRICS = [f"{metric}_{void}" for void in ("ignore", "background") for metric in iou.METRICS]
PROVENANCE = [
    *("started", "seconds", "peak_memory_bytes", "images_per_second", "episodes_per_second", "parameters"),
    *("device", "threads", "platform", "cpu", "gpu", "commit", "dirty"),
    *("versions.python", "versions.torch", "versions.torchvision", "versions.numpy"),
    *("dataset_digest", "encoder_digest", "weights_sha256", "episodes_digest"),
]
LOG_FIRST = ["epoch", "step", "loss"]
LOG_LAST = ["lr", "images_per_second", "peak_memory_bytes", "base_miou", "support_iou", "seconds"]
SETTINGS = ("dataset.", "encoder.", "episodes.", "evaluate.", "finetune.", "choice.", "model.", "train.")
KINDS = ("train", "trials", "choice", "evaluate")
FUSED = "counts-fusion.csv"
FAILED = "failed.json"  # as crnet.training.loop writes it, which imports torch
SECOND_READING = "+fusion"  # ends the name of a row that shares its job with the row before

# What a variant may differ in: all settings but those that name a cell of a table or follow from the code's state.
VARIANT_SECTIONS = ("model.", "encoder.", "train.", "evaluate.")
NOT_A_VARIANT = {"evaluate.shots", "model.rev", "encoder.rev", "train.rev", "evaluate.rev"}


def collect(
    train_jsons: Sequence[Path],
    log_csvs: Sequence[Path],
    trials_jsons: Sequence[Path],
    choice_jsons: Sequence[Path],
    evaluation_jsons: Sequence[Path],
    runs_csv: Path,
    training_csv: Path,
) -> None:
    """Write the two index files of a study from every report, and the ``log.csv`` beside a ``train.json`` if there is.

    ``runs_csv``: one row a run, in the order of ``KINDS``; the same columns in every row, empty where they
    do not apply. Settings are named by their path (``train.lr``), values other than text are JSON. A failed
    run stays, with its reason. ``training_csv``: every row of every log, preceded by the run, method,
    variant, fold and seed it belongs to.

    Raises:
        CrnetError: A run is given twice, a log has no ``train.json`` beside it, or a file is not what it
        should be.
    """
    trained = {path.parent: _row(path, "train") for path in train_jsons}
    names = {canonical(row.pop("spec")): row["run"] for row in trained.values()}
    tried = [_row(path, "trials") for path in trials_jsons]
    chosen = [_row(path, "choice") for path in choice_jsons]
    evaluated = [row for path in evaluation_jsons for row in _readings(path)]
    for row in [*tried, *chosen, *evaluated]:
        row["train_run"] = names.get(canonical(row.pop("spec")["train"]))
    rows = [*trained.values(), *tried, *chosen, *evaluated]
    for run, count in Counter(row["run"] for row in rows).items():
        if count > 1:
            raise CrnetError(f"run {run!r} is reported twice; delete the folder that does not belong to this study.")
    for kind in (list(trained.values()), tried, chosen, evaluated):
        for row, label in zip(kind, variants(kind), strict=True):
            row["variant"] = label
    write_csv(runs_csv, *table(sorted(rows, key=_order)))
    write_csv(training_csv, *_training(trained, log_csvs))


def _readings(path: Path) -> list[Row]:
    """One row of an evaluation, or two of a finetuned one; the cost is the first row's."""
    row = _row(path, "evaluate")
    first, *second = counts_files(path.parent, row["spec"])
    for counts in (first, *second):
        if not counts.is_file():
            raise CrnetError(
                f"{counts}: is absent, though {path.name} beside it says that the run finished; put it back, or delete "
                f"{path.name} and run its job again."
            )
    row |= headline(first) | support_losses(first)
    cost = ("seconds", "cpu_seconds", "peak_memory_bytes", "episodes_per_second")
    again = {key: value for key, value in row.items() if key not in cost}
    again |= {"run": row["run"] + SECOND_READING, "evaluate.strategy": "finetune-fusion"}
    return [row, *(again | headline(counts) for counts in second)]


def counts_files(folder: Path, spec: Mapping[str, Any]) -> list[Path]:
    """The counts that an evaluation leaves in its folder: a finetuned one has those over all supports too."""
    return [folder / name for name in ("counts.csv", FUSED)[: 2 if "finetune" in spec else 1]]


def _row(path: Path, kind: str) -> Row:
    """One run as a flat row, with its nested specification kept under "spec" for the caller to take out."""
    report = read_json(path)
    try:
        return flat(report, kind)
    except (AttributeError, KeyError, TypeError) as error:
        raise CrnetError(f"{path}: is not the report of a run ({error!r}); delete it and run its job again.") from error


def flat(report: Any, kind: str) -> Row:
    """The row of a report, without what its counts say and with its specification as "spec"; empties the report."""
    if not isinstance(report, dict):
        raise TypeError(f"it holds a {type(report).__name__} in place of names and values")
    run, spec = report.pop("run"), report.pop("spec")
    training = spec if kind == "train" else spec["train"]
    identity = {"run": run, "kind": kind, "method": training["method"], "fold": training["fold"]}
    identity |= {"seed": training["seed"], "dataset.name": training["dataset"]["name"]}
    failed = report.pop("failed", None)
    settings = flatten({**spec, **training, "train": training.get("train", {})})
    if "trials" in report and kind == "train":
        report["choice"] = {**report["choice"], "trials": report.pop("trials")}
    if kind != "train":
        identity["shots"] = spec["evaluate"]["shots"]
    if kind == "choice":
        identity["miou_ignore"] = report.pop("miou")
        report["choice"] = {key: report.pop(key) for key in CHOSEN}
        del report["trials"], report["trials_sha256"]
    more = flatten({key: report.pop(key, {}) for key in ("choice", "versions")})
    status = {"status": "failed" if failed else "finished", "failed": failed}
    return {**report, **settings, **more, **identity, **status, "spec": spec}


def headline(counts_csv: Path) -> dict[str, float]:
    """mIoU and both FB-IoU in percent over all episodes, both void conventions, estimated as in the tables.

    Without the one whose weights are not recorded.
    """
    fold = [read_fold(0, {0: counts_csv})]
    named = {name: name.rsplit("_", 1) for name in METRICS}
    known = {name: each for name, each in named.items() if not unknown(fold, each[0])}
    return {name: round(100 * estimate(fold, *each), 4) for name, each in known.items()}


def support_losses(counts_csv: Path) -> dict[str, float]:
    """Mean loss on the supports before and after finetuning; nothing of a network that was not finetuned."""
    rows = read_csv(counts_csv)
    names = [name for name in ("support_loss_before", "support_loss_after") if name in rows[0]]
    return {name: round(sum(float(row[name]) for row in rows) / len(rows), 6) for name in names}


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Row:
    """Nested mappings as one, keys joined by dots; anything else, lists too, is a value."""
    flat: Row = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def variants(rows: Sequence[Row]) -> list[str]:
    """A readable name for each run: its method and in what it differs from the other runs of that method.

    Switches that some runs have off read "without cross_reference", other settings "scales=[1.0]"; sections
    are named only where a setting's name occurs in two of them. The label depends on the runs of the study,
    so it names them for readers and is no key.
    """
    differing = {}
    for method in {row["method"] for row in rows}:
        same = [row for row in rows if row["method"] == method]
        keys = {key for row in same for key in row if key.startswith(VARIANT_SECTIONS)} - NOT_A_VARIANT
        differing[method] = sorted(key for key in keys if len({canonical(row.get(key)) for row in same}) > 1)
    return [_label(row, differing[row["method"]]) for row in rows]


def _label(row: Row, differing: Sequence[str]) -> str:
    ends = [key.split(".", 1)[1] for key in differing]
    shown = {key: end if ends.count(end) == 1 else key for key, end in zip(differing, ends, strict=True)}
    off = [shown[key] for key in differing if row.get(key) is False]
    others = [f"{shown[key]}={text(row[key])}" for key in differing if key in row and not isinstance(row[key], bool)]
    parts = [f"without {', '.join(off)}"] if off else []
    return " ".join([row["method"], *parts]) + "".join(f", {other}" for other in others)


def label_of(labels: Labels) -> Callable[[Mapping[str, str]], str]:
    """How rows of ``runs.csv`` and ``training.csv`` are called: as the row of the first table that they are behind.

    Args:
        labels: ``crnet.config.study.page_job``'s; a run that is in none of them keeps its variant's name.
    """
    by_run = {run: label for label, runs in labels for run in runs}
    return lambda row: by_run.get(row["run"].removesuffix(SECOND_READING)) or row["variant"] or row["method"]


def in_order(names: Iterable[str], labels: Labels) -> list[str]:
    """What runs are called, each once: as the tables have them, then others by name."""
    place = {name: i for i, (name, _) in enumerate(labels)}
    return sorted(set(names), key=lambda name: (place.get(name, len(place)), name))


def text(value: Any) -> str:
    """How a value stands in a cell: text as it is, nothing as an empty cell, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else canonical(value)


def _order(row: Row) -> tuple:
    place = (row["fold"], row["seed"], row.get("shots") or 0, row["run"])
    return KINDS.index(row["kind"]), row["dataset.name"], row["method"], row["variant"], *place


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of ``runs.csv``: the same columns for every row, settings among them that only some have."""
    fixed = {*IDENTITY, *METRICS, *PROVENANCE}
    others = sorted(set(chain.from_iterable(rows)) - fixed)
    settings = [key for key in others if key.startswith(SETTINGS)]
    header = [*IDENTITY, *METRICS, *settings, *PROVENANCE, *(key for key in others if key not in settings)]
    return header, [[text(row.get(key)) for key in header] for row in rows]


def log_columns(found: Iterable[str]) -> list[str]:
    """Columns of logs in the order of ``training.csv``."""
    return [*LOG_FIRST, *sorted({*found} - {*LOG_FIRST, *LOG_LAST}), *LOG_LAST]


def _training(trained: Mapping[Path, Row], log_csvs: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    logs = []
    for path in log_csvs:
        if path.parent not in trained:
            raise CrnetError(
                f"{path}: has no train.json beside it, so its run is unknown; delete it or run its job again."
            )
        logs.append((trained[path.parent], read_csv(path)))
    logs.sort(key=lambda log: _order(log[0]))
    columns = log_columns(key for _, lines in logs for line in lines for key in line)
    about = ["run", "method", "variant", "fold", "seed"]
    rows = [
        [*(text(row[key]) for key in about), *(line.get(key, "") for key in columns)]
        for row, lines in logs
        for line in lines
    ]
    return [*about, *columns], rows
