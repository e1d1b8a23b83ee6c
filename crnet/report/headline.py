"""What a finished run says last: the table that says most, and where the page is."""

from pathlib import Path


def headline(results: Path, table: str) -> str:
    """The first grid of a table, and where the page is."""
    text = (results / f"tables/{table}.md").read_text(encoding="utf-8")
    title, grid = text.partition("\n")[0].removeprefix("# "), text[text.index("\n## ") :].split("\n\n")[1]
    return f"\n{title}\n{grid}\n\npage: {results}/README.md"
