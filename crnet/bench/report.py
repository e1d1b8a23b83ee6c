"""The bench's results: a row a stage, for a terminal, for a Markdown file and for machines."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from crnet.bench.inputs import Options
from crnet.bench.timing import Ceiling, Measured
from crnet.runtime.files import readable

HEADER = ("stage", "plain", "crnet", "ratio", "of the ceiling", "waits", "peak memory", "target", "met")


@dataclass
class Target:
    """``reached`` should be at least, or at most, ``wanted``; ``text`` says it in words."""

    text: str
    reached: float
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


@dataclass
class Row:
    """One stage.

    Attributes:
        unit: What is counted: images, steps, episodes; "seconds" where a time is given and not a rate.
        plain: The plain loop; None where there is none.
        note: How often, and how well both agree.
    """

    stage: str
    unit: str
    crnet: Measured
    plain: Measured | None = None
    targets: list[Target] = field(default_factory=list)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.plain is None else self.plain.seconds / self.crnet.seconds

    def of_ceiling(self, ceiling: Ceiling) -> float | None:
        """Share of the large convolution's operations a second."""
        if not self.crnet.operations:
            return None
        return self.crnet.operations / self.crnet.seconds / ceiling.convolution

    def aim(self, ratio: float, text: str = "") -> Self:
        """Adds a target for the ratio to the plain loop, and returns the row."""
        self.targets.append(Target(text or f"≥ {ratio:g} × plain", self.ratio, ratio))
        return self


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
    text = [*lines, ""]
    for line, note in zip(table, ["", *(row.note for row in rows)], strict=True):
        text.append("  ".join(map(str.ljust, line, widths)).rstrip())
        if note:
            text.append(f"    {note}")
    return "\n".join(text)


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
