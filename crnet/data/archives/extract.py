"""Unpack a tar or zip archive that may be hostile or broken, without writing outside one folder.

Python's own tar filters (PEP 706) depend on the interpreter's patch level and zipfile has none; here all members are
checked by one rule before the first byte is written, and links are refused instead of rewritten.
"""

import fcntl
import gzip
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from crnet.data.archives.download import Progress, require_space
from crnet.data.findings import USE_ANOTHER
from crnet.errors import CrnetError
from crnet.runtime.files import read_mapping, write_json

# Photos unpack to about their archive's size, annotations in JSON to about 5 times; deflate reaches 1032 times.
LARGEST_RATIO = 100
ALWAYS_ALLOWED_BYTES = 1 << 30
BLOCK_BYTES = 4096  # what the smallest file takes on disk, so that millions of empty files count too
STAMP = ".extracted.json"
DESKTOP_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}

_BROKEN_TAR = (tarfile.TarError, gzip.BadGzipFile, zlib.error, LZMAError, struct.error, EOFError)
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError)  # the latter: a compression that zipfile does not know


@dataclass(frozen=True)
class Member:
    """What an archive says of one of its members."""

    name: str
    size: int
    is_folder: bool
    refused: str | None  # why it may not be unpacked, whatever its name
    handle: tarfile.TarInfo | zipfile.ZipInfo


def unpack(archive: Path, folder: Path, identity: str) -> None:
    """Unpack ``archive`` so that ``folder`` holds all of it or does not exist.

    Work goes to the sibling ``.<folder>.extracting``, which is renamed when whole; a stop leaves only that sibling, and
    the next start clears it. A folder that was unpacked from the same archive (``identity``) is left as it is; one from
    another version of the archive is replaced. A second process waits and takes what the first unpacked.

    Args:
        archive: .tar, compressed tar or .zip, told apart by content.
        folder: made by this call; nothing else may live in it.
        identity: the archive's checksum.

    Raises:
        CrnetError: an unsafe member, more than max(100 x archive, 1 GiB) to unpack, a damaged archive, too
            little disk, or a folder that something else made.
    """
    stamp = {"archive": archive.name, "checksum": identity, "expect": []}  # the last as earlier versions wrote it
    if _stamp(folder) == stamp:
        return
    with _one_at_a_time(folder.absolute().parent):
        _unpack(archive, folder, stamp)


def unpacked_from(folder: Path) -> str | None:
    """Name of the archive of which ``folder`` holds all; None if it is no such folder."""
    return _stamp(folder).get("archive")


@contextmanager
def _one_at_a_time(parent: Path) -> Iterator[None]:
    """Wait for another process that unpacks into the same parent folder, where the file system has locks."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(parent, os.O_RDONLY)
    except OSError as error:
        raise CrnetError(f"Cannot unpack to {parent}: {error}.") from error
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unpack(archive: Path, folder: Path, stamp: dict) -> None:
    found = _stamp(folder)
    if found == stamp:  # by whom this process waited for
        return
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and found.get("archive") != archive.name:
        raise CrnetError(f"{folder} is not empty and was not unpacked from {archive.name}: choose another folder.")
    folder = folder.absolute()
    work = folder.with_name(f".{folder.name}.extracting")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        with _opened(archive) as source:
            members = checked(archive, source)
            total = sum(member.size for member in members)
            require_space(work, total, f"Unpacking {archive.name}")
            with Progress(f"unpacking {archive.name}", total) as progress:
                for member in members:
                    _write(archive, source, member, work, progress)
        write_json(work / STAMP, stamp)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(work, folder)
    except OSError as error:
        raise CrnetError(f"Cannot unpack {archive} to {folder}: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _stamp(folder: Path) -> dict:
    try:
        return read_mapping(folder / STAMP)
    except (OSError, ValueError):
        return {}


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """The archive, with every way in which it can be damaged turned into one sentence."""
    with open(archive, "rb") as stream:
        is_zip = stream.read(2) == b"PK"  # zipfile.is_zipfile also takes a tar whose last member is a zip
    try:
        with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as source:
            yield source
    except (*_BROKEN_TAR, *_BROKEN_ZIP) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
        raise CrnetError(
            f"{archive} is damaged or cut short ({reason}): delete it to have it fetched again, or {USE_ANOTHER}."
        ) from error


def is_foreign(name: str) -> bool:
    """Whether a member is no part of the data but what a desktop left: ``__MACOSX/._a.jpg``, ``.DS_Store``."""
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._") or path.name in DESKTOP_FILES


def checked(archive: Path, source: tarfile.TarFile | zipfile.ZipFile) -> list[Member]:
    """The members, all of them safe, without foreign ones; a pass over the archive, so a .tgz is read twice.

    Raises CrnetError for an unsafe member, or more to unpack than a data set would be.
    """
    limit = max(LARGEST_RATIO * archive.stat().st_size, ALWAYS_ALLOWED_BYTES)
    found, unpacked = [], 0
    for member in _members(source):
        unpacked += max(member.size, BLOCK_BYTES)
        if unpacked > limit:
            raise CrnetError(
                f"{archive} would unpack to more than {limit / 2**30:.1f} GiB ({LARGEST_RATIO} times its "
                f"size, at least 1 GiB) with its member {member.name!r}: it is no data set, do not use it."
            )
        if reason := _unsafe_name(member.name) or member.refused:
            raise CrnetError(f"{archive} holds the unsafe member {member.name!r} ({reason}): do not use it.")
        if not is_foreign(member.name):
            found.append(member)
    return found


def _members(source: tarfile.TarFile | zipfile.ZipFile) -> Iterator[Member]:
    if isinstance(source, tarfile.TarFile):
        for info in source:
            plain = info.isreg() or info.isdir()
            yield Member(info.name, info.size, info.isdir(), None if plain else "a link or a device", info)
    else:
        for entry in source.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was made on Windows
            refused = None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or a device"
            refused = "encrypted" if entry.flag_bits & 1 else refused
            yield Member(entry.filename, entry.file_size, entry.is_dir(), refused, entry)


def _unsafe_name(name: str) -> str | None:
    if name.startswith("/") or name[1:2] == ":":
        return "an absolute path"
    if ".." in PurePosixPath(name).parts:
        return "its path leads out of the folder"
    if "\\" in name or "\0" in name:
        return "a backslash or a null byte in its path"
    return None


def _write(
    archive: Path, source: tarfile.TarFile | zipfile.ZipFile, member: Member, work: Path, progress: Progress
) -> None:
    target = work / member.name
    if member.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    opened = source.extractfile if isinstance(source, tarfile.TarFile) else source.open
    written = 0
    with opened(member.handle) as content, open(target, "wb") as stream:
        while data := content.read(1 << 20):
            written += len(data)
            if written > member.size:
                raise CrnetError(f"{archive} holds more bytes of {member.name!r} than it states: do not use it.")
            stream.write(data)
            progress.add(len(data))
    if written != member.size:
        raise CrnetError(f"{archive} is cut short in {member.name!r}: delete it to have it fetched again.")
