"""``crnet quick``: one number of a table, and only the jobs that it takes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from crnet.config import labels, study
from crnet.config.layout import PUBLISHED, Layout
from crnet.config.resolve import Cell, Plan
from crnet.errors import CrnetError
from crnet.metrics.intervals import interval, read_fold, unknown
from crnet.report.tables.cells import METRIC_NAMES, VOIDS


def quick(
    plan: Plan, cell: Cell, files: Sequence[Path], cores: str = "all", here: bool = False, root: Path = study.ROOT
) -> str:
    """Let Snakemake make the counts of a cell, unless they are here or published, and say what they come to.

    Args:
        files: Those of the study, as Snakemake takes them; none for the demo.
        here: Make them here even where they are published, and the trained network, for ``crnet segment``.

    Raises:
        CrnetError: Snakemake did not make them; its own words are on the terminal.
    """
    layout = Layout(plan)
    counts = Path(layout.counts_of(cell))
    published = root / PUBLISHED / plan.study.study / counts.relative_to(layout.results)
    if not counts.is_file() and published.is_file() and not here:
        counts = published
    weights = layout.weights(plan.evaluations[cell.evaluation]) if here else None
    wanted = [str(counts), *([weights] if weights else [])]
    if not all(Path(path).is_file() for path in wanted):
        command = [sys.executable, "-m", "snakemake", *wanted, "--cores", cores, "--snakefile", root / "Snakefile"]
        command += ["--configfile", *files] if files else []
        if subprocess.run(command, check=False).returncode or not all(Path(path).is_file() for path in wanted):
            raise CrnetError(f"{counts}: was not made; see above, then call again: what was finished is kept.")
    return describe(plan, cell, counts)


def describe(plan: Plan, cell: Cell, counts: Path) -> str:
    """The cell in a line for each metric, both void conventions."""
    part = read_fold(cell.fold, {cell.seed: counts})
    place = f"{labels.table_name(cell.table)}, {cell.row}, fold {cell.fold}, seed {cell.seed}, {cell.shots}-shot"
    lines = [f"{plan.study.study}: {place}, {len(part.classes)} episodes ({counts})"]
    names = METRIC_NAMES | {"fbiou_pairs": "FB-IoU, classes by pairs"}
    width = max(map(len, names.values()))
    for metric, name in names.items():
        values = []
        for void, how in zip(VOIDS, ("void as background", "void ignored"), strict=True):
            value, low, high = (100 * x for x in interval([part], metric, void))
            values.append(f"{value:.1f} [{low:.1f}, {high:.1f}] with {how}")
        lines.append(f"{name:<{width}} {unknown([part], metric) or ', '.join(values)}")
    return "\n".join([*lines, "One fold and one training seed: the intervals cover the choice of photos only."])
