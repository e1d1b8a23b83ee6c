"""What an audit verified, what differs, and what could not be checked, with how it is told."""

import csv
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from crnet.errors import CrnetError
from crnet.runtime.files import canonical

# What reading a file raises that is not what it should be, or what using its content then does.
UNREADABLE = (CrnetError, csv.Error, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError)

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

    def ok(self) -> None:
        self.verified += 1

    def differs(self, where: str, text: str) -> None:
        self.differences.append(f"{where}: {text}")

    def judge(self, where: str, problem: str | None) -> bool:
        """Note what is wrong there, or that nothing is."""
        if problem:
            self.differs(where, problem)
        else:
            self.ok()
        return not problem

    def unknown(self, reason: str, count: int = 1) -> None:
        self.unchecked[reason] += count

    def same(self, where: str, found: Any, expected: Any, source: str = "expected") -> bool:
        """Note whether ``found`` is ``expected``, which ``source`` tells."""
        return self.judge(where, None if found == expected else f"holds {shown(found)}, {source} {shown(expected)}")

    def same_bytes(self, where: str, stored: Path, made: Path) -> None:
        """Note whether the file ``stored``, called ``where``, is there and holds what was made again."""
        if not stored.is_file():
            self.differs(where, "is missing")
        elif stored.read_bytes() == made.read_bytes():
            self.ok()
        else:
            was = stored.read_text(encoding="utf-8", errors="replace")
            self.differs(where, first_difference(was, made.read_text(encoding="utf-8")))

    @contextmanager
    def reading(self, where: str, problem: str = "cannot be read", *more: type[Exception]) -> Iterator[None]:
        """Notes ``problem`` if what is read within is not what it should be, or raises one of ``more``."""
        try:
            yield
        except (*UNREADABLE, *more) as error:
            self.differs(where, f"{problem} ({error})")


class Ledger(dict[str, Check]):
    """All checks of an audit in the order of ``names``."""

    def __init__(self, names: Sequence[str]):
        super().__init__((name, Check(name)) for name in names)
        self.notes: list[str] = []

    @property
    def differences(self) -> int:
        return sum(len(check.differences) for check in self.values())

    def table(self) -> list[str]:
        """Name and counts of each check, aligned."""
        rows = [("checked", "verified", "differ", "not checked")]
        for check in self.values():
            counts = (check.verified, len(check.differences), check.unchecked.total())
            rows.append((check.name, *(f"{count:,}" if count else "-" for count in counts)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]

    def text(self, everything: bool = False) -> str:
        """The table, the reasons for what was not checked, and a line for each difference.

        Args:
            everything: List all differences, not just the first ones of each check.
        """
        parts = [self.table(), [line for note in self.notes for line in _wrapped(note, "")]]
        reasons = [
            line
            for check in self.values()
            for reason, count in check.unchecked.items()
            for line in _wrapped(f"{check.name}: {reason}" + (f" ({count:,})" if count > 1 else ""), "  ")
        ]
        if reasons:
            parts.append(["could not be checked", *reasons])
        if self.differences:
            parts.append(["differs", *self._difference_lines(everything)])
        number = self.differences
        parts.append(["result: " + (f"{number:,} difference{'s'[: number > 1]}" if number else "nothing differs")])
        return "\n\n".join("\n".join(lines) for lines in parts if lines)

    def _difference_lines(self, everything: bool) -> list[str]:
        lines = []
        for check in self.values():
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


def parting(one: Iterable, other: Iterable) -> tuple[int, Any, Any] | None:
    """Where two sequences begin to differ, with what both have there; None beyond an end, or if they do not."""
    pairs = enumerate(zip_longest(one, other))
    return next(((place, a, b) for place, (a, b) in pairs if a != b), None)


def first_difference(stored: str, made: str) -> str:
    """Where two texts part: "line 3 is 'a', made again 'b'"; of long lines the part in which they begin to differ."""
    found = parting(stored.splitlines(), made.splitlines())
    if found is None:
        return "line ends differ from what is made again"
    line, a, b = found
    start = max(0, parting(a, b)[0] - VALUE_LENGTH // 3) if a is not None and b is not None else 0
    return f"line {line + 1} holds {shown(a and a[start:])}, made again {shown(b and b[start:])}"


def _wrapped(text: str, indent: str) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", **options)


def _shortened(text: str) -> str:
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 3] + "..."
