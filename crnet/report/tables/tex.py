"""A table in LaTeX that needs booktabs and nothing else; intervals stand below their values."""

from collections.abc import Sequence
from typing import Any

from crnet.report.tables import layout
from crnet.report.tables.captions import own_notes, reading
from crnet.report.tables.cells import Cell

_TEX = str.maketrans(
    {
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{character: f"\\{character}" for character in "{}%&#_$"},
        **{"–": "--", "—": "---", "×": r"$\times$", "±": r"$\pm$", "≥": r"$\ge$", "≤": r"$\le$", "−": "$-$"},
        **{layout.TICK: r"$\surd$", "\N{NO-BREAK SPACE}": "~", "<": "$<$", ">": "$>$"},
    }
)


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return text.translate(_TEX)


def render_tex(job: dict[str, Any], cells: Sequence[Cell]) -> str:
    """The paper's grid with the whole caption, then for every number of shots the grids by fold."""
    label = f"tab:{job['study']}-{job['table']}"
    caption = [*own_notes(job, cells), *reading(job)]
    text = " ".join([f"{job['title']}.", f"{layout.compact_title(job)}.", *caption])
    lines = ["% needs \\usepackage{booktabs}", *_environment(*_compact(job, cells), escape_tex(text), label)]
    for shots in dict.fromkeys(block[1] for block in layout.blocks(job)):
        title = escape_tex(f"{job['title']}: {layout.DETAILS.lower()}, {shots}-shot.")
        text = f"{title} See Table~\\ref{{{label}}}."
        lines += ["", *_environment(*_details(job, cells, shots), text, f"{label}-{shots}-shot")]
    return "\n".join(lines) + "\n"


def _environment(names: list[str], body: list[str], text: str, label: str) -> list[str]:
    """A table of the columns ``names``, which follow the one of the rows' labels."""
    return [
        "\\begin{table}",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        f"\\begin{{tabular}}{{l{'c' * len(names)}}}",
        "\\toprule",
        " & ".join(["", *map(escape_tex, names)]) + r" \\",
        *body,
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{text}}}",
        f"\\label{{{label}}}",
        "\\end{table}",
    ]


def _compact(job: dict, cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    titles, entries = layout.compact(job, cells, "Paper")
    names = [*layout.switch_names(job), *titles]
    return names, ["\\midrule", *_body(job, layout.groups(job, quoted=True), 1 + len(names), entries)]


def _details(job: dict, cells: Sequence[Cell], shots: int) -> tuple[list[str], list[str]]:
    folds = layout.fold_columns(job)
    names = [*layout.switch_names(job), *map(str, folds), layout.mean_name(job), "Paper", "Diff."]
    lines, width = [], 1 + len(names)
    for title, of_shots, metric, void in layout.blocks(job):
        if of_shots != shots:
            continue

        def entries(row: dict, metric: str = metric, void: str = void) -> list[Cell | str]:
            *parts, mean = layout.select(cells, row, shots, metric, void)
            paper = [layout.number(mean.paper), layout.number(mean.difference, "+")]
            return [*(parts if folds else []), mean, *paper]

        lines += ["\\midrule", _across(width, title), "\\midrule"]
        lines += _body(job, layout.groups(job, quoted=False), width, entries)
    return names, lines


def _across(width: int, text: str) -> str:
    return f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{escape_tex(text)}}}}} \\\\"


def _body(job: dict, groups: list, width: int, entries: layout.Entries) -> list[str]:
    """Two lines a row: values, and below them intervals where there are any."""
    lines, switches = [], layout.switch_names(job)
    for position, (heading, rows) in enumerate(groups):
        lines += [f"\\cmidrule{{1-{width}}}"] if position else []
        lines += [_across(width, heading)] if heading else []
        for row in rows:
            values, below = (list(map(shown, entries(row))) for shown in (_value, _bounds))
            label = f"\\emph{{{escape_tex(row['label'])}}}" if row["control"] else escape_tex(row["label"])
            ticks = [escape_tex(layout.setting(row, name)) for name in switches]
            lines.append(" & ".join([label, *ticks, *values]) + r" \\")
            if any(below):
                lines.append(" & ".join([""] * (1 + len(switches)) + below) + r" \\")
    return lines


def _value(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escape_tex(cell)
    if cell.value is None:
        # the reason of a missing fold is long, and in the caption
        note = layout.short_note(cell)
        return escape_tex(note if note == layout.NOT_AVAILABLE else layout.NONE)
    return f"\\textbf{{{cell.value:.1f}}}" if cell.fold == "mean" else f"{cell.value:.1f}"


def _bounds(cell: Cell | str) -> str:
    if isinstance(cell, str) or cell.value is None:
        return ""
    return f"{{\\scriptsize[{cell.low:.1f}, {cell.high:.1f}]}}"
