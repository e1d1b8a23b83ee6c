"""One file over HTTP(S) or from ``file://``, resumed where it was broken off.

Written on urllib because no kept library both resumes and verifies: pooch 1.9 and ``torch.hub`` verify but start every
download over, parfive 2.3 verifies but keeps nothing of a broken download, and resumable-urlretrieve had its last
release in 2018. Whether the bytes are the right ones is for the caller to verify (`crnet.data.archives.archives`).
"""

import contextlib
import errno
import fcntl
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crnet.data.findings import reason
from crnet.errors import CrnetError
from crnet.runtime.files import read_json, write_json

TIMEOUT_SECONDS = 60.0  # without a single byte from the server
BACKOFF_SECONDS = 1.0  # before the first retry, doubled for each further one
LONGEST_WAIT_SECONDS = 60.0
RETRIES = 5  # attempts in a row that bring no new byte, so that 13 GB arrive over a line that drops every minute
CHUNK_BYTES = 1 << 18
SHOWN_BYTES = 48  # of a file that is not the one expected
WORTH_A_RETRY = {408, 425, 429, 500, 502, 503, 504}


class DownloadFailed(Exception):
    """The server or the network did not give the file; the message is the reason, without a full stop."""


class _Interrupted(Exception):
    """One attempt ended early, another may go on. ``wait``: seconds that the server asked for, if it did."""

    def __init__(self, reason: str, answered: bool = True, wait: float | None = None):
        super().__init__(reason)
        self.answered, self.wait = answered, wait


class Progress(contextlib.AbstractContextManager):
    """A bar on a terminal; elsewhere a line on stderr for each tenth (8 MiB or more; 256 without a size)."""

    def __init__(self, label: str, total: int | None, done: int = 0):
        self._label, self._total, self._done = label, total, done
        self._step = max(total // 10, 8 << 20) if total else 256 << 20
        self._next = (done // self._step + 1) * self._step
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            unit = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
            self._bar = tqdm(desc=label, total=total, initial=done, leave=False, **unit)

    def add(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._done >= self._next:
            self._next = (self._done // self._step + 1) * self._step
            whole = f" of {self._total >> 20} MiB, {100 * self._done // self._total} %" if self._total else " MiB"
            say(f"{self._label}: {self._done >> 20}{whole}")

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def require_space(folder: Path, need: int, what: str) -> None:
    """Raise CrnetError unless ``folder``'s disk has ``need`` bytes free for ``what``."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise CrnetError(
            f"{what} needs {need / 2**30:.2f} GiB in {folder}, whose disk has {free / 2**30:.2f} GiB free: "
            "make room or choose a folder on another disk."
        )


@dataclass(frozen=True)
class _Remote:
    """What identifies one version of the file on the server; kept as JSON beside the part."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    size: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry: a strong ETag, else the date (RFC 9110, 13.1.5)."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.last_modified

    def may_be(self, other: "_Remote") -> bool:
        """False if any fact that both state differs."""
        return all(vars(other)[key] in (None, fact) for key, fact in vars(self).items() if fact is not None)


class Part:
    """The growing ``<name>.part`` of a file and its ``<name>.part.json``; ``opened``, it is for one process alone."""

    def __init__(self, target: Path):
        self._target, self.came = target, ""  # how the server described what came
        self.path = target.with_name(target.name + ".part")
        self._state = target.with_name(target.name + ".part.json")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Within it bytes can be appended. Kept if anything goes wrong and it holds bytes.

        Raises CrnetError if the folder cannot be written or another process is downloading the same file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(self.path, "ab", buffering=0)  # noqa: SIM115, closed by ``with`` below
        except OSError as error:
            why = f"{error.strerror}; choose a folder that can be written"
            raise CrnetError(f"Cannot download to {self.path}: {why}.") from error
        with stream as self._stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CrnetError(f"Another process is downloading {self._target}: wait for it to end.") from error
            except OSError:
                pass  # a file system without locks: two downloads at once would fail the checksum, never pass it
            try:
                yield
            finally:
                if self.length == 0:
                    self.path.unlink(missing_ok=True)
                    self.discard()

    @property
    def length(self) -> int:
        """Bytes so far."""
        return os.fstat(self._stream.fileno()).st_size

    def beginning(self) -> bytes:
        with open(self.path, "rb") as stream:
            return stream.read(SHOWN_BYTES)

    def remote(self) -> _Remote | None:
        """The version of the file that these bytes were begun from; None if unknown."""
        try:
            return _Remote(**read_json(self._state))
        except (FileNotFoundError, ValueError, TypeError):  # never begun, or not written by this version
            return None

    def begin(self, remote: _Remote) -> None:
        """Start over from zero. The bytes go first: a kill must not leave old bytes under a new identity."""
        self._stream.truncate(0)
        write_json(self._state, vars(remote))

    def append(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:  # an unbuffered write may take a part of it
                left = left[self._stream.write(left) :]
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "make room on that disk" if full else "check that folder"
            raise CrnetError(f"Cannot write {self.path}: {error.strerror}; {remedy}.") from error

    def discard(self) -> None:
        """Throw the bytes away, e.g. because their checksum is wrong."""
        self._stream.truncate(0)
        self._state.unlink(missing_ok=True)

    def become_whole(self) -> None:
        """Give the file its name."""
        os.fsync(self._stream.fileno())
        os.replace(self.path, self._target)
        self._state.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the state of a part that got its name from a process that was killed right then."""
        if self._state.exists() and not self.path.exists():  # where nothing is, a read-only folder is not touched
            self._state.unlink(missing_ok=True)


def complete(part: Part, url: str, label: str, size: int | None) -> None:
    """Complete ``part`` from ``url``, which has to offer ``size`` bytes, if that is known.

    A failed attempt is repeated after 1, 2, 4, ... seconds (or what Retry-After asks for), up to ``RETRIES`` times. A
    machine that reaches no server is told so after one retry.

    Raises:
        DownloadFailed: with the reason; the part stays for the next start.
        CrnetError: the disk is full.
    """
    furthest, failures, ever_answered = part.length, 0, False
    while True:
        try:
            _attempt(url, part, label, size)
            return
        except _Interrupted as interruption:
            ever_answered |= interruption.answered
            failures = 1 if part.length > furthest else failures + 1
            furthest = max(furthest, part.length)
            if failures > (RETRIES if ever_answered else 1):
                raise DownloadFailed(str(interruption)) from interruption
            wait = interruption.wait if interruption.wait is not None else BACKOFF_SECONDS * 2 ** (failures - 1)
            wait = min(wait, LONGEST_WAIT_SECONDS)
            say(f"{label}: {interruption}; trying again in {wait:.0f} s from {part.length / 2**20:.1f} MiB")
            time.sleep(wait)


def _attempt(url: str, part: Part, label: str, size: int | None) -> None:
    """One request. Returns if the part is whole, raises _Interrupted if another attempt may help."""
    known = part.remote()
    if part.length and (known is None or known.url != url or part.length > (known.size or part.length)):
        part.discard()
        known = None
    if part.length and part.length == (known.size if known else None):
        return  # stopped between the last byte and the renaming
    response = _request(url, part.length, known)
    if response is None:  # 416: no such range in the file that is there now
        part.discard()
        if (response := _request(url, 0, None)) is None:
            raise DownloadFailed("the server refuses even the whole file (416 Range Not Satisfiable)")
    with response:
        _refuse_coding(response)
        offset, remote = _offered(response, url)
        if offset and (offset != part.length or known is None or not known.may_be(remote)):
            # Another range than asked for, or a server that ignores If-Range joins two versions: fetch it anew.
            part.discard()
            raise _Interrupted("the file changed on the server or another range came than was asked for")
        if size is not None and remote.size is not None and remote.size != size:
            came = what_came(response, _first_bytes(response))
            raise DownloadFailed(f"the server offers {remote.size} bytes where the file has {size} ({came})")
        if offset == 0:
            part.begin(remote)
        if remote.size is not None:
            require_space(part.path.parent, remote.size - offset, f"Downloading {label}")
        _receive(response, part, label, remote.size)
        part.came = what_came(response, part.beginning()) if offset == 0 else part.came


def _request(url: str, offset: int, known: _Remote | None) -> http.client.HTTPResponse | None:
    """Ask for the file from ``offset`` on, if it is still the known one; None for 416."""
    headers = {"User-Agent": "crnet", "Accept-Encoding": "identity"}
    if offset and known is not None:
        headers["Range"] = f"bytes={offset}-"
        if known.validator:
            headers["If-Range"] = known.validator
    try:
        return urllib.request.urlopen(urllib.request.Request(as_sent(url), headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:
                return None
            answer = f"the server answers {error.code} {error.reason}"
            if error.code not in WORTH_A_RETRY:
                raise DownloadFailed(answer) from error
            asked = error.headers.get("Retry-After", "")
            raise _Interrupted(answer, wait=float(asked) if asked.isdigit() else None) from error
    except urllib.error.URLError as error:
        if url.startswith("file:"):
            raise DownloadFailed(f"no such local file ({reason(error.reason)})") from error
        raise _Interrupted(f"no connection ({reason(error.reason)})", answered=False) from error
    except http.client.InvalidURL as error:
        raise DownloadFailed(f"not a valid url ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"connection lost ({reason(error)})") from error


def as_sent(url: str) -> str:
    """The url with what none may hold escaped, as browsers do: spaces, letters beyond ASCII, ``#`` of a file's name."""
    local = url.removeprefix("file://")
    if local != url and os.path.isfile(local):
        return Path(local).absolute().as_uri()
    return urllib.parse.quote(url, safe="!#$%&'()*+,/:;=?@[]~")


def what_came(response: http.client.HTTPResponse, first: bytes) -> str:
    """How the server described its answer, and how it begins, for those who expected something else."""
    kind = response.headers.get("Content-Type", "no type")
    coding = response.headers.get("Content-Encoding", "none")
    return f"content type {kind}, content coding {coding}, beginning {first[:SHOWN_BYTES]!r}"


def _first_bytes(response: http.client.HTTPResponse) -> bytes:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return response.read(SHOWN_BYTES)
    return b""


def _refuse_coding(response: http.client.HTTPResponse) -> None:
    """What a server compresses on its way cannot be resumed and is not the file, which was asked for as it is."""
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise DownloadFailed(
            f"the server sends it compressed on its way (Content-Encoding: {coding}) although asked not to"
        )


def _offered(response: http.client.HTTPResponse, url: str) -> tuple[int, _Remote]:
    """Where the response's body starts in the file, and which version of the file it is."""
    headers = response.headers
    offset, total = 0, None
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        if found is None:
            raise DownloadFailed(f"it answers a range with Content-Range {headers.get('Content-Range')!r}")
        offset = int(found[1])
        total = None if found[2] == "*" else int(found[2])
    elif headers.get("Content-Length", "").isdigit():
        total = int(headers["Content-Length"])
    return offset, _Remote(url, headers.get("ETag"), headers.get("Last-Modified"), total)


def _receive(response: http.client.HTTPResponse, part: Part, label: str, total: int | None) -> None:
    with Progress(label, total, part.length) as progress:
        while True:
            try:
                data = response.read1(CHUNK_BYTES)  # what is there: a reset loses nothing that came before it
            except (OSError, http.client.HTTPException) as error:
                raise _Interrupted(f"connection lost ({reason(error)})") from error
            if not data:
                break
            part.append(data)
            progress.add(len(data))
    if total is not None and part.length < total:
        raise _Interrupted(f"connection closed after {part.length} of {total} bytes")
