"""A table as GitHub shows it: the paper's grid, notes on it, every grid by fold, and how to read them."""

from collections.abc import Sequence
from typing import Any

from crnet.report.tables import layout
from crnet.report.tables.captions import own_notes, reading
from crnet.report.tables.cells import Cell

ORIENTATION = "**The data differ from the paper's; its values are for orientation only.**"


def render_markdown(job: dict[str, Any], cells: Sequence[Cell]) -> str:
    """The whole page of a table; ``crnet.report.page.page`` takes from it what lies above the details."""
    parts = [f"# {job['title']}"]
    if job["orientation_only"]:
        parts.append(ORIENTATION)
    compact = _grouped(layout.switch_names(job), layout.groups(job, quoted=True), *layout.compact(job, cells, "paper"))
    parts += [f"## {layout.compact_title(job)}", compact, *own_notes(job, cells)]
    blocks = layout.blocks(job)
    parts += [f"## {layout.DETAILS}"] + ([] if blocks else ["No row of this table is run in this study."])
    for title, shots, metric, void in blocks:
        parts += [f"### {title}", _detail_grid(job, cells, shots, metric, void)]
    parts += [f"## {layout.READING}", *reading(job)]
    return "\n\n".join(parts) + "\n"


def grid(lines: Sequence[Sequence[str]], aligns: Sequence[str]) -> str:
    """A Markdown table, aligned in its source too.

    Args:
        lines: heading first; as many cells in each as ``aligns`` has.
        aligns: "l", "c" or "r" for each column.
    """
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(aligns))]
    rules = {"l": ":{}-", "c": ":{}:", "r": "-{}:"}
    rule = [rules[a].format("-" * (width - 2)) for a, width in zip(aligns, widths, strict=True)]
    pads = {"l": str.ljust, "c": str.center, "r": str.rjust}
    padded = [[pads[a](t, w) for a, t, w in zip(aligns, line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _detail_grid(job: dict, cells: Sequence[Cell], shots: int, metric: str, void: str) -> str:
    ours = [row["id"] for row in job["rows"] if not row.get("reported")]
    key = (shots, metric)
    quoted = any(c.paper is not None for c in cells if (c.shots, c.metric, c.void) == (*key, void) and c.row in ours)
    folds = layout.fold_columns(job)
    head = [*(f"Fold {fold}" for fold in folds), layout.mean_name(job)]
    spread = any(c.seed_sd is not None for c in cells if (c.shots, c.metric, c.fold) == (*key, "mean"))
    head += [layout.SEED_SD] if spread else []
    head += ["Paper", "Difference"] if quoted else []

    def entries(row: dict) -> list[Cell | str]:
        *parts, mean = layout.select(cells, row, shots, metric, void)
        deviation = [layout.number(mean.seed_sd)] if spread else []
        paper = [layout.number(mean.paper), layout.number(mean.difference, "+")] if quoted else []
        return [*(parts if folds else []), mean, *deviation, *paper]

    return _grouped([], layout.named(layout.groups(job, quoted=False)), head, entries)


def _grouped(switches: Sequence[str], groups: list, head: list[str], entries: layout.Entries) -> str:
    """A grid with a line for every group's heading, and labels and switches before the numbers."""
    lines = [["", *switches, *head]]
    for heading, rows in groups:
        if heading:
            lines.append([f"*{heading}*"] + [""] * (len(lines[0]) - 1))
        for row in rows:
            label = f"*{row['label']}*" if row["control"] else row["label"]
            lines.append([label, *(layout.setting(row, name) for name in switches), *map(_text, entries(row))])
    return grid(lines, ["l"] + ["c"] * len(switches) + ["r"] * len(head))


def _text(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return cell
    if cell.value is None:
        return layout.short_note(cell)
    value = f"**{cell.value:.1f}**" if cell.fold == "mean" else f"{cell.value:.1f}"
    # the no-break space: in a narrow window the interval moves below its value whole
    return f"{value} [{layout.number(cell.low)},\N{NO-BREAK SPACE}{layout.number(cell.high)}]"
