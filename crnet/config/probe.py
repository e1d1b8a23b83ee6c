"""The probe of a study: whether the modules of a trained head use the support, asked by swapping what they read of it.

Two swaps on stored test episodes, 1 shot, nothing trained: the photo that the cross-reference's gate reads (paper 4.3),
and the support from which the condition's category vector is taken (paper 4.4), are each those of another class, while
all else stays. Which of them a method has is said by the literal ``SWAPS`` of its file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crnet.config.names import Spec, name_of, slug
from crnet.config.resolve import Plan
from crnet.config.schema import load_table
from crnet.config.settings import component, components
from crnet.errors import CrnetError

GATE, CATEGORY = SWAPS = ("gate", "category")
UNTOUCHED = "untouched"  # what both are compared with, predicted by the same job
FOLDER = "probe"  # of a study's results: one folder a probe, and the table of all
REV = 1  # raised when the job behaves otherwise, so that finished probes are made again
SHOTS = 1


def swaps(training: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of ``SWAPS`` a trained model can be asked: those whose module is switched on."""
    switches = component("method", training["method"], "probe").literals.get("SWAPS", {})
    return tuple(swap for swap in SWAPS if swap in switches and training["model"][switches[swap]])


def probe_spec(evaluation: Spec, episodes: int) -> Spec:
    """The probe of an evaluated model: on the first ``episodes`` of its test episodes, or on all if they are fewer."""
    stored = evaluation["episodes"]["count"] * len(evaluation["episodes"]["seeds"])
    return {**evaluation, "probe": {"rev": REV, "episodes": min(episodes, stored)}}


def probe_name(spec: Spec) -> str:
    return name_of(f"{slug(spec['train'])}-probe", spec)


def add_probes(plan: Plan, tables_folder: Path, shipped: Path) -> None:
    """Fill ``plan.probes``: one a row, fold and training seed; none where the study does not run the probe's table.

    So a study that extends another with tables of its own need not speak of the other's probe.

    Raises:
        CrnetError: There is no such table, the study does not run a row at 1 shot, a method has nothing to swap, or a
            fold has one class, and so no other.
    """
    wanted = plan.study.probe
    if wanted is None:
        return
    if wanted.table not in plan.tables:
        if not (shipped / f"{wanted.table}.yaml").is_file():
            load_table(tables_folder, wanted.table, "probe.table")
        return
    for row in wanted.rows:
        places = _evaluations(plan, row)
        if not places:
            known = ", ".join(dict.fromkeys(c.row for c in plan.cells if (c.table, c.shots) == (wanted.table, SHOTS)))
            raise CrnetError(
                f"probe.rows: {wanted.table} has no row {row!r} that this study runs at 1 shot; it runs: "
                f"{known or 'none, by its shots, encoders and leave_out'}."
            )
        for evaluation in places.values():
            _check(evaluation["train"], row)
            spec = probe_spec(evaluation, wanted.episodes)
            plan.probes[probe_name(spec)] = spec


def _evaluations(plan: Plan, row: str) -> dict[tuple[int, int], Spec]:
    """(fold, training seed) -> the evaluation of a row of the probe's table."""
    place = (plan.study.probe.table, row, SHOTS)
    cells = [cell for cell in plan.cells if (cell.table, cell.row, cell.shots) == place]
    return {(cell.fold, cell.seed): plan.evaluations[cell.evaluation] for cell in cells}


def _check(training: Mapping[str, Any], row: str) -> None:
    if "train" not in training or not swaps(training):
        able = [name for name, each in components("method").items() if each.literals.get("SWAPS")]
        raise CrnetError(
            f"probe.rows: {row}: its method {training['method']} has no module of which a swap could ask something; "
            f"probe rows of {', '.join(able)}."
        )
    dataset, fold = training["dataset"], training["fold"]
    if len(component("dataset", dataset["name"], "probe").class_names(dataset)[fold]) < 2:
        raise CrnetError(f"probe: fold {fold} of {dataset['name']} tests one class alone, which has no other to swap.")


def probe_job(plan: Plan, table: Mapping[str, Any], counts_of: Callable[[str], str]) -> dict[str, Any]:
    """All that the probe's table is made of.

    Args:
        table: ``crnet.config.study.table_job`` of the probe's table.
        counts_of: Name of a probe -> its counts.

    Returns:
        Of ``table`` the study, its texts and folds; episodes (of each fold, at most), and rows [{id, label, switches,
        swaps, cells [{fold, seed, counts}]}].
    """
    wanted, rows = plan.study.probe, []
    for row in (row for row in table["rows"] if row["id"] in wanted.rows):
        places = _evaluations(plan, row["id"])
        named = {place: probe_name(probe_spec(each, wanted.episodes)) for place, each in places.items()}
        cells = [{"fold": f, "seed": s, "counts": counts_of(name)} for (f, s), name in named.items()]
        asked = list(swaps(next(iter(places.values()))["train"]))
        rows.append({**{key: row[key] for key in ("id", "label", "switches")}, "swaps": asked, "cells": cells})
    kept = ("study", "study_title", "caption", "table", "title", "folds", "dataset_folds")
    return {**{key: table[key] for key in kept}, "episodes": wanted.episodes, "rows": rows}
