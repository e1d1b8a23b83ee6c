"""What data sets of your own share: which class is tested in which fold, which photo trains, and what is written.

``crnet.data.sets.folder`` and ``coco_json`` find photos and masks; the rest is here. A digest over all their files is
part of a run's specification (``content``), so that runs on other photos have other names and nothing old passes for
new.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from crnet.data.findings import Finding, Report, fail, reason
from crnet.data.formats import lists
from crnet.data.index import SPLITS, begin, write_tables
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime.files import canonical, sha256_text

PHOTO_KINDS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
COLUMNS = ("image", "split", "path", "mask", "mask_crc32", "width", "height", "classes")


@dataclass(frozen=True)
class Item:
    """A photo with its mask, read."""

    image: str  # its id: path below the folder, without ending
    path: str  # as tables have it
    mask: str
    mask_crc32: int
    width: int
    height: int
    pixels: dict[int, int]  # class id -> pixels
    kept: frozenset[int]  # classes that the small-object rule keeps
    others: frozenset[int] = frozenset()  # classes that the photo shows beside these, as crowds
    offset: int | None = None


def splits(classes: Sequence[str], settings: dict[str, Any], where: str) -> Splits:
    """Folds by count, by named classes, or from a YAML file of lists of names; later ones win.

    Raises:
        CrnetError: A class that is not known or tested twice, or a fold that leaves nothing to train on.
    """
    names = _no_control(classes, where)
    if settings["folds_file"]:
        path = Path(settings["folds_file"])
        groups, source = read_yaml(path), f"folds of {path.name}"
        if isinstance(groups, dict):
            groups = list(groups.values())
    elif settings["test_classes"]:
        groups, source = settings["test_classes"], "folds of named classes"
    else:
        groups, source = (
            _by_count(names, settings["folds"], where),
            f"{settings['folds']} folds by order of the classes",
        )
    folds = _ids(groups, names, where)
    photos = "photos split by lists"
    if not settings["val"]:
        photos = f"{100 * settings['val_share']:g} % of the photos are for testing, by seed {settings['split_seed']}"
    return Splits(tuple(names), folds, tuple(() for _ in folds), f"{source}, {photos}")


def _by_count(names: Sequence[str], count: int, where: str) -> list[list[str]]:
    if not 2 <= count <= len(names):
        raise CrnetError(f"{where}: folds: {count} folds of {len(names)} classes; choose 2 to {len(names)}.")
    edges = [round(i * len(names) / count) for i in range(count + 1)]
    return [list(names[a:b]) for a, b in pairwise(edges)]


def _ids(groups: Any, names: Sequence[str], where: str) -> tuple[tuple[int, ...], ...]:
    proper = isinstance(groups, list) and groups and all(isinstance(each, list) and each for each in groups)
    if not proper:
        raise CrnetError(f"{where}: folds have to be lists of class names, one list a fold; write them so.")
    seen: set[str] = set()
    for name in (name for group in groups for name in group):
        if name not in names:
            raise CrnetError(f"{where}: folds: unknown class {name!r}; known: {', '.join(names)}.")
        if name in seen:
            raise CrnetError(f"{where}: folds: class {name!r} is tested twice; leave it in one fold.")
        seen.add(name)
    for number, group in enumerate(groups):
        if len(group) == len(names):
            raise CrnetError(f"{where}: folds: fold {number} tests every class and leaves none to train on.")
    return tuple(tuple(sorted(names.index(name) + 1 for name in group)) for group in groups)


def _no_control(classes: Sequence[str], where: str) -> list[str]:
    names = list(classes)
    wrong = [name for name in names if not isinstance(name, str) or not name.strip() or not name.isprintable()]
    if wrong:
        raise CrnetError(f"{where}: {wrong[0]!r} is no name of a class; give each a text.")
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise CrnetError(f"{where}: names the class {double[0]!r} twice; names must differ.")
    if len(names) < 2:
        raise CrnetError(f"{where}: names {len(names)} class; one is tested and another trained, name at least two.")
    return names


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, without running anything in it. Raises CrnetError if it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Finding(path, f"cannot be read ({reason(error)})", "give a YAML file in UTF-8") from error


def assign(images: Sequence[str], settings: dict[str, Any], report: Report = fail) -> dict[str, str]:
    """Photo -> "train" or "val": by the lists, a line a photo, or by a rule that looks at seed and name alone.

    With a list for ``val`` alone, all others train. Photos of neither list are left out.
    """
    if not settings["val"]:
        if settings["train"]:
            raise CrnetError("dataset: a list 'train' needs a list 'val' beside it; give both, or neither.")
        return {image: _by_rule(image, settings) for image in images}
    val = _listed(settings["val"], images, report)
    train = _listed(settings["train"], images, report) if settings["train"] else set(images) - val
    if both := train & val:
        report(Finding(settings["val"], f"has {min(both)}, which the list 'train' has too", "leave it in one of them"))
    return {image: "val" if image in val else "train" for image in images if image in train | val}


def _by_rule(image: str, settings: dict[str, Any]) -> str:
    share = int(sha256_text(f"{settings['split_seed']} {image}")[:8], 16) / 2**32
    return "val" if share < settings["val_share"] else "train"


def _listed(file: str, images: Sequence[str], report: Report) -> set[str]:
    known, found = set(images), set()
    for line in lists.lines(Path(file)):
        name = line if line in known else os.path.splitext(line)[0]
        if name in known:
            found.add(name)
        else:
            report(Finding(file, f"names {line!r}, which is no photo of the data", "correct the list"))
    return found


def write(
    out: Path, name: str, items: Sequence[Item], assigned: dict[str, str], of: Splits, settings: dict[str, Any]
) -> dict[str, Any]:
    """Write the tables of the prepared data set."""
    fold_of, packed = of.fold_of(), any(item.offset is not None for item in items)
    images, pairs = [], []
    for item in sorted(items, key=lambda item: item.image):
        split = assigned[item.image]
        row = [item.image, split, item.path, item.mask, f"{item.mask_crc32:08x}", item.width, item.height,
               " ".join(map(str, sorted({*item.pixels, *item.others})))]  # fmt: skip
        images.append(tuple([*row, item.offset] if packed else row))
        pairs += [(item.image, c, fold_of.get(c, ""), split, item.pixels[c]) for c in sorted(item.kept)]
    facts = {
        "name": name,
        "pairs_from": "rule",
        "subset": None,
        "counts": {s: [sum(p[3] == s and p[1] in ids for p in pairs) for ids in of.folds] for s in SPLITS},
        "digest": sha256_text(canonical([settings["content"], of.digest, sorted(assigned.items()), pairs])),
        "settings": settings,
    }
    columns = (*COLUMNS, "offset") if packed else COLUMNS
    return write_tables(out, of, columns, images, pairs, facts)


def check_counts(items: Iterable[Item], assigned: dict[str, str], of: Splits, settings: dict, report: Report) -> None:
    """Report classes with fewer test photos than ``minimum_photos``, and those that no photo trains."""
    counts = Counter((assigned[item.image], c) for item in items for c in item.kept)
    tested = of.fold_of()
    for class_id, name in enumerate(of.classes, 1):
        if class_id in tested and (there := counts["val", class_id]) < settings["minimum_photos"]:
            what = f"has {there} test photo{'' if there == 1 else 's'}, fewer than {settings['minimum_photos']}"
            report(Finding(f"class {name}", what, "add photos, change the split, or lower minimum_photos"))
        if not counts["train", class_id]:
            report(Finding(f"class {name}", "has no training photo", "add photos, or change the split"))


def ready(out: Path, settings: dict[str, Any], now: str) -> None:
    """Begin to write, if the files are still those that the study's plan saw; CrnetError if they are not."""
    if settings["content"] != now:
        raise CrnetError(
            f"dataset: the photos or masks are not those of content {settings['content']} (they are {now}); start the "
            "study again, or put the files back."
        )
    begin(out)


def content(files: Iterable[tuple[str, Path]]) -> str:
    """16 hex digits over names and bytes of files."""
    try:
        named = [(name, _sha256(str(path), (at := path.stat()).st_size, at.st_mtime_ns)) for name, path in files]
    except OSError as error:
        raise Finding(str(error.filename), f"cannot be read ({reason(error)})", "put it back") from error
    return sha256_text(canonical(sorted(named)))[:16]


@cache
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder(settings: dict[str, Any], key: str) -> Path:
    """A folder that a setting names; CrnetError, with what to do, if there is none."""
    if not settings[key]:
        raise CrnetError(f"dataset.{key}: is missing; give a folder.")
    path = Path(settings[key])
    if not path.is_dir():
        raise CrnetError(f"dataset.{key}: {path} is no folder; give one, from where the study is started.")
    return path


def file(settings: dict[str, Any], key: str) -> Path:
    """A file that a setting names, likewise."""
    path = Path(settings[key])
    if not settings[key] or not path.is_file():
        raise CrnetError(f"dataset.{key}: {settings[key]!r} is no file; give one, from where the study is started.")
    return path


def named_files(settings: dict[str, Any], *keys: str) -> list[tuple[str, Path]]:
    """(key, file) of those settings that name one."""
    return [(key, file(settings, key)) for key in keys if settings[key]]
