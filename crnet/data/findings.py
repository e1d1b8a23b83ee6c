"""What is wrong with a file of a data set, as an error that is raised or, for ``crnet check-data``, collected."""

from collections.abc import Callable
from pathlib import Path

from crnet.errors import CrnetError, one_line


class Finding(CrnetError):
    """One file, what is wrong with it, and what to do; its text is the sentence of the three.

    Attributes:
        file: the file, and the part of it, as people find it.
        what: reads on after the file: "is not a readable image".
        remedy: what to do, without the full stop.
    """

    def __init__(self, file: Path | str, what: str, remedy: str):
        super().__init__(f"{file} {what}: {remedy}.")
        self.file, self.what, self.remedy = one_line(str(file)), one_line(what), one_line(remedy)

    def __reduce__(self) -> tuple:
        return Finding, (self.file, self.what, self.remedy)  # loader workers send it to the training


Report = Callable[[CrnetError], None]


def fail(error: CrnetError) -> None:
    """The report of those who need whole data: the first finding stops them."""
    raise error


def reason(error: BaseException | str) -> str:
    """An exception's text on one line, without the path that the sentence names anyway; its kind where it has none."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
