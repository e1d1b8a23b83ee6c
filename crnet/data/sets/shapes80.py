"""shapes80: generated data in the layout of COCO 2014, with 80 classes, polygons and crowds.

The 20 test classes (ids 61 to 80) are the classes of shapes5i, on which no encoder was pre-trained. There are no more
such pairings: ids 1 to 60 are pairings of ``shapes5i.PRETRAINING_LOOKS``, so the small encoder knows what is trained
(ids 1 to 40) and held out (41 to 60), as an encoder from ImageNet knows most of COCO. Clutter has the 20 pairings left.

Scenes hold one to four objects that occlude each other. In each sixth there is a crowd: small objects of one class,
annotated as one region that is roughly drawn.
"""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from crnet.data.formats import coco
from crnet.data.formats.polygons import polygons
from crnet.data.sets.scenes import Scene, background, paint
from crnet.data.sets.shapes5i import CLASS_LOOKS, OTHERS, PRETRAINING_LOOKS, add_clutter, add_objects, draw_sides
from crnet.data.splits import Splits, of_eighty
from crnet.runtime.files import atomic_write
from crnet.runtime.seeding import derive

SETTINGS = {
    "rev": 1,
    "images_train": 480,  # ours: 9 scenes led by each training class, 3 by each other one
    "images_val": 320,  # ours: 12 or 13 scenes led by each test class, 3 or 4 by each held-out one
    "size": 160,  # ours: mean side in pixels; sides vary by an eighth, so original size is not input size
    "seed": 0,  # ours
    "rule_grid": 32,  # step of the small-object rule in pixels: OSLSM code/ss_datalayer.py@d5312de
}
LIMITS = {
    "images_train": (1, 100_000),
    "images_val": (1, 100_000),
    "size": (48, 512),
    "seed": (0, 2_147_483_647),
    "rule_grid": (1, 128),
}

_FREE = PRETRAINING_LOOKS[: len(PRETRAINING_LOOKS) // 2]  # one look a pairing
_CLUTTER = _FREE[3::4]
_LOOKS = tuple(look for number, look in enumerate(_FREE) if number % 4 != 3) + CLASS_LOOKS
CLASSES = tuple(f"{look.texture}-{look.shape}" for look in _LOOKS)
_TRAIN, _HELD_OUT, _TEST = (1, 40), (41, 60), (61, 80)


def splits(settings: dict) -> Splits:
    """40 classes train, 20 are held out, 20 are tested; scenes are made for this split."""
    return of_eighty(CLASSES, "40-20-20")


def prepare(archives: Path, extracted: Path, out: Path, settings: dict) -> dict:
    """Generate the archives into ``out/archives`` and prepare them as COCO's."""
    made = out / "archives"
    write_coco(made, settings)
    return coco.prepare(made, out, name="shapes80", splits=splits(settings), published=None, settings=settings)


def write_coco(root: Path, settings: dict) -> None:
    """Write ``train2014.zip``, ``val2014.zip`` and ``annotations_trainval2014.zip`` into ``root``, made if absent.

    The same settings give the same bytes on one machine, and the same annotations and photos before JPEG on all.
    """
    jsons = {}
    categories = [{"id": _category(label), "name": name} for label, name in enumerate(CLASSES, start=1)]
    for number, split in enumerate(("train", "val")):
        photos, images, annotations = {}, [], []
        for index in range(settings[f"images_{split}"]):
            scene, crowd = make_scene(settings["seed"], split, index, settings["size"])
            image_id = 500_000 * number + index + 1
            name = f"COCO_{split}2014_{image_id:012d}.jpg"
            jpeg = io.BytesIO()
            Image.fromarray(scene.image).save(jpeg, "JPEG", quality=92)
            photos[f"{split}2014/{name}"] = jpeg.getvalue()
            height, width = scene.instances.shape
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations += _annotations(scene, crowd, image_id)
        for offset, annotation in enumerate(annotations):
            annotation["id"] = 1_000_000 * number + offset + 1
        content = {"images": images, "annotations": annotations, "categories": categories}
        jsons[f"annotations/instances_{split}2014.json"] = json.dumps(content, separators=(",", ":")).encode()
        _write_zip(root / f"{split}2014.zip", photos)
    _write_zip(root / coco.ANNOTATIONS, jsons)


def make_scene(seed: int, split: str, index: int, size: int) -> tuple[Scene, frozenset[int]]:
    """A scene with class ids as labels, and the instances that make up its crowd, if it has one."""
    rng = np.random.default_rng(derive("shapes80", seed, split, index))
    canvas = background(rng, *draw_sides(rng, size))
    add_clutter(canvas, rng, _CLUTTER)
    crowd = _add_crowd(canvas, rng, _other(rng, split)) if index % 6 == 5 else frozenset()
    labels = [_leading(split, index), *(_other(rng, split) for _ in range(OTHERS[rng.integers(8)]))]
    add_objects(canvas, rng, _LOOKS, labels, least=90, tries=20)  # beside a crowd few places are free
    add_clutter(canvas, rng, _CLUTTER)
    return canvas, crowd


def _leading(split: str, index: int) -> int:
    """The class of a scene's largest object: in turn, mostly those that the split is for."""
    turn, step = divmod(index, 4)
    if split == "train":
        return 1 + (3 * turn + step) % 40 if step < 3 else 41 + turn % 40
    turn, step = divmod(index, 5)
    return 61 + (4 * turn + step) % 20 if step < 4 else 41 + turn % 20


def _other(rng: np.random.Generator, split: str) -> int:
    """The class of one of a scene's further objects."""
    if split == "train":
        return int(rng.integers(1, 81))
    low, high = (_TRAIN, _HELD_OUT, _HELD_OUT, _TEST, _TEST)[rng.integers(5)]
    return int(rng.integers(low, high + 1))


def _add_crowd(canvas: Scene, rng: np.random.Generator, label: int) -> frozenset[int]:
    """Four to seven small objects of one class; returns their instance numbers."""
    first = len(canvas.labels)
    for _ in range(int(rng.integers(4, 8))):
        paint(canvas, rng, _LOOKS[label - 1], label, int(rng.integers(12, 25)))
    return frozenset(range(first, len(canvas.labels)))


def _annotations(scene: Scene, crowd: frozenset[int], image_id: int) -> list[dict]:
    """What is visible of each labelled object as polygons, and the crowd as uncompressed run lengths."""
    from scipy.ndimage import binary_dilation

    found = []
    for instance, label in enumerate(scene.labels):
        mask = scene.instances == instance
        if label and instance not in crowd and mask.any():
            found.append(_annotation(mask, polygons(mask), 0, label, image_id))
    if crowd:
        region = np.isin(scene.instances, list(crowd))
        region = binary_dilation(region, iterations=2)  # as roughly as people draw it
        label = scene.labels[min(crowd)]
        found.append(_annotation(region, {"size": list(region.shape), "counts": _runs(region)}, 1, label, image_id))
    return found


def _annotation(mask: np.ndarray, segmentation: list | dict, crowd: int, label: int, image_id: int) -> dict:
    rows, columns = np.nonzero(mask)
    return {
        "image_id": image_id,
        "category_id": _category(label),
        "iscrowd": crowd,
        "segmentation": segmentation,
        "area": int(mask.sum()),
        "bbox": [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
    }


def _category(label: int) -> int:
    """Category ids have gaps, as COCO's have."""
    return label + (label - 1) // 8


def _runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, column by column, starting with 0."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=np.int8(0)))
    return np.diff(changes, prepend=0, append=flat.size).tolist()


def _write_zip(path: Path, members: dict[str, bytes]) -> None:
    """Stored, as COCO's, and with one date, so that equal members make equal archives."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2014, 1, 1, 0, 0, 0)), data)
    atomic_write(path, content.getvalue())
