"""Archives that attack, are broken or cut short, and those that unpack."""

import io
import stat
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from crnet.data.archives import archives, download, extract
from crnet.data.archives.archives import Archive
from crnet.errors import CrnetError
from crnet.runtime.files import sha256_file

NOISE = np.random.default_rng(7).bytes(200_000)
FILES = {"data/img/a.jpg": b"a" * 5000, "data/train.txt": b"a\n", "code/run.m": b"x"}


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make(path, files=FILES, tar_extra=(), zip_extra=()):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for name, content in files.items():
                target.writestr(name, content)
            for info, content in zip_extra:
                target.writestr(info, content)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as target:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                target.addfile(info, io.BytesIO(content))
            for info in tar_extra:
                target.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def tree(folder) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != extract.STAMP]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_extract_takes_all(tmp_path, name):
    archives.extract(make(tmp_path / name), tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert names(tmp_path) == {name, "out"}


def test_extract_is_skipped_for_the_same_archive_only(tmp_path, monkeypatch):
    archive, folder = make(tmp_path / "a.tar"), tmp_path / "out"
    checksum = f"sha256:{sha256_file(archive)}"
    archives.fetch(Archive("a.tar", "http://nowhere.invalid/a.tar", checksum), tmp_path)
    monkeypatch.setattr(archives, "file_digest", lambda *_: pytest.fail("hashed again"))
    archives.extract(archive, folder)
    inode = folder.stat().st_ino
    archives.extract(archive, folder)
    assert folder.stat().st_ino == inode
    monkeypatch.undo()
    make(archive, {"new.txt": b"new"})
    archives.extract(archive, folder)
    assert tree(folder) == {"new.txt": b"new"}


def test_extract_leaves_a_folder_alone_that_it_did_not_make(tmp_path):
    archive, folder = make(tmp_path / "a.tar"), tmp_path / "out"
    folder.mkdir()
    archives.extract(archive, folder)  # empty: as a workflow makes it
    with pytest.raises(CrnetError, match=r"not unpacked from b\.zip"):
        archives.extract(make(tmp_path / "b.zip"), folder)
    assert tree(folder) == FILES
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(CrnetError, match="not empty"):
        archives.extract(archive, mine)
    assert tree(mine) == {"thesis.txt": b"mine"}


def test_extract_starts_over_after_a_kill(tmp_path):
    archive = make(tmp_path / "a.tar")
    left = tmp_path / ".out.extracting"
    left.mkdir()
    (left / "half.jpg").write_bytes(b"half")
    archives.extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    assert not left.exists()


def tar_member(name, kind=tarfile.REGTYPE, target="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (tar_member("../evil.txt", size=3), "leads out"),
        (tar_member("data/../../evil.txt", size=3), "leads out"),
        (tar_member("/tmp/evil.txt", size=3), "absolute"),
        (tar_member("C:evil.txt", size=3), "absolute"),
        (tar_member("data\\..\\evil.txt", size=3), "backslash"),
        (tar_member("data/link", tarfile.SYMTYPE, "/etc"), "link"),
        (tar_member("data/hard", tarfile.LNKTYPE, "data/train.txt"), "link"),
        (tar_member("data/fifo", tarfile.FIFOTYPE), "device"),
        (tar_member("data/disk", tarfile.BLKTYPE), "device"),
        (("../evil.txt", b"evil"), "leads out"),
        (("/tmp/evil.txt", b"evil"), "absolute"),
        ((zip_link("data/link"), b"/etc"), "link"),
    ],
)
def test_unsafe_member_is_named_and_nothing_is_written(tmp_path, extra, reason):
    box = tmp_path / "box"
    box.mkdir()
    if isinstance(extra, tarfile.TarInfo):
        archive, name = make(box / "a.tgz", tar_extra=[extra]), extra.name
    else:
        archive, name = make(box / "a.zip", zip_extra=[extra]), getattr(extra[0], "filename", extra[0])
    with pytest.raises(CrnetError, match=reason) as caught:
        archives.extract(archive, box / "out")
    assert repr(name) in str(caught.value)
    assert names(box) == {archive.name} and names(tmp_path) == {"box"}


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tgz"])
def test_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, name):
    monkeypatch.setattr(extract, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    archive = make(tmp_path / name, {"zeros": bytes(8 << 20)})
    with pytest.raises(CrnetError, match="'zeros'"):
        archives.extract(archive, tmp_path / "out")
    assert names(tmp_path) == {name}


def test_millions_of_empty_files_are_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "ALWAYS_ALLOWED_BYTES", 1 << 20)
    archive = make(tmp_path / "a.tgz", {f"empty/{number:04}": b"" for number in range(2000)})
    with pytest.raises(CrnetError, match="would unpack to more than"):
        archives.extract(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_archive_is_one_sentence(tmp_path, name, kept):
    noise = {f"data/{number}.jpg": NOISE[number * 20_000 :][:20_000] for number in range(10)}
    archive = make(tmp_path / name, noise)
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(CrnetError, match="damaged or cut short") as caught:
        archives.extract(archive, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("content", [b"", b"PK", b"<html>404</html>", NOISE[:1000]])
def test_no_archive_at_all_is_one_sentence(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(CrnetError, match="damaged or cut short") as caught:
        archives.extract(tmp_path / "a.tar", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_flipped_bit_in_a_zip_is_seen(tmp_path):
    archive = make(tmp_path / "a.zip", {"noise": NOISE[:100_000]})
    data = bytearray(archive.read_bytes())
    data[50_000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(CrnetError, match="damaged"):
        archives.extract(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.zip"}


def test_extract_without_room_or_archive(tmp_path, monkeypatch):
    with pytest.raises(CrnetError, match="fetch it first"):
        archives.extract(tmp_path / "none.tar", tmp_path / "out")
    archive = make(tmp_path / "a.tar")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CrnetError, match=r"Unpacking a\.tar needs"):
        archives.extract(archive, tmp_path / "out")
    assert names(tmp_path) == {"a.tar"}


def test_practice_archives_unpack(shared, tmp_path):
    archives.extract(shared / "real/voc/VOCtrainval_11-May-2012.tar", tmp_path / "voc")
    assert len(list((tmp_path / "voc/VOCdevkit/VOC2012/SegmentationClass").iterdir())) == 500


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_what_desktops_leave_is_passed_over(tmp_path, name):
    left = {"__MACOSX/data/._a.jpg": b"x", "data/.DS_Store": b"x", "data/._b.jpg": b"x", "data/img/Thumbs.db": b"x"}
    archives.extract(make(tmp_path / name, FILES | left), tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
