"""What is read in place: photos out of zip archives, and masks out of one file of compressed run lengths.

120,000 photos of COCO and their masks stay in a handful of files. The file of masks has one line of JSON a photo:
``{"masks": {class id: run lengths}, "void": run lengths}``, run lengths as COCO compresses them (pycocotools).
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crnet.data.findings import read_remedy
from crnet.data.pixels import VOID, read_rgb
from crnet.errors import CrnetError

PUT_BACK = "put the archive back from which the data were prepared, or delete their dataset.json"
# What zipfile raises for an absent, broken or foreign archive, or a member that is absent or damaged.
BROKEN_ZIP = (OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError)


class Archives:
    """Zip archives, each opened by a process when it first reads from it; pickled without what is open."""

    def __init__(self):
        self._open: dict[Path, zipfile.ZipFile] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        Archives.__init__(self)

    def read_rgb(self, archive: Path, member: str) -> np.ndarray:
        """An image member as uint8 RGB, (H, W, 3). Raises CrnetError if archive or member cannot be read."""
        try:
            content = self._archive(archive).read(member)
        except BROKEN_ZIP as error:
            remedy = read_remedy(error, PUT_BACK)
            raise CrnetError(f"{member} cannot be read from {archive} ({error}): {remedy}.") from error
        return read_rgb(io.BytesIO(content), f"{member} in {archive}")

    def _archive(self, path: Path) -> zipfile.ZipFile:
        if self._process != os.getpid():  # a forked child must not share the parent's place in the file
            self._open, self._process = {}, os.getpid()
        if path not in self._open:
            self._open[path] = zipfile.ZipFile(path)
        return self._open[path]


@dataclass(frozen=True)
class PackedMasks:
    """The masks of one photo as run lengths: by class id, and void, if there is any."""

    masks: Mapping[int, str]
    void: str | None

    def class_mask(
        self, height: int, width: int, class_id: int, void_classes: Iterable[int] = (), void: str = "ignored"
    ) -> np.ndarray:
        """uint8 (height, width): 1 the class, else 255 void (if it is "ignored") or one of ``void_classes``, else 0."""
        result = np.zeros((height, width), np.uint8)
        for runs in [self.void if void == "ignored" else None, *(self.masks.get(c) for c in void_classes)]:
            if runs is not None:
                result[decode(runs, height, width)] = VOID
        if class_id in self.masks:
            result[decode(self.masks[class_id], height, width)] = 1
        return result

    def line(self) -> bytes:
        """As ``read_packed`` reads it."""
        content = {"masks": dict(sorted(self.masks.items())), "void": self.void}
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def decode(runs: str, height: int, width: int) -> np.ndarray:
    """Compressed run lengths as bool (height, width)."""
    from pycocotools import mask

    return mask.decode({"size": [height, width], "counts": runs}).astype(bool)


def read_packed(path: Path, offset: int, crc32: int) -> PackedMasks:
    """The masks whose line starts at byte ``offset``. Raises CrnetError if there is none with that checksum."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            line = stream.readline()
        if zlib.crc32(line) != crc32:
            raise ValueError("the checksum of its line differs")
        content = json.loads(line)
        return PackedMasks({int(class_id): runs for class_id, runs in content["masks"].items()}, content["void"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CrnetError(f"{path} holds no masks at byte {offset} ({error}): prepare the data again.") from error
