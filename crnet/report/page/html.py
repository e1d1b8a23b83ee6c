"""Pages as HTML files with their pictures inside, for ``snakemake --report``, which does not render Markdown."""

import base64
import html
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from crnet.report.page.page import slug
from crnet.runtime.files import atomic_write

_STYLE = """
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2328; }
body { max-width: 66em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-size: 0.9em; }
th, td { border: 1px solid #d0d7de; padding: 0.3em 0.7em; }
tr:nth-child(even) td { background: #f6f8fa; }
h2 { border-bottom: 1px solid #d0d7de; padding-bottom: 0.2em; margin-top: 2em; }
img { max-width: 100%; }
code, pre { background: #f6f8fa; padding: 0.15em 0.35em; }
pre { overflow-x: auto; }
""".strip()


def write_html(page: Path, out: Path) -> None:
    """Write a page, e.g. ``results/demo/README.md``, as a file that stands alone.

    Links to files beside the page become plain text, since the file may lie anywhere.

    Raises:
        OSError: the page, or a picture in it, cannot be read.
    """
    markdown = MarkdownIt("commonmark").enable("table")
    tokens = markdown.parse(page.read_text(encoding="utf-8"))
    title = next((after.content for token, after in pairwise(tokens) if token.tag == "h1"), "")
    for token, after in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(after.content))
        if token.children is not None:
            token.children = _alone(token.children, page.parent)
    body = markdown.renderer.render(tokens, markdown.options, {})
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>'
    atomic_write(out, f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}</body>\n</html>\n')


def _alone(tokens: Sequence[Token], folder: Path) -> list[Token]:
    """The tokens of a paragraph with its pictures inside, and without links to other files."""
    kept, files = [], []  # of each link that is open: the file that it leads to, or None
    for token in tokens:
        if token.type == "image":
            data = base64.b64encode((folder / unquote(str(token.attrGet("src")))).read_bytes()).decode()
            token.attrSet("src", f"data:image/png;base64,{data}")
        elif token.type == "link_open":
            target = str(token.attrGet("href"))
            files.append(None if target.startswith(("#", "http:", "https:")) else target)
            if files[-1] is not None:
                continue
        elif token.type == "link_close" and (file := files.pop()) is not None:
            token = Token("text", "", 0, content=f" ({unquote(file)})")
        kept.append(token)
    return kept
