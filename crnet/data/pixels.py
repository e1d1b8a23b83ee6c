"""Image files to arrays, with one sentence for each that cannot be read."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from crnet.errors import CrnetError

# What PIL raises for an absent, broken, truncated or absurdly large file.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_rgb(source: Path | IO[bytes], name: str | None = None) -> np.ndarray:
    """An image as uint8 RGB, (H, W, 3); grey and CMYK are converted.

    The EXIF orientation is not applied, as masks are drawn on the pixels as stored. Raises CrnetError, which calls
    the image ``name``, if unreadable.
    """
    try:
        with Image.open(source) as photo:
            return np.array(photo.convert("RGB"))
    except UNREADABLE as error:
        raise CrnetError(f"{name or source} is not a readable image ({error}): extract its archive again.") from error


def read_ids(path: Path) -> np.ndarray:
    """A palette or grey PNG as its class ids, uint8 (H, W). Raises CrnetError if unreadable or in colour."""
    try:
        with Image.open(path) as mask:
            if mask.mode not in ("P", "L"):
                raise CrnetError(f"{path} is no mask: it has to be a palette or 8-bit grey PNG, not mode {mask.mode}.")
            return np.array(mask)
    except UNREADABLE as error:
        raise CrnetError(f"{path} is not a readable mask ({error}): extract its archive again.") from error
