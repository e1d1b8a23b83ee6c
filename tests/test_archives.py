"""Downloads against servers that misbehave, files placed by hand, and the settings of archives."""

import fcntl
import hashlib
import json
import os
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from crnet.data.archives import archives, download
from crnet.data.archives.archives import Archive
from crnet.errors import CrnetError

CONTENT = np.random.default_rng(7).bytes(3_000_000)  # larger than what sockets buffer on loopback
OTHER = np.random.default_rng(8).bytes(2_500_000)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Server:
    """One file over HTTP. ``plan``: per request (the last one repeats) what to do, see ``Handler``."""

    def __init__(self, *plan: dict):
        self.plan, self.requests = list(plan), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                number = len(outer.requests)
                outer.requests.append((self.headers.get("Range"), self.headers.get("If-Range")))
                outer.answer(self, **outer.plan[min(number, len(outer.plan) - 1)])
                self.close_connection = True

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/file"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @staticmethod
    def answer(
        handler,
        status=200,
        content=CONTENT,
        etag='"one"',
        ranges=True,
        honours_if_range=True,
        drop_after=None,
        length=True,
        content_range=None,
        headers=(),
    ):
        start, asked = 0, handler.headers.get("Range")
        same = handler.headers.get("If-Range") in (None, etag) or not honours_if_range
        if status == 200 and asked and ranges and same:
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(content):
                handler.send_response(416)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
        body = content[start:] if status in (200, 206) else b""
        handler.send_response(status)
        if status == 206:
            stated = content_range or f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", stated)
        if length:
            handler.send_header("Content-Length", str(len(body)))
        if etag:
            handler.send_header("ETag", etag)
        for key, value in headers:
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body[:drop_after])
        handler.wfile.flush()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(*plan):
        servers.append(Server(*plan))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def archive_at(server: Server, content: bytes = CONTENT, **fields) -> Archive:
    return Archive("file.bin", server.url, fields.pop("checksum", sha256(content)), **fields)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- downloading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["md5", "sha256", "sha256 prefix"])
def test_download_is_verified_and_then_neither_fetched_nor_hashed_again(serve, tmp_path, monkeypatch, form):
    server = serve({})
    digest = hashlib.new(form.split()[0], CONTENT).hexdigest()
    checksum = f"{form.split()[0]}:{digest[:8] if 'prefix' in form else digest}"
    archive = archive_at(server, checksum=checksum, size=len(CONTENT))
    assert not archives.is_verified(archive, tmp_path / "new")

    path = archives.fetch(archive, tmp_path / "new")

    assert path == tmp_path / "new" / "file.bin" and path.read_bytes() == CONTENT
    assert names(path.parent) == {"file.bin", "file.bin.verified"}
    assert archives.is_verified(archive, path.parent)
    monkeypatch.setattr(archives, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert archives.fetch(archive, path.parent) == path
    assert len(server.requests) == 1


DATE = "Fri, 11 May 2012 00:00:00 GMT"
WEAK = {"etag": 'W/"one"', "headers": [("Last-Modified", DATE)], "honours_if_range": False}
FIRST, REST = (None, None), ("bytes=1000000-", '"one"')
RECOVERED = {  # what the server does, and what it is asked for
    "dropped twice": (
        [{"drop_after": 1_000_000}, {"drop_after": 700_000}, {}],
        [FIRST, REST, ("bytes=1700000-", '"one"')],
    ),
    # A server may answer from an earlier byte (RFC 9110, 15.3.7), as block-wise caches do: it is not joined.
    "another range than asked for": (
        [
            {"drop_after": 1_000_000},
            {"status": 206, "content_range": "bytes 999424-2999999/3000000", "content": CONTENT[999_424:]},
            {},
        ],
        [FIRST, REST, FIRST],
    ),
    # Same size, no ETag, no date: the halves of two versions join, and the checksum says so.
    "change that only the checksum sees": (
        [{"content": bytes(len(CONTENT)), "etag": None, "drop_after": 1_000_000}, {"etag": None}],
        [FIRST, ("bytes=1000000-", None), FIRST],
    ),
    # A weak ETag is not allowed in If-Range (RFC 9110, 13.1.5): it gives way to the date.
    "weak ETag": ([WEAK | {"drop_after": 1_000_000}, WEAK], [FIRST, ("bytes=1000000-", DATE)]),
    "no ranges": ([{"ranges": False, "drop_after": 1_000_000}, {"ranges": False}], [FIRST, REST]),
    "no length": ([{"length": False}], [FIRST]),
}


@pytest.mark.parametrize("case", RECOVERED)
def test_servers_that_misbehave(serve, tmp_path, capsys, case):
    plan, requests = RECOVERED[case]
    server = serve(*plan)
    assert archives.fetch(archive_at(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == requests
    assert ("once more" in capsys.readouterr().err) is (case == "change that only the checksum sees")


def test_download_is_resumed_by_a_later_call(serve, tmp_path):
    server = serve({"drop_after": 1_000_000}, {"status": 404}, {})
    archive = archive_at(server)
    with pytest.raises(CrnetError, match="404"):
        archives.fetch(archive, tmp_path)
    assert names(tmp_path) == {"file.bin.part", "file.bin.part.json"}
    state = json.loads((tmp_path / "file.bin.part.json").read_text())
    assert (state["url"], state["etag"], state["size"]) == (server.url, '"one"', len(CONTENT))

    assert archives.fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("bytes=1000000-", '"one"')
    assert names(tmp_path) == {"file.bin", "file.bin.verified"}


def test_killed_between_its_name_and_its_state_leaves_nothing_over(serve, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    (tmp_path / "file.bin.part.json").write_text("{}")
    assert archives.fetch(archive_at(serve({})), tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == {"file.bin", "file.bin.verified"}


def test_interrupt_keeps_the_part(serve, tmp_path, monkeypatch):
    server = serve({})
    archive, add = archive_at(server), download.Progress.add

    def interrupted(self, count):
        add(self, count)
        if self._done > 1_000_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(download.Progress, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archives.fetch(archive, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    got = (tmp_path / "file.bin.part").stat().st_size
    assert 1_000_000 < got < len(CONTENT)
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert archives.fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == (f"bytes={got}-", '"one"')


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("etag", ['"two"', None])
def test_starts_over_if_the_file_changed_on_the_server(serve, tmp_path, capsys, honours_if_range, etag):
    """Also if the server joins the two versions: another ETag or, without one, another size gives it away."""
    changed = {"content": OTHER, "etag": etag, "honours_if_range": honours_if_range}
    server = serve({"drop_after": 1_000_000}, changed)
    assert archives.fetch(archive_at(server, OTHER), tmp_path).read_bytes() == OTHER
    assert server.requests[1] == ("bytes=1000000-", '"one"')
    assert "once more" not in capsys.readouterr().err  # seen before the whole file was fetched


def test_server_that_always_drops_at_the_same_byte_is_given_up(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 3)
    server = serve({"ranges": False, "drop_after": 500_000})
    with pytest.raises(CrnetError, match="closed after 500000 of 3000000 bytes"):
        archives.fetch(archive_at(server), tmp_path)
    assert len(server.requests) == 4


LEFT = {  # part, what is known of it, what the server does, and what it is asked for
    # 416: the part is longer than the file that is there now, and its own size was never known.
    "beyond the end": (bytes(len(CONTENT) + 5), {}, {}, [("bytes=3000005-", None), FIRST]),
    "of another mirror": (b"x" * 1000, {"url": "http://elsewhere.invalid/file"}, {}, [FIRST]),
    "whole": (CONTENT, {"etag": '"one"', "size": len(CONTENT)}, {"status": 500}, []),
}


@pytest.mark.parametrize("case", LEFT)
def test_parts_that_were_left(serve, tmp_path, case):
    part, state, answer, requests = LEFT[case]
    server = serve(answer)
    (tmp_path / "file.bin.part").write_bytes(part)
    (tmp_path / "file.bin.part.json").write_text(json.dumps({"url": server.url} | state))
    assert archives.fetch(archive_at(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == requests


def test_busy_server_is_retried_after_the_time_that_it_asks_for(serve, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server = serve({"status": 503}, {"status": 503}, {"status": 429, "headers": [("Retry-After", "7")]}, {})
    assert archives.fetch(archive_at(server), tmp_path).read_bytes() == CONTENT
    assert waits == [0.01, 0.02, 7]


def says_what_to_put_where(error: CrnetError, archive: Archive, folder) -> None:
    assert "\n" not in str(error)
    for part in (archive.url, archive.checksum, str(folder / archive.name)):
        assert part in str(error)


def test_missing_file_is_not_retried_and_says_what_to_put_where(serve, tmp_path):
    server = serve({"status": 404})
    archive = archive_at(server)
    with pytest.raises(CrnetError, match="404") as caught:
        archives.fetch(archive, tmp_path)
    says_what_to_put_where(caught.value, archive, tmp_path)
    assert len(server.requests) == 1
    assert names(tmp_path) == set()


def test_no_network_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)
    calls = []

    def no_network(*args, **_):
        calls.append(args)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setenv("no_proxy", "*")
    archive = archives.resolve("benchmark.tgz")
    with pytest.raises(CrnetError, match=r"no connection .*Temporary failure") as caught:
        archives.fetch(archive, tmp_path)
    says_what_to_put_where(caught.value, archive, tmp_path)
    assert len(calls) == 2


def test_download_with_a_wrong_checksum_is_tried_once_more_and_removed(serve, tmp_path):
    server = serve({"content": OTHER})
    with pytest.raises(CrnetError, match=sha256(OTHER)):
        archives.fetch(archive_at(server), tmp_path)
    assert len(server.requests) == 2
    assert names(tmp_path) == set()


def test_wrong_size_is_seen_before_the_download(serve, tmp_path):
    server = serve({"content": OTHER})
    with pytest.raises(CrnetError, match="offers 2500000 bytes where the file has 3000000"):
        archives.fetch(archive_at(server, size=len(CONTENT)), tmp_path)
    assert names(tmp_path) == set()


def test_stream_without_a_length_is_accepted(serve, tmp_path):
    server = serve({"length": False})
    assert archives.fetch(archive_at(server), tmp_path).read_bytes() == CONTENT


def test_full_disk_is_said_before_the_download(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    server = serve({})
    with pytest.raises(CrnetError, match="GiB free: make room"):
        archives.fetch(archive_at(server), tmp_path)
    assert names(tmp_path) == set()


def test_local_mirror(tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.bin").write_bytes(CONTENT)
    archive = Archive("file.bin", (mirror / "file.bin").as_uri(), sha256(CONTENT))
    assert archives.fetch(archive, tmp_path / "here").read_bytes() == CONTENT
    (mirror / "file.bin").unlink()
    with pytest.raises(CrnetError, match="no such local file"):
        archives.fetch(archive, tmp_path / "there")


def test_second_download_of_the_same_file_is_refused(serve, tmp_path):
    with open(tmp_path / "file.bin.part", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CrnetError, match="Another process"):
            archives.fetch(archive_at(serve({})), tmp_path)


def test_progress_off_a_terminal_is_a_line_per_tenth(capsys):
    with download.Progress("file", 100 << 20) as progress:
        for _ in range(100):
            progress.add(1 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[0] == "file: 10 of 100 MiB, 10 %"


# --- files that were placed by hand ----------------------------------------------------------------


PLACED = Archive("file.bin", "http://nowhere.invalid/file.bin", sha256(CONTENT))


def test_placed_file_is_verified_once_and_used(tmp_path, monkeypatch):
    hashed, digest = [], archives.file_digest
    monkeypatch.setattr(archives, "file_digest", lambda *args: hashed.append(args) or digest(*args))
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    assert not archives.is_verified(PLACED, tmp_path)
    for _ in range(3):
        assert archives.fetch(PLACED, tmp_path) == path
    assert len(hashed) == 1

    os.utime(path, ns=(0, 0))  # touched: it could have changed
    assert not archives.is_verified(PLACED, tmp_path)
    archives.fetch(PLACED, tmp_path)
    assert len(hashed) == 2


def test_wrong_placed_file_is_reported_and_kept(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(OTHER)
    with pytest.raises(CrnetError, match=sha256(OTHER)) as caught:
        archives.fetch(PLACED, tmp_path)
    says_what_to_put_where(caught.value, PLACED, tmp_path)
    assert path.read_bytes() == OTHER and names(tmp_path) == {"file.bin"}


def test_another_checksum_in_the_settings_is_checked_anew(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    archives.fetch(PLACED, tmp_path)
    with pytest.raises(CrnetError, match="instead of"):
        archives.fetch(Archive("file.bin", PLACED.url, sha256(OTHER)), tmp_path)


# --- settings --------------------------------------------------------------------------------------


def test_resolve_applies_mirror_and_checksum():
    official = archives.resolve("benchmark.tgz")
    assert official == archives.OFFICIAL["benchmark.tgz"]
    mirrored = archives.resolve("benchmark.tgz", {"benchmark.tgz": {"url": "https://mirror.example/sbd/"}})
    assert mirrored.url == "https://mirror.example/sbd/benchmark.tgz"
    assert (mirrored.checksum, mirrored.size) == (official.checksum, official.size)
    own = archives.resolve("benchmark.tgz", {"benchmark.tgz": {"checksum": "sha256:" + "AB" * 32}})
    assert (own.checksum, own.size, own.url) == ("sha256:" + "ab" * 32, None, official.url)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("voc.tar", {}, "'voc.tar'.*VOCtrainval_11-May-2012.tar, benchmark.tgz"),
        ("benchmark.tgz", {"bench.tgz": {}}, "'bench.tgz'.*benchmark.tgz"),
        ("benchmark.tgz", {"benchmark.tgz": {"mirror": "x"}}, "mirror.*known ones: checksum, url"),
        ("benchmark.tgz", {"benchmark.tgz": {"url": "/data/benchmark.tgz"}}, "http://, https:// or file://"),
        ("benchmark.tgz", {"benchmark.tgz": {"checksum": "md5:12"}}, "md5:12.*32"),
        ("benchmark.tgz", {"benchmark.tgz": {"checksum": "sha256:1234567"}}, "8 to 64"),
    ],
)
def test_resolve_refuses_what_it_does_not_know(name, overrides, message):
    with pytest.raises(CrnetError, match=message):
        archives.resolve(name, overrides)


def test_official_weights_carry_their_checksum_in_their_name():
    weights = [archive for archive in archives.OFFICIAL.values() if archive.name.endswith(".pth")]
    assert len(weights) == 3
    for archive in weights:
        assert archive.checksum == "sha256:" + archive.name.removesuffix(".pth").split("-")[1]


# --- what stands beside an archive -----------------------------------------------------------------


def test_a_compressing_server_is_named_and_asked_once(serve, tmp_path):
    server = serve({"headers": [("Content-Encoding", "gzip")]})
    with pytest.raises(CrnetError, match=r"compressed on its way \(Content-Encoding: gzip\)") as refused:
        archives.fetch(archive_at(server), tmp_path)
    says_what_to_put_where(refused.value, archive_at(server), tmp_path)
    assert len(server.requests) == 1 and names(tmp_path) == set()


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_page_in_place_of_the_file_is_described(serve, tmp_path, size):
    server = serve({"content": b"<html>log in</html>", "headers": [("Content-Type", "text/html")]})
    with pytest.raises(CrnetError, match=r"content type text/html, .*<html>log in</html>"):
        archives.fetch(archive_at(server, size=size), tmp_path)


@pytest.mark.parametrize("name", ["with space.bin", "a#b.bin", "a%20b.bin", "ü?.bin"])
def test_a_local_file_of_any_name_is_a_mirror(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENT)
    archive = Archive("file.bin", f"file://{tmp_path / name}", sha256(CONTENT))
    assert archives.fetch(archive, tmp_path / "new").read_bytes() == CONTENT


def test_a_url_with_letters_that_urls_lack_is_escaped():
    assert download.as_sent("http://h/a b/ü%20x?y=1&z") == "http://h/a%20b/%C3%BC%20x?y=1&z"


def test_a_folder_that_may_only_be_read_is_used(tmp_path, monkeypatch):
    """As root everything may be written: whatever would touch the folder fails the test instead."""
    folder, note = tmp_path / "ro", tmp_path / "work/file.bin.verified"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    assert archives.fetch(PLACED, folder, note) == folder / "file.bin"
    assert names(folder) == {"file.bin"} and note.is_file()
    monkeypatch.setattr(archives, "file_digest", lambda *_: pytest.fail("hashed again"))
    archives.fetch(PLACED, folder, note)
    assert archives.is_verified(PLACED, folder, note) and not archives.is_verified(PLACED, folder)


def test_a_note_beside_the_file_is_taken_over(tmp_path, monkeypatch):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    archives.fetch(PLACED, tmp_path)
    monkeypatch.setattr(archives, "file_digest", lambda *_: pytest.fail("hashed again"))
    archives.fetch(PLACED, tmp_path, tmp_path / "work/note")
    assert (tmp_path / "work/note").read_bytes() == (tmp_path / "file.bin.verified").read_bytes()


def test_a_note_is_not_the_file(tmp_path):
    path, note, folder = tmp_path / "a.zip", tmp_path / "a.zip.verified", tmp_path / "extracted"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a", "a")
    archives.fetch(Archive("a.zip", "http://nowhere.invalid/a.zip", sha256(path.read_bytes())), tmp_path)
    archives.forget_absent(path, note, folder)
    assert note.exists(), "the archive is there"
    archives.extract(path, folder)
    path.unlink()
    archives.forget_absent(path, note, folder)
    assert note.exists(), "what was extracted serves"
    archives.extract(path, folder)
    archives.forget_absent(path, note)
    assert not note.exists()
    with pytest.raises(CrnetError, match="There is no archive"):
        archives.extract(path, tmp_path / "elsewhere")
