"""A table in LaTeX that fits the page of an article and needs booktabs, amssymb and graphicx; intervals stand below
values.

Captions are short: what the numbers mean is text after the tables, for whoever inputs the file to keep or to move.
"""

from collections.abc import Sequence
from typing import Any

from crnet.report.tables import layout
from crnet.report.tables.captions import own_notes, reading
from crnet.report.tables.cells import METRIC_NAMES, VOID_NAMES, VOIDS, Cell

_TEX = str.maketrans(
    {
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{character: f"\\{character}" for character in "{}%&#_$"},
        **{"–": "--", "—": "---", "×": r"$\times$", "±": r"$\pm$", "≥": r"$\ge$", "≤": r"$\le$", "−": "$-$"},
        **{"“": "``", "”": "''", "’": "'"},
        **{layout.TICK: r"\checkmark{}", "\N{NO-BREAK SPACE}": "~", "<": "$<$", ">": "$>$"},
    }
)


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return text.translate(_TEX)


def render_tex(job: dict[str, Any], cells: Sequence[Cell]) -> str:
    """The paper's grid, for every number of shots and metric the grids by fold, and notes on all of them."""
    label = f"tab:{job['study']}-{job['table']}"
    title = f"{job['title']} ({job['study_title']})"
    caption = escape_tex(f"{title}: {layout.compact_title(job)}.")
    lines = ["% needs \\usepackage{booktabs,amssymb,graphicx}", *_environment(*_compact(job, cells), caption, label)]
    for shots, metric in dict.fromkeys(block[1:3] for block in layout.blocks(job)):
        caption = escape_tex(f"{title}: {shots}-shot {METRIC_NAMES[metric]} by fold.")
        name = f"{label}-{shots}-shot-{metric.replace('_', '-')}"
        lines += ["", *_environment(*_details(job, cells, shots, metric), caption, name)]
    notes = "\n\n".join(map(escape_tex, [*own_notes(job, cells), *reading(job)]))
    return "\n".join([*lines, "", f"\\paragraph{{Notes to Table~\\ref{{{label}}}.}}", notes]) + "\n"


def _environment(names: list[str], body: list[str], text: str, label: str) -> list[str]:
    """A table of the columns ``names``, which follow the one of the rows' labels."""
    return [
        "\\begin{table}",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",  # smaller only if it is too wide
        f"\\begin{{tabular}}{{l{'c' * len(names)}}}",
        "\\toprule",
        " & ".join(["", *map(escape_tex, names)]) + r" \\",
        *body,
        "\\bottomrule",
        "\\end{tabular}}",
        f"\\caption{{{text}}}",
        f"\\label{{{label}}}",
        "\\end{table}",
    ]


def _compact(job: dict, cells: Sequence[Cell]) -> tuple[list[str], list[str]]:
    titles, entries = layout.compact(job, cells, "Paper")
    names = [*layout.switch_names(job), *titles]
    return names, [
        "\\midrule",
        *_body(layout.switch_names(job), layout.groups(job, quoted=True), 1 + len(names), entries),
    ]


def _details(job: dict, cells: Sequence[Cell], shots: int, metric: str) -> tuple[list[str], list[str]]:
    """Both void conventions; rows are named with their switches, whose columns would not fit beside the folds."""
    folds = layout.fold_columns(job)
    quoted = any(cell.paper is not None for cell in cells if (cell.shots, cell.metric) == (shots, metric))
    names = [*(f"Fold {fold}" for fold in folds), layout.mean_name(job), *(["Paper", "Diff."] if quoted else [])]
    lines, width = [], 1 + len(names)
    groups = layout.named(layout.groups(job, quoted=False))
    for void in VOIDS:

        def entries(row: dict, void: str = void) -> list[Cell | str]:
            *parts, mean = layout.select(cells, row, shots, metric, void)
            paper = [layout.number(mean.paper), layout.number(mean.difference, "+")] if quoted else []
            return [*(parts if folds else []), mean, *paper]

        lines += ["\\midrule", _across(width, VOID_NAMES[void].capitalize()), "\\midrule"]
        lines += _body([], groups, width, entries)
    return names, lines


def _across(width: int, text: str) -> str:
    return f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{escape_tex(text)}}}}} \\\\"


def _body(switches: Sequence[str], groups: list, width: int, entries: layout.Entries) -> list[str]:
    """Two lines a row: values, and below them intervals where there are any."""
    lines = []
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
