"""The archives that data sets and encoders are made from: where they are, their checksums, how they get here.

archive = resolve("benchmark.tgz", overrides)  # overrides: mirrors and checksums from the settings
path = fetch(archive, Path("work/downloads"))  # verified: placed there by hand, downloaded or resumed
extract(path, Path("work/sbd"))
"""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from crnet.data.archives import download
from crnet.data.archives.download import Part, Progress, say
from crnet.data.archives.extract import unpack, unpacked_from
from crnet.errors import CrnetError
from crnet.runtime.files import read_mapping, write_json

_CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Archive:
    """One file that can be fetched. Raises CrnetError if a field is not of its form."""

    name: str  # file name, without a folder
    url: str  # http://, https:// or file://
    # "md5:<32 hex digits>" or "sha256:<8 to 64 hex digits>"; fewer than 64 are the digest's beginning, as the file
    # names of torchvision's weights carry it
    checksum: str
    size: int | None = None  # bytes, or None if not known

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise CrnetError(f"{self.name!r} is not a file name: give the name alone, without a folder.")
        if urlsplit(self.url).scheme not in ("http", "https", "file"):
            raise CrnetError(f"The url {self.url!r} of {self.name} must start with http://, https:// or file://.")
        if not _CHECKSUM.fullmatch(self.checksum):
            raise CrnetError(
                f"The checksum {self.checksum!r} of {self.name} must be md5: with 32 or sha256: with 8 to 64 "
                "lowercase hex digits."
            )


OFFICIAL: dict[str, Archive] = {
    url.rpartition("/")[2]: Archive(url.rpartition("/")[2], url, checksum, size)
    for url, checksum, size in (
        # MD5s of VOC and SBD: torchvision.datasets.{voc,sbd}.
        (
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "md5:6cd6e144f989b92b3379bac3b3de84fd",
            1_999_639_040,
        ),
        (
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "md5:82b4d87ceb2ed10f6038a1cba92111cb",
            1_419_539_633,
        ),
        # MD5s of COCO: the server's ETags; sizes: tensorflow/datasets, url_checksums/coco.txt.
        ("http://images.cocodataset.org/zips/train2014.zip", "md5:0da8c0bd3d6becc4dcb32757491aca88", 13_510_573_713),
        ("http://images.cocodataset.org/zips/val2014.zip", "md5:a3d79f5ed8d289b7a7554ce06a5782b3", 6_645_013_297),
        (
            "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
            "md5:0a379cfc70b0e71301e0f377548639bd",
            252_872_794,
        ),
        # torchvision.models: {ResNet50,ResNet101,VGG16}_Weights.IMAGENET1K_V1; names carry how their SHA-256 begins.
        ("https://download.pytorch.org/models/resnet50-0676ba61.pth", "sha256:0676ba61", 102_530_333),
        ("https://download.pytorch.org/models/resnet101-63fe2227.pth", "sha256:63fe2227", None),  # 170.5 MiB
        ("https://download.pytorch.org/models/vgg16-397923af.pth", "sha256:397923af", 553_433_881),
        # The file's pointer in the ONNX model zoo's repository.
        (
            "https://github.com/onnx/models/raw/main/validated/vision/classification/resnet/model/resnet50-v2-7.onnx",
            "sha256:1e80e8a7c8eec8e8b20c440d7dd7f2f8590779c7c2859dc4514870dc463845d3",
            102_442_450,
        ),
    )
}


def resolve(name: str, overrides: Mapping[str, Mapping[str, str]] | None = None) -> Archive:
    """The archive called ``name`` with the settings' mirror and checksum.

    Args:
        overrides: file name -> {"url", "checksum"}, both optional. A url that ends in "/" is a folder that holds the
            file under its name. With a checksum of its own the official size no longer holds.

    Raises CrnetError for an unknown file name or key (listing the known ones) and a malformed url or checksum.
    """
    overrides = overrides or {}
    for unknown in [name, *overrides]:
        if unknown not in OFFICIAL:
            raise CrnetError(f"No archive is called {unknown!r}; known ones: {', '.join(OFFICIAL)}.")
    changes = overrides.get(name, {})
    if extra := set(changes) - {"url", "checksum"}:
        raise CrnetError(f"{name} has the unknown settings {', '.join(sorted(extra))}; known ones: checksum, url.")
    archive = OFFICIAL[name]
    if url := changes.get("url"):
        archive = replace(archive, url=url + name if url.endswith("/") else url)
    if (checksum := changes.get("checksum")) and checksum.lower() != archive.checksum:
        archive = replace(archive, checksum=checksum.lower(), size=None)
    return archive


def is_verified(archive: Archive, folder: Path, note: Path | None = None) -> bool:
    """Whether ``folder`` holds the file unchanged since its checksum was found right. Reads no content."""
    path = folder / archive.name
    return archive.checksum in (_recorded_checksum(path, _sidecar(path)), note and _recorded_checksum(path, note))


def fetch(archive: Archive, folder: Path, note: Path | None = None) -> Path:
    """The verified file in ``folder``: found there, or downloaded.

    The checksum is computed once and remembered in ``note`` with the file's size and time. A download grows in
    ``<name>.part`` and is resumed by a later call; it gets its name only when whole and verified. One with a wrong
    checksum is removed and fetched once more from zero. A file that was already there is never removed or replaced.

    Args:
        note: ``<name>.verified`` beside the file if not given; elsewhere for a folder that may only be read.

    Raises:
        CrnetError: a wrong checksum, no network or no such file on the server (with what to put where), too little
            disk, or a second process at the same download.
    """
    path = folder / archive.name
    note = note or _sidecar(path)
    if is_verified(archive, folder, note):
        if not note.exists():
            _record(path, archive.checksum, note)
        return path
    part = Part(path)
    if path.exists():
        if not path.is_file():
            raise CrnetError(f"{path} is not a file: move it away, the file from {archive.url} belongs there.")
        if (found := _found_checksum(archive, path)) != archive.checksum:
            raise CrnetError(
                f"{path} has the checksum {found} instead of {archive.checksum}: put the file from {archive.url} "
                "there, delete it to have it downloaded, or set its checksum in the settings if it is meant."
            )
        part.forget()
    else:
        with part.opened():
            _download_verified(archive, part, path)
            part.become_whole()
    _record(path, archive.checksum, note)
    return path


def extract(archive_path: Path, folder: Path) -> None:
    """Unpack a fetched archive so that ``folder`` holds all of it or does not exist (``unpack``).

    Returns at once if ``folder`` was unpacked from an archive of this name with the same checksum, or from one that is
    no longer there.
    """
    if not archive_path.exists() and unpacked_from(folder) == archive_path.name:
        return
    if not archive_path.is_file():
        raise CrnetError(f"There is no archive {archive_path}: fetch it first.")
    identity = (
        _recorded_checksum(archive_path, _sidecar(archive_path)) or f"sha256:{file_digest(archive_path, 'sha256')}"
    )
    unpack(archive_path, folder, identity)


def file_digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file's content, with progress for the large ones."""
    digest, size = hashlib.new(algorithm, usedforsecurity=False), path.stat().st_size
    with Progress(f"verifying {path.name}", size) as progress, open(path, "rb") as stream:
        while data := stream.read(1 << 20):
            digest.update(data)
            progress.add(len(data))
    return digest.hexdigest()


def _found_checksum(archive: Archive, path: Path) -> str:
    """The checksum of ``path`` in the archive's form: same algorithm, as many digits."""
    algorithm, digits = archive.checksum.split(":")
    return f"{algorithm}:{file_digest(path, algorithm)[: len(digits)]}"


def _download_verified(archive: Archive, part: Part, path: Path) -> None:
    if archive.size is not None:
        download.require_space(path.parent, archive.size - part.length, f"Downloading {archive.name}")
    by_hand = f"put the file from {archive.url} ({archive.checksum}) at {path}, or name a mirror in the settings"
    for last in (False, True):
        try:
            download.complete(part, archive.url, archive.name, archive.size)
        except download.DownloadFailed as error:
            raise CrnetError(f"Cannot download {archive.name}, {error}: {by_hand}.") from error
        if (found := _found_checksum(archive, part.path)) == archive.checksum:
            return
        came = f" ({part.came})" if part.came else ""
        part.discard()
        if not last:
            say(f"{archive.name}: has the checksum {found}, not {archive.checksum}; downloading it once more")
    raise CrnetError(
        f"{archive.name} from {archive.url} was removed, it has the checksum {found} instead of "
        f"{archive.checksum}{came}: {by_hand} with its checksum."
    )


def forget_absent(archive: Path, note: Path, extracted: Path | None = None) -> None:
    """Remove the note of an archive that is gone, unless what was ``extracted`` from it still serves: it hides a need.

    Notes that cannot be removed stay; the job that needs the archive then says that it is absent.
    """
    if note.exists() and not archive.exists() and not (extracted and unpacked_from(extracted) == archive.name):
        with suppress(OSError):
            note.unlink()


def _recorded_checksum(path: Path, note: Path) -> str | None:
    """The checksum that ``path`` was found to have, if it has not changed since."""
    try:
        record, status = read_mapping(note), path.stat()
    except (OSError, ValueError):
        return None
    unchanged = (record.get("size"), record.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
    return record.get("checksum") if unchanged else None


def _record(path: Path, checksum: str, note: Path) -> None:
    status = path.stat()
    try:
        write_json(note, {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "checksum": checksum})
    except CrnetError as error:
        say(f"{path.name}: verified, but hashed at each start, as its checksum is not kept: {error}")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".verified")
