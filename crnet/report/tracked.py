"""The runs of a study as MLflow shall show them: made of its index files, named by the rows of tables they fill."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import product
from pathlib import Path
from statistics import fmean

from crnet.config import resolve, tuning
from crnet.config.resolve import Cell, Plan
from crnet.errors import CrnetError
from crnet.report.runs import SECOND_READING, SETTINGS
from crnet.runtime.files import canonical, sha256_text

IDENTITY_PARAMS = ("method", "dataset.name", "fold", "seed", "shots")
CELL_PARAMS = ("fold", "seed")  # what differs between the children of one parent
CHOSEN = ("choice.", "finetune.folds")  # so may what finetuning chose in each fold, and on which others
RUN_COLUMNS = ("run", "kind", "status", "variant", *IDENTITY_PARAMS, "seconds")  # what no run can be shown without
RESTORE = "put it back from a copy, or delete it and let the workflow make it again"
# MLflow's chart view has a section a prefix, by the alphabet: test/ stands first.
COSTS = {name: f"usage/{name}" for name in ("seconds", "peak_memory_bytes", "images_per_second", "episodes_per_second")}
# All scores are percent. The tables' headline counts void as background; the other convention says so in its name. So
# do both FB-IoU: classes weighed by their test pairs, which is the headline, or equally.
FINAL = {
    "miou_background": "test/miou",
    "fbiou_pairs_background": "test/fbiou_pairs",
    "fbiou_background": "test/fbiou_classes_equal",
    "miou_ignore": "test/miou_void_ignored",
    "fbiou_pairs_ignore": "test/fbiou_pairs_void_ignored",
    "fbiou_ignore": "test/fbiou_classes_equal_void_ignored",
    **COSTS,
}
CHOICE = {"miou_ignore": "trials/miou", "miou_untouched": "trials/miou_untouched"}  # on classes not tested
CURVES = {
    "base_miou": "train/base_miou",
    "support_iou": "train/base_support_iou",
}  # others: train/<column>
SHARES = tuple(CURVES)  # a log has them as shares of one
AVERAGED = ("test/", "trials/", "train/base_", "usage/", "train/loss")
SAME_TAGS = ("method", "variant", "kind", "fold", "seed", "shots", "train_run", "failed", "device", "cpu", "gpu")
TAGS = {
    **{name: name for name in SAME_TAGS},
    "dataset.name": "dataset",
    "commit": "mlflow.source.git.commit",
    "dirty": "git.dirty",
    "dataset_digest": "digest.dataset",
    "encoder_digest": "digest.encoder",
    "weights_sha256": "digest.weights",
    "episodes_digest": "digest.episodes",
    "versions.torch": "version.torch",
}
NOTE = "mlflow.note.content"
ENDED = ("FINISHED", "FAILED")  # MLflow's states of runs that change no more
STATES = {name.lower(): name for name in (*ENDED, "RUNNING", "KILLED", "SCHEDULED")}
Point = tuple[str, float, float, int]  # metric, value, seconds since the start, step


@dataclass(frozen=True)
class Record:
    """One run as MLflow shall show it."""

    key: str
    name: str
    params: dict[str, str]  # every setting of the study, "-" where it does not apply, so that all runs have the same
    tags: dict[str, str]
    points: list[Point] = field(default_factory=list)
    status: str = "FINISHED"
    started: float | None = None  # Unix time in seconds, None if unknown
    seconds: float = 0.0
    dataset: tuple[str, str] | None = None
    group: "Record | None" = None  # what its parent run shares with it; None for a parent
    expected: frozenset[tuple[str, str]] = frozenset()  # folds and seeds of its row; of no plan: none

    def content(self) -> str:
        """Digest of what cannot change in a logged run; settings that only other runs have are not.

        Nor is the curve of a training that failed: who watched it has one, its files have none.
        """
        given = {name: value for name, value in self.params.items() if value != "-"}
        points = [(key, repr(value), step) for key, value, _, step in self.points if self.status != "FAILED"]
        return sha256_text(canonical([given, points, self.status]))[:16]


def places(plan: Plan | None) -> dict[str, list[Cell]]:
    """The cells behind which a row of ``runs.csv`` stands, by its name, in the order of the tables."""
    found: dict[str, list[Cell]] = defaultdict(list)
    for cell in plan.cells if plan else ():
        spec = plan.evaluations[cell.evaluation]
        found[resolve.training_name(spec["train"])].append(cell)
        found[cell.evaluation + (SECOND_READING if cell.fused else "")].append(cell)
        if choice := tuning.choice_spec(spec):
            found[tuning.choice_name(choice)].append(cell)
            found[tuning.trials_name(tuning.own_trials(choice))].append(cell)
    return dict(found)


def records(
    rows: Iterable[Mapping[str, str]],
    curves: Mapping[str, Sequence[Mapping[str, str]]],
    study: str,
    plan: Plan | None,
    where: str,
) -> list[Record]:
    """A record for each row of ``runs.csv``, or of :mod:`crnet.report.under_way`, in its order.

    Args:
        curves: Rows of ``training.csv`` by run.
        plan: Names runs by the first row of a table that they fill; without it by their variant.
        where: The files, for the message.
    """
    filled, made = places(plan), []
    for row in rows:
        try:
            cells = filled.get(row["run"], [])
            made.append(_record(row, curves.get(row["run"], []), study, plan, cells))
        except ValueError as error:
            raise CrnetError(f"{where}, run {row['run']}: {error}; {RESTORE}.") from error
    return made


def _record(
    row: Mapping[str, str], curve: Sequence[Mapping[str, str]], study: str, plan: Plan | None, cells: Sequence[Cell]
) -> Record:
    params = {name: row[name] or "-" for name in row if name in IDENTITY_PARAMS or name.startswith(SETTINGS)}
    tags = {"study": study, **{tag: row[name] for name, tag in TAGS.items() if row.get(name)}}
    placed = {"table": cells[0].table, "row": cells[0].row, "cells": _cells_text(cells)} if cells else {}
    status = STATES.get(row["status"], "FINISHED")
    seconds, final = float(row["seconds"] or 0), CHOICE if row["kind"] == "choice" else FINAL
    points = [(metric, float(row[name]), seconds, 0) for name, metric in final.items() if row.get(name)]
    points = points if status in ENDED else []  # what it costs is not known before
    shots = f"{row['shots']}shot"
    part = {"train": "train", "evaluate": shots}.get(row["kind"], f"{row['kind']} {shots}")
    # Of the two readings of a finetuned network a table may show one: the other goes by its variant.
    called = f"{cells[0].table} {cells[0].row}" if cells else row["variant"]
    fills = f"Fills {placed['cells']}. " if cells else ""
    note = f"{fills}Run `{row['run']}`; scores are percent, `test/miou` counts void as background."
    return Record(
        key=row["run"],
        name=f"{called} f{row['fold']} s{row['seed']} {part}",
        params=params,
        tags=tags | placed | {NOTE: note},
        points=[*_curve(curve), *points],
        status=status,
        started=datetime.fromisoformat(row["started"]).timestamp() if row.get("started") else None,
        seconds=seconds,
        dataset=(row["dataset.name"], row["dataset_digest"]) if row.get("dataset_digest") else None,
        group=_group(row, params, {"study": study, **placed}, f"{called} {part}"),
        expected=_expected(row, plan, cells),
    )


def _cells_text(cells: Sequence[Cell]) -> str:
    return ", ".join(dict.fromkeys(f"{cell.table}/{cell.row}" for cell in cells))


def _expected(row: Mapping[str, str], plan: Plan | None, cells: Sequence[Cell]) -> frozenset[tuple[str, str]]:
    """Folds and seeds of the row of a table that a run fills first, for an evaluation at its shots."""
    if not plan or not cells:
        return frozenset()
    place = [(cell.table, cell.row, None if row["kind"] == "train" else cell.shots) for cell in cells[:1]]
    return frozenset(
        (str(cell.fold), str(cell.seed))
        for cell in plan.cells
        if (cell.table, cell.row, None if row["kind"] == "train" else cell.shots) in place
    )


def _curve(lines: Sequence[Mapping[str, str]]) -> Iterator[Point]:
    about = {"run", "method", "variant", "fold", "seed", "epoch", "step", "seconds"}
    for line in lines:
        epoch = int(line["epoch"])
        for name, text in line.items():
            if name not in about and text:
                value = 100 * float(text) if name in SHARES else float(text)
                yield CURVES.get(name, f"train/{name}"), value, float(line["seconds"] or epoch), epoch


def _group(row: Mapping[str, str], params: dict[str, str], tags: dict[str, str], name: str) -> Record:
    shared = {key: "-" if key in CELL_PARAMS or key.startswith(CHOSEN) else value for key, value in params.items()}
    # The label of a variant changes as a study grows; its settings do not, and neither does this key.
    settings = {name: value for name, value in shared.items() if value != "-"}
    key = f"{row['kind']}-{sha256_text(canonical(settings))[:16]}"
    named = ("method", "variant", "shots", "dataset.name")
    tags = {**tags, "kind": "variant", **{TAGS[each]: row[each] for each in named if row[each]}}
    return Record(key=key, name=name, params=shared, tags=tags)


def parent(children: Sequence[Record], folds: set[str]) -> Record:
    """The run above a variant's folds and seeds: which they are, mean scores and costs, total time.

    There is no mean if a fold or a seed of its row is missing or failed; where no plan says which there are, it is
    every fold of the experiment with every seed. It has ended when they have.
    """
    cells = {tuple(child.params[name] for name in CELL_PARAMS) for child in children if child.status == "FINISHED"}
    of = {name: sorted({child.params[name] for child in children}, key=int) for name in CELL_PARAMS}
    expected = set().union(*(child.expected for child in children)) or set(product(folds, of["seed"]))
    states = [child.status for child in children]
    under_way = [state for state in STATES.values() if state in states and state not in ENDED]
    points, lacking = [], sorted(expected - cells)
    if not lacking and not under_way:
        final = [{key: value for key, value, _, _ in child.points} for child in children]
        shared = sorted(key for key in set.intersection(*map(set, final)) if key.startswith(AVERAGED))
        points = [(key, fmean(values[key] for values in final), 0.0, 0) for key in shared]
    starts = [child.started for child in children if child.status != "SCHEDULED"]
    group, first = children[0].group, children[0].group.params
    chosen = {key: sorted({child.params[key] for child in children}) for key in first if key.startswith(CHOSEN)}
    whole = f"Mean over folds {', '.join(of['fold'])} and seeds {', '.join(of['seed'])}."
    note = f"No mean: fold {lacking[0][0]} with seed {lacking[0][1]} is missing or failed." if lacking else whole
    note = f"No mean yet: {len(cells)} of {len(children)} are finished." if under_way else note
    return replace(
        group,
        params={**first, **{name: ",".join(values) for name, values in (of | chosen).items()}},
        tags=group.tags | {NOTE: f"{note} Scores are percent, `test/miou` counts void as background."},
        points=points,
        status=under_way[0] if under_way else "FINISHED",
        started=None if None in starts else min(starts),
        seconds=sum(child.seconds for child in children),
    )


def study_record(study: str, plan: Plan | None, made: Sequence[Record], results: Path) -> Record:
    """The run of the study itself: what it is, and as artifacts its page, tables and plots."""
    starts = [record.started for record in made]
    about = f"{plan.study.title}\n\n{plan.study.caption}\n\n" if plan else ""
    return Record(
        key="study",
        name=f"study {study}",
        params={},
        tags={"study": study, "kind": "study", NOTE: f"{about}Artifacts: page.html, tables and figures of {results}."},
        started=None if None in starts else min(starts),
        seconds=sum(record.seconds for record in made),
    )
