"""shapes5i: the embedded data set, generated, in the layout of VOC 2012: 20 classes in 4 folds.

A class is a shape, a texture and a pair of colours ("striped-star"). Scenes have a textured background, clutter of
no class, one to four objects that occlude each other, and void borders. `pretraining_batch` draws images of other
kinds of object for the encoder; they stand in for ImageNet.

Disjointness: a *pairing* is a shape with a texture. There are 10 x 10 pairings, the classes take 20, two for each
shape and each texture, and never share one. Pre-training classes and clutter are drawn from the other 80 only, so no
fold's class, in whatever colours, is ever seen in pre-training; its shape and its texture are, each in other pairings.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from crnet.data.formats import voc
from crnet.data.formats.palette import voc_palette
from crnet.data.sets.scenes import PALETTE, SHAPES, TEXTURES, Look, Scene, background, paint, void_border
from crnet.data.splits import Splits, plain
from crnet.runtime.files import atomic_write
from crnet.runtime.seeding import derive

SETTINGS = {
    "rev": 1,
    "images_train": 480,  # ours: 24 scenes led by each class
    "images_val": 480,  # ours: 24 scenes led by each class; with the others each class has 30 or more that count
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

# Each class: texture-shape and its two colours. Fold f holds ids 5f+1 to 5f+5.
_LOOKS = {
    "striped-star": ("red", "white"), "checked-ring": ("blue", "yellow"), "dotted-heart": ("green", "black"),
    "netted-arrow": ("orange", "purple"), "shaded-square": ("teal", "brown"),
    "zigzag-disc": ("yellow", "red"), "speckled-cross": ("purple", "white"), "bricked-crescent": ("pink", "blue"),
    "rimmed-triangle": ("green", "orange"), "halved-bar": ("grey", "teal"),
    "striped-heart": ("blue", "pink"), "checked-arrow": ("brown", "yellow"), "dotted-square": ("white", "teal"),
    "halved-star": ("purple", "green"), "zigzag-triangle": ("black", "orange"),
    "speckled-ring": ("red", "black"), "bricked-bar": ("teal", "red"), "netted-disc": ("pink", "green"),
    "shaded-cross": ("yellow", "blue"), "rimmed-crescent": ("white", "purple"),
}  # fmt: skip
CLASSES = tuple(_LOOKS)
FOLDS = tuple(tuple(range(5 * fold + 1, 5 * fold + 6)) for fold in range(4))

CLASS_LOOKS = tuple(Look(*reversed(name.split("-")), colours) for name, colours in _LOOKS.items())
_COLOURS = tuple(PALETTE)


def _free_looks() -> tuple[Look, ...]:
    """Two looks for each pairing that no class has, with colours spread evenly over the palette."""
    free = [(shape, texture) for shape in SHAPES for texture in TEXTURES if f"{texture}-{shape}" not in _LOOKS]
    looks = []
    for number, (shape, texture) in enumerate(free + free):
        first = number * 5 % 12
        second = (first + 1 + number * 7 % 11) % 12
        looks.append(Look(shape, texture, (_COLOURS[first], _COLOURS[second])))
    return tuple(looks)


PRETRAINING_LOOKS = _free_looks()

# Area of a whole object in 1/1000 of the image: evenly spread on a logarithmic scale from 5 % to 60 %.
_AREAS = (50, 61, 74, 90, 110, 134, 163, 199, 242, 295, 359, 438, 533, 600)
OTHERS = (0, 0, 1, 1, 1, 2, 2, 3)  # class objects beside the leading one


def draw_area(rng: np.random.Generator, low: int, high: int) -> int:
    fitting = [area for area in _AREAS if low <= area <= high]
    return fitting[rng.integers(len(fitting))]


def draw_sides(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Height and width of a scene: ``size``, give or take an eighth."""
    height, width = (size + int(rng.integers(-(size // 8), size // 8 + 1)) for _ in range(2))
    return height, width


def add_clutter(scene: Scene, rng: np.random.Generator, looks: tuple[Look, ...]) -> None:
    """Up to two objects of no class."""
    for _ in range(int(rng.integers(0, 3))):
        paint(scene, rng, looks[rng.integers(len(looks))], 0, draw_area(rng, 50, 134))


def add_objects(
    scene: Scene, rng: np.random.Generator, looks: tuple[Look, ...], labels: list[int], least: int, tries: int = 6
) -> None:
    """Paint an object for each of 1 to 4 class ids, in any order; the first one is large, no other below ``least``."""
    high = (600, 438, 295, 242)[len(labels) - 1]
    for position in rng.permutation(len(labels)):
        label = labels[position]
        area = draw_area(rng, 163 if position == 0 else least, high)
        paint(scene, rng, looks[label - 1], label, area, tries=tries)


def scene(rng: np.random.Generator, leading: int, height: int, width: int) -> Scene:
    """A scene led by an object of class ``leading`` (1 to 20), with up to three more class objects, and clutter."""
    canvas = background(rng, height, width)
    add_clutter(canvas, rng, PRETRAINING_LOOKS)
    labels = [leading, *map(int, rng.integers(1, len(CLASSES) + 1, OTHERS[rng.integers(8)]))]
    add_objects(canvas, rng, CLASS_LOOKS, labels, least=50)
    add_clutter(canvas, rng, PRETRAINING_LOOKS)
    return canvas


def splits(settings: dict) -> Splits:
    """Classes and folds, the same under all settings."""
    return plain(CLASSES, FOLDS)


def prepare(archives: Path, extracted: Path, out: Path, settings: dict) -> dict:
    """Generate the scenes into ``out`` and prepare them as any data in VOC's layout, without archives."""
    write_voc(out, settings)
    return voc.prepare(out / "VOCdevkit" / "VOC2012", None, out, voc.Choice("shapes5i", splits(settings), settings))


def write_voc(root: Path, settings: dict) -> str:
    """Generate the data set below ``root`` in the layout of VOCtrainval_11-May-2012.tar.

    Writes ``VOCdevkit/VOC2012/`` with ``JPEGImages/*.jpg``, ``SegmentationClass/*.png`` (palette PNG: class ids, 255
    void) and ``ImageSets/Segmentation/{train,val,trainval}.txt``; what lies there already is replaced file by file.

    Returns:
        sha256 over ids, sizes, images and masks in order, before JPEG: the same on every machine.
    """
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    digest, names, palette = hashlib.sha256(), {}, voc_palette()
    for split in ("train", "val"):
        names[split] = []
        for index in range(settings[f"images_{split}"]):
            name = f"{split}_{index:06d}"
            rng = np.random.default_rng(derive("shapes5i", settings["seed"], split, index))
            canvas = scene(rng, index % len(CLASSES) + 1, *draw_sides(rng, settings["size"]))
            mask = void_border(canvas)
            digest.update(f"{name} {canvas.image.shape}\n".encode() + canvas.image.tobytes() + mask.tobytes())
            Image.fromarray(canvas.image).save(base / "JPEGImages" / f"{name}.jpg", quality=92)
            picture = Image.fromarray(mask, mode="P")
            picture.putpalette(palette)
            picture.save(base / "SegmentationClass" / f"{name}.png")
            names[split].append(name)
    names["trainval"] = names["train"] + names["val"]
    for split, listed in names.items():
        atomic_write(base / "ImageSets/Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in listed))
    return digest.hexdigest()


def pretraining_batch(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of ``PRETRAINING_LOOKS``, which are in no fold.

    Returns:
        images uint8 (count, size, size, 3) and masks uint8 (count, size, size) with 0 for background and 1 to
        ``len(PRETRAINING_LOOKS)`` for the kinds of object.
    """
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    for index in range(count):
        canvas = background(rng, size, size)
        for _ in range(int(rng.integers(2, 5))):
            label = int(rng.integers(1, len(PRETRAINING_LOOKS) + 1))
            paint(canvas, rng, PRETRAINING_LOOKS[label - 1], label, draw_area(rng, 90, 438))
        images[index], masks[index] = canvas.image, canvas.mask()
    return images, masks
