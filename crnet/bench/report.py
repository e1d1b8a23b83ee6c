"""The bench's results for a terminal, for a Markdown file and for machines."""

from dataclasses import asdict
from typing import Any

from crnet.bench.ceiling import Ceiling
from crnet.bench.inputs import Options
from crnet.bench.rows import Row
from crnet.runtime.files import readable

HEADER = ("stage", "plain", "crnet", "ratio", "of the ceiling", "waits", "peak memory", "target", "met")


def cells(row: Row, ceiling: Ceiling) -> tuple[str, ...]:
    """A row of ``HEADER``; "-" for what was not measured."""
    share, waits = row.of_ceiling(ceiling), row.crnet.waits
    return (
        row.stage,
        "-" if row.plain is None else rate(row.plain.seconds, row.unit),
        rate(row.crnet.seconds, row.unit),
        "-" if row.ratio is None else f"{row.ratio:.2f}" if row.ratio < 2 else f"{row.ratio:.1f}",
        "-" if share is None else f"{share:.0%}",
        "-" if waits is None else f"{waits:.0%}",
        readable(row.crnet.peak_bytes) if row.crnet.peak_bytes else "-",
        "; ".join(target.text for target in row.targets) or "-",
        "; ".join("met" if target.met else "missed" for target in row.targets) or "-",
    )


def rate(seconds: float, unit: str) -> str:
    """Units a second, or the time of one that takes seconds itself."""
    if unit == "seconds":
        return f"{seconds:.2f} s"
    per_second = 1 / seconds
    return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.3g} {unit}/s"


def about(options: Options, provenance: dict[str, Any], ceilings: list[Ceiling]) -> list[str]:
    """What was measured, where, and what the machine can do, a sentence a line."""
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    place = f"{provenance['gpu']}, " if provenance["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    dirty = " with changes" if provenance["dirty"] is True else ""
    network = f"{options.encoder}, heads of {options.width} channels, {options.size} px, {options.dtype}"
    lines = [
        f"Machine: {place}{provenance['cpu']}, {threads}; {versions}; commit {provenance['commit'][:12]}{dirty}.",
        f"Network: {network}; plain loops in float32.",
    ]
    for each in ceilings:
        lines.append(
            f"Ceiling in {each.dtype}: convolution {each.convolution / 1e9:,.0f} GFLOP/s, matrix product "
            f"{each.product / 1e9:,.0f} GFLOP/s, copy {each.copied / 1e9:,.1f} GB/s read and written."
        )
    return lines


def terminal(lines: list[str], rows: list[Row], ceiling: Ceiling) -> str:
    """Aligned columns, a note below each stage."""
    table = [HEADER, *(cells(row, ceiling) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEADER))]
    text = list(lines)
    for number, line in enumerate(table):
        aligned = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        text += ["" if number == 0 else None, "  ".join(aligned).rstrip()]
        if number and rows[number - 1].note:
            text.append(f"    {rows[number - 1].note}")
    return "\n".join(line for line in text if line is not None)


def markdown(lines: list[str], rows: list[Row], ceiling: Ceiling) -> str:
    """The part of docs/performance.md that is measured."""
    table = [HEADER, ("---",) * len(HEADER), *(cells(row, ceiling) for row in rows)]
    text = [line + "  " for line in lines] + [""]
    text += ["| " + " | ".join(line) + " |" for line in table]
    text += ["", *(f"- {row.stage}: {row.note}" for row in rows if row.note)]
    return "\n".join(text) + "\n"


def machine(
    options: Options, provenance: dict[str, Any], ceilings: list[Ceiling], rows: list[Row], scaling: list[dict]
) -> dict[str, Any]:
    """All figures as JSON can hold them; ceilings with the precision used first."""
    return {
        "options": asdict(options),
        "provenance": provenance,
        "ceilings": [asdict(ceiling) for ceiling in ceilings],
        "stages": [
            {
                **asdict(row),
                "ratio": row.ratio,
                "of_ceiling": row.of_ceiling(ceilings[0]),
                "targets": [{**asdict(target), "met": target.met} for target in row.targets],
            }
            for row in rows
        ],
        "scaling": scaling,
    }
