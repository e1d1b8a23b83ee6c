"""``crnet publish``: a study's own results become the ones that a repository holds, whole or not at all.

A run writes to ``folders.results``, which git ignores, and never to what is published. What is published is audited
first, copied beside its place, compared, and moved there by renaming.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crnet.audit import audit
from crnet.audit.folder import Folder
from crnet.config.jobs import page_job
from crnet.config.layout import PUBLISHED
from crnet.config.probe import FOLDER
from crnet.errors import CrnetError
from crnet.report.page.page import PAGE, write_page
from crnet.report.partial import INDEX
from crnet.runtime.files import cannot_write, read_csv

PARTS = ("tables", "figures", "episodes", "evaluate", "finetune", FOLDER)
FILES = (PAGE, "claims.csv", "claims.md", "classes.csv", *INDEX)
SHEET = "episodes"  # the figure that shows photos
NAMED = 5  # files that a message names


def publish(
    results: Path,
    files: Sequence[Path] = (),
    works: Sequence[Path] = (),
    to: Path = PUBLISHED,
    force: bool = False,
    **sampling: Any,
) -> tuple[str, int]:
    """Put a study's results into ``<to>/<study>``.

    Args:
        results: The folder that a run has filled, e.g. ``out/demo``; ``files``, ``works`` and what of them is sampled
            by ``sampling`` are as ``audit`` has them.
        to: The folder of all published studies.
        force: Also where numbers that are published would change or go.

    Returns:
        What to print, and the number of differences that the audit found: nothing is published if there are any.

    Raises:
        CrnetError: Numbers would change, or the folders do not fit; what was published stands as it was.
    """
    folder = Folder(results, files, works)
    target = to / folder.plan.study.study
    if target.resolve() == folder.results:
        raise CrnetError(
            f"{results}: is the published folder itself; give the one of your run, e.g. out/{target.name}."
        )
    new, old = (to / f".{target.name}.{word}" for word in ("new", "old"))
    if old.exists() and not target.exists():  # a kill between the two renames
        os.replace(old, target)
    text, differences = audit(results, files, works, **sampling)
    if differences:
        return f"{text}\n\n{target}: nothing is published, as the audit found differences.", differences
    try:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for path in publishable(folder):
            (new / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.results / path, new / path)
        write_page(page_job(folder.plan), new)  # it shows what is there: the sheet may not be
        said, changed = compare(target, new)
        if changed and not force:
            shutil.rmtree(new)
            raise CrnetError(
                f"{target}: {len(changed)} files hold other numbers than {results} or would go, e.g. {changed[0]}; "
                "publish with --force if the new ones shall stand in their place."
            )
        if target.exists():
            os.replace(target, old)
        os.replace(new, target)
    except OSError as error:
        raise cannot_write(target, 0, error) from error
    shutil.rmtree(old, ignore_errors=True)
    return f"{text}\n\n{said}", 0


def publishable(folder: Folder) -> Iterator[Path]:
    """What of a study's folder may be committed: what the plan names, without pictures that show others' photos."""
    plan, at = folder.plan, folder.layout
    made = [*map(at.evaluation, plan.evaluations), *map(at.finetuning, [*plan.trials, *plan.choices])]
    runs = {folder.relative(path) for path in (*made, *map(at.probe, plan.probes))}
    probed = {f"{FOLDER}/table.csv", f"{FOLDER}/table.md"} if plan.probes else set()
    drawn = {folder.relative(Path(at.episodes(spec)).with_suffix("")) for spec in plan.evaluations.values()}
    generated = not any(at.archive_names("dataset", spec) for spec in plan.datasets.values())
    for path in sorted(path.relative_to(folder.results) for path in folder.results.rglob("*")):
        top = path.parts[0]
        if (
            (folder.results / path).is_dir()
            or path.name.startswith(".")
            or (str(path) not in FILES and top not in PARTS)
            or (top in ("evaluate", "finetune", FOLDER) and str(path.parent) not in runs and str(path) not in probed)
            or (top == "episodes" and str(path.with_suffix("")) not in drawn)
            or (top == "figures" and path.stem == SHEET and not (generated and path.suffix == ".png"))
        ):
            continue
        yield path


def compare(target: Path, new: Path) -> tuple[str, list[str]]:
    """What publishing changes, in words, and the files whose published numbers would change or go."""
    before, after = (
        {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()} for root in (target, new)
    )
    both = before.keys() & after.keys()
    touched = {name for name in both if before[name].read_bytes() != after[name].read_bytes()}
    gone = before.keys() - after.keys()
    held = {name for name in touched | gone if name.endswith(".csv") and name not in INDEX}  # an index tells times
    others = sorted(name for name in held if name in gone or numbers(before[name]) != numbers(after[name]))
    lines = [
        f"{target}: {len(after.keys() - before.keys())} files new, {len(touched)} changed, {len(gone)} gone, "
        f"{len(both) - len(touched)} as they were; other numbers in {len(others)}"
    ]
    lines += [f"  {name}: {'gone' if name in gone else 'other numbers'}" for name in others[:NAMED]]
    more = [f"  and {len(others) - NAMED} more"] if len(others) > NAMED else []
    return "\n".join([*lines, *more]), others


def numbers(path: Path) -> list[float]:
    """All numbers of a CSV; its words may be put better."""
    found = []
    for cell in (cell for row in read_csv(path) for cell in row.values()):
        try:
            found.append(float(cell))
        except ValueError:
            continue
    return found
