"""What a finished run says last: the table that says most, and where the page is."""

from collections.abc import Sequence
from pathlib import Path


def headline(results: Path, tables: Sequence[str]) -> str:
    """The first grid of the table that says most, Table 3 where it is there, and where the page is."""
    table = "table3" if "table3" in tables else tables[0]
    text = (results / f"tables/{table}.md").read_text(encoding="utf-8")
    title, grid = text.partition("\n")[0].removeprefix("# "), text[text.index("\n## ") :].split("\n\n")[1]
    return f"\n{title}\n{grid}\n\npage: {results}/README.md"
