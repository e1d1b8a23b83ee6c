"""From an extracted folder in the layout of PASCAL VOC, with or without SBD, to a prepared data set.

VOC: ``JPEGImages/ID.jpg``, ``SegmentationClass/ID.png``, ``ImageSets/Segmentation/{train,val}.txt``.
SBD (Hariharan et al. 2011): ``img/ID.jpg``, ``cls/ID.mat`` (``GTcls.Segmentation``), ``{train,val}.txt``.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crnet.data.findings import Finding, Report, fail, reason
from crnet.data.index import SPLITS, write_tables
from crnet.data.pixels import EXTRACT_AGAIN, check_ids, photo_size, read_ids, read_sbd
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write, canonical, sha256_text

# Protocol H: OSLSM keeps a pair if its mask, sampled at pixels 1, 33, 65, ... (the first pixel is 0) in both
# directions, has more than 2 positives.
RULE_GRID = 32
RULE_MORE_THAN = 2
COLUMNS = ("image", "split", "path", "mask", "mask_crc32", "width", "height", "classes")


@dataclass(frozen=True)
class Source:
    """A photo as found: its split, its image file, and its mask as PNG or, if only SBD has one, as .mat."""

    image: str
    split: str
    path: Path
    mask: Path


@dataclass(frozen=True)
class Scan:
    """What reading a photo and its mask told: size, pixels by class, classes that the rule keeps, digests."""

    source: Source
    mask: Path  # of an SBD mask the PNG, if one was written
    width: int
    height: int
    pixels: dict[int, int]
    by_rule: frozenset[int]
    image_sha256: str
    mask_sha256: str


def prepare(
    voc_root: Path,
    sbd_root: Path | None,
    out: Path,
    *,
    name: str,
    classes: tuple[str, ...],
    folds: tuple[tuple[int, ...], ...],
    pairs: str | Sequence[tuple[str, str, int]],
    subset_ids: Sequence[str] | None,
    settings: dict,
    published: Sequence[tuple[str, str, int]] | None = None,
) -> dict:
    """Write ``images.csv``, ``pairs.csv``, SBD's masks as PNG and, last, ``dataset.json`` into ``out``.

    VOC's own mask wins where both have one, and photos of VOC val are the test split and never train.
    Photos and VOC masks are not copied: the tables point at them relative to ``out``.

    Args:
        voc_root: folder in the layout of VOC.
        sbd_root: folder in the layout of SBD, or None.
        out: folder of the prepared data set; made if absent.
        name: name of the data set.
        classes: class names in the order of their ids 1 to N.
        folds: per fold the ids of its test classes; each id in exactly one fold.
        pairs: "rule" for the small-object rule, or a list of (split, image, class id), kept if at hand.
        subset_ids: restrict to these image ids; None for all.
        settings: recorded as given; ``rule_grid`` is the step of the rule's grid in pixels (default 32).
        published: the list to which ``pairs`` by rule are compared; ``pairs`` itself where that is a list.

    Returns:
        What ``dataset.json`` holds.

    Raises:
        CrnetError: anything wrong with the files, one sentence that names the file.
    """
    fold_of = _fold_of(classes, folds)
    if pairs != "rule":
        if isinstance(pairs, str):
            raise CrnetError(f'unknown choice of pairs {pairs!r}: "rule", or a list of (split, image, class id).')
        published = pairs
    # dataset.json is the sign of completion: gone from the start, written last.
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataset.json").unlink(missing_ok=True)

    scans, found = _scan_all(voc_root, sbd_root, out, name, len(classes), subset_ids, settings, fail)
    by_rule = {(s.source.split, s.source.image, class_id) for s in scans for class_id in s.by_rule}
    listed = _at_hand(scans, published)
    kept = by_rule if pairs == "rule" else listed
    rows = _pair_rows(scans, kept, fold_of)

    description = {
        "name": name,
        "classes": list(classes),
        "folds": [list(fold) for fold in folds],
        "held_out": [[] for _ in folds],
        "split_note": None,
        "pairs_from": "rule" if pairs == "rule" else "published",
        "subset": _subset(published, listed, len(scans), found),
        "counts": {
            split: [sum(row[2] == fold and row[3] == split for row in rows) for fold in range(len(folds))]
            for split in SPLITS
        },
        "digest": _digest(scans, rows),
        "settings": dict(settings),
    }
    if published is not None:
        description["rule_check"] = compare_with_rule(listed, by_rule, folds)
    write_tables(out, COLUMNS, [_image_row(s, out) for s in scans], rows, description)
    return description


def check(
    voc_root: Path,
    sbd_root: Path | None,
    report: Report,
    *,
    name: str,
    classes: tuple[str, ...],
    folds: tuple[tuple[int, ...], ...],
    pairs: str | Sequence[tuple[str, str, int]],
    subset_ids: Sequence[str] | None,
    settings: dict,
    published: Sequence[tuple[str, str, int]] | None = None,
) -> int:
    """Find all that ``prepare`` would stop at, and write nothing.

    Args:
        report: takes each finding; the others are those of ``prepare``.

    Returns:
        The number of photos that were read.

    Raises:
        CrnetError: a list of photos is absent, so that nothing can be read.
    """
    scans, _ = _scan_all(voc_root, sbd_root, None, name, len(classes), subset_ids, settings, report)
    if pairs != "rule":
        _pair_rows(scans, _at_hand(scans, published), _fold_of(classes, folds), report)
    return len(scans)


def _scan_all(
    voc_root: Path,
    sbd_root: Path | None,
    out: Path | None,
    name: str,
    class_count: int,
    subset_ids: Sequence[str] | None,
    settings: dict,
    report: Report,
) -> tuple[list[Scan], int]:
    """Scans of all photos that were asked for, and how many there are of whatever subset."""
    sources = find_photos(voc_root, sbd_root, report)
    found = len(sources)
    if subset_ids is not None:
        sources = _restrict(sources, subset_ids, voc_root, report)
    grid, scans = settings.get("rule_grid", RULE_GRID), []
    for source in _progress(sources, f"reading {name}"):
        try:
            scans.append(scan(source, out, class_count, grid))
        except CrnetError as error:
            report(error)
    return scans, found


def _at_hand(scans: list[Scan], published: Sequence[tuple[str, str, int]] | None) -> set[tuple[str, str, int]]:
    images = {s.source.image for s in scans}
    return {pair for pair in published or () if pair[1] in images}


def find_photos(voc_root: Path, sbd_root: Path | None, report: Report = fail) -> list[Source]:
    """Every photo that the lists of VOC and SBD name, sorted by id, with its split and files.

    Raises:
        CrnetError: a list is absent; and by ``report`` an absent photo or mask, whose photo is left out.
    """
    lists = voc_root / "ImageSets" / "Segmentation"
    val = _read_list(lists / "val.txt")
    voc = val | _read_list(lists / "train.txt")
    sbd = _read_list(sbd_root / "train.txt") | _read_list(sbd_root / "val.txt") if sbd_root else set()
    sources = []
    for image in sorted(voc | sbd):
        photos = [voc_root / "JPEGImages" / f"{image}.jpg"]
        masks = [voc_root / "SegmentationClass" / f"{image}.png"]
        if image in sbd:
            photos.append(sbd_root / "img" / f"{image}.jpg")
        # A photo that VOC lists has to have VOC's mask: SBD's is coarser and knows no void.
        if image not in voc:
            masks.append(sbd_root / "cls" / f"{image}.mat")
        try:
            path = _first_file(photos, f"the photo {image} is listed")
            mask = _first_file(masks, f"the mask of {image} is needed")
        except CrnetError as error:
            report(error)
            continue
        sources.append(Source(image, "val" if image in val else "train", path, mask))
    return sources


def scan(source: Source, out: Path | None, class_count: int, grid: int) -> Scan:
    """Read a photo and its mask, check them against each other, and write SBD's mask as ``out/masks/ID.png``.

    A mask without any class (all background, all void, or both) is fine: its photo is in no pair.

    Args:
        out: folder of the prepared data set; None writes nothing.

    Raises:
        CrnetError: photo or mask unreadable, of different size, or the mask holds an id that is no class.
    """
    photo = _bytes(source.path)
    width, height = photo_size(photo, source.path)
    from_sbd = source.mask.suffix == ".mat"
    mask = read_sbd(source.mask) if from_sbd else read_ids(source.mask)
    if mask.shape != (height, width):
        turned = ", turned: an EXIF orientation is not applied" if mask.shape == (width, height) else ""
        raise Finding(
            source.mask,
            f"is {mask.shape[1]}x{mask.shape[0]} px but its photo {source.path.name} is {width}x{height} px{turned}",
            "they have to be of one size",
        )
    counts = check_ids(mask, class_count, source.mask)
    sampled = np.bincount(mask[1::grid, 1::grid].ravel(), minlength=256)
    target = source.mask
    if from_sbd and out is not None:
        target = out / "masks" / f"{source.image}.png"
        png = io.BytesIO()
        Image.fromarray(mask).save(png, "PNG")
        atomic_write(target, png.getvalue())
    return Scan(
        source=source,
        mask=target,
        width=width,
        height=height,
        pixels={c: int(counts[c]) for c in range(1, class_count + 1) if counts[c]},
        by_rule=frozenset(c for c in range(1, class_count + 1) if sampled[c] > RULE_MORE_THAN),
        image_sha256=hashlib.sha256(photo).hexdigest(),
        mask_sha256=hashlib.sha256(canonical(mask.shape).encode() + mask.tobytes()).hexdigest(),
    )


def compare_with_rule(
    published: Iterable[tuple[str, str, int]],
    by_rule: Iterable[tuple[str, str, int]],
    folds: tuple[tuple[int, ...], ...],
) -> dict[str, list[dict[str, int]]]:
    """Per split and fold how many (split, image, class) the list has, the rule keeps, and either has alone.

    Only pairs of photos at hand should be given. Over the 12,031 masks of VOC + SBD each has at most 17 pairs
    a fold that the other lacks (protocol H).
    """
    published, by_rule = set(published), set(by_rule)

    def count(pairs: set[tuple[str, str, int]], split: str, fold: tuple[int, ...]) -> int:
        return sum(pair[0] == split and pair[2] in fold for pair in pairs)

    return {
        split: [
            {
                "published": count(published, split, fold),
                "by_rule": count(by_rule, split, fold),
                "missing": count(published - by_rule, split, fold),
                "extra": count(by_rule - published, split, fold),
            }
            for fold in folds
        ]
        for split in SPLITS
    }


def _fold_of(classes: tuple[str, ...], folds: tuple[tuple[int, ...], ...]) -> dict[int, int]:
    ids = [class_id for fold in folds for class_id in fold]
    if sorted(ids) != list(range(1, len(classes) + 1)):
        raise CrnetError(f"folds have to hold each class id 1 to {len(classes)} exactly once, not {ids}.")
    return {class_id: fold for fold, members in enumerate(folds) for class_id in members}


def _read_list(path: Path) -> set[str]:
    if not path.is_file():
        raise Finding(f"the list {path}", "is absent", EXTRACT_AGAIN)
    try:
        return set(path.read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        raise Finding(f"the list {path}", f"cannot be read ({reason(error)})", EXTRACT_AGAIN) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Finding(path, f"cannot be read ({reason(error)})", EXTRACT_AGAIN) from error


def _first_file(candidates: list[Path], what: str) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    raise Finding(" or ".join(map(str, candidates)), f"is absent, but {what}", EXTRACT_AGAIN)


def _restrict(sources: list[Source], subset_ids: Sequence[str], voc_root: Path, report: Report) -> list[Source]:
    wanted = set(subset_ids)
    absent = wanted - {source.image for source in sources}
    if absent:
        what = f"names {len(absent)} photos that {voc_root} lacks, among them {min(absent)}"
        report(Finding("the subset", what, "correct the list of its ids"))
    return [source for source in sources if source.image in wanted]


def _progress(sources: list[Source], text: str) -> Iterable[Source]:
    from tqdm import tqdm

    return tqdm(sources, desc=text, unit="photo", mininterval=1)


def _pair_rows(
    scans: list[Scan], kept: set[tuple[str, str, int]], fold_of: dict[int, int], report: Report = fail
) -> list[tuple]:
    """Rows of ``pairs.csv``; each pair has to agree with the split and the mask of its photo."""
    by_image = {s.source.image: s for s in scans}
    rows = []
    for split, image, class_id in sorted(kept, key=lambda pair: pair[1:]):
        photo = by_image[image]
        if photo.source.split != split:
            what = f"has {image} in {split}, but this data has it in {photo.source.split}"
        elif class_id not in photo.pixels:
            what = f"has class {class_id} in {image}, but {photo.source.mask} has no such pixel"
        else:
            rows.append((image, class_id, fold_of[class_id], split, photo.pixels[class_id]))
            continue
        report(Finding("the pair list", what, "list and data do not belong together"))
    return rows


def _subset(published: Sequence | None, listed: set, photos: int, found: int) -> str | None:
    """The sentence that says of what the data set is a part, or None if it is whole."""
    if published is not None:
        if len(listed) == len(published):
            return None
        at_hand = len({image for _, image, _ in listed})
        named = len({image for _, image, _ in published})
        return (
            f"a subset: {at_hand:,} of {named:,} photos and {len(listed):,} of {len(published):,} pairs "
            "of the published lists"
        )
    return None if photos == found else f"a subset: {photos:,} of {found:,} photos"


def _digest(scans: list[Scan], rows: list[tuple]) -> str:
    """SHA-256 over (image, split, image bytes, mask pixels) and (image, class, fold, split), by image."""
    images = [(s.source.image, s.source.split, s.image_sha256, s.mask_sha256) for s in scans]
    return sha256_text(canonical([images, [row[:4] for row in rows]]))


def _image_row(photo: Scan, out: Path) -> tuple:
    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, out)).as_posix()

    source = photo.source
    classes = " ".join(map(str, photo.pixels))
    return (
        source.image,
        source.split,
        relative(source.path),
        relative(photo.mask),
        f"{zlib.crc32(photo.mask.read_bytes()):08x}",
        photo.width,
        photo.height,
        classes,
    )
