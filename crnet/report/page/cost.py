"""What a study cost: core- or GPU-hours, time a run and peak memory, from its ``runs.csv``."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from crnet.errors import CrnetError
from crnet.report.runs import SECOND_READING, Labels, label_of
from crnet.report.tables.markdown import grid

KINDS = {"train": "Training", "trials": "Choosing finetuning's settings", "evaluate": "Evaluation"}
COLUMNS = ("run", "kind", "method", "variant", "shots", "status", "seconds", "peak_memory_bytes", "device", "threads")
CPU, GPU = "CPU-core-hours", "GPU-hours"
CPU_SECONDS = "cpu_seconds"  # a column of runs that recorded it


class Cost(NamedTuple):
    """Runs of one kind, or of one variant of a kind, on one sort of device."""

    name: str  # of the kind or the variant, with its shots
    unit: str  # ``CPU`` or ``GPU``
    runs: int
    failed: int  # of these runs
    hours: float  # their sum; on a CPU its own time, or of a run that did not record it seconds times threads
    seconds: tuple[float, ...]  # of each run that recorded them, ascending
    peak_bytes: int | None  # the greatest peak memory of a run; None if none was recorded


def costs(lines: Sequence[Mapping[str, str]], labels: Labels) -> tuple[list[Cost], dict[str, list[Cost]]]:
    """Cost by kind in the order of ``runs.csv``, and for each kind by variant and shots, as the tables name them.

    Args:
        labels: what runs are called, as ``crnet.config.study.page_job`` has it.
        lines: the rows of ``runs.csv``. The second reading of a finetuned evaluation is no run of its own, a choice
            among trials reads a few numbers.

    Raises:
        CrnetError: a column is missing, or a number is none.
    """
    missing = [name for name in COLUMNS if not lines or name not in lines[0]]
    if missing:
        raise CrnetError(f"runs.csv has no line with the column {missing[0]!r}: collect the study's runs again.")
    jobs = [line for line in lines if not line["run"].endswith(SECOND_READING) and line["kind"] != "choice"]
    kinds = _costs(jobs, _kind)
    names = dict.fromkeys(cost.name for cost in kinds)
    label, place = label_of(labels), {name: i for i, (name, _) in enumerate(labels)}

    def variant(line: Mapping[str, str]) -> str:
        return label(line) + (f", {line['shots']}-shot" if line["shots"] else "")

    jobs.sort(key=lambda line: place.get(label(line), len(place)))  # stable
    return kinds, {name: _costs([line for line in jobs if _kind(line) == name], variant) for name in names}


def _kind(line: Mapping[str, str]) -> str:
    return KINDS.get(line["kind"], line["kind"].capitalize())


def _costs(lines: Sequence[Mapping[str, str]], name: Callable[[Mapping[str, str]], str]) -> list[Cost]:
    groups: dict[tuple[str, str], list] = {}
    for line in lines:
        unit = GPU if line["device"].startswith("cuda") else CPU
        groups.setdefault((name(line), unit), []).append(line)
    return [_cost(*key, group) for key, group in groups.items()]


def _cost(name: str, unit: str, lines: Sequence[Mapping[str, str]]) -> Cost:
    try:
        timed = [line for line in lines if line["seconds"]]
        seconds = [float(line["seconds"]) for line in timed]
        spent = [_spent(line, unit) for line in timed]
        peaks = [int(line["peak_memory_bytes"]) for line in lines if line["peak_memory_bytes"]]
    except ValueError as error:
        raise CrnetError(f"runs.csv, {name}: {error}; collect the study's runs again.") from error
    failed = sum(line["status"] == "failed" for line in lines)
    hours = sum(spent) / 3600
    return Cost(name, unit, len(lines), failed, hours, tuple(sorted(seconds)), max(peaks, default=None))


def _spent(line: Mapping[str, str], unit: str) -> float:
    """Seconds of a GPU, or of a CPU's cores."""
    if unit == CPU and line.get(CPU_SECONDS):
        return float(line[CPU_SECONDS])
    return float(line["seconds"]) * (1 if unit == GPU else int(line["threads"] or 1))


def _measured(lines: Sequence[Mapping[str, str]]) -> str:
    """What core-hours are, where runs recorded their CPU time; nothing where none did."""
    timed = [r for r in lines if r["seconds"] and not r["device"].startswith("cuda")]
    without = sum(not line.get(CPU_SECONDS) for line in timed)
    if without == len(timed):
        return ""
    text = f" {CPU} are CPU time of a run's process and its children"
    return text + (f"; of {without} runs that did not record it, seconds times threads." if without else ".")


def render_cost(lines: Sequence[Mapping[str, str]], labels: Labels) -> list[str]:
    """Markdown paragraphs: the sum by kind, every variant in a fold-out, what is counted; raises as ``costs``."""
    kinds, variants = costs(lines, labels)
    totals = {unit: sum(cost.hours for cost in kinds if cost.unit == unit) for unit in (CPU, GPU)}
    spent = " and ".join(f"{_hours(hours)} {unit}" for unit, hours in totals.items() if hours)
    parts = [f"**{spent or 'No time was recorded'}** in {sum(c.runs for c in kinds)} runs.", _grid("Job", kinds)]
    failed = sum(cost.failed for cost in kinds)
    if failed:
        parts.append(f"{failed} run{'' if failed == 1 else 's'} failed; what time they recorded is counted.")
    unknown = sum(cost.runs - len(cost.seconds) for cost in kinds)
    if unknown:
        parts.append(f"{unknown} run{'' if unknown == 1 else 's'} recorded no time.")
    for kind, rows in variants.items():
        parts += [f"<details><summary>{kind}, by variant</summary>", _grid("Variant", rows), "</details>"]
    counted = "Each run's own time, loading included; preparing data, encoders and features is not among the runs."
    memory = "Peak memory: of the process on a CPU, allocated by torch on a GPU; the greatest of the runs."
    return [*parts, f"{counted}{_measured(lines)} {memory}"]


def _grid(title: str, rows: Sequence[Cost]) -> str:
    units = {row.unit for row in rows}
    head = [title, "Runs", units.pop() if len(units) == 1 else "Cost", "Seconds a run: median (range)", "Peak memory"]
    lines = [head]
    for row in rows:
        cost = _hours(row.hours) + (f" {row.unit}" if units else "")
        peak = "not recorded" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f} GiB"
        lines.append([row.name, str(row.runs), cost, _spread(row.seconds), peak])
    return grid(lines, ["l", "r", "r", "r", "r"])


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}" if hours >= 0.1 else f"{hours:.3f}"


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "not recorded"
    middle, least, most = (f"{x:.0f}" if x >= 100 else f"{x:.1f}" for x in (median(seconds), seconds[0], seconds[-1]))
    return middle if len(seconds) == 1 else f"{middle} ({least} to {most})"
