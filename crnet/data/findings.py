"""What is wrong with a file of a data set, as an error that is raised or, for ``crnet check-data``, collected."""

import errno
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


# What can help with a file that came out of an archive, or is read inside one.
EXTRACT_AGAIN = (
    "delete the folder that its archive was extracted to, and the dataset.json of data prepared from it, to have "
    "snakemake extract its archive again"
)
USE_ANOTHER = "mend the archive if you made it yourself, or take the official one"
_REMEDIES = {
    errno.EACCES: "give yourself the right to read it and its folders",
    errno.EPERM: "give yourself the right to read it and its folders",
    errno.EIO: "its disk is failing, look at the system's log",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ESTALE: "its share has moved, mount it again",
    errno.ELOOP: "links on its path lead in a circle, mend them",
}


def read_remedy(error: BaseException, otherwise: str = EXTRACT_AGAIN) -> str:
    """What to do about a file that cannot be read: by the system's fault, or ``otherwise`` where it is the file's."""
    return _REMEDIES.get(getattr(error, "errno", None), otherwise)


Report = Callable[[CrnetError], None]


def fail(error: CrnetError) -> None:
    """The report of those who need whole data: the first finding stops them."""
    raise error


def reason(error: BaseException | str) -> str:
    """An exception's text on one line, without the path that the sentence names anyway; its kind where it has none."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
