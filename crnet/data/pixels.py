"""Image files to arrays, with one sentence for each that cannot be read.

Handled, not refused, in photos: grey, palette, CMYK and 16-bit files become 8-bit RGB (of 16 bits the upper 8 count),
transparency is dropped, one pixel is enough. An EXIF orientation is not applied, as masks are drawn on the pixels as
stored. Refused: what is broken, cut short, no image, of other bit depths, or of more than ``MAX_PIXELS``, which is
found from the head, before any memory is taken.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from crnet.data.findings import EXTRACT_AGAIN, USE_ANOTHER, Finding, read_remedy, reason

MAX_PIXELS = 50_000_000  # twice a large camera's photo; Pillow itself stops at 179 million and warns from 89
VOID = 255
TOO_LARGE = "no photo or mask of a data set is, take it and its place in the lists out"
EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})

# What PIL raises for an absent, broken or truncated file.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, OverflowError)


def _check_depth(picture: Image.Image, name: Path | str) -> None:
    if picture.mode not in EIGHT_BITS and not picture.mode.startswith("I;16"):
        raise Finding(name, f"is no photo of 8 or 16 bits a channel but of mode {picture.mode}", "convert it to JPEG")


def read_rgb(source: Path | IO[bytes], name: Path | str | None = None) -> np.ndarray:
    """An image as uint8 RGB, (H, W, 3); see the module for what is converted.

    Raises CrnetError, which calls the image ``name``, if unreadable, too large, or of a depth that is no photo's.
    """
    name = name or source
    with opened(source, name, "image") as photo:
        _check_depth(photo, name)
        if photo.mode.startswith("I;16"):
            return np.repeat((np.asarray(photo) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(photo.convert("RGB"))


def read_ids(source: Path | IO[bytes], name: Path | None = None) -> np.ndarray:
    """A palette or grey PNG as its class ids, uint8 (H, W).

    Raises CrnetError, which calls the mask ``name``, if unreadable or in colour.
    """
    name = name or source
    with opened(source, name, "mask") as mask:
        if mask.mode not in ("P", "L"):
            raise Finding(name, "is no mask", f"it has to be a palette or 8-bit grey PNG, not mode {mask.mode}")
        return np.array(mask)


def check_ids(mask: np.ndarray, class_count: int, name: Path | str) -> np.ndarray:
    """Pixels by value, (256,); raises CrnetError for a value between the last class and void."""
    counts = np.bincount(mask.ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(counts).tolist() if class_count < value < VOID]
    if wrong:
        raise Finding(name, f"holds the id {wrong[0]}", f"only 0 to {class_count} and {VOID} (void) are known")
    return counts


def read_sbd(path: Path) -> np.ndarray:
    """``GTcls.Segmentation`` of an SBD ``cls/ID.mat``: class id per pixel, uint8 (H, W), without void.

    Raises CrnetError if the file cannot be read as that.
    """
    from scipy.io import loadmat

    try:
        mask = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise ValueError(f"it holds {mask.dtype} of shape {mask.shape}")
        return np.ascontiguousarray(mask)
    except Exception as error:  # scipy raises anything from KeyError to zlib.error; the cause is chained
        raise Finding(path, f"holds no readable GTcls.Segmentation ({reason(error)})", EXTRACT_AGAIN) from error


def photo_size(data: bytes, name: Path | str) -> tuple[int, int]:
    """(width, height) of an encoded photo; decodes at 1/8, so that a truncated file is found now and not in training.

    Raises CrnetError like ``read_rgb``.
    """
    with opened(io.BytesIO(data), name, "image") as photo:
        size = photo.size
        _check_depth(photo, name)
        photo.draft("L", (1, 1))
        photo.load()
    return size


@contextmanager
def opened(source: Path | IO[bytes], name: Path | str, noun: str) -> Iterator[Image.Image]:
    """A picture whose head was read and whose pixels were not; what goes wrong with either is a Finding.

    Args:
        name: the file; a text where it is read inside an archive.
    """
    remedy = EXTRACT_AGAIN if isinstance(name, Path) else USE_ANOTHER
    try:
        with Image.open(source) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.width}x{picture.height} px"
                raise Finding(name, f"is {size}, above the limit of {MAX_PIXELS // 10**6} million pixels", TOO_LARGE)
            yield picture
    except Image.DecompressionBombError as error:
        raise Finding(name, f"is far too large ({reason(error)})", TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise Finding(name, f"is not a readable {noun} (it holds none)", remedy) from error
    except UNREADABLE as error:
        raise Finding(name, f"is not a readable {noun} ({reason(error)})", read_remedy(error, remedy)) from error
