"""One workflow at a time in a work folder, also where several checkouts share it."""

import fcntl
import os
from pathlib import Path
from typing import IO

from crnet.errors import CrnetError
from crnet.runtime.files import cannot_write

NAME = ".in-use"
_held: list[IO] = []


def hold(work: Path) -> None:
    """Claim a work folder for this process until it ends, in whatever way.

    Snakemake guards the folder that it is started in. Two of them that share a work folder from elsewhere would delete
    and overwrite what the other reads: a training could learn from features that are being written. On a file system
    without locks nothing is claimed.

    Raises:
        CrnetError: another process has it, or the folder cannot be written to.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        stream = open(work / NAME, "ab")  # noqa: SIM115, open until the process ends
    except OSError as error:
        raise cannot_write(work / NAME, 0, error) from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise CrnetError(
            f"another snakemake is at work in {work.resolve()}: wait for it to end, or give this one a folder of its "
            "own by folders.work in the study."
        ) from error
    except OSError:
        pass
    os.utime(stream.fileno())  # when: what is newer in the folder, its jobs wrote
    _held.append(stream)
