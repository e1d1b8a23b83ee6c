"""Reading a prepared data set: photos, masks and the (photo, class) pairs of its folds.

A prepared data set is a folder with ``images.csv``, ``pairs.csv`` and ``dataset.json``, written by
``crnet.data.formats``: ``voc`` (a mask is one map of class ids) or ``coco`` (masks of classes may overlap).
Class ids run from 1 to N in masks, tables and code; 0 is background and 255 void.

``dataset.json`` holds a digest of itself and both tables, and ``images.csv`` the CRC-32 of each mask, so that a flipped
bit is noticed when it is read.
"""

import io
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crnet.data.findings import EXTRACT_AGAIN, Finding, read_remedy
from crnet.data.packed import VOID, Archives, read_packed
from crnet.data.pixels import read_ids, read_rgb
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime import files
from crnet.runtime.files import DamagedFile, read_csv, read_json

SPLITS = ("train", "val")
IMAGES, PAIRS, ABOUT = "images.csv", "pairs.csv", "dataset.json"
PAIR_COLUMNS = ("image", "class", "fold", "split", "pixels")
NOVEL_PIXELS = ("background", "void", "drop")


@contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """What files raise that are no longer those of a prepared data set becomes one sentence, a CrnetError."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = error.what if isinstance(error, DamagedFile) else repr(error)
        raise CrnetError(
            f"{folder} is no prepared data set any more, one of its files was changed or is of an earlier version "
            f"({reason}): delete its dataset.json to have it prepared again."
        ) from error


@dataclass(frozen=True, order=True)
class Pair:
    """A photo and one class id, 1 to N, that it shows: the unit from which episodes are drawn."""

    image: str
    class_id: int


@dataclass(frozen=True)
class Photo:
    """One row of ``images.csv``."""

    split: str  # "train" or "val"
    path: Path  # the image file, or the zip archive that holds it as ``member``
    mask: Path  # a PNG of class ids, or the file that holds the masks of its classes from byte ``offset`` on
    mask_crc32: int  # of the PNG, or of the line at ``offset``
    width: int  # in pixels, as the height
    height: int
    classes: frozenset[int]  # ids that the photo shows, those of crowds included
    member: str | None = None
    offset: int | None = None


class Index:
    """A prepared data set, opened for reading."""

    def __init__(self, description: dict, photos: dict[str, Photo], pairs: list[Pair]):
        self.name: str = description["name"]
        self.classes: tuple[str, ...] = tuple(description["classes"])  # the class with id i is classes[i - 1]
        # Per fold the ids of its *test* classes, and of those neither trained nor tested: none for PASCAL-5i.
        self.folds, self.held_out = (tuple(map(tuple, description[role])) for role in ("folds", "held_out"))
        self.split_note: str | None = description["split_note"]  # on the choice of the splits, for captions
        self.digest: str = description["digest"]  # SHA-256 over photos, mask pixels, splits and pairs
        self.subset: str | None = description["subset"]  # a sentence with counts if it is a part of the published one
        self.photos = photos  # by image id, in order of id
        self._pairs = sorted(pairs)
        self._archives = Archives()

    @classmethod
    def load(cls, folder: str | Path) -> "Index":
        """Open a prepared data set.

        Raises:
            CrnetError: the folder is not a (finished) prepared data set, its files were changed or are of a version
                without checksums, or its tables contradict each other.
        """
        folder = Path(folder)
        with reading(folder):
            # dataset.json is written last, so that its presence means that the other two are whole.
            if not (folder / ABOUT).is_file():
                raise CrnetError(f"{folder} is no prepared data set (it has no dataset.json): prepare the data first.")
            description = read_json(folder / ABOUT)
            if description.pop("seal") != _seal(folder, description):
                raise ValueError(f"the digest of {IMAGES}, {PAIRS} and {ABOUT} differs")
            photos = _read_photos(folder)
            index = cls(description, photos, list(_read_pairs(folder, description["folds"], photos)))
            for fold, (tested, held_out) in enumerate(zip(index.folds, index.held_out, strict=True)):
                if both := set(tested) & set(held_out):
                    what = f"tests {index.class_name(min(both))} and holds it out for choosing settings"
                    raise CrnetError(f"{index.name}: fold {fold} {what}: a class is one or the other.")
        return index

    def class_name(self, class_id: int) -> str:
        return self.classes[class_id - 1]

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes that fold ``fold`` tests, which its training must not know."""
        if fold not in range(len(self.folds)):
            raise CrnetError(f"{self.name} has no fold {fold}: its folds are 0 to {len(self.folds) - 1}.")
        return self.folds[fold]

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes on which fold ``fold`` trains: all but those that it tests or holds out."""
        unseen = self.unseen_classes(fold)
        return tuple(class_id for class_id in range(1, len(self.classes) + 1) if class_id not in unseen)

    def unseen_classes(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes that fold ``fold`` tests or holds out: its training must know none of them."""
        return tuple(sorted({*self.novel_classes(fold), *self.held_out[fold]}))

    def selection_classes(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes on which settings of fold ``fold`` are chosen: held out if there are any, else base."""
        self.novel_classes(fold)
        return tuple(sorted(self.held_out[fold])) or self.base_classes(fold)

    def pairs(self, split: str, classes: Iterable[int]) -> list[Pair]:
        """All pairs of ``split`` ("train" or "val") with a class id among ``classes``, by image and class."""
        if split not in SPLITS:
            raise CrnetError(f"unknown split {split!r}: the splits are {', '.join(SPLITS)}.")
        wanted = set(classes)
        return [pair for pair in self._pairs if pair.class_id in wanted and self.photos[pair.image].split == split]

    def training_pairs(self, fold: int, novel_pixels: str = "background") -> list[Pair]:
        """Pairs to train on when ``fold`` is tested: photos of split train, classes of ``base_classes``.

        Args:
            novel_pixels: what becomes of training photos that also show a class of ``unseen_classes`` (protocol
                B2): "background" and "void" keep them and differ in ``class_mask``; "drop" leaves the photos out.

        Raises CrnetError for an unknown fold or choice.
        """
        if novel_pixels not in NOVEL_PIXELS:
            raise CrnetError(f"unknown novel_pixels {novel_pixels!r}: choose from {', '.join(NOVEL_PIXELS)}.")
        pairs = self.pairs("train", self.base_classes(fold))
        if novel_pixels == "drop":
            unseen = set(self.unseen_classes(fold))
            pairs = [pair for pair in pairs if not unseen & self.photos[pair.image].classes]
        return pairs

    def test_pairs(self, fold: int) -> list[Pair]:
        """Pairs to draw the test episodes of ``fold`` from: photos of split val, the fold's own classes."""
        return self.pairs("val", self.novel_classes(fold))

    def class_pairs(self, fold: int) -> dict[int, int]:
        """Number of test pairs of each class id that ``fold`` tests, ids ascending."""
        counts = Counter(pair.class_id for pair in self.test_pairs(fold))
        return {class_id: counts[class_id] for class_id in sorted(self.novel_classes(fold))}

    def check_training_pairs(self, fold: int, pairs: Iterable[Pair]) -> None:
        """Guard against the leak that would void every result.

        Raises CrnetError for a pair of split val, or of a class that ``fold`` tests or holds out.
        """
        novel, held_out = set(self.novel_classes(fold)), set(self.held_out[fold])
        for pair in pairs:
            if self.photos[pair.image].split != "train":
                what = f"is a test photo (split val) and must not train fold {fold}"
            elif pair.class_id in novel | held_out:
                use = "tests" if pair.class_id in novel else "holds out for choosing settings"
                what = f"would train fold {fold} on {self.class_name(pair.class_id)}, which that fold {use}"
            else:
                continue
            raise CrnetError(f"{self.name}: {pair.image} {what}.")

    def size(self, image: str) -> tuple[int, int]:
        """(height, width) of a photo in pixels, without opening it."""
        photo = self._photo(image)
        return photo.height, photo.width

    def read_image(self, image: str) -> np.ndarray:
        """The photo as uint8 RGB, (H, W, 3). Raises CrnetError if the file is broken or changed its size."""
        photo = self._photo(image)
        in_archive = photo.member is not None
        pixels = self._archives.read_rgb(photo.path, photo.member) if in_archive else read_rgb(photo.path)
        self._check_size(photo, photo.path, pixels)
        return pixels

    def class_mask(
        self, image: str, class_id: int, void_classes: Iterable[int] = (), void: str = "ignored"
    ) -> np.ndarray:
        """The mask of one class, uint8 (H, W): 1 where it is, 255 at void and ``void_classes``, 0 elsewhere.

        Where classes overlap, the asked one wins. ``void_classes=index.unseen_classes(fold)`` makes novel pixels of
        training photos void (protocol B2). Raises CrnetError like ``read_image``.

        Args:
            void: "background": the data set's own void pixels are 0, as CaNet@fdce946 trains on them.
        """
        photo = self._photo(image)
        if photo.offset is not None:
            packed = read_packed(photo.mask, photo.offset, photo.mask_crc32)
            return packed.class_mask(photo.height, photo.width, class_id, void_classes, void)
        lookup = np.zeros(256, np.uint8)
        lookup[[*([VOID] if void == "ignored" else []), *void_classes]] = VOID
        lookup[class_id] = 1
        return lookup[self.read_mask(image)]

    def read_mask(self, image: str) -> np.ndarray:
        """Class id per pixel, uint8 (H, W): 0 background, 255 void.

        Raises CrnetError like ``read_image``, and for data whose classes overlap: ask ``class_mask`` there.
        """
        photo = self._photo(image)
        if photo.offset is not None:
            raise CrnetError(f"{self.name}: classes of {image} may overlap, so that it has no one map of ids.")
        try:
            content = photo.mask.read_bytes()
        except OSError as error:
            raise Finding(photo.mask, f"cannot be read ({error.strerror})", read_remedy(error)) from error
        mask = read_ids(io.BytesIO(content), photo.mask)
        self._check_size(photo, photo.mask, mask)
        if zlib.crc32(content) != photo.mask_crc32:
            what = f"was changed after {self.name} was prepared (its checksum differs)"
            raise Finding(photo.mask, what, f"put it back, or {EXTRACT_AGAIN}")
        return mask

    def _photo(self, image: str) -> Photo:
        if image not in self.photos:
            raise CrnetError(f"{self.name} has no photo {image!r}.")
        return self.photos[image]

    def _check_size(self, photo: Photo, path: Path, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        if (height, width) != (photo.height, photo.width):
            before = f"{photo.width}x{photo.height} when {self.name} was prepared"
            raise CrnetError(f"{path} is {width}x{height} px but was {before}: prepare the data again.")


def relative(file: Path, out: Path) -> str:
    """How a table in ``out`` names a file so that the system finds it, wherever links on either path lead."""
    place = Path(os.path.realpath(file.parent)) / file.name
    return Path(os.path.relpath(place, os.path.realpath(out))).as_posix()


def _read_photos(folder: Path) -> dict[str, Photo]:
    at = cache(folder.joinpath)  # one path for all photos of an archive: an index is sent to every loader worker
    return {
        row["image"]: Photo(
            split=row["split"],
            path=at(row["path"]),
            mask=at(row["mask"]),
            mask_crc32=int(row["mask_crc32"], 16),
            width=int(row["width"]),
            height=int(row["height"]),
            classes=frozenset(map(int, row["classes"].split())),
            member=row.get("member"),
            offset=int(row["offset"]) if "offset" in row else None,
        )
        for row in read_csv(folder / IMAGES)
    }


def _read_pairs(folder: Path, folds: list[list[int]], photos: dict[str, Photo]) -> Iterator[Pair]:
    """Pairs of a prepared data set; what they say twice has to agree with its other files."""
    fold_of = {class_id: str(fold) for fold, ids in enumerate(folds) for class_id in ids}
    for row in read_csv(folder / PAIRS):
        pair = Pair(row["image"], int(row["class"]))
        photo = photos[pair.image]
        known = photo.split, fold_of.get(pair.class_id, ""), True
        if (row["split"], row["fold"], pair.class_id in photo.classes) != known:
            raise CrnetError(
                f"{folder}: {PAIRS} has {pair.image} with class {pair.class_id} in {row['split']} and fold "
                f"{row['fold'] or 'none'}, which {IMAGES} or {ABOUT} contradicts: delete its dataset.json to have it "
                "prepared again."
            )
        yield pair


def begin(out: Path) -> None:
    """Make the folder of a prepared data set; until ``write_tables`` ends, nothing in it passes for whole."""
    out.mkdir(parents=True, exist_ok=True)
    (out / ABOUT).unlink(missing_ok=True)


def write_tables(
    out: Path, splits: Splits, columns: Sequence[str], images: Iterable[tuple], pairs: Iterable[tuple], facts: dict
) -> dict[str, Any]:
    """Write the three files of a prepared data set; ``dataset.json``, which it returns, comes last, with all's digest.

    Args:
        columns, images: of ``images.csv``.
        pairs: rows of ``PAIR_COLUMNS``.
        facts: what ``dataset.json`` says beside the classes and their roles.
    """
    files.write_csv(out / IMAGES, columns, images)
    files.write_csv(out / PAIRS, PAIR_COLUMNS, pairs)
    description = {
        "classes": list(splits.classes),
        "folds": [list(ids) for ids in splits.folds],
        "held_out": [list(ids) for ids in splits.held_out],
        "split_note": splits.note,
        **facts,
    }
    description["seal"] = _seal(out, description)
    files.write_json(out / ABOUT, description)
    return description


def _seal(folder: Path, description: dict[str, Any]) -> str:
    tables = [files.sha256_file(folder / name) for name in (IMAGES, PAIRS)]
    return files.sha256_text(files.canonical([description, *tables]))
