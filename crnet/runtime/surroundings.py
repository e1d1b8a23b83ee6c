"""What an account, a shell, a container or a path may lack: made up for, or said before any work.

Imports no torch: Snakemake parses it.
"""

import getpass
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crnet.errors import CrnetError
from crnet.runtime.provenance import UNKNOWN, checkout, why_unknown

# Linux lets a socket's path have 107 bytes; loader processes append /pymp-XXXXXXXX/listener-XXXXXXXX.
LONGEST_TMPDIR = 107 - 32
SHOWN = "backslashreplace"  # how a stream shows what its encoding lacks


def make_up() -> None:
    """Make up for what this process and those that it starts would stumble over; it changes no result.

    A user without a name gets one (libraries ask for it), a ``TMPDIR`` too long for sockets gives way to ``/tmp``, text
    that the locale cannot show is escaped, and Python's own programs read and write UTF-8.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.getuid()}"
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR and os.access("/tmp", os.W_OK):
        os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", SHOWN) != SHOWN:
            stream.reconfigure(errors=SHOWN)
    os.environ["PYTHONUTF8"] = "1"


def check_root(root: Path) -> None:
    """Raise CrnetError if the checkout lies at a path with which Snakemake or Python cannot work."""
    path = str(root)
    wrong = [
        ("{ or }", "Snakemake takes them for names of its own", "{" in path or "}" in path),
        ("a colon", "Python's PYTHONPATH cannot hold it", os.pathsep in path),
        ("bytes that are no UTF-8", "records of runs cannot hold them", any("\ud800" <= c <= "\udfff" for c in path)),
    ]
    for what, why, found in wrong:
        if found:
            raise CrnetError(f"the path of this checkout, {path!r}, has {what} in it, and {why}: move or rename it.")


def warnings(root: Path) -> Iterator[str]:
    """Sentences on what is lost here without harm to the results."""
    if checkout(root / "crnet")[0] == UNKNOWN:
        yield f"the commit is unknown and runs are recorded without it: {why_unknown(root / 'crnet')}"
