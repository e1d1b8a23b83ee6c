"""The examples run, and give the numbers that are published."""

import re
import runpy
from pathlib import Path

from crnet.runtime.files import read_csv

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_ones_own_has_the_published_numbers(capsys):
    runpy.run_path(str(ROOT / "examples/own_table.py"))["main"]("photos")
    *rows, paired = capsys.readouterr().out.splitlines()
    assert len(rows) == 4
    for line in rows:
        table, row, *numbers = re.sub(r"[\[\],]", " ", line).split()
        cell = next(
            cell
            for cell in read_csv(ROOT / f"results/photos/tables/{table}.csv")
            if (cell["row"], cell["fold"], cell["metric"], cell["void"]) == (row, "mean", "miou", "background")
        )
        assert numbers == [cell[name] for name in ("value", "low", "high")], line
    assert re.fullmatch(r"full minus condition, in pairs: -?\d+\.\d\d \[-?\d+\.\d\d, -?\d+\.\d\d\]", paired)
