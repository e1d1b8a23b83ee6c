"""Photos and masks as people have them: paths, PIL pictures or arrays, upright, in RGB, and of bounded size in memory.

Grey, palette, CMYK and 16-bit photos become 8-bit RGB, transparency is dropped, and an EXIF orientation is applied: a
mask belongs to the photo as it is shown. The network sees a few hundred pixels a side, so that of a large photo no more
than ``WORKING_PIXELS`` are kept; its mask is enlarged to its own size at the end.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from crnet.data.findings import Finding
from crnet.data.index import Index
from crnet.data.pixels import EIGHT_BITS, MAX_PIXELS, opened
from crnet.errors import CrnetError

Source = str | os.PathLike | Image.Image | np.ndarray
WORKING_PIXELS = 2_000_000
VOID, CLASS = 255, 1
EXIF_ORIENTATION = 0x0112
MAKE_SMALLER = f"make it smaller, at most {MAX_PIXELS // 10**6} million pixels"


@dataclass(frozen=True)
class Picture:
    """A photo as the network gets it."""

    pixels: np.ndarray  # uint8 RGB (h, w, 3), of at most about WORKING_PIXELS
    size: tuple[int, int]  # the photo's own height and width, upright


class OwnPhotos(Index):
    """What a predictor asks of a prepared data set, of pictures in memory; the class of every mask is ``CLASS``."""

    def __init__(self) -> None:
        self.name = "own photos"
        self._pictures: dict[str, Picture] = {}
        self._masks: dict[str, np.ndarray] = {}

    def add(self, name: str, picture: Picture, mask: np.ndarray | None = None) -> None:
        self._pictures[name] = picture
        if mask is not None:
            self._masks[name] = mask

    def drop(self, name: str) -> None:
        self._pictures.pop(name)
        self._masks.pop(name, None)

    def size(self, image: str) -> tuple[int, int]:
        return self._pictures[image].pixels.shape[:2]

    def read_image(self, image: str) -> np.ndarray:
        return self._pictures[image].pixels

    def class_mask(self, image: str, class_id: int, void_classes: tuple = ()) -> np.ndarray:
        return self._masks[image]


def name_of(source: Source, role: str) -> str:
    """How messages call a photo or a mask."""
    return str(Path(source)) if isinstance(source, str | os.PathLike) else role


def read_photo(source: Source, role: str = "the photo") -> Picture:
    """A photo upright in RGB; raises CrnetError, in a sentence, if it cannot be read or is no photo."""
    with _picture(source, role) as (picture, name):
        own = _upright_size(picture)
        small = _working_size(own)
        if small != own and picture.format == "JPEG":
            as_stored = small[::-1] if own == (picture.height, picture.width) else small
            picture.draft(picture.mode, as_stored)  # decoded at a half, a quarter or an eighth, not below what is kept
        upright = ImageOps.exif_transpose(_eight_bits(picture, name))
        if small != own:
            upright = upright.resize(small[::-1], Image.Resampling.BILINEAR)
        return Picture(np.array(upright.convert("RGB")), own)


def check_photo(path: Path) -> None:
    """Raise what ``read_photo`` would; the file is read to its end, as one may be cut off."""
    with _picture(path, "the photo") as (picture, name):
        if not picture.mode.startswith("I;16") and picture.mode not in EIGHT_BITS:
            raise _wrong_depth(picture, name)
        picture.load()


def read_mask(source: Source, photo: Picture, role: str = "the mask") -> np.ndarray:
    """The mask of a support, uint8 {0, 1, 255 void}, as wide and high as ``photo.pixels``.

    Foreground is the one value beside 0: 0/255, 0/1, one class of a palette, black and one colour, or False and True.
    With three values, 0, another and 255, 255 is void.

    Raises:
        CrnetError: It cannot be read, is not of the photo's size, has no foreground, or more than one class.
    """
    with _picture(source, role) as (picture, name):
        upright = ImageOps.exif_transpose(picture)
        values = _values(upright)
    if values.shape != photo.size:
        have, want = ("x".join(map(str, shape[::-1])) for shape in (values.shape, photo.size))
        turned = ", turned: draw it on the photo as it is shown" if values.shape == photo.size[::-1] else ""
        raise Finding(name, f"is {have} px but its photo is {want} px{turned}", "they have to be of one size")
    mask = _foreground(values, name)
    height, width = photo.pixels.shape[:2]
    if mask.shape == (height, width):
        return mask
    return np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


@contextmanager
def _picture(source: Source, role: str) -> Iterator[tuple[Image.Image, str]]:
    """A picture and its name; files are opened, their pixels not yet read."""
    name = name_of(source, role)
    if isinstance(source, Image.Image | np.ndarray):
        picture = _from_array(source, name) if isinstance(source, np.ndarray) else source
        if picture.width * picture.height > MAX_PIXELS:
            raise Finding(name, f"is {picture.width}x{picture.height} px", MAKE_SMALLER)
        yield picture, name
        return
    if not isinstance(source, str | os.PathLike):
        raise CrnetError(f"{role}: is a {type(source).__name__}; give a path, a PIL image or a NumPy array.")
    if not Path(source).is_file():
        raise CrnetError(f"{name}: there is no such file; check the path.")
    try:
        with opened(Path(source), name, "picture") as picture:
            yield picture, name
    except Finding as error:
        if error.file != name:
            raise
        large = "large" in error.what or "above the limit" in error.what
        kept = error.remedy if error.remedy in REMEDIES else MAKE_SMALLER if large else "give another file"
        raise Finding(name, error.what, kept) from error


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype != np.uint8 and array.ndim == 2 and set(np.unique(array).tolist()) <= {0, 1, 255}:
        array = array.astype(np.uint8)  # a mask of any number type
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    proper = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not proper or not array.size:
        what = f"is an array of {array.dtype} and shape {array.shape}"
        raise Finding(name, what, REMEDIES[0])
    return Image.fromarray(np.ascontiguousarray(array))


REMEDIES = (
    "give uint8 of shape (H, W), (H, W, 3) or (H, W, 4)",
    "convert it to 8 bits a channel, as JPEG or PNG",
    "they have to be of one size",
    "give the mask of one object class",
    "give a mask of two values, e.g. 0 and 255, without smooth edges",
)


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """The picture in RGB or grey, of 16 bits the upper 8; raises CrnetError for another depth."""
    if picture.mode.startswith("I;16"):
        shifted = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        shifted.info, orientation = picture.info, picture.getexif().get(EXIF_ORIENTATION)
        if orientation:
            shifted.getexif()[EXIF_ORIENTATION] = orientation
        return shifted
    if picture.mode not in EIGHT_BITS:
        raise _wrong_depth(picture, name)
    return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")


def _wrong_depth(picture: Image.Image, name: str) -> Finding:
    return Finding(name, f"is no photo of 8 or 16 bits a channel but of mode {picture.mode}", REMEDIES[1])


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width as the picture is shown."""
    turned = picture.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    return (picture.width, picture.height) if turned else (picture.height, picture.width)


def _working_size(size: tuple[int, int]) -> tuple[int, int]:
    pixels = size[0] * size[1]
    if pixels <= WORKING_PIXELS:
        return size
    factor = (WORKING_PIXELS / pixels) ** 0.5
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _values(picture: Image.Image) -> np.ndarray:
    """One number a pixel: grey, palette index, or a code of the colour with black 0."""
    if picture.mode in ("1", "L", "P") or picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.int32 if picture.mode.startswith("I") else np.uint8)
    if picture.mode in ("LA", "La", "PA"):
        return np.asarray(picture.getchannel(0))
    rgb = np.asarray(picture.convert("RGB"))
    grey = (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all()
    if grey:
        return rgb[..., 0]
    return rgb[..., 0].astype(np.int32) * 65536 + rgb[..., 1].astype(np.int32) * 256 + rgb[..., 2]


def _foreground(values: np.ndarray, name: str) -> np.ndarray:
    there = np.unique(values).tolist()
    others = [value for value in there if value not in (0, VOID)]
    if len(others) > 1:
        if len(others) > 32:
            raise Finding(name, f"holds {len(there)} different values", REMEDIES[4])
        raise Finding(name, f"holds several classes ({', '.join(map(str, others[:8]))})", REMEDIES[3])
    chosen = others[0] if others else VOID
    mask = (values == chosen).astype(np.uint8)
    if not mask.any():
        raise Finding(name, "has no foreground", "mark the object in it")
    if others:
        mask[values == VOID] = VOID
    return mask


def enlarged(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map float32 (h, w), bilinear at another height and width; itself where these are its own."""
    if probability.shape == size:
        return probability
    return np.array(Image.fromarray(probability).resize(size[::-1], Image.Resampling.BILINEAR))
