"""Reading a prepared data set: photos, masks and the (photo, class) pairs of its folds.

A prepared data set is a folder with ``images.csv``, ``pairs.csv`` and ``dataset.json``, written by
``crnet.data.voc``.
Class ids run from 1 to N in masks, tables and code; 0 is background and 255 void.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crnet.errors import CrnetError
from crnet.files import read_csv, read_json

VOID = 255
SPLITS = ("train", "val")
NOVEL_PIXELS = ("background", "void", "drop")

# What PIL raises for an absent, broken, truncated or absurdly large file.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True, order=True)
class Pair:
    """A photo and one class id, 1 to N, that it shows: the unit from which episodes are drawn."""

    image: str
    class_id: int


@dataclass(frozen=True)
class Photo:
    """One row of ``images.csv``: split, both files, size in pixels, and the class ids that the mask holds."""

    split: str
    path: Path
    mask: Path
    width: int
    height: int
    classes: frozenset[int]


class Index:
    """A prepared data set, opened for reading.

    Attributes:
        name: name of the data set, e.g. ``pascal5i``.
        classes: class names; the class with id ``i`` is ``classes[i - 1]``.
        folds: per fold the ids of its *test* classes.
        digest: SHA-256 over photos, mask pixels, splits and pairs.
        subset: a sentence with counts if the data set is a part of the published one, else None.
        photos: ``Photo`` by image id, in order of id.
    """

    def __init__(self, description: dict, photos: dict[str, Photo], pairs: list[Pair]):
        self.name: str = description["name"]
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.folds: tuple[tuple[int, ...], ...] = tuple(tuple(fold) for fold in description["folds"])
        self.digest: str = description["digest"]
        self.subset: str | None = description["subset"]
        self.photos = photos
        self._pairs = sorted(pairs)

    @classmethod
    def load(cls, folder: str | Path) -> "Index":
        """Open a prepared data set.

        Raises:
            CrnetError: the folder is not a (finished) prepared data set.
        """
        folder = Path(folder)
        # dataset.json is written last, so that its presence means that the other two are whole.
        if not (folder / "dataset.json").is_file():
            raise CrnetError(f"{folder} is no prepared data set (it has no dataset.json): prepare the data first.")
        photos = {
            row["image"]: Photo(
                split=row["split"],
                path=folder / row["path"],
                mask=folder / row["mask"],
                width=int(row["width"]),
                height=int(row["height"]),
                classes=frozenset(int(class_id) for class_id in row["classes"].split()),
            )
            for row in read_csv(folder / "images.csv")
        }
        pairs = [Pair(row["image"], int(row["class"])) for row in read_csv(folder / "pairs.csv")]
        return cls(read_json(folder / "dataset.json"), photos, pairs)

    def class_name(self, class_id: int) -> str:
        return self.classes[class_id - 1]

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes that fold ``fold`` tests, which its training must not know."""
        if fold not in range(len(self.folds)):
            raise CrnetError(f"{self.name} has no fold {fold}: its folds are 0 to {len(self.folds) - 1}.")
        return self.folds[fold]

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """Ids of the classes of all other folds, on which fold ``fold`` trains."""
        novel = self.novel_classes(fold)
        return tuple(sorted(class_id for ids in self.folds for class_id in ids if class_id not in novel))

    def pairs(self, split: str, classes: Iterable[int]) -> list[Pair]:
        """All pairs of ``split`` ("train" or "val") with a class id among ``classes``, by image and class."""
        if split not in SPLITS:
            raise CrnetError(f"unknown split {split!r}: the splits are {', '.join(SPLITS)}.")
        wanted = set(classes)
        return [pair for pair in self._pairs if pair.class_id in wanted and self.photos[pair.image].split == split]

    def training_pairs(self, fold: int, novel_pixels: str = "background") -> list[Pair]:
        """Pairs to train on when ``fold`` is tested: photos of split train, classes of the other folds.

        Args:
            fold: the fold that is held out.
            novel_pixels: what becomes of training photos that also show a novel class (protocol B2):
                "background" and "void" keep them and differ in ``binary_mask``; "drop" leaves the photos out.

        Raises:
            CrnetError: unknown fold or choice; a pair that training must not see.
        """
        if novel_pixels not in NOVEL_PIXELS:
            raise CrnetError(f"unknown novel_pixels {novel_pixels!r}: choose from {', '.join(NOVEL_PIXELS)}.")
        pairs = self.pairs("train", self.base_classes(fold))
        if novel_pixels == "drop":
            novel = set(self.novel_classes(fold))
            pairs = [pair for pair in pairs if not novel & self.photos[pair.image].classes]
        self.check_training_pairs(fold, pairs)
        return pairs

    def test_pairs(self, fold: int) -> list[Pair]:
        """Pairs to draw the test episodes of ``fold`` from: photos of split val, the fold's own classes."""
        return self.pairs("val", self.novel_classes(fold))

    def check_training_pairs(self, fold: int, pairs: Iterable[Pair]) -> None:
        """Guard against the leak that would void every result.

        Raises:
            CrnetError: a pair lies in split val, or its class is one that ``fold`` tests.
        """
        novel = set(self.novel_classes(fold))
        for pair in pairs:
            if self.photos[pair.image].split != "train":
                raise CrnetError(
                    f"{self.name}: {pair.image} is a test photo (split val) and must not train fold {fold}."
                )
            if pair.class_id in novel:
                name = self.class_name(pair.class_id)
                raise CrnetError(f"{self.name}: {pair.image} would train fold {fold} on {name}, which that fold tests.")

    def size(self, image: str) -> tuple[int, int]:
        """(height, width) of a photo in pixels, without opening it."""
        photo = self._photo(image)
        return photo.height, photo.width

    def read_image(self, image: str) -> np.ndarray:
        """The photo as uint8 RGB, (H, W, 3). Raises CrnetError if the file is broken or changed its size."""
        photo = self._photo(image)
        pixels = read_rgb(photo.path)
        self._check_size(photo, photo.path, pixels)
        return pixels

    def read_mask(self, image: str) -> np.ndarray:
        """Class id per pixel, uint8 (H, W): 0 background, 255 void. Raises CrnetError like ``read_image``."""
        photo = self._photo(image)
        mask = read_ids(photo.mask)
        self._check_size(photo, photo.mask, mask)
        return mask

    def _photo(self, image: str) -> Photo:
        if image not in self.photos:
            raise CrnetError(f"{self.name} has no photo {image!r}.")
        return self.photos[image]

    def _check_size(self, photo: Photo, path: Path, pixels: np.ndarray) -> None:
        if pixels.shape[:2] != (photo.height, photo.width):
            height, width = pixels.shape[:2]
            raise CrnetError(
                f"{path} is {width}x{height} px but was {photo.width}x{photo.height} when {self.name} was "
                "prepared: prepare the data again."
            )


def binary_mask(mask: np.ndarray, class_id: int, void_classes: Iterable[int] = ()) -> np.ndarray:
    """The mask of one class, uint8, any shape: 1 where it is, 255 at void and ``void_classes``, 0 elsewhere.

    ``void_classes=index.novel_classes(fold)`` makes novel pixels of training photos void (protocol B2).
    """
    lookup = np.zeros(256, np.uint8)
    lookup[list(void_classes)] = VOID
    lookup[VOID] = VOID
    lookup[class_id] = 1
    return lookup[mask]


def read_rgb(path: Path) -> np.ndarray:
    """An image file as uint8 RGB, (H, W, 3); grey and CMYK are converted.

    The EXIF orientation is not applied, as masks are drawn on the pixels as stored. Raises CrnetError if
    unreadable.
    """
    try:
        with Image.open(path) as photo:
            return np.array(photo.convert("RGB"))
    except UNREADABLE as error:
        raise CrnetError(f"{path} is not a readable image ({error}): extract its archive again.") from error


def read_ids(path: Path) -> np.ndarray:
    """A palette or grey PNG as its class ids, uint8 (H, W). Raises CrnetError if unreadable or in colour."""
    try:
        with Image.open(path) as mask:
            if mask.mode not in ("P", "L"):
                raise CrnetError(f"{path} is no mask: it has to be a palette or 8-bit grey PNG, not mode {mask.mode}.")
            return np.array(mask)
    except UNREADABLE as error:
        raise CrnetError(f"{path} is not a readable mask ({error}): extract its archive again.") from error
