"""What an audit verified, what differs, and what could not be checked, with how it is told."""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from crnet.runtime.files import canonical

SHOWN = 10  # differences of one check that are listed unless all are asked for
VALUE_LENGTH = 60
WIDTH = 110  # of what is printed; a difference stays on one line, however long


@dataclass
class Check:
    """One kind of thing that is checked.

    Attributes:
        name: In words.
        verified: How many held.
        differences: A line each: file, row, both values.
        unchecked: Reason -> how many could not be checked for it.
    """

    name: str
    verified: int = 0
    differences: list[str] = field(default_factory=list)
    unchecked: Counter = field(default_factory=Counter)

    def ok(self, count: int = 1) -> None:
        self.verified += count

    def differs(self, where: str, text: str) -> None:
        self.differences.append(f"{where}: {text}")

    def unknown(self, reason: str, count: int = 1) -> None:
        self.unchecked[reason] += count

    def same(self, where: str, found: Any, expected: Any, source: str = "expected") -> bool:
        """Note whether ``found`` is ``expected``, which ``source`` tells."""
        if found == expected:
            self.ok()
            return True
        self.differs(where, f"holds {shown(found)}, {source} {shown(expected)}")
        return False


class Ledger:
    """All checks of an audit in the order of ``names``."""

    def __init__(self, names: Sequence[str]):
        self.checks = {name: Check(name) for name in names}
        self.notes: list[str] = []

    def __getitem__(self, name: str) -> Check:
        return self.checks[name]

    @property
    def differences(self) -> int:
        return sum(len(check.differences) for check in self.checks.values())

    def table(self) -> list[str]:
        """Name and counts of each check, aligned."""
        rows = [("checked", "verified", "differ", "not checked")]
        for check in self.checks.values():
            counts = (check.verified, len(check.differences), check.unchecked.total())
            rows.append((check.name, *(f"{count:,}" if count else "-" for count in counts)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]

    def text(self, everything: bool = False) -> str:
        """The table, the reasons for what was not checked, and a line for each difference.

        Args:
            everything: List all differences, not just the first ones of each check.
        """
        parts = [self.table()]
        if self.notes:
            parts.append([line for note in self.notes for line in _wrapped(note, "")])
        reasons = [
            line
            for check in self.checks.values()
            for reason, count in check.unchecked.items()
            for line in _wrapped(f"{check.name}: {reason}" + (f" ({count:,})" if count > 1 else ""), "  ")
        ]
        if reasons:
            parts.append(["could not be checked", *reasons])
        if self.differences:
            parts.append(["differs", *self._difference_lines(everything)])
        number = self.differences
        parts.append(["result: " + (f"{number:,} difference{'s'[: number > 1]}" if number else "nothing differs")])
        return "\n\n".join("\n".join(lines) for lines in parts)

    def _difference_lines(self, everything: bool) -> list[str]:
        lines = []
        for check in self.checks.values():
            found = check.differences
            kept = found if everything or len(found) <= SHOWN else found[: SHOWN - 1]
            lines += [f"  {line}" for line in kept]
            if len(kept) < len(found):
                lines.append(f"  ... and {len(found) - len(kept):,} more of '{check.name}' (--all lists them)")
        return lines


def shown(value: Any) -> str:
    """A value as a line of the audit shows it: text in quotes, digests and long ones shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        if len(value) == 64 and set(value) <= set("0123456789abcdef"):
            return f"{value[:12]}..."
        return repr(_shortened(value)) if value else "nothing"
    return _shortened(canonical(value))


def first_difference(stored: str, made: str) -> str:
    """Where two texts part: "line 3 is 'a', made again 'b'"."""
    one, other = stored.splitlines(), made.splitlines()
    for number in range(max(len(one), len(other))):
        a, b = (lines[number] if number < len(lines) else None for lines in (one, other))
        if a != b:
            a, b = _around_difference(a, b)
            return f"line {number + 1} holds {shown(a)}, made again {shown(b)}"
    return "line ends differ from what is made again"


def _around_difference(a: str | None, b: str | None) -> tuple[str | None, str | None]:
    """Of two long lines the part in which they begin to differ."""
    if a is None or b is None:
        return a, b
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, start - VALUE_LENGTH // 3)
    return a[start:], b[start:]


def _wrapped(text: str, indent: str) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", **options)


def _shortened(text: str) -> str:
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."
