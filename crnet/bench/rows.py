"""A line of the bench: what was measured of a stage, by the plain loop and by the suite, beside what was aimed at."""

from dataclasses import dataclass, field

from crnet.bench.ceiling import Ceiling
from crnet.bench.timing import Measured


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


def at_least(ratio: float, row: Row, text: str = "") -> Target:
    """Target for the ratio to the plain loop."""
    return Target(text or f"≥ {ratio:g} × plain", row.ratio, ratio)
