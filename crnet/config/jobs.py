"""What the jobs of a study's report are made of, as their commands get it: tables, probe, sheet and page."""

import shlex
from collections.abc import Mapping
from typing import Any

from crnet.config import elsewhere, probe, resolve, sources
from crnet.config.labels import control_label, encoder_text, run_labels, switches
from crnet.config.layout import DEFAULT_STUDY, ROOT, Layout
from crnet.config.resolve import Plan
from crnet.config.settings import component, k_shot
from crnet.errors import CrnetError
from crnet.runtime.files import canonical

HEADLINE = "table3"  # whose last row is the full model
LONGEST_ARGUMENT = 120_000  # Linux: 128 KiB with the rest of the command


def table_job(plan: Plan, layout: Layout, name: str) -> dict[str, Any]:
    """All that rendering a table needs: labels, the paper's values, and the counts that fill each cell.

    A table's YAML has the paper's word for a backbone; a row that is run names the encoder that stands for it.
    """
    study, table = plan.study, plan.tables[name]
    benchmark = study.benchmarks[table.benchmark]
    splits = component("dataset", benchmark.dataset["name"], name).splits(benchmark.dataset)
    roles = {resolve.role(table, row) for row in table.rows if not row.reported} | {"main"}
    rows = [
        {
            **row.model_dump(include={"id", "label", "reported", "absent", "paper"}),
            "switches": list(switches(row, study.encoders.get(resolve.role(table, row))).items()),
            "control": False,
        }
        for row in table.rows
    ]
    others = elsewhere.rows(plan, layout.results, name, _episodes(plan, name))
    quoted_nowhere = {"switches": [], "control": True, "reported": False, "absent": {}, "paper": {}}
    for control in study.controls:
        rows.append({"id": control, "label": control_label(control), **quoted_nowhere})
    for row in rows:
        places = {f"{shots}-shot": (name, row["id"], shots) for shots in table.shots}
        not_run = {shots: plan.not_run[place] for shots, place in places.items() if place in plan.not_run}
        row["absent"] = row["absent"] | not_run
        row["cells"] = [
            {"shots": cell.shots, "fold": cell.fold, "seed": cell.seed, "counts": layout.counts_of(cell)}
            for cell in plan.cells
            if (cell.table, cell.row) == (name, row["id"])
        ]
    rows[len(table.rows) : len(table.rows)] = others
    return {
        **study.model_dump(include={"study", "caption", "orientation_only"}),
        **table.model_dump(include={"title", "source", "shots", "metrics"}),
        "notes": [*table.notes, *_other_methods(plan, name), *elsewhere.note(others)],
        "table": name,
        "folds": list(benchmark.folds),
        "study_title": study.title,
        "classes": {str(i): splits.classes[i - 1] for fold in benchmark.folds for i in splits.folds[fold]},
        "dataset_folds": len(splits.folds),
        "encoders": {role: encoder_text(spec) for role, spec in study.encoders.items() if spec and role in roles},
        "rows": rows,
    }


def _other_methods(plan: Plan, name: str) -> list[str]:
    """What to know of a table that runs several methods: how they differ from what is quoted, their k-shot rules."""
    rows = {row.id: row for row in plan.tables[name].rows}
    cells = [cell for cell in plan.cells if cell.table == name and cell.row in rows]
    run = {cell.row: plan.evaluations[cell.evaluation]["train"]["method"] for cell in cells}
    if len(set(run.values())) < 2:
        return []
    notes = []
    if any(rows[row].paper for row, method in run.items() if method != resolve.DEFAULT_METHOD):
        notes.append(
            "The other methods too are run on a frozen encoder, at one scale, with one support in training. Most of "
            "their authors trained the encoder, so a distance to the values that the paper quotes is no failed "
            "reproduction. PL and A-MCG are readings of papers without code, PGNet of one with a re-implementation; "
            "R-DFCN's quoted mIoU is of other pairs. crnet/methods says of each what is other here."
        )
    if any(cell.shots > 1 for cell in cells):
        rules = {method: f"{rows[row].label}: {k_shot(method)}" for row, method in run.items()}
        notes.append(f"Several supports, by each method's own rule. {'; '.join(rules.values())}.")
    return notes


def _episodes(plan: Plan, table: str) -> dict[tuple[int, int], str]:
    """(shots, fold) -> name of the test episodes, of all that a table runs."""
    return {
        (cell.shots, cell.fold): resolve.episodes_name(resolve.episodes_spec(plan.evaluations[cell.evaluation]))
        for cell in plan.cells
        if cell.table == table
    }


def headline_table(plan: Plan) -> str:
    """The table that a study's page begins with: the one that ends in the full model, or the first that is run."""
    run = {cell.table for cell in plan.cells}
    wanted = [name for name in (HEADLINE, *plan.tables) if name in plan.tables]
    return next((name for name in wanted if name in run), wanted[0])


def page_job(plan: Plan) -> dict[str, Any]:
    """What a study's page says besides its results: its caption, its tables in order, its runs, how it was made.

    Its sources as they are now go along: the page warns of runs that were made by others.
    """
    runs = plan.evaluations.values()
    study, file = plan.study, DEFAULT_STUDY.with_stem(plan.study.study)
    given = file if (ROOT / file).is_file() else "STUDY.yaml"
    chosen = "" if file == DEFAULT_STUDY else f" --configfile {given}"
    return {
        **study.model_dump(include={"study", "title", "caption", "orientation_only"}),
        "tables": [{"name": name, "title": table.title} for name, table in plan.tables.items()],
        "headline": headline_table(plan),
        "labels": list(run_labels(plan).items()),
        "command": f"snakemake --cores all{chosen}",
        "results": Layout(plan).results,
        "sheet": study.sheet is not None,
        "probe": study.probe.table if plan.probes else None,
        "sources": sources.present({**spec["train"], "encoder": spec["train"]["encoder"]["name"]} for spec in runs),
    }


def probe_job(plan: Plan, layout: Layout) -> dict[str, Any] | None:
    """What the probe's table is made of; None where the study probes nothing."""
    if not plan.probes:
        return None
    table = table_job(plan, layout, plan.study.probe.table)
    job = probe.probe_job(plan, table, layout.probe_counts)
    check_command("probe", job)
    return job


def sheet_job(plan: Plan, layout: Layout) -> dict[str, Any] | None:
    """Files and specifications from which the episode sheet is drawn: one model a fold, the first seed's."""
    wanted = plan.study.sheet
    if wanted is None:
        return None
    shown = (wanted.table, wanted.row, plan.tables[wanted.table].shots[0], plan.study.seeds[0])
    specs = [plan.evaluations[c.evaluation] for c in plan.cells if (c.table, c.row, c.shots, c.seed) == shown]
    models = [
        {
            "spec": spec,
            "data": layout.data(spec["train"]["dataset"]),
            "encoder": layout.encoder(spec["train"]["encoder"]),
            "weights": layout.weights(spec),
            "episodes": layout.episodes(spec),
        }
        for spec in specs
    ]
    return {"title": f"{plan.study.title}: test episodes", "episodes": wanted.episodes, "models": models}


def check_command(name: str, job: Mapping[str, Any]) -> None:
    """Raise CrnetError for a job whose description is longer than a system lets an argument of a command be."""
    length = len(shlex.quote(canonical(job)))
    if length > LONGEST_ARGUMENT:
        raise CrnetError(
            f"{name}: its {sum(len(row['cells']) for row in job.get('rows', []))} cells and its texts make an argument "
            f"of {length:,} bytes, and systems pass {LONGEST_ARGUMENT:,} to a job; use fewer seeds or shorter texts."
        )
