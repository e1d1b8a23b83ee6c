"""``crnet segment``: for each query a mask at its own size, an overlay, and on request a map of probabilities."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from crnet.errors import CrnetError
from crnet.yours.hand_out import make_folder
from crnet.yours.model import Model, Segmented
from crnet.yours.photos import check_photo

TINT = np.array([255, 120, 0], np.float32)  # of the overlay's foreground
HALF = 0.5


def parse_support(text: str) -> tuple[Path, Path]:
    """``photo.jpg:mask.png``; of several colons the one between two files. Raises CrnetError if there is none."""
    places = [i for i, letter in enumerate(text) if letter == ":"]
    for place in places:
        photo, mask = Path(text[:place]), Path(text[place + 1 :])
        if photo.is_file() and mask.is_file():
            return photo, mask
    if not places:
        raise CrnetError(f"--support {text}: has no colon; give PHOTO:MASK, e.g. cat.jpg:cat.png.")
    photo, _, mask = text.partition(":")
    absent = photo if not Path(photo).is_file() else mask
    raise CrnetError(f"--support {text}: there is no file {absent!r}; give PHOTO:MASK.")


def segment_files(
    model: Model,
    supports: Sequence[tuple[Path, Path]],
    queries: Sequence[Path],
    out: Path,
    probability: bool = False,
    force: bool = False,
    **how,
) -> str:
    """Write ``NAME-mask.png``, ``NAME-overlay.jpg`` and perhaps ``NAME-probability.png`` into the folder ``out``.

    Args:
        probability: Also write it, as 16-bit grey: 65,535 is certain foreground.
        how: See :meth:`crnet.yours.model.Model.each`.

    Raises:
        CrnetError: A photo or mask that cannot be used, two queries of one name, or a file that is there already and
            ``force`` is not given.
    """
    targets = check(queries, out, probability, force)
    make_folder(out)
    shares = []
    found = model.each(supports, queries, **how)
    for stem, each in zip(tqdm(targets, unit="photo", mininterval=1), found, strict=True):
        mask = each.mask
        Image.fromarray(mask.astype(np.uint8) * 255).save(out / f"{stem}-mask.png")
        overlay(each).save(out / f"{stem}-overlay.jpg", quality=90)
        if probability:
            grey = (each.probability * 65535).round().astype(np.uint16)
            Image.fromarray(grey).save(out / f"{stem}-probability.png")
        shares.append(mask.mean())
    return f"{out}: {len(targets)} masks, foreground {100 * min(shares):.0f} to {100 * max(shares):.0f} % of a photo"


def check(queries: Sequence[Path], out: Path, probability: bool, force: bool) -> list[str]:
    """The names of what will be written, before anything expensive: see ``segment_files`` for what is raised."""
    if not queries:
        raise CrnetError("--query: names no photo; give one or several.")
    stems: dict[str, Path] = {}
    for query in queries:
        if not query.is_file():
            raise CrnetError(f"{query}: there is no such file; check the path.")
        if query.stem in stems:
            what = f"{stems[query.stem]} and {query}"
            raise CrnetError(f"{what}: would both be written as {query.stem}-mask.png; rename one, or call twice.")
        stems[query.stem] = query
    if out.exists() and not out.is_dir():
        raise CrnetError(f"{out}: is a file; give a folder.")
    kinds = ["-mask.png", "-overlay.jpg", *(["-probability.png"] if probability else [])]
    there = [path for stem in stems for kind in kinds if (path := out / f"{stem}{kind}").exists()]
    if there and not force:
        raise CrnetError(f"{there[0]}: is there already; give another folder, or --force to replace it.")
    for query in queries:
        check_photo(query)
    return list(stems)


def overlay(found: Segmented) -> Image.Image:
    """The photo, made smaller if it is large, with the foreground tinted and outlined."""
    pixels, mask = found.picture.pixels.astype(np.float32), found.small_mask
    pixels[mask] += HALF * (TINT - pixels[mask])
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    pixels[mask & ~inner] = TINT
    return Image.fromarray(pixels.round().astype(np.uint8))
