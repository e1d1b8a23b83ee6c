"""Tables from stored counts: a long CSV for programs, Markdown and LaTeX for readers.

Input is a *table job* (``crnet.config.study.table_job``): the rows of one table with the path of the counts of
every row x shots x fold x seed. The numbers come from ``table_cells``, what both readers' formats share from
``table_layout``, the words below a table from ``table_captions``.
"""

from pathlib import Path
from typing import Any

from crnet.metrics.bootstrap import Bootstrap
from crnet.report.tables.cells import METRIC_NAMES, VOID_NAMES, VOIDS, Cell, collect
from crnet.report.tables.markdown import render_markdown
from crnet.report.tables.tex import render_tex
from crnet.runtime.files import atomic_write, write_csv

__all__ = ["HEADER", "METRIC_NAMES", "VOIDS", "VOID_NAMES", "Cell", "collect", "render_table"]

HEADER = (
    *("table", "row", "label", "shots", "fold", "metric", "void", "value", "low", "high"),
    *("seeds", "seed_sd", "episodes", "photos", "paper", "difference", "note"),
)
CSV_DECIMALS = 2


def render_table(job: dict[str, Any], out_prefix: Path, bootstrap: Bootstrap | None = None) -> None:
    """Write ``<out_prefix>.csv``, ``.md`` and ``.tex``.

    Args:
        job: the table job; see the module's docstring and ``configs/tables``.
        out_prefix: path without suffix, e.g. ``results/demo/tables/table2``.
        bootstrap: the plan of resampling; the default is 2000 resamples at 95 %.

    Raises:
        CrnetError: counts that cannot be read, or rows scored on different episodes.
    """
    bootstrap = bootstrap or Bootstrap()
    cells = collect(job, bootstrap)
    lines = ([_plain(value) for value in _csv_row(job["table"], cell)] for cell in cells)
    write_csv(f"{out_prefix}.csv", HEADER, lines)
    atomic_write(f"{out_prefix}.md", render_markdown(job, cells, bootstrap))
    atomic_write(f"{out_prefix}.tex", render_tex(job, cells, bootstrap))


def _csv_row(table: str, cell: Cell) -> tuple:
    return (
        *(table, cell.row, cell.label, cell.shots, cell.fold, cell.metric, cell.void),
        *(cell.value, cell.low, cell.high, cell.seeds, cell.seed_sd, cell.episodes, cell.photos),
        *(cell.paper, cell.difference, cell.note),
    )


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.{CSV_DECIMALS}f}" if isinstance(value, float) else value
