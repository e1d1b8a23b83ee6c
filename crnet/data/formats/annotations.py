"""COCO's instance annotations: one JSON of images, categories and annotations, read and checked.

https://cocodataset.org/#format-data. A segmentation is a list of polygons, or run lengths (of crowds mostly).
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnet.data.archives.extract import checked
from crnet.data.findings import USE_ANOTHER, Finding, Report, fail, read_remedy, reason
from crnet.data.packed import BROKEN_ZIP, PackedMasks
from crnet.errors import CrnetError

KEYS = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "categories": {"id": int, "name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int, "iscrowd": int, "segmentation": (list, dict)},
}


@dataclass(frozen=True)
class Annotations:
    """One JSON, checked against itself."""

    where: str  # its name in messages
    images: list[dict]
    classes: tuple[str, ...]  # names by sorted category id
    class_of: dict[int, int]  # category id -> class id, 1 to N by sorted category id
    by_image: dict[int, list[dict]]  # image id -> its annotations


def read(archive: Path, member: str, report: Report = fail) -> Annotations:
    """Read a JSON out of a zip archive.

    Args:
        report: takes what is wrong with single entries, which are then left out; it raises unless told otherwise.

    Raises:
        CrnetError: no such archive or member, broken JSON, absent lists; and by ``report`` absent keys, an id that
            occurs twice, or an annotation of an image or category that the JSON lacks.
    """
    where = f"{member} in {archive}"
    try:
        with zipfile.ZipFile(archive) as source:
            checked(archive, source)
            content = json.loads(source.read(member))
    except (ValueError, RecursionError) as error:
        raise Finding(where, f"is no JSON ({reason(error)})", USE_ANOTHER) from error
    except BROKEN_ZIP as error:
        raise Finding(where, f"cannot be read ({reason(error)})", read_remedy(error, USE_ANOTHER)) from error
    return check(content, where, report)


def check(content: Any, where: str, report: Report = fail) -> Annotations:
    """The annotations of a JSON's content; raises and reports CrnetError like ``read``."""
    images, categories, annotations = (_entries(content, section, where, report) for section in KEYS)
    names = {category["id"]: category["name"] for category in categories}
    class_of = {category: number + 1 for number, category in enumerate(sorted(names))}
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    for annotation in annotations:
        if annotation["image_id"] not in by_image:
            what = f"is of image {annotation['image_id']}, which the JSON lacks"
        elif annotation["category_id"] not in class_of:
            what = (
                f"has the category id {annotation['category_id']}, which is out of range: the JSON has {len(class_of)} "
                f"categories, {min(class_of, default=0)} to {max(class_of, default=0)}"
            )
        else:
            by_image[annotation["image_id"]].append(annotation)
            continue
        report(Finding(f"{where}, annotation {annotation['id']}", what, USE_ANOTHER))
    return Annotations(where, images, tuple(names[c] for c in class_of), class_of, by_image)


def _entries(content: Any, section: str, where: str, report: Report) -> list[dict]:
    """The proper entries of a section, each id once."""
    entries = content.get(section) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise Finding(where, f"has no list {section!r}", "it is no file of COCO's instances")
    proper: dict[int, dict] = {}
    for entry in entries:
        known = isinstance(entry, dict)
        wrong = [key for key, kind in KEYS[section].items() if not (known and isinstance(entry.get(key), kind))]
        if wrong:
            what = f"has an entry of {section} without a proper {wrong[0]!r}, {str(entry)[:80]!r}"
            report(Finding(where, what, USE_ANOTHER))
        elif entry["id"] in proper:
            what = f"has two entries of {section} with the id {entry['id']}"
            report(Finding(where, what, USE_ANOTHER))
        else:
            proper[entry["id"]] = entry
    return list(proper.values())


def masks_of(annotations: Annotations, image: dict, report: Report = fail) -> tuple[PackedMasks, frozenset[int]]:
    """Masks of all classes of an image, and the class ids of its crowds.

    The mask of a class is the union of its instances. Crowds (``iscrowd``) of whatever class are void for all: they
    are drawn roughly, over whatever else is there. An instance that lies in a crowd stays what it is.

    An annotation without an area (no polygon, or none with three points) paints nothing, and what a polygon covers
    outside the image is cut off. A segmentation that is neither polygons nor run lengths of the image's size is
    reported, which raises CrnetError, or left out.
    """
    from pycocotools import mask

    instances: dict[int, list[dict]] = {}
    crowds: list[dict] = []
    crowd_classes = set()
    for annotation in annotations.by_image[image["id"]]:
        try:
            runs = _runs(annotation, image["height"], image["width"], annotations.where)
        except CrnetError as error:
            report(error)
            continue
        class_id = annotations.class_of[annotation["category_id"]]
        if annotation["iscrowd"]:
            crowds += runs
            crowd_classes.add(class_id)
        else:
            instances.setdefault(class_id, []).extend(runs)
    unions = {class_id: mask.merge(runs) for class_id, runs in sorted(instances.items())}
    masks = {class_id: union["counts"].decode() for class_id, union in unions.items() if mask.area(union)}
    void = mask.merge(crowds)["counts"].decode() if crowds else None
    return PackedMasks(masks, void), frozenset(crowd_classes)


def _runs(annotation: dict, height: int, width: int, where: str) -> list[dict]:
    """Compressed run lengths of an annotation's parts."""
    from pycocotools import mask

    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"its size is {segmentation['size']}, the image's is {[height, width]}")
            counts = segmentation["counts"]
            if isinstance(counts, list) and (min(counts, default=0) < 0 or sum(counts) != height * width):
                raise ValueError(f"its run lengths do not add up to {height * width}")
            if isinstance(counts, str) and not (counts and all("0" <= letter <= "o" for letter in counts)):
                raise ValueError("its run lengths are not compressed as COCO's")
            runs = mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
            mask.decode(runs)  # raises for a broken string
            return [runs]
        # pycocotools would take four numbers for a box; polygons of fewer than three points have no area.
        polygons = [_polygon(polygon) for polygon in segmentation]
        polygons = [polygon for polygon in polygons if len(polygon) >= 6]
        return mask.frPyObjects(polygons, height, width) if polygons else []
    except Exception as error:  # pycocotools raises anything, even plain Exception; the cause is chained
        place = f"{where}, annotation {annotation['id']}"
        raise Finding(place, f"has a broken segmentation ({reason(error)})", USE_ANOTHER) from error


def _polygon(numbers: Sequence[float]) -> list[float]:
    if len(numbers) % 2:
        raise ValueError(f"a polygon has {len(numbers)} numbers, not pairs of x and y")
    polygon = [float(number) for number in numbers]
    if not all(abs(number) < 1e6 for number in polygon):  # also false for NaN
        raise ValueError("a coordinate is not a number of pixels")
    return polygon
