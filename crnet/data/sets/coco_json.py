"""Photos of your own with one annotation file in COCO's format; see docs/using.md."""

import json
import os
import zlib
from functools import cache
from pathlib import Path, PurePosixPath

from crnet.data.findings import Finding, Report, fail, read_remedy, reason
from crnet.data.formats import annotations, own
from crnet.data.formats.annotations import Annotations
from crnet.data.index import relative
from crnet.data.packed import decode
from crnet.data.pixels import photo_size
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write

OWN = True  # neither downloaded nor generated
SETTINGS = {
    "images": "",  # folder that the file names of the annotations are in
    "annotations": "",  # the JSON; its categories, by id, are the classes
    "folds": 4,  # as those of `folder`, and so are all below
    "test_classes": [],
    "folds_file": "",
    "train": "",
    "val": "",
    "val_share": 0.5,
    "split_seed": 0,
    "rule_grid": 32,
    "rule_more_than": 2,
    "minimum_photos": 2,
    "content": "",
}
LIMITS = {
    "folds": (2, 1000),
    "val_share": (0.01, 0.99),
    "split_seed": (0, 2_147_483_647),
    "rule_grid": (1, 128),
    "rule_more_than": (0, 1_000_000),
    "minimum_photos": (2, 1_000_000),
}
MASKS = "masks.jsonl"
MEND = "mend the file"


def splits(settings: dict) -> Splits:
    """Of the categories in the order of their ids."""
    found = _annotations(settings)
    return own.splits(found.classes, settings, found.where)


def content(settings: dict) -> str:
    """Digest over photos, annotations, folds and lists."""
    images = own.folder(settings, "images")
    files = [(f"photo {image['file_name']}", images / image["file_name"]) for image in _annotations(settings).images]
    there = [(name, path) for name, path in files if path.is_file()]
    return own.content([*there, *own.named_files(settings, "annotations", "folds_file", "train", "val")])


def prepare(archives: Path, extracted: Path, out: Path, settings: dict) -> dict:
    """Photos stay where they are; masks are written as run lengths into one file."""
    own.ready(out, settings, content(settings))
    of = splits(settings)
    items, assigned, lines = _read(settings, out, of, fail)
    atomic_write(out / MASKS, b"".join(lines))
    return own.write(out, "coco-json", items, assigned, of, settings)


def check(archives: Path, extracted: Path, settings: dict, report: Report) -> int:
    """Report all that ``prepare`` would stop at; returns the photos that are whole."""
    return len(_read(settings, None, splits(settings), report)[0])


def source(settings: dict) -> Path:
    """What ``check`` reads."""
    return own.folder(settings, "images")


def _annotations(settings: dict) -> Annotations:
    path = own.file(settings, "annotations")
    return _cached(str(path), (at := path.stat()).st_size, at.st_mtime_ns)


@cache
def _cached(path: str, size: int, changed: int) -> Annotations:
    """What matters for the classes; single annotations that are wrong are reported when the photos are read."""
    return annotations.check(_json(Path(path)), path, lambda error: None)


def _json(path: Path) -> object:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise Finding(path, f"is no JSON ({reason(error)})", MEND) from error
    for each in found.get("annotations", []) if isinstance(found, dict) else []:
        if isinstance(each, dict):
            each.setdefault("iscrowd", 0)  # left out by many tools
    return found


def _read(
    settings: dict, out: Path | None, of: Splits, report: Report
) -> tuple[list[own.Item], dict[str, str], list[bytes]]:
    from tqdm import tqdm

    images = own.folder(settings, "images")
    found = annotations.check(_json(own.file(settings, "annotations")), settings["annotations"], _with_remedy(report))
    named: dict[str, dict] = {}
    for image in found.images:
        name = os.path.splitext(PurePosixPath(image["file_name"]).as_posix())[0]
        if name in named:
            report(Finding(found.where, f"has two photos called {name}", "rename one of them"))
        named[name] = image
    assigned = own.assign(list(named), settings, report)
    items, lines, offset = [], [], 0
    for name in tqdm(sorted(set(named) & set(assigned)), desc="reading photos", unit="photo", mininterval=1):
        try:
            item, line = _item(name, named[name], images, found, out, settings, offset, _with_remedy(report))
        except CrnetError as error:
            report(error)
            continue
        items.append(item)
        lines.append(line)
        offset += len(line)
    own.check_counts(items, assigned, of, settings, report)
    return items, assigned, lines


def _with_remedy(report: Report) -> Report:
    """What is wrong with an annotation of yours is mended by you."""

    def mend(error: CrnetError) -> None:
        report(Finding(error.file, error.what, MEND) if isinstance(error, Finding) else error)

    return mend


def _item(
    name: str,
    image: dict,
    images: Path,
    found: Annotations,
    out: Path | None,
    settings: dict,
    offset: int,
    report: Report,
) -> tuple[own.Item, bytes]:
    path = images / image["file_name"]
    if not path.resolve().is_relative_to(images.resolve()):
        raise Finding(found.where, f"names the photo {image['file_name']}, which is not in {images}", MEND)
    try:
        size = photo_size(path.read_bytes(), path)
    except OSError as error:
        raise Finding(
            path, f"cannot be read ({reason(error)})", read_remedy(error, "add it, or mend the file")
        ) from error
    except Finding as error:
        raise Finding(path, error.what, "take it out, or give another") from error
    width, height = image["width"], image["height"]
    if size != (width, height):
        raise Finding(path, f"is {size[0]}x{size[1]} px but {found.where} says {width}x{height}", "they have to agree")
    packed, crowds = annotations.masks_of(found, image, report)
    masks = {class_id: decode(runs, height, width) for class_id, runs in packed.masks.items()}
    grid, line = settings["rule_grid"], packed.line()
    sampled = {c: mask[1::grid, 1::grid] if grid > 1 else mask for c, mask in masks.items()}
    item = own.Item(
        image=name,
        path=relative(path, out) if out else str(path),
        mask=MASKS,
        mask_crc32=zlib.crc32(line),
        width=width,
        height=height,
        pixels={c: int(mask.sum()) for c, mask in masks.items()},
        kept=frozenset(c for c, mask in sampled.items() if mask.sum() > settings["rule_more_than"]),
        others=crowds,
        offset=offset,
    )
    return item, line
