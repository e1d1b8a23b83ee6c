"""From an extracted folder in the layout of PASCAL VOC, with or without SBD, to a prepared data set.

VOC: ``JPEGImages/ID.jpg``, ``SegmentationClass/ID.png``, ``ImageSets/Segmentation/{train,val}.txt``.
SBD (Hariharan et al. 2011): ``img/ID.jpg``, ``cls/ID.mat`` (``GTcls.Segmentation``), ``{train,val}.txt``.
"""

import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crnet.data.findings import EXTRACT_AGAIN, Finding, Report, fail, read_remedy, reason
from crnet.data.formats.lists import words
from crnet.data.formats.palette import check_palette
from crnet.data.index import SPLITS, begin, relative, write_tables
from crnet.data.pixels import check_ids, photo_size, read_ids, read_sbd
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write, canonical, sha256_text

# Protocol H: OSLSM keeps a pair if its mask, sampled at pixels 1, 33, 65, ... (the first pixel is 0) in both
# directions, has more than 2 positives.
RULE_GRID = 32
RULE_MORE_THAN = 2
COLUMNS = ("image", "split", "path", "mask", "mask_crc32", "width", "height", "classes")

Listed = tuple[str, str, int]  # a pair as lists have it: split, image, class id


@dataclass(frozen=True)
class Choice:
    """What is made of the photos. Raises CrnetError for folds or pairs that are not as said here."""

    name: str  # of the data set
    splits: Splits  # each class is tested in exactly one fold
    settings: dict  # recorded as given; ``rule_grid`` is the step of the rule's grid in pixels (default 32)
    pairs: str | Sequence[Listed] = "rule"  # the small-object rule, or a list of them, kept if at hand
    published: Sequence[Listed] | None = None  # to which ``pairs`` by rule are compared
    subset_ids: Sequence[str] | None = None  # restrict to these image ids; None for all

    def __post_init__(self) -> None:
        count, ids = len(self.splits.classes), [class_id for fold in self.splits.folds for class_id in fold]
        if sorted(ids) != list(range(1, count + 1)):
            raise CrnetError(f"folds have to hold each class id 1 to {count} exactly once, not {ids}.")
        if isinstance(self.pairs, str) and self.pairs != "rule":
            raise CrnetError(f'unknown choice of pairs {self.pairs!r}: "rule", or a list of (split, image, class id).')


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


def prepare(voc_root: Path, sbd_root: Path | None, out: Path, choice: Choice) -> dict:
    """Write ``images.csv``, ``pairs.csv``, SBD's masks as PNG and, last, ``dataset.json``, which it returns.

    VOC's own mask wins where both have one, and photos of VOC val are the test split and never train.
    Photos and VOC masks are not copied: the tables point at them relative to ``out``.

    Raises:
        CrnetError: anything wrong with the files, one sentence that names the file.
    """
    begin(out)
    scans, found = _scan_all(voc_root, sbd_root, out, choice, fail)
    by_rule = {(s.source.split, s.source.image, class_id) for s in scans for class_id in s.by_rule}
    published = choice.published if choice.pairs == "rule" else choice.pairs
    listed = _at_hand(scans, published)
    kept = by_rule if choice.pairs == "rule" else listed
    rows = _pair_rows(scans, kept, choice)
    facts = {
        "name": choice.name,
        "pairs_from": "rule" if choice.pairs == "rule" else "published",
        "subset": _subset(published, listed, len(scans), found),
        "counts": _by_fold(kept, choice.splits),
        "digest": _digest(scans, rows),
        "settings": choice.settings,
    }
    if published is not None:
        facts["rule_check"] = _compare_with_rule(listed, by_rule, choice.splits)
    return write_tables(out, choice.splits, COLUMNS, [_image_row(s, out) for s in scans], rows, facts)


def check(voc_root: Path, sbd_root: Path | None, choice: Choice, report: Report) -> int:
    """Find all that ``prepare`` would stop at, write nothing, and return how many photos were read.

    Raises CrnetError if a list of photos is absent, so that nothing can be read.
    """
    scans, _ = _scan_all(voc_root, sbd_root, None, choice, report)
    if choice.pairs != "rule":
        _pair_rows(scans, _at_hand(scans, choice.pairs), choice, report)
    return len(scans)


def _scan_all(
    voc_root: Path, sbd_root: Path | None, out: Path | None, choice: Choice, report: Report
) -> tuple[list[Scan], int]:
    """Scans of all photos that were asked for, and how many there are of whatever subset."""
    from tqdm import tqdm

    sources = _find_photos(voc_root, sbd_root, report)
    found = len(sources)
    if choice.subset_ids is not None:
        wanted = set(choice.subset_ids)
        if absent := wanted - {source.image for source in sources}:
            what = f"names {len(absent)} photos that {voc_root} lacks, among them {min(absent)}"
            report(Finding("the subset", what, "correct the list of its ids"))
        sources = [source for source in sources if source.image in wanted]
    grid, scans = choice.settings.get("rule_grid", RULE_GRID), []
    for source in tqdm(sources, desc=f"reading {choice.name}", unit="photo", mininterval=1):
        try:
            scans.append(scan(source, out, len(choice.splits.classes), grid))
        except CrnetError as error:
            report(error)
    return scans, found


def _at_hand(scans: list[Scan], published: Sequence[Listed] | None) -> set[Listed]:
    images = {s.source.image for s in scans}
    return {pair for pair in published or () if pair[1] in images}


def _find_photos(voc_root: Path, sbd_root: Path | None, report: Report) -> list[Source]:
    """Every photo that the lists of VOC and SBD name, sorted by id, with its split and files.

    Raises:
        CrnetError: a list is absent; and by ``report`` an absent photo or mask, whose photo is left out.
    """
    lists = voc_root / "ImageSets" / "Segmentation"
    val = set(words(lists / "val.txt"))
    voc = val.union(words(lists / "train.txt"))
    sbd = {*words(sbd_root / "train.txt"), *words(sbd_root / "val.txt")} if sbd_root else set()
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
    try:
        photo = source.path.read_bytes()
    except OSError as error:
        raise Finding(source.path, f"cannot be read ({reason(error)})", read_remedy(error)) from error
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
    if not from_sbd:
        check_palette(source.mask, np.flatnonzero(counts).tolist())
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


def _by_fold(pairs: set[Listed], splits: Splits) -> dict[str, list[int]]:
    """Per split the number of pairs of each fold's test classes."""
    return {s: [sum(pair[0] == s and pair[2] in fold for pair in pairs) for fold in splits.folds] for s in SPLITS}


def _compare_with_rule(listed: set[Listed], by_rule: set[Listed], splits: Splits) -> dict[str, list[dict[str, int]]]:
    """Per split and fold how many pairs of photos at hand the list has, the rule keeps, and either has alone.

    Over the 12,031 masks of VOC + SBD each has at most 17 pairs a fold that the other lacks (protocol H).
    """
    pairs = {"published": listed, "by_rule": by_rule, "missing": listed - by_rule, "extra": by_rule - listed}
    counts = {kind: _by_fold(each, splits) for kind, each in pairs.items()}
    folds = range(len(splits.folds))
    return {s: [{kind: counts[kind][s][fold] for kind in pairs} for fold in folds] for s in SPLITS}


def _first_file(candidates: list[Path], what: str) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    where = " or ".join(map(str, candidates))
    raise Finding(where, f"is absent, but {what}", f"add it, mend the list, or {EXTRACT_AGAIN}")


def _pair_rows(scans: list[Scan], kept: set[Listed], choice: Choice, report: Report = fail) -> list[tuple]:
    """Rows of ``pairs.csv``; each pair has to agree with the split and the mask of its photo."""
    fold_of = choice.splits.fold_of()
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


def _subset(published: Sequence[Listed] | None, listed: set[Listed], photos: int, found: int) -> str | None:
    """The sentence that says of what the data set is a part, or None if it is whole."""
    if published is None:
        return None if photos == found else f"a subset: {photos:,} of {found:,} photos"
    if len(listed) == len(published):
        return None
    at_hand, named = (len({image for _, image, _ in pairs}) for pairs in (listed, published))
    return (
        f"a subset: {at_hand:,} of {named:,} photos and {len(listed):,} of {len(published):,} pairs "
        "of the published lists"
    )


def _digest(scans: list[Scan], rows: list[tuple]) -> str:
    """SHA-256 over (image, split, image bytes, mask pixels) and (image, class, fold, split), by image."""
    images = [(s.source.image, s.source.split, s.image_sha256, s.mask_sha256) for s in scans]
    return sha256_text(canonical([images, [row[:4] for row in rows]]))


def _image_row(photo: Scan, out: Path) -> tuple:
    source = photo.source
    path, mask = (relative(file, out) for file in (source.path, photo.mask))
    checksum, classes = f"{zlib.crc32(photo.mask.read_bytes()):08x}", " ".join(map(str, photo.pixels))
    return source.image, source.split, path, mask, checksum, photo.width, photo.height, classes
