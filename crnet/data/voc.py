"""From an extracted folder in the layout of PASCAL VOC, with or without SBD, to a prepared data set.

VOC: ``JPEGImages/ID.jpg``, ``SegmentationClass/ID.png``, ``ImageSets/Segmentation/{train,val}.txt``.
SBD (Hariharan et al. 2011): ``img/ID.jpg``, ``cls/ID.mat`` (``GTcls.Segmentation``), ``{train,val}.txt``.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from crnet.data.index import SPLITS
from crnet.data.packed import VOID
from crnet.data.pixels import UNREADABLE, read_ids
from crnet.errors import CrnetError
from crnet.files import atomic_write, canonical, sha256_text, write_csv, write_json

# Protocol H: OSLSM keeps a pair if its mask, sampled at pixels 1, 33, 65, ... (the first pixel is 0) in both
# directions, has more than 2 positives.
RULE_GRID = 32
RULE_MORE_THAN = 2


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
    mask: Path
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

    sources = find_photos(voc_root, sbd_root)
    found = len(sources)
    if subset_ids is not None:
        sources = _restrict(sources, subset_ids, voc_root)

    grid = settings.get("rule_grid", RULE_GRID)
    scans = [scan(source, out, len(classes), grid) for source in _progress(sources, f"reading {name}")]

    by_rule = {(s.source.split, s.source.image, class_id) for s in scans for class_id in s.by_rule}
    at_hand = {s.source.image for s in scans}
    listed = {pair for pair in published or () if pair[1] in at_hand}
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
    write_csv(
        out / "images.csv",
        ("image", "split", "path", "mask", "width", "height", "classes"),
        [_image_row(s, out) for s in scans],
    )
    write_csv(out / "pairs.csv", ("image", "class", "fold", "split", "pixels"), rows)
    write_json(out / "dataset.json", description)
    return description


def find_photos(voc_root: Path, sbd_root: Path | None) -> list[Source]:
    """Every photo that the lists of VOC and SBD name, sorted by id, with its split and files.

    Raises:
        CrnetError: a list, photo or mask is absent.
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
        sources.append(
            Source(
                image=image,
                split="val" if image in val else "train",
                path=_first_file(photos, f"the photo {image} is listed"),
                mask=_first_file(masks, f"the mask of {image} is needed"),
            )
        )
    return sources


def scan(source: Source, out: Path, class_count: int, grid: int) -> Scan:
    """Read a photo and its mask, check them against each other, and write SBD's mask as ``out/masks/ID.png``.

    Raises:
        CrnetError: photo or mask unreadable, of different size, or the mask holds an id that is no class.
    """
    photo = source.path.read_bytes()
    width, height = _check_photo(photo, source.path)
    from_sbd = source.mask.suffix == ".mat"
    mask = read_sbd(source.mask) if from_sbd else read_ids(source.mask)
    if mask.shape != (height, width):
        raise CrnetError(
            f"{source.mask} is {mask.shape[1]}x{mask.shape[0]} px but its photo {source.path.name} is "
            f"{width}x{height} px: they have to be of one size."
        )
    counts = np.bincount(mask.ravel(), minlength=256)
    wrong = [value for value in np.flatnonzero(counts).tolist() if class_count < value < VOID]
    if wrong:
        raise CrnetError(f"{source.mask} holds the id {wrong[0]}: only 0 to {class_count} and 255 (void) are known.")
    sampled = np.bincount(mask[1::grid, 1::grid].ravel(), minlength=256)
    if from_sbd:
        target = out / "masks" / f"{source.image}.png"
        png = io.BytesIO()
        Image.fromarray(mask).save(png, "PNG")
        atomic_write(target, png.getvalue())
    return Scan(
        source=source,
        mask=target if from_sbd else source.mask,
        width=width,
        height=height,
        pixels={c: int(counts[c]) for c in range(1, class_count + 1) if counts[c]},
        by_rule=frozenset(c for c in range(1, class_count + 1) if sampled[c] > RULE_MORE_THAN),
        image_sha256=hashlib.sha256(photo).hexdigest(),
        mask_sha256=hashlib.sha256(canonical(mask.shape).encode() + mask.tobytes()).hexdigest(),
    )


def read_sbd(path: Path) -> np.ndarray:
    """``GTcls.Segmentation`` of an SBD ``cls/ID.mat``: class id per pixel, uint8 (H, W), without void.

    Raises:
        CrnetError: the file cannot be read as that.
    """
    from scipy.io import loadmat

    try:
        mask = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise ValueError(f"it holds {mask.dtype} of shape {mask.shape}")
        return np.ascontiguousarray(mask)
    except Exception as error:  # scipy raises anything from KeyError to zlib.error; the cause is chained
        raise CrnetError(
            f"{path} holds no readable GTcls.Segmentation ({error}): extract its archive again."
        ) from error


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
        raise CrnetError(f"the list {path} is absent: extract the archive again.")
    return set(path.read_text().split())


def _first_file(candidates: list[Path], what: str) -> Path:
    for path in candidates:
        if path.is_file():
            return path
    raise CrnetError(f"{what} but is not at {' or '.join(map(str, candidates))}: extract the archive again.")


def _restrict(sources: list[Source], subset_ids: Sequence[str], voc_root: Path) -> list[Source]:
    wanted = set(subset_ids)
    absent = wanted - {source.image for source in sources}
    if absent:
        raise CrnetError(f"the subset names {len(absent)} photos that {voc_root} lacks, among them {min(absent)}.")
    return [source for source in sources if source.image in wanted]


def _progress(sources: list[Source], text: str) -> Iterable[Source]:
    from tqdm import tqdm

    return tqdm(sources, desc=text, unit="photo", mininterval=1)


def _check_photo(data: bytes, path: Path) -> tuple[int, int]:
    """(width, height); decodes at 1/8, so that a truncated file is found now and not amid a training."""
    try:
        with Image.open(io.BytesIO(data)) as photo:
            size = photo.size
            photo.draft("L", (1, 1))
            photo.load()
    except UNREADABLE as error:
        raise CrnetError(f"{path} is not a readable image ({error}): extract its archive again.") from error
    return size


def _pair_rows(scans: list[Scan], kept: set[tuple[str, str, int]], fold_of: dict[int, int]) -> list[tuple]:
    """Rows of ``pairs.csv``; each pair has to agree with the split and the mask of its photo."""
    by_image = {s.source.image: s for s in scans}
    rows = []
    for split, image, class_id in sorted(kept, key=lambda pair: pair[1:]):
        photo = by_image[image]
        if photo.source.split != split:
            raise CrnetError(
                f"the pair list has {image} in {split}, but this data has it in {photo.source.split}: "
                "list and data do not belong together."
            )
        if class_id not in photo.pixels:
            raise CrnetError(
                f"the pair list has class {class_id} in {image}, but {photo.source.mask} has no such pixel: "
                "list and data do not belong together."
            )
        rows.append((image, class_id, fold_of[class_id], split, photo.pixels[class_id]))
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
        photo.width,
        photo.height,
        classes,
    )
