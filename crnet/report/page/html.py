"""The page as one HTML file with its pictures inside, for ``snakemake --report``, which does not render Markdown.

It knows the Markdown that ``crnet.report.page.page`` writes and no other.
"""

import base64
import html
import re
from pathlib import Path

from crnet.report.page.page import slug
from crnet.runtime.files import atomic_write

_STYLE = """
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2328; }
body { max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-size: 0.9em; }
th, td { border: 1px solid #d0d7de; padding: 0.3em 0.7em; }
tr:nth-child(even) td { background: #f6f8fa; }
h2 { border-bottom: 1px solid #d0d7de; padding-bottom: 0.2em; margin-top: 2em; }
img { max-width: 100%; }
code, pre { background: #f6f8fa; padding: 0.15em 0.35em; }
""".strip()
_SPLIT = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"`[^`]*`")
_ALIGN = {(True, True): "center", (False, True): "right"}


def write_html(page: Path, out: Path) -> None:
    """Write the page, e.g. ``results/demo/README.md``, as a file that stands alone.

    Links to files beside the page become plain text, since the file may lie anywhere.

    Raises:
        OSError: the page, or a picture in it, cannot be read.
    """
    text = page.read_text(encoding="utf-8")
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    body = "\n".join(_block(block, page.parent) for block in text.strip().split("\n\n"))
    head = f'<meta charset="utf-8"><title>{title}</title>\n<style>\n{_STYLE}\n</style>'
    atomic_write(out, f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n')


def _block(block: str, folder: Path) -> str:
    heading = re.match(r"(#+) (.*)", block)
    if heading:
        level = len(heading[1])
        return f'<h{level} id="{slug(heading[2])}">{_inline(heading[2], folder)}</h{level}>'
    if block.startswith("```"):
        return f"<pre>{html.escape(block.strip('`').strip())}</pre>"
    if block.startswith("|"):
        return _table(block, folder)
    if block.startswith(("<details>", "</details>")):
        return block
    return f"<p>{_inline(block, folder)}</p>"


def _table(block: str, folder: Path) -> str:
    lines = [[cell.strip() for cell in _SPLIT.split(line)[1:-1]] for line in block.splitlines()]
    aligns = [_ALIGN.get((rule.startswith(":"), rule.endswith(":")), "left") for rule in lines[1]]

    def row(cells: list[str], tag: str) -> str:
        shown = [
            f'<{tag} style="text-align: {align}">{_inline(cell.replace(chr(92) + "|", "|"), folder)}</{tag}>'
            for cell, align in zip(cells, aligns, strict=True)
        ]
        return f"<tr>{''.join(shown)}</tr>"

    return "\n".join(["<table>", row(lines[0], "th"), *(row(line, "td") for line in lines[2:]), "</table>"])


def _inline(text: str, folder: Path) -> str:
    codes = _CODE.findall(text)
    text = html.escape(_CODE.sub("\0", text), quote=False)  # code is left as it stands, and put back at the end
    text = re.sub(r"!\[([^\]]*)\]\(([^)]*)\)", lambda found: _image(found[1], folder / found[2]), text)
    text = re.sub(r"\[([^\]]+)\]\(((?:#|https?:)[^)]*)\)", r'<a href="\2">\1</a>', text)
    text = re.sub(r"\[([^\]]+)\]\(([^)]*)\)", r"\1 (\2)", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"\*(.+?)\*", r"<em>\1</em>", text)
    for code in codes:
        text = text.replace("\0", f"<code>{html.escape(code[1:-1])}</code>", 1)
    return text


def _image(alternative: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    alternative = alternative.replace('"', "&quot;")
    return f'<img alt="{alternative}" src="data:image/png;base64,{data}">'
