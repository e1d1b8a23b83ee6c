"""Files written whole or not at all, and one canonical text for anything that is hashed."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from crnet.errors import CrnetError

# What to do about the commonest faults of a machine, by the system's number of the fault.
REMEDIES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room in your quota on its disk",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENOTDIR: "a file stands where a folder has to be, move it away",
    errno.EEXIST: "a file stands where a folder has to be, move it away",
    errno.EISDIR: "a folder stands where the file has to be, move it away",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EIO: "the disk is failing, look at the system's log",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


class DamagedFile(CrnetError, ValueError):
    """A file that was read is not what its format says; a ValueError too, for those who can do without the file.

    Attributes:
        what: what is wrong with which file, without what to do about it.
    """

    def __init__(self, path: str | os.PathLike, what: str):
        super().__init__(f"{path}: {what}; put it back from a copy, or delete it to have it made again.")
        self.what, self._parts = f"{path}: {what}", (str(path), what)

    def __reduce__(self) -> tuple:
        return DamagedFile, self._parts  # loader workers send it to the training


def canonical(value: Any) -> str:
    """Compact JSON with sorted keys: equal values give equal text, so it may be hashed or compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | os.PathLike) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def readable(size: float) -> str:
    """A number of bytes as people read it, e.g. ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


PATIENCE = 1.0  # seconds for another writer of the same file, at each write


def cannot_write(path: str | os.PathLike, need: int, error: OSError) -> CrnetError:
    """One sentence on a failed write of ``need`` bytes: what, why, and what to do before the same command goes on."""
    then = "then start again: what was finished before is kept"
    return CrnetError(f"{path}: {readable(need)} cannot be written {_reason(error)}, {then}.")


def _reason(error: OSError) -> str:
    return f"({error.strerror or error}); {REMEDIES.get(error.errno, 'see to its folder')}"


def atomic_write(path: str | os.PathLike, content: str | bytes, keep: str | os.PathLike | None = None) -> None:
    """Write ``content`` so that ``path`` holds either its former content or all of the new one, also after a kill.

    For a moment the disk has to hold both. What a kill leaves, ``.<name>.partial``, the next write of the path clears.

    Args:
        keep: where the former content goes, once the new one is on the disk.

    Raises:
        CrnetError: it cannot be written, e.g. the disk is full; the former content is then untouched.
    """
    path, data = Path(path), content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path) as (temporary, stream):
            try:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
                if keep is not None and path.exists():
                    os.replace(path, keep)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise cannot_write(path, len(data), error) from error


def require_writable(path: str | os.PathLike) -> None:
    """Make the folder of ``path`` and try to write there, so that hours of work do not end in a path that is none.

    Raises:
        CrnetError: it is a folder, or cannot be written; what it holds is untouched.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path) as (temporary, _):
            temporary.unlink()
    except OSError as error:
        raise CrnetError(f"{path}: cannot be written {_reason(error)}, or give another path.") from error


def may_write(folder: str | os.PathLike) -> bool:
    """Whether files can be made in a folder, or it in the one where it would be made. Writes nothing."""
    folder = Path(folder).absolute()
    return os.access(next(place for place in (folder, *folder.parents) if place.exists()), os.W_OK | os.X_OK)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """``.<name>.partial``, empty, for one writer at a time: what a killed one left is used and so cleared away.

    Who holds it for longer than ``PATIENCE`` stands still, as a suspended job: another name is taken then.
    """
    deadline, number = time.monotonic() + PATIENCE, 0
    while True:
        temporary = path.with_name(f".{path.name}{f'.{number}' if number else ''}.partial")
        with open(temporary, "ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    number += 1
                else:
                    time.sleep(0.01)
                continue
            except OSError:  # a file system without locks
                pass
            try:
                mine = os.path.samestat(os.fstat(stream.fileno()), os.stat(temporary))
            except FileNotFoundError:
                mine = False
            if mine:  # not what another writer has renamed meanwhile
                stream.truncate(0)
                yield temporary, stream
                return


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV with ``\\n`` line ends on every platform, so that its bytes can be compared."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of a CSV with a header, each with all columns. Raises DamagedFile if it is none."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            lines = csv.reader(stream)
            header, rows = next(lines, []), []
            for line in lines:
                if len(line) == len(header):
                    rows.append(dict(zip(header, line, strict=True)))
                elif line:  # a blank line is none
                    raise csv.Error(f"line {lines.line_num} has {len(line)} cells, its header {len(header)}")
            return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise DamagedFile(path, f"is no CSV any more ({error})") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
    atomic_write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. Raises DamagedFile if it is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"is no JSON any more ({error})") from error


def read_mapping(path: str | os.PathLike) -> dict[str, Any]:
    """What a JSON file holds by name. Raises DamagedFile if it holds anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DamagedFile(path, f"holds a {type(content).__name__} in place of names and values")
    return content
