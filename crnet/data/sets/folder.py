"""A folder of your own: photos, index masks beside them, and a file of class names; see docs/using.md."""

import io
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crnet.data.findings import Finding, Report, fail, read_remedy, reason
from crnet.data.formats import own
from crnet.data.index import relative
from crnet.data.pixels import VOID, photo_size, read_ids
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write, sha256_text

OWN = True  # neither downloaded nor generated
SETTINGS = {
    "images": "",  # folder of photos; folders in it are looked through
    "masks": "",  # folder of their masks, a PNG of the same name each: palette or 8-bit grey, a number a class
    "mask_suffix": "",  # what the masks' names have besides, e.g. "_mask"; then both may lie in one folder
    "classes": "",  # YAML: a list of names for the numbers 1, 2, ..., or number: name
    "void": 255,  # the number of pixels that are neither a class nor background
    "folds": 4,  # by count: the classes in their order
    "test_classes": [],  # or a list of names for each fold
    "folds_file": "",  # or the same in a YAML file
    "train": "",  # list of photos, a line each
    "val": "",  # those that are tested on; without it a share of all, by a rule
    "val_share": 0.5,
    "split_seed": 0,
    "rule_grid": 32,  # a class counts in a photo if the mask, sampled at every so many pixels, has more than ...
    "rule_more_than": 2,  # ... so many of it; with a grid of 1 these are pixels
    "minimum_photos": 2,  # of each tested class, among the test photos
    "content": "",  # digest of the files; found out if not given
}
LIMITS = {
    "void": (0, 255),
    "folds": (2, 1000),
    "val_share": (0.01, 0.99),
    "split_seed": (0, 2_147_483_647),
    "rule_grid": (1, 128),
    "rule_more_than": (0, 1_000_000),
    "minimum_photos": (2, 1_000_000),
}
MAKE_MASKS = "make the mask a palette or 8-bit grey PNG of class numbers"


def splits(settings: dict) -> Splits:
    """Of the classes in the order of their numbers."""
    return own.splits([name for _, name in _classes(settings)], settings, str(settings["classes"]))


def content(settings: dict) -> str:
    """Digest over photos, masks, class names, folds and lists."""
    files = [(f"photo {image}", path) for image, path, _ in _found(settings)]
    files += [(f"mask {image}", mask) for image, _, mask in _found(settings) if mask.is_file()]
    return own.content([*files, *own.named_files(settings, "classes", "folds_file", "train", "val")])


def prepare(archives: Path, extracted: Path, out: Path, settings: dict) -> dict:
    """Photos stay where they are, and so do masks whose numbers are 1 to N already; others are written anew."""
    own.ready(out, settings, content(settings))
    of = splits(settings)
    items, assigned = _read(settings, out, of, fail)
    return own.write(out, "folder", items, assigned, of, settings)


def check(archives: Path, extracted: Path, settings: dict, report: Report) -> int:
    """Report all that ``prepare`` would stop at; returns the photos that are whole."""
    return len(_read(settings, None, splits(settings), report)[0])


def source(settings: dict) -> Path:
    """What ``check`` reads."""
    return own.folder(settings, "images")


def _classes(settings: dict) -> list[tuple[int, str]]:
    """(number in masks, name), by number."""
    path = own.file(settings, "classes")
    named: Any = own.read_yaml(path)
    if isinstance(named, list):
        named = dict(enumerate(named, 1))
    if not isinstance(named, dict) or not all(isinstance(n, int) and 0 <= n <= 255 for n in named):
        raise CrnetError(f"{path}: has to be a list of class names, or number: name with numbers from 1 to 255.")
    return sorted((n, name) for n, name in named.items() if n not in (0, settings["void"]))


def _found(settings: dict) -> list[tuple[str, Path, Path]]:
    """(id, photo, where its mask has to be) of every photo; the same id of two is found by ``_read``."""
    images, masks = own.folder(settings, "images"), own.folder(settings, "masks")
    suffix = settings["mask_suffix"]
    together = os.path.samefile(images, masks)
    if together and not suffix:
        raise CrnetError("dataset.masks: is the folder of the photos; set mask_suffix, by which masks are told apart.")
    found = []
    for path in sorted(images.rglob("*")):
        image = path.relative_to(images).with_suffix("").as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(images).parts)
        if path.suffix.lower() not in own.PHOTO_KINDS or hidden or not path.is_file():
            continue
        if together and image.endswith(suffix) and path.suffix.lower() == ".png":
            continue
        if not together and masks.resolve() in path.resolve().parents:
            continue
        found.append((image, path, masks / f"{image}{suffix}.png"))
    return found


def _read(settings: dict, out: Path | None, of: Splits, report: Report) -> tuple[list[own.Item], dict[str, str]]:
    from tqdm import tqdm

    found = _found(settings)
    if not found:
        report(Finding(settings["images"], "holds no photo", f"give one of {', '.join(sorted(own.PHOTO_KINDS))}"))
    assigned = own.assign([image for image, _, _ in found], settings, report)
    lookup, seen, items = _lookup(settings), set(), []
    for image, path, mask in tqdm(found, desc="reading the folder", unit="photo", mininterval=1):
        if image in seen:
            report(Finding(path, "has the name of another photo but for its ending", "rename one of them"))
            continue
        seen.add(image)
        if image not in assigned:
            continue
        try:
            items.append(_item(image, path, mask, lookup, out, settings))
        except CrnetError as error:
            report(error)
    own.check_counts(items, assigned, of, settings, report)
    return items, assigned


@cache
def _table(numbers: tuple[int, ...], void: int) -> np.ndarray:
    table = np.full(256, -1, np.int16)
    table[0] = 0
    for class_id, number in enumerate(numbers, 1):
        table[number] = class_id
    table[void] = VOID
    return table


def _lookup(settings: dict) -> np.ndarray:
    """Number in a mask -> class id, 0, 255, or -1 for one that is not known."""
    numbers = tuple(number for number, _ in _classes(settings))
    if len(numbers) >= VOID:
        raise CrnetError(f"{settings['classes']}: names {len(numbers)} classes; masks hold at most 254.")
    return _table(numbers, settings["void"])


def _item(image: str, path: Path, mask: Path, lookup: np.ndarray, out: Path | None, settings: dict) -> own.Item:
    try:
        width, height = photo_size(path.read_bytes(), path)
    except OSError as error:
        raise Finding(path, f"cannot be read ({reason(error)})", read_remedy(error, "give another")) from error
    except Finding as error:
        raise Finding(path, error.what, "take it out, or give another") from error
    if not mask.is_file():
        raise Finding(mask, f"is absent, but the photo {path.name} needs it", "add the mask, or take the photo out")
    try:
        numbers = read_ids(mask)
    except Finding as error:
        raise Finding(mask, error.what, MAKE_MASKS) from error
    if numbers.shape != (height, width):
        turned = ", turned: an EXIF orientation is not applied" if numbers.shape == (width, height) else ""
        what = f"is {numbers.shape[1]}x{numbers.shape[0]} px but its photo {path.name} is {width}x{height} px{turned}"
        raise Finding(mask, what, "they have to be of one size")
    there = np.unique(numbers)
    if unknown := [int(n) for n in there if lookup[n] < 0]:
        raise Finding(mask, f"holds the number {unknown[0]}", f"name it in {settings['classes']}, or make it void")
    ids, target = lookup[numbers].astype(np.uint8), mask
    if out is not None and (lookup[there] != there).any():
        target = out / "masks" / f"{sha256_text(image)[:16]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, _png(ids))
    counts = np.bincount(ids.ravel(), minlength=256)
    sampled = ids[1 :: settings["rule_grid"], 1 :: settings["rule_grid"]] if settings["rule_grid"] > 1 else ids
    kept = np.bincount(sampled.ravel(), minlength=256) > settings["rule_more_than"]
    return own.Item(
        image=image,
        path=relative(path, out) if out else str(path),
        mask=relative(target, out) if out else str(target),
        mask_crc32=zlib.crc32(target.read_bytes()),
        width=width,
        height=height,
        pixels={c: int(counts[c]) for c in range(1, VOID) if counts[c]},
        kept=frozenset(c for c in range(1, VOID) if kept[c]),
    )


def _png(ids: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(ids).save(stream, "PNG")
    return stream.getvalue()
