"""``crnet render``: a study that is not whole, as it stands; Snakemake makes a table only when all its cells are there.

What a failed training left (``failed.json``) and what is absent is marked in the tables, the claims and the index of
runs. The files are those that the workflow makes; when the rest is there, it makes them anew.
"""

from collections.abc import Sequence
from pathlib import Path

from crnet.config import study
from crnet.config.claims import CLAIMS, claims_job
from crnet.config.resolve import Plan, training_name
from crnet.config.study import Layout
from crnet.files import read_csv, read_json
from crnet.report.claims import render_claims
from crnet.report.claims_plot import plot_claims
from crnet.report.figures import plot_table
from crnet.report.page import write_page
from crnet.report.runs import collect
from crnet.report.tables import render_table

FAILED = "failed.json"  # as crnet.training.loop writes it, which imports torch


def render(files: Sequence[Path], root: Path = study.ROOT) -> str:
    """Write tables, claims, index and page of a study from what is there; returns what was found as a few lines.

    Raises:
        CrnetError: the study does not fit, or a file that is there is not what it should be.
    """
    plan = study.load(files, root=root)
    layout = Layout(plan)
    results = Path(layout.results)
    failed = failures(plan, layout)
    for name in plan.tables:
        render_table(
            table := mark(study.table_job(plan, layout, name), plan, layout, failed), results / "tables" / name
        )
        plot_table(table, results / "tables" / f"{name}.csv", results / "figures" / name)
    job = claims_job(plan, layout, root / CLAIMS)
    render_claims(job, results / "claims")
    plot_claims(job, results / "claims.csv", results / "figures" / "claims")
    notes = _index(plan, layout, results)
    write_page(study.page_job(plan), results)
    done = sum(Path(layout.counts_of(cell)).is_file() for cell in plan.cells)
    lines = [f"{results}: {done} of {len(plan.cells)} cells have counts, trainings that failed: {len(failed)}"]
    return "\n".join([*lines, *notes, *(f"failed: {name}: {why}" for name, why in failed.items())])


def failures(plan: Plan, layout: Layout) -> dict[str, str]:
    """Why a training failed, by its name; not of those that finished later."""
    folders = {name: Path(layout.training(name)) for name in plan.trainings}
    return {
        name: read_json(folder / FAILED)["failed"]
        for name, folder in folders.items()
        if (folder / FAILED).is_file() and not (folder / "train.json").is_file()
    }


def mark(job: dict, plan: Plan, layout: Layout, failed: dict[str, str]) -> dict:
    """A table job whose cells say ``failed`` where the training behind their counts did."""
    training_of = {layout.counts_of(c): training_name(plan.evaluations[c.evaluation]["train"]) for c in plan.cells}
    for row in job["rows"]:
        for cell in row["cells"]:
            if why := failed.get(training_of[cell["counts"]]):
                cell["failed"] = why
    return job


def _index(plan: Plan, layout: Layout, results: Path) -> list[str]:
    """Write the index, unless that would take trainings out of it: results are kept where their work is not."""
    folders = [Path(layout.training(name)) for name in plan.trainings]
    reports = [folder / "train.json" for folder in folders]
    reports = [path if path.is_file() else path.with_name(FAILED) for path in reports]
    known = {path.parent.name for path in _there(reports)}
    listed = read_csv(results / "runs.csv") if (results / "runs.csv").is_file() else []
    if gone := sorted({row["run"] for row in listed} & set(plan.trainings) - known):
        text = f"they list trainings that {layout.work} does not hold, e.g. {gone[0]}"
        return [f"{results}/runs.csv and training.csv are left as they are: {text}"]
    collect(
        _there(reports),
        [path for path in _there(folder / "log.csv" for folder in folders) if (path.parent / "train.json").is_file()],
        _there(Path(layout.tuning(name)) / "choice.json" for name in plan.tunings),
        _there(Path(layout.evaluation(name)) / "evaluation.json" for name in plan.evaluations),
        results / "runs.csv",
        results / "training.csv",
    )
    return []


def _there(paths) -> list[Path]:
    return [path for path in paths if path.is_file()]
