"""``crnet render``: a study that is not whole, as it stands; Snakemake makes a table only when all its cells are there.

What a failed training left (``failed.json``) and what is absent is marked in the tables, the claims and the index of
runs. The files are those that the workflow makes; when the rest is there, it makes them anew. Nothing published gets
poorer: a table of which every count is gone, and an index that lists runs whose reports are gone, stay as they are. A
study that has no results here, but published ones, begins with a copy of those.
"""

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crnet.config import study
from crnet.config.claims import CLAIMS, claims_job
from crnet.config.jobs import headline_table, page_job, probe_job, table_job
from crnet.config.layout import Layout, from_published
from crnet.config.probe import FOLDER
from crnet.config.resolve import Plan, training_name
from crnet.errors import CrnetError
from crnet.report import classes
from crnet.report.claims import render_claims
from crnet.report.claims_plot import plot_claims
from crnet.report.figures import plot_table
from crnet.report.k_shot import plot_k_shot
from crnet.report.page.page import CLASSES, CURVE_TABLE, write_page
from crnet.report.probe import render_probe
from crnet.report.runs import FAILED, collect, counts_files
from crnet.report.tables.render import render_table
from crnet.runtime.files import atomic_write, cannot_write, read_csv, read_mapping

INDEX = ("runs.csv", "training.csv")


def render(files: Sequence[Path], root: Path = study.ROOT) -> str:
    """Write tables, claims, index and page of a study from what is there; returns what was found as a few lines.

    Raises:
        CrnetError: the study does not fit, nothing of it is here or published, a file that is there is not what it
            should be, or the published files cannot be copied.
    """
    plan = study.load(files, root=root)
    layout = Layout(plan)
    results = Path(layout.results)
    failed = failures(plan, layout)
    notes = []
    if not results.is_dir() and not failed:
        published = from_published(layout)
        if published is None:
            raise CrnetError(f"{results.resolve()}: is not there; start crnet render in the folder that holds it.")
        _copy(published, results)
        notes.append(f"{results}: was not there, so the counts are the published ones of {published}")
    for name in plan.tables:
        table = mark(table_job(plan, layout, name), plan, layout, failed)
        notes += _table(table, results, Path(layout.job(name)))
    job = claims_job(plan, layout, root / CLAIMS)
    render_claims(job, results / "claims")
    plot_claims(job, results / "claims.csv", results / "figures/claims")
    _note_gaps((cell for place in job["places"].values() for cell in place["cells"]), Path(layout.job("claims")))
    if probe := probe_job(plan, layout):
        notes += _probe(mark(probe, plan, layout, failed), results, Path(layout.job("probe")))
    notes += _classes(table_job(plan, layout, headline_table(plan)), results)
    notes += _index(plan, layout, results)
    write_page(page_job(plan), results)
    done = sum(Path(layout.counts_of(cell)).is_file() for cell in plan.cells)
    lines = [f"{results}: {done} of {len(plan.cells)} cells have counts, trainings that failed: {len(failed)}"]
    return "\n".join([*lines, *notes, *(f"failed: {name}: {why}" for name, why in failed.items())])


def _copy(published: Path, results: Path) -> None:
    """All of it or nothing, since counts that lack some would pass for a study that is not whole; all of one age.

    By their ages Snakemake would find some to be made of newer ones, and train for it.
    """
    beside, now = results.with_name(f".{results.name}.copy"), time.time_ns()

    def copy(source: str, target: str) -> None:
        shutil.copyfile(source, target)
        os.utime(target, ns=(now, now))

    try:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(published, beside, copy_function=copy)
        beside.rename(results)
    except OSError as error:
        raise cannot_write(results, 0, error) from error


def failures(plan: Plan, layout: Layout) -> dict[str, str]:
    """Why a training failed, by its name; not of those that finished later. Where the work is gone, the index knows."""
    index = Path(layout.results) / INDEX[0]
    rows = read_csv(index) if index.is_file() else []
    failed = {r["run"]: r["failed"] for r in rows if r.get("status") == "failed" and r["run"] in plan.trainings}
    for name in plan.trainings:
        folder = Path(layout.training(name))
        if (folder / "train.json").is_file():
            failed.pop(name, None)
        elif (report := folder / FAILED).is_file():
            if "failed" not in (about := read_mapping(report)):
                raise CrnetError(f"{report}: does not say why the training failed; delete it and train again.")
            failed[name] = str(about["failed"])
    return failed


def mark(job: dict, plan: Plan, layout: Layout, failed: dict[str, str]) -> dict:
    """A job of a table, or of the probe, whose cells say ``failed`` where the training behind their counts did."""
    training_of = {layout.counts_of(c): training_name(plan.evaluations[c.evaluation]["train"]) for c in plan.cells}
    training_of |= {layout.probe_counts(name): training_name(spec["train"]) for name, spec in plan.probes.items()}
    for row in job["rows"]:
        for cell in row["cells"]:
            if why := failed.get(training_of.get(cell["counts"], "")):
                cell["failed"] = why
    return job


def _table(job: Mapping[str, Any], results: Path, job_file: Path) -> list[str]:
    prefix = results / "tables" / job["table"]
    cells = [cell for row in job["rows"] for cell in row["cells"]]
    stored = prefix.with_suffix(".csv")
    if _gone(cells, stored, "value"):
        return [f"{stored} is left as it is: it holds values whose counts are all gone"]
    render_table(job, prefix)
    plot_table(job, stored, results / "figures" / job["table"])
    if job["table"] == CURVE_TABLE:
        plot_k_shot(job, stored, results / "figures/k-shot")
    _note_gaps(cells, job_file)
    return []


def _probe(job: Mapping[str, Any], results: Path, job_file: Path) -> list[str]:
    prefix = results / FOLDER / "table"
    cells = [cell for row in job["rows"] for cell in row["cells"]]
    stored = prefix.with_suffix(".csv")
    if _gone(cells, stored, "miou"):
        return [f"{stored} is left as it is: it holds values whose counts are all gone"]
    render_probe(job, prefix)
    _note_gaps(cells, job_file)
    return []


def _gone(cells: Sequence[Mapping[str, Any]], stored: Path, column: str) -> bool:
    """Whether a table that is stored has values, and none of its counts is here."""
    here = not cells or any(Path(cell["counts"]).is_file() for cell in cells)
    return not here and stored.is_file() and any(row.get(column) for row in read_csv(stored))


def _classes(job: Mapping[str, Any], results: Path) -> list[str]:
    """IoU by class, likewise unless every count behind values that are stored is gone."""
    stored = results / CLASSES
    if stored.is_file() and read_csv(stored) and not classes.collect(job):
        return [f"{stored} is left as it is: it holds values whose counts are all gone"]
    classes.write_classes(job, stored)
    classes.plot_classes(job, stored, results / "figures/classes")
    return []


def _note_gaps(cells: Iterable[Mapping[str, Any]], job: Path) -> None:
    """Take the job's file away where counts are absent: when they are brought here, Snakemake sees no other change."""
    if not all(Path(cell["counts"]).is_file() for cell in cells):
        job.unlink(missing_ok=True)


def _index(plan: Plan, layout: Layout, results: Path) -> list[str]:
    """Write the index, unless that would take runs out of it: results are kept where their work is not."""
    folders = [Path(layout.training(name)) for name in plan.trainings]
    reports = [folder / "train.json" for folder in folders]
    reports = [path if path.is_file() else path.with_name(FAILED) for path in reports]
    evaluated = {Path(layout.evaluation(name)): spec for name, spec in plan.evaluations.items()}
    whole = [folder for folder, spec in evaluated.items() if all(map(Path.is_file, counts_files(folder, spec)))]
    with TemporaryDirectory() as temporary:
        made = [Path(temporary) / name for name in INDEX]
        collect(
            _there(reports),
            [path for path in _there(f / "log.csv" for f in folders) if path.with_name("train.json").is_file()],
            _there(Path(layout.finetuning(name)) / "trials.json" for name in plan.trials),
            _there(Path(layout.finetuning(name)) / "choice.json" for name in plan.choices),
            _there(folder / "evaluation.json" for folder in whole),
            *made,
        )
        for name, path in zip(INDEX, made, strict=True):
            if gone := sorted(_runs(results / name) - _runs(path)):
                text = f"{name} lists {gone[0]} ({len(gone)} runs in all), whose report or log is not here"
                return [f"{results / INDEX[0]} and {INDEX[1]} are left as they are: {text}"]
        for name, path in zip(INDEX, made, strict=True):
            atomic_write(results / name, path.read_bytes())
    return []


def _runs(index: Path) -> set[str]:
    return {row["run"] for row in read_csv(index) if row.get("run")} if index.is_file() else set()


def _there(paths: Iterable[Path]) -> list[Path]:
    return list(filter(Path.is_file, paths))
