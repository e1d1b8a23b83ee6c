"""From archives in the layout of COCO 2014 to a prepared data set, without unpacking them.

``{train,val}2014.zip`` hold ``COCO_*.jpg``, ``annotations_trainval2014.zip`` holds
``annotations/instances_{train,val}2014.json``. Photos of train2014 train, photos of val2014 test. Masks are written
as run lengths into one file, ``masks.jsonl`` (``crnet.data.packed``); photos stay in the archives.
"""

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crnet.data.archives.extract import checked
from crnet.data.findings import USE_ANOTHER, Finding, Report, fail, read_remedy, reason
from crnet.data.formats import annotations
from crnet.data.formats.annotations import Annotations
from crnet.data.formats.voc import RULE_MORE_THAN
from crnet.data.index import SPLITS, begin, relative, write_tables
from crnet.data.packed import BROKEN_ZIP, decode
from crnet.data.pixels import opened, photo_size
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write, canonical

ANNOTATIONS = "annotations_trainval2014.zip"
COLUMNS = ("image", "split", "path", "member", "mask", "offset", "mask_crc32", "width", "height", "classes")
MASKS = "masks.jsonl"


@dataclass(frozen=True)
class Scan:
    """What a photo's archive member and annotations told."""

    image: str  # file name without its ending
    member: str
    identity: tuple[int, int]  # checksum and size of the member, as the archive states them
    width: int
    height: int
    line: bytes  # masks of the classes
    pixels: dict[int, int]
    by_rule: list[int]  # classes that the small-object rule keeps
    crowds: frozenset[int]


def prepare(
    archives: Path, out: Path, *, name: str, splits: Splits, published: Mapping[str, int] | None, settings: dict
) -> dict:
    """Write ``masks.jsonl``, ``images.csv``, ``pairs.csv`` and, last, ``dataset.json``, which it returns.

    Pairs are those of the small-object rule, as for VOC: the class's mask, sampled at every ``rule_grid``-th pixel,
    has more than 2 positives.

    Args:
        archives: folder of the three archives; the tables point at it relative to ``out``.
        splits: its classes, which the JSONs have to have in order of category ids, and their roles.
        published: photos by split in the whole data set, or None if this is it.
        settings: recorded as given; needs ``rule_grid``.

    Raises:
        CrnetError: anything wrong with archives or annotations, one sentence that names the file.
    """
    begin(out)
    fold_of = splits.fold_of()
    digest = hashlib.sha256(canonical(splits.digest).encode())
    lines, images, pairs, offset = [], [], [], 0
    for split in SPLITS:
        for photo in _scan_split(archives, split, splits.classes, settings["rule_grid"], fail):
            images.append(_image_row(photo, split, offset, relative(archives / f"{split}2014.zip", out)))
            pairs += [(photo.image, c, fold_of.get(c, ""), split, photo.pixels[c]) for c in photo.by_rule]
            identity = [photo.image, split, photo.identity, photo.width, photo.height, photo.by_rule]
            digest.update(canonical(identity).encode() + photo.line)
            lines.append(photo.line)
            offset += len(photo.line)
    _check_names([row[0] for row in images], archives, fail)
    atomic_write(out / MASKS, b"".join(lines))
    facts = {
        "name": name,
        "layout": "coco",
        "split_digest": splits.digest,
        "pairs_from": "rule",
        "subset": _subset(published, Counter(row[1] for row in images)),
        "counts": _counts(splits, pairs),
        "digest": digest.hexdigest(),
        "settings": settings,
    }
    return write_tables(out, splits, COLUMNS, sorted(images), sorted(pairs), facts)


def check(archives: Path, report: Report, *, splits: Splits, settings: dict) -> int:
    """Find all that ``prepare`` would stop at, and photos cut short; returns how many were read, and writes nothing.

    Raises CrnetError if an archive or a JSON is absent or broken as a whole.
    """
    names = []
    for split in SPLITS:
        scans = _scan_split(archives, split, splits.classes, settings["rule_grid"], report, decode_photos=True)
        names += [photo.image for photo in scans]
    _check_names(names, archives, report)
    return len(names)


def _scan_split(
    archives: Path, split: str, classes: tuple[str, ...], grid: int, report: Report, decode_photos: bool = False
) -> Iterator[Scan]:
    """All photos of a split ("train" or "val") by file name.

    Args:
        decode_photos: read each photo whole, which finds those that are cut short but takes minutes for 120,000;
            else their heads only.

    Raises:
        CrnetError: see ``annotations.read``; other classes than ``classes``; and by ``report`` a photo that only one of
            archive and JSON knows, or that is unreadable, or whose size is not the JSON's, which is left out.
    """
    from tqdm import tqdm

    archive = archives / f"{split}2014.zip"
    for path in (archive, archives / ANNOTATIONS):
        if not path.is_file():
            raise Finding(f"the archive {path}", "is absent", "fetch it first")
    found = annotations.read(archives / ANNOTATIONS, f"annotations/instances_{split}2014.json", report)
    if found.classes != classes:
        unlike = next((b for a, b in zip(classes, found.classes, strict=False) if a != b), "fewer or more")
        what = f"has {len(found.classes)} categories that are not the expected ones, e.g. {unlike}"
        raise Finding(found.where, what, USE_ANOTHER)
    try:
        source = zipfile.ZipFile(archive)
    except BROKEN_ZIP as error:
        raise Finding(archive, f"cannot be read ({reason(error)})", read_remedy(error, USE_ANOTHER)) from error
    with source:
        members = _members(source, archive, found, report)
        images = sorted(found.images, key=lambda image: image["file_name"])
        images = [image for image in images if image["file_name"] in members]
        for image in tqdm(images, desc=f"reading {split}2014", unit="photo", mininterval=1):
            try:
                member = members[image["file_name"]]
                _check_photo(source, archive, member, image, found, decode_photos)
                photo = _scan(member, image, found, grid, report)
            except CrnetError as error:
                report(error)
                continue
            yield photo


def _members(source: zipfile.ZipFile, archive: Path, found: Annotations, report: Report) -> dict[str, zipfile.ZipInfo]:
    """File name -> member; archive and JSON have to know the same photos."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in checked(archive, source):
        if member.is_folder:
            continue
        name = PurePosixPath(member.name).name
        if name in members:
            report(Finding(archive, f"holds two files called {name}", f"names must differ, {USE_ANOTHER}"))
        members[name] = member.handle
    named = {image["file_name"] for image in found.images}
    if absent := named - set(members):
        what = f"lacks {len(absent)} photos that {found.where} names, among them {min(absent)}"
        report(Finding(archive, what, USE_ANOTHER))
    if unknown := set(members) - named:
        what = f"lacks {len(unknown)} photos of {archive}, among them {min(unknown)}"
        report(Finding(found.where, what, f"take from the archive what is no photo, or {USE_ANOTHER}"))
    return members


def _check_photo(
    source: zipfile.ZipFile, archive: Path, member: zipfile.ZipInfo, image: dict, found: Annotations, decode: bool
) -> None:
    where = f"{member.filename} in {archive}"
    try:
        if decode:
            size = photo_size(source.read(member), where)
        else:
            with source.open(member) as stream, opened(stream, where, "image") as photo:  # reads the head only
                size = photo.size
    except BROKEN_ZIP as error:
        raise Finding(where, f"is no readable image ({reason(error)})", USE_ANOTHER) from error
    if size != (image["width"], image["height"]):
        what = f"is {size[0]}x{size[1]} px but {found.where} says {image['width']}x{image['height']}"
        raise Finding(where, what, f"they have to agree, {USE_ANOTHER}")


def _scan(member: zipfile.ZipInfo, image: dict, found: Annotations, grid: int, report: Report) -> Scan:
    height, width = image["height"], image["width"]
    packed, crowds = annotations.masks_of(found, image, report)
    masks = {class_id: decode(runs, height, width) for class_id, runs in packed.masks.items()}
    return Scan(
        image=PurePosixPath(image["file_name"]).stem,
        member=member.filename,
        identity=(member.CRC, member.file_size),
        width=width,
        height=height,
        line=packed.line(),
        pixels={class_id: int(mask.sum()) for class_id, mask in masks.items()},
        by_rule=[c for c, mask in masks.items() if mask[1::grid, 1::grid].sum() > RULE_MORE_THAN],
        crowds=crowds,
    )


def _check_names(names: list[str], archives: Path, report: Report) -> None:
    if names and (commonest := Counter(names).most_common(1)[0])[1] > 1:
        report(Finding(archives, f"holds {commonest[1]} photos called {commonest[0]}", "names must differ"))


def _subset(published: Mapping[str, int] | None, at_hand: Mapping[str, int]) -> str | None:
    """The sentence that says of what the data set is a part, or None if it is whole."""
    if published is None or all(at_hand[split] == published[split] for split in SPLITS):
        return None
    parts = [f"{at_hand[split]:,} of {published[split]:,} {split} photos" for split in SPLITS]
    return f"a subset: {' and '.join(parts)}"


def _counts(splits: Splits, pairs: list[tuple]) -> dict[str, list[int]]:
    """Per split and fold the number of pairs of the fold's test classes; and by role."""

    def count(split: str, ids: set[int]) -> int:
        return sum(pair[3] == split and pair[1] in ids for pair in pairs)

    test, held_out = [set(ids) for ids in splits.folds], [set(ids) for ids in splits.held_out]
    every = set(range(1, len(splits.classes) + 1))
    return {
        **{split: [count(split, ids) for ids in test] for split in SPLITS},
        "training": [count("train", every - t - h) for t, h in zip(test, held_out, strict=True)],
        "held_out": [sum(count(split, ids) for split in SPLITS) for ids in held_out],
    }


def _image_row(photo: Scan, split: str, offset: int, archive: str) -> tuple:
    checksum = f"{zlib.crc32(photo.line):08x}"
    classes = " ".join(map(str, sorted({*photo.pixels, *photo.crowds})))
    place = photo.image, split, archive, photo.member, MASKS, offset, checksum
    return *place, photo.width, photo.height, classes
