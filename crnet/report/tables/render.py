"""Tables from stored counts: a long CSV for programs, Markdown and LaTeX for readers.

Input is a *table job* (``crnet.config.study.table_job``): the rows of one table with the path of the counts of
every row x shots x fold x seed. The numbers come from ``cells``, what both readers' formats share from ``layout``,
the words below a table from ``captions``.
"""

from pathlib import Path
from typing import Any

from crnet.report.tables.cells import collect
from crnet.report.tables.markdown import render_markdown
from crnet.report.tables.tex import render_tex
from crnet.runtime.files import atomic_write, write_csv

HEADER = (  # the table's name, then attributes of a cell
    *("table", "row", "label", "shots", "fold", "metric", "void", "value", "low", "high"),
    *("seeds", "seed_sd", "episodes", "photos", "pairs", "paper", "difference", "note"),
)


def render_table(job: dict[str, Any], out_prefix: Path) -> None:
    """Write ``<out_prefix>.csv``, ``.md`` and ``.tex``.

    Raises:
        CrnetError: counts that cannot be read, or rows scored on different episodes.
    """
    cells = collect(job)
    lines = ([job["table"], *(plain(getattr(cell, name)) for name in HEADER[1:])] for cell in cells)
    write_csv(f"{out_prefix}.csv", HEADER, lines)
    atomic_write(f"{out_prefix}.md", render_markdown(job, cells))
    atomic_write(f"{out_prefix}.tex", render_tex(job, cells))


def plain(value: Any) -> Any:
    """How a value stands in a CSV: a float with two decimals, None as an empty cell."""
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
    return "" if value is None else value
