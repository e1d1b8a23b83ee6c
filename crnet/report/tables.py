"""Tables from stored counts: a long CSV for programs, Markdown and LaTeX for readers.

Input is a *table job*: the rows of one table with the path of every ``counts.csv`` (row x shots x fold x
seed). A fold of which any seed's counts are absent is missing, and a row with a missing fold has no mean: a
mean over other folds than the caption says would be another quantity.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnet.bootstrap import Bootstrap, FoldCounts, read_fold
from crnet.errors import CrnetError
from crnet.files import atomic_write, read_json, write_csv
from crnet.metrics import VOID_COLUMNS

HEADER = (
    *("table", "row", "label", "shots", "fold", "metric", "void", "value", "low", "high"),
    *("seeds", "episodes", "paper", "difference", "note"),
)
METRIC_NAMES = {"miou": "mIoU", "fbiou": "FB-IoU"}
VOID_NAMES = {"background": "void counted as background", "ignore": "void ignored"}
VOIDS = tuple(VOID_COLUMNS)  # the convention that is probably the paper's comes first
CSV_DECIMALS = 2
_TICK = "✓"


@dataclass(frozen=True)
class Cell:
    """One number of a table, in percent. ``fold``: an index or "mean". ``note``: why a value is absent."""

    row: str
    label: str
    shots: int
    fold: int | str
    metric: str
    void: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    episodes: int | None = None
    paper: float | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's, in points."""
        return None if self.value is None or self.paper is None else self.value - self.paper


def render_table(job: dict[str, Any], out_prefix: Path, bootstrap: Bootstrap | None = None) -> None:
    """Write ``<out_prefix>.csv``, ``.md`` and ``.tex``.

    Args:
        job: the table job; see the module's docstring and ``configs/tables``.
        out_prefix: path without suffix, e.g. ``results/demo/tables/table2``.
        bootstrap: the plan of resampling; the default is 2000 resamples at 95 %.

    Raises:
        CrnetError: counts that cannot be read, or rows scored on different episodes.
    """
    bootstrap = bootstrap or Bootstrap()
    cells = collect(job, bootstrap)
    lines = ([_plain(value) for value in _csv_row(job["table"], cell)] for cell in cells)
    write_csv(f"{out_prefix}.csv", HEADER, lines)
    atomic_write(f"{out_prefix}.md", render_markdown(job, cells, bootstrap))
    atomic_write(f"{out_prefix}.tex", render_tex(job, cells, bootstrap))


# ---------------------------------------------------------------- numbers


def collect(job: dict[str, Any], bootstrap: Bootstrap) -> list[Cell]:
    """All cells of the table: rows in their order, then shots, metric, void, folds and mean."""
    cells: list[Cell] = []
    episodes: dict[int, tuple[str, str]] = {}  # fold: digest of its episodes, and the row that gave it
    for row in job["rows"]:
        for shots in job["shots"]:
            parts, notes = _read_folds(job, row, shots)
            for part in parts.values():
                digest, first = episodes.setdefault(part.fold, (part.episodes, row["label"]))
                if digest != part.episodes:
                    raise CrnetError(
                        f"{job['table']}: {first!r} and {row['label']!r} were scored on different episodes "
                        f"of fold {part.fold}, so they cannot stand in one table: evaluate them again."
                    )
            for metric in job["metrics"]:
                for void in VOIDS:
                    cells += _row_cells(job, row, shots, metric, void, parts, notes, bootstrap)
    return cells


def _read_folds(job: dict, row: dict, shots: int) -> tuple[dict[int, FoldCounts], dict[int, str]]:
    """Counts of the folds that are whole, and for every other fold why it is not."""
    planned = [cell for cell in row["cells"] if cell["shots"] == shots]
    if not planned:
        reason = "N/A" if row["cells"] else "not run"
        return {}, dict.fromkeys(job["folds"], reason)
    parts, notes = {}, {}
    for fold in job["folds"]:
        files = {cell["seed"]: cell["counts"] for cell in planned if cell["fold"] == fold}
        absent = [seed for seed, path in sorted(files.items()) if not Path(path).is_file()]
        if files and not absent:
            parts[fold] = read_fold(fold, files)
            continue
        seeds = "" if row["control"] or not absent else f", seed {', '.join(map(str, absent))}"
        notes[fold] = f"missing (fold {fold}{seeds})"
    return parts, notes


def _row_cells(
    job: dict,
    row: dict,
    shots: int,
    metric: str,
    void: str,
    parts: dict[int, FoldCounts],
    notes: dict[int, str],
    bootstrap: Bootstrap,
) -> Iterable[Cell]:
    base = {"row": row["id"], "label": row["label"], "shots": shots, "metric": metric, "void": void}

    def measured(fold: int | str, folds: Sequence[FoldCounts], **more: Any) -> Cell:
        value, low, high = (100 * x for x in bootstrap.interval(folds, metric, void))
        if math.isnan(value):
            return Cell(**base, fold=fold, note="undefined: no pixel was asked for or predicted", **more)
        seeds = min(len(part.seeds) for part in folds)
        count = sum(len(part.classes) for part in folds)
        return Cell(**base, fold=fold, value=value, low=low, high=high, seeds=seeds, episodes=count, **more)

    for fold in job["folds"]:
        yield measured(fold, [parts[fold]]) if fold in parts else Cell(**base, fold=fold, note=notes[fold])
    paper = row.get("paper", {}).get(f"{shots}-shot", {}).get(metric)
    if notes:
        yield Cell(**base, fold="mean", paper=paper, note="; ".join(dict.fromkeys(notes.values())))
    else:
        yield measured("mean", list(parts.values()), paper=paper)


def _csv_row(table: str, cell: Cell) -> tuple:
    return (
        *(table, cell.row, cell.label, cell.shots, cell.fold, cell.metric, cell.void),
        *(cell.value, cell.low, cell.high, cell.seeds, cell.episodes, cell.paper, cell.difference, cell.note),
    )


def _plain(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.{CSV_DECIMALS}f}" if isinstance(value, float) else value


# ---------------------------------------------------------------- what both readers' formats share


def blocks(job: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Title, shots, metric and void convention of every block of the table."""
    return [
        (f"{shots}-shot {METRIC_NAMES[metric]}, {VOID_NAMES[void]}", shots, metric, void)
        for metric in job["metrics"]
        for shots in job["shots"]
        for void in VOIDS
    ]


def caption(job: dict[str, Any], cells: Sequence[Cell], bootstrap: Bootstrap) -> list[str]:
    """The paragraphs below a table: what was scored, with what interval, and what the paper's value is."""
    folds = [str(fold) for fold in job["folds"]]
    over = f"fold {folds[0]} only" if len(folds) == 1 else f"folds {', '.join(folds[:-1])} and {folds[-1]}"
    score = (
        "Percent. Each fold is tested on classes that its training never showed; a fold's value is the mean "
        f"over its training seeds, and the mean is over {over}. mIoU: IoU accumulated over the episodes of "
        "a class, then averaged over classes."
    )
    if "fbiou" in job["metrics"]:
        score += " FB-IoU: mean of the pooled foreground and background IoU."
    interval = (
        f"[low, high] is the {100 * bootstrap.level:g} % percentile interval of a stratified bootstrap: "
        f"episodes resampled within class, training seeds within fold, {bootstrap.resamples} resamples."
    )
    void = (
        "Void pixels: the paper does not say how it treats them. Counted as background, as the code of its "
        "time did, is the headline; ignored, as in later work, stands beside it."
    )
    paragraphs = [
        " ".join([job["caption"], *_data_sentences(job)]),
        score,
        f"{interval} {_sizes(job, cells)}",
        void,
        _paper_sentence(job, cells),
        _missing_sentence(cells),
        *job.get("notes", []),
    ]
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def _data_sentences(job: dict) -> list[str]:
    """What the evaluations say of their data: that it is a subset, and which classes had too few photos."""
    subsets, left_out = set(), {}
    for row in job["rows"]:
        for cell in row["cells"]:
            report = Path(cell["counts"]).with_name("evaluation.json")
            if report.is_file():
                about = read_json(report)
                subsets.add(about.get("subset") or "")
                left_out |= {f"{name} ({size})": cell["fold"] for name, size in about.get("left_out", {}).items()}
    sentences = [f"The data are {subset}." for subset in sorted(subsets - {""})]
    if left_out:
        named = ", ".join(f"{name} of fold {fold}" for name, fold in left_out.items())
        sentences.append(f"Classes left out because they have too few test photos (their number): {named}.")
    return sentences


def _sizes(job: dict, cells: Sequence[Cell]) -> str:
    controls = {row["id"] for row in job["rows"] if row["control"]}
    known = [cell for cell in cells if cell.value is not None and cell.fold != "mean"]
    seeds = {cell.seeds for cell in known if cell.row not in controls}
    text = ""
    if known:
        text = f"{_span(seeds)} training seed{'' if seeds == {1} else 's'} and " if seeds else ""
        text += f"{_span({cell.episodes for cell in known})} episodes a fold, the same for every row."
    if 1 in seeds:
        text += " With one training seed an interval covers episodes only."
    if controls:
        text += " Controls are never trained and have no seeds: floors that a method must clear."
    return text.strip()


def _span(values: set[int]) -> str:
    return f"{min(values)}" if len(values) == 1 else f"{min(values)} to {max(values)}"


def _paper_sentence(job: dict, cells: Sequence[Cell]) -> str:
    if all(cell.paper is None for cell in cells):
        return ""
    text = f"Paper: {job['source']}, the mean over all folds, without an interval. Difference: ours minus it"
    if job["orientation_only"]:
        return f"{text}. Both are for orientation only, because the data differ from the paper's."
    return f"{text}."


def _missing_sentence(cells: Sequence[Cell]) -> str:
    gaps = dict.fromkeys((c.label, c.shots, c.note) for c in cells if c.fold == "mean" and c.note)
    parts = []
    for label, shots, note in gaps:
        reason = "as reported by its authors, not run here" if note == "not run" else note
        parts.append(f"{label} ({shots}-shot): {reason}")
    return f"Without a mean: {'; '.join(parts)}." if parts else ""


def _switches(job: dict) -> list[str]:
    """Names of the tick columns, in the order in which the rows give them."""
    return list(dict.fromkeys(name for row in job["rows"] for name in dict(row.get("switches", {}))))


def _setting(value: Any, tick: str) -> str:
    if isinstance(value, bool):
        return tick if value else ""
    return "" if value is None else str(value)


def _select(cells: Sequence[Cell], row: dict, shots: int, metric: str, void: str) -> list[Cell]:
    wanted = (row["id"], shots, metric, void)
    return [cell for cell in cells if (cell.row, cell.shots, cell.metric, cell.void) == wanted]


def _ordered_rows(job: dict) -> tuple[list[dict], list[dict]]:
    return [r for r in job["rows"] if not r["control"]], [r for r in job["rows"] if r["control"]]


# ---------------------------------------------------------------- Markdown


def render_markdown(job: dict[str, Any], cells: Sequence[Cell], bootstrap: Bootstrap) -> str:
    """The table as GitHub shows it: one grid per metric, shots and void convention, the caption below."""
    parts = [f"# {job['title']}"]
    if job["orientation_only"]:
        parts.append("**The data differ from the paper's; its values are for orientation only.**")
    for title, shots, metric, void in blocks(job):
        parts += [f"## {title}", _markdown_grid(job, cells, shots, metric, void)]
    parts += caption(job, cells, bootstrap)
    return "\n\n".join(parts) + "\n"


def _markdown_grid(job: dict, cells: Sequence[Cell], shots: int, metric: str, void: str) -> str:
    switches = _switches(job)
    quoted = any(c.paper is not None for c in cells if (c.shots, c.metric) == (shots, metric))
    head = ["", *switches, *(f"Fold {fold}" for fold in job["folds"]), "Mean"]
    head += ["Paper", "Difference"] if quoted else []
    lines = [head]
    trained, controls = _ordered_rows(job)
    for row in [*trained, None, *controls] if controls else trained:
        if row is None:
            lines.append(["*Controls*"] + [""] * (len(head) - 1))
            continue
        *folds, mean = _select(cells, row, shots, metric, void)
        label = f"*{row['label']}*" if row["control"] else row["label"]
        ticks = [_setting(dict(row.get("switches", {})).get(name), _TICK) for name in switches]
        mean_text = f"**{mean.value:.1f}** {_bounds(mean)}" if mean.value is not None else f"— {mean.note}"
        numbers = [*(_fold_text(cell) for cell in folds), mean_text]
        paper = [_number(mean.paper), _number(mean.difference, "+")] if quoted else []
        lines.append([label, *ticks, *numbers, *paper])
    aligns = ["l"] + ["c"] * len(switches) + ["r"] * (len(head) - 1 - len(switches))
    return _grid([[text.replace("|", "\\|") for text in line] for line in lines], aligns)


def _fold_text(cell: Cell) -> str:
    if cell.value is None:
        return cell.note if cell.note.startswith("missing") else "—"
    return f"{cell.value:.1f} {_bounds(cell)}"


def _bounds(cell: Cell) -> str:
    # a no-break space: in a narrow window the interval moves below the value whole
    return f"[{cell.low:.1f},\N{NO-BREAK SPACE}{cell.high:.1f}]"


def _number(value: float | None, sign: str = "") -> str:
    return "—" if value is None else f"{value:{sign}.1f}".replace("-", "−")


def _grid(lines: list[list[str]], aligns: list[str]) -> str:
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(aligns))]
    rules = {"l": ":{}-", "c": ":{}:", "r": "-{}:"}
    rule = [rules[a].format("-" * (width - 2)) for a, width in zip(aligns, widths, strict=True)]
    pads = {"l": str.ljust, "c": str.center, "r": str.rjust}
    padded = [[pads[a](t, w) for a, t, w in zip(aligns, line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


# ---------------------------------------------------------------- LaTeX

_TEX = {
    **{
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    },
    **{character: f"\\{character}" for character in "%&#_$"},
    **{"–": "--", "—": "---", "×": r"$\times$", "±": r"$\pm$", "≥": r"$\ge$", "≤": r"$\le$", "−": "$-$"},
    **{_TICK: r"$\surd$", "\N{NO-BREAK SPACE}": "~", "<": "$<$", ">": "$>$"},
}


def escape_tex(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_TEX.get(character, character) for character in text)


def render_tex(job: dict[str, Any], cells: Sequence[Cell], bootstrap: Bootstrap) -> str:
    """A ``table`` environment that needs booktabs and nothing else; intervals stand below their values."""
    switches = _switches(job)
    columns = 1 + len(switches) + len(job["folds"]) + 3
    head = [*switches, *map(str, job["folds"]), "Mean", "Paper", "Diff."]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        f"\\begin{{tabular}}{{l{'c' * (columns - 1)}}}",
        "\\toprule",
        " & ".join(["", *map(escape_tex, head)]) + r" \\",
    ]
    trained, controls = _ordered_rows(job)
    for title, shots, metric, void in blocks(job):
        lines += [
            r"\midrule",
            f"\\multicolumn{{{columns}}}{{l}}{{\\emph{{{escape_tex(title)}}}}} \\\\",
            r"\midrule",
        ]
        for rows in (trained, controls):
            lines += [f"\\cmidrule{{1-{columns}}}"] if rows is controls and controls else []
            for row in rows:
                lines += _tex_row(row, switches, _select(cells, row, shots, metric, void))
    lines += [r"\bottomrule", r"\end{tabular}"]
    text = " ".join([f"{job['title']}.", *caption(job, cells, bootstrap)])
    lines += [
        f"\\caption{{{escape_tex(text)}}}",
        f"\\label{{tab:{job['study']}-{job['table']}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _tex_row(row: dict, switches: list[str], cells: list[Cell]) -> list[str]:
    """The line of values and, below it, the line of intervals."""
    ticks = [escape_tex(_setting(dict(row.get("switches", {})).get(name), _TICK)) for name in switches]
    values = ["---" if c.value is None else f"{c.value:.1f}" for c in cells]
    bounds = ["" if c.value is None else f"{{\\scriptsize[{c.low:.1f}, {c.high:.1f}]}}" for c in cells]
    values[-1] = f"\\textbf{{{values[-1]}}}" if cells[-1].value is not None else values[-1]
    paper = [escape_tex(_number(cells[-1].paper)), escape_tex(_number(cells[-1].difference, "+"))]
    label = escape_tex(row["label"])
    return [
        " & ".join([f"\\emph{{{label}}}" if row["control"] else label, *ticks, *values, *paper]) + r" \\",
        " & ".join([""] * (1 + len(switches)) + bounds + ["", ""]) + r" \\",
    ]
