"""A table of your own from published counts: rows of any tables with intervals, and a difference in pairs.

python examples/own_table.py [STUDY]
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from crnet.config import study
from crnet.config.jobs import table_job
from crnet.config.layout import Layout
from crnet.metrics.intervals import FoldCounts, difference, interval, read_fold

ROOT = Path(__file__).resolve().parents[1]
ROWS = [("table2", "prototype"), ("table2", "cross-reference"), ("table2", "condition"), ("table3", "full")]
VOID = "background"  # or "ignore": how pixels count that no class has


def folds_of(results: Path, job: Mapping, row: str, shots: int = 1) -> list[FoldCounts]:
    """The stored counts of a row: for each fold, those of all training seeds."""
    files: dict[int, dict[int, Path]] = {}
    for cell in next(each for each in job["rows"] if each["id"] == row)["cells"]:
        if cell["shots"] == shots:
            files.setdefault(cell["fold"], {})[cell["seed"]] = results / Path(cell["counts"]).relative_to(job["folder"])
    return [read_fold(fold, by_seed) for fold, by_seed in files.items()]


def main(name: str = "photos") -> None:
    plan = study.load([ROOT / f"configs/studies/{name}.yaml"])
    layout = Layout(plan)
    rows = {}
    for table, row in ROWS:
        job = table_job(plan, layout, table) | {"folder": layout.results}
        rows[row] = folds_of(ROOT / "results" / name, job, row)
        value, low, high = (100 * number for number in interval(rows[row], "miou", VOID))
        print(f"{table:<8} {row:<16} {value:6.2f}  [{low:.2f}, {high:.2f}]")
    value, low, high = (100 * number for number in difference(rows["full"], rows["condition"], "miou", VOID))
    print(f"full minus condition, in pairs: {value:.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
