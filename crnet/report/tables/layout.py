"""What the Markdown and the LaTeX of a table share: which columns and rows it has, and how a number reads."""

from collections.abc import Callable, Sequence
from typing import Any

from crnet.config.labels import named_with
from crnet.report.tables.cells import METRIC_NAMES, NOT_AVAILABLE, REPORTED, VOID_NAMES, VOIDS, Cell, short_gap

TICK = "✓"
NONE = "—"
DETAILS = "Details by fold"
SEED_SD = "SD of seeds"
READING = "How to read the numbers"

# What a row has in the columns of a grid: cells with their intervals, and numbers without.
Entries = Callable[[dict[str, Any]], list[Cell | str]]


def shown_shots(job: dict[str, Any]) -> list[int]:
    """Numbers of shots for which any row that is no control was to be run; all, if there is none."""
    return _run_shots(job) or list(job["shots"])


def _run_shots(job: dict[str, Any]) -> list[int]:
    run = {cell["shots"] for row in job["rows"] if not row["control"] for cell in row["cells"]}
    return [shots for shots in job["shots"] if shots in run]


def compact(job: dict[str, Any], cells: Sequence[Cell], paper: str) -> tuple[list[str], Entries]:
    """Columns in the paper's style: shots where there are several, else metrics; beside them ``paper``'s, if any."""
    shots, metrics = shown_shots(job), job["metrics"]
    if len(shots) > 1:
        columns = {(k, metrics[0]): f"{k}-shot" for k in shots}
    else:
        columns = {(shots[0], metric): METRIC_NAMES[metric] for metric in metrics}
    quoted = {(cell.shots, cell.metric) for cell in cells if cell.paper is not None}
    titles = [title for key, name in columns.items() for title in ([name, paper] if key in quoted else [name])]

    def entries(row: dict[str, Any]) -> list[Cell | str]:
        line = []
        for key in columns:
            mean = select(cells, row, *key, VOIDS[0])[-1]
            line += [mean, number(mean.paper)] if key in quoted else [mean]
        return line

    return titles, entries


def compact_title(job: dict[str, Any]) -> str:
    """What the compact grid holds: metric or shots, void convention, and the folds if they are not all."""
    shots = shown_shots(job)
    first = METRIC_NAMES[job["metrics"][0]] if len(shots) > 1 else f"{shots[0]}-shot"
    parts = [first, VOID_NAMES[VOIDS[0]]]
    return ", ".join(parts if all_folds(job) else [*parts, f"{mean_name(job).lower()} of the data set's {total(job)}"])


def blocks(job: dict[str, Any]) -> list[tuple[str, int, str, str]]:
    """Title, shots, metric and void convention of every grid of the details; none where nothing was to be run."""
    return [
        (f"{shots}-shot {METRIC_NAMES[metric]}, {VOID_NAMES[void]}", shots, metric, void)
        for shots in _run_shots(job)
        for metric in job["metrics"]
        for void in VOIDS
    ]


def total(job: dict[str, Any]) -> int:
    """How many folds the data set has."""
    return job.get("dataset_folds", len(job["folds"]))


def all_folds(job: dict[str, Any]) -> bool:
    return len(job["folds"]) >= total(job)


def mean_name(job: dict[str, Any]) -> str:
    """Heading of the column of means: a mean over fewer folds than the data set has says so."""
    if all_folds(job):
        return "Mean"
    folds = ", ".join(map(str, job["folds"]))
    return f"Fold {folds}" if len(job["folds"]) == 1 else f"Mean of folds {folds}"


def fold_columns(job: dict[str, Any]) -> list[int]:
    """Folds with columns of their own: none where there is one, which is the mean."""
    return job["folds"] if len(job["folds"]) > 1 else []


def switch_names(job: dict[str, Any]) -> list[str]:
    """Names of the switch columns, in the order in which the rows give them."""
    return list(dict.fromkeys(name for row in job["rows"] for name in dict(row.get("switches", {}))))


def setting(row: dict[str, Any], name: str) -> str:
    """How a switch of a row reads: a tick, nothing, or the text that it is."""
    value = dict(row.get("switches", {})).get(name, "")
    if isinstance(value, bool):
        return TICK if value else ""
    return str(value)


def row_label(row: dict[str, Any]) -> str:
    """The row's name where its switches do not stand beside it: "Fusion (stripped)", "CRNet (VGG16)"."""
    return named_with(row["label"], dict(row.get("switches", {})))


def groups(job: dict[str, Any], quoted: bool) -> list[tuple[str, list[dict]]]:
    """Rows below their headings: what the paper quotes, if wanted, what was run here, what another program predicted,
    controls. Run rows have a heading only beside the first or third."""
    reported = [row for row in job["rows"] if row.get("reported")] if quoted else []
    run = [row for row in job["rows"] if not (row["control"] or row.get("reported") or row.get("elsewhere"))]
    elsewhere = [row for row in job["rows"] if row.get("elsewhere")]
    controls = [row for row in job["rows"] if row["control"]]
    named = [
        (REPORTED.capitalize(), reported),
        ("Run here" if reported or elsewhere else "", run),
        ("Predicted elsewhere", elsewhere),
        ("Controls", controls),
    ]
    return [(heading, rows) for heading, rows in named if rows]


def named(groups: list[tuple[str, list[dict]]]) -> list[tuple[str, list[dict]]]:
    """The same rows named with their switches, whose columns would not fit beside those of folds."""
    return [(heading, [row | {"label": row_label(row), "switches": {}} for row in rows]) for heading, rows in groups]


def select(cells: Sequence[Cell], row: dict, shots: int, metric: str, void: str) -> list[Cell]:
    """The row's cells of one grid: its folds, then its mean."""
    wanted = (row["id"], shots, metric, void)
    return [cell for cell in cells if (cell.row, cell.shots, cell.metric, cell.void) == wanted]


def short_note(cell: Cell) -> str:
    """Why a value is absent, as short as a cell needs it; the caption has it in full."""
    if cell.note.startswith(NOT_AVAILABLE):
        return NOT_AVAILABLE
    if cell.note.startswith(("missing", "failed")):
        return short_gap(cell.note)
    return NONE


def number(value: float | None, sign: str = "") -> str:
    """One decimal, with a minus sign that is as wide as a plus."""
    return NONE if value is None else f"{value:{sign}.1f}".replace("-", "−")
