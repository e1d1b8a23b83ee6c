"""The generated data set: its pixels, its layout, and that pre-training never sees a class of a fold."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crnet.data.sets import shapes5i
from crnet.data.sets.scenes import SHAPES, TEXTURES, Look, Scene, background, paint, smooth_noise, void_border
from crnet.data.transforms import VIEWS, apply_view
from crnet.runtime.files import read_csv, read_json

SMALL = shapes5i.SETTINGS | {"images_train": 6, "images_val": 4, "size": 96}
SMALL_DIGEST = "75b66895aad049559aa7536d34a719e80414c32e293fa051d78d5966a47e175b"
DEFAULT_DIGEST = "987eb3e2927c4fa0497324be53ab6e54adc4d66badaf2ddb191da57d23c6d9a9"
PRETRAINING_DIGEST = "4093e889b336f4546fb74ed666e36ee7a9b7c0f8f38621053306df4426e99b8c"


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("shapes5i")
    return root / "VOCdevkit" / "VOC2012", shapes5i.write_voc(root, shapes5i.SETTINGS)


def masks(base: Path, split: str) -> list[np.ndarray]:
    names = (base / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
    return [np.asarray(Image.open(base / "SegmentationClass" / f"{name}.png")) for name in names]


def test_digests(tmp_path: Path, default: tuple[Path, str]) -> None:
    assert shapes5i.write_voc(tmp_path, SMALL) == SMALL_DIGEST
    assert shapes5i.write_voc(tmp_path, SMALL | {"seed": 1}) != SMALL_DIGEST
    assert default[1] == DEFAULT_DIGEST


def test_layout_is_that_of_voc(default: tuple[Path, str]) -> None:
    base, _ = default
    train, val, both = (
        (base / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        for split in ("train", "val", "trainval")
    )
    assert (len(train), len(val)) == (480, 480)
    assert both == train + val
    sizes = set()
    for name in val[:40]:
        photo = Image.open(base / "JPEGImages" / f"{name}.jpg")
        mask = Image.open(base / "SegmentationClass" / f"{name}.png")
        assert (photo.format, photo.mode, mask.mode, photo.size) == ("JPEG", "RGB", "P", mask.size)
        assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
        assert mask.getpalette()[-3:] == [224, 224, 192]
        sizes.add(photo.size)
    assert len(sizes) > 20
    assert all(140 <= side <= 180 for size in sizes for side in size)


def test_every_class_has_enough_test_images_by_the_rule(default: tuple[Path, str]) -> None:
    counts = np.zeros(21, int)
    for mask in masks(default[0], "val"):
        sample = mask[1::32, 1::32]
        counts[1:] += [(sample == class_id).sum() > 2 for class_id in range(1, 21)]
    assert counts[1:].min() >= 25


def test_scenes_have_one_to_four_objects_void_and_many_sizes(default: tuple[Path, str]) -> None:
    train = masks(default[0], "train")
    assert all(set(np.unique(mask)) <= {*range(21), 255} for mask in train)
    assert all((mask == 255).any() for mask in train)
    classes = [len(set(np.unique(mask)) - {0, 255}) for mask in train]
    assert set(classes) == {1, 2, 3, 4}
    shares = [np.mean(mask == c) for mask in train for c in np.unique(mask) if 0 < c < 255]
    assert min(shares) < 0.05
    assert max(shares) > 0.4


def test_prepared_like_any_voc_data(tmp_path: Path) -> None:
    description = shapes5i.prepare(tmp_path, tmp_path / "none", tmp_path / "data", SMALL)
    assert description == read_json(tmp_path / "data" / "dataset.json")
    assert description["classes"] == list(shapes5i.CLASSES)
    assert description["pairs_from"] == "rule"
    assert len(read_csv(tmp_path / "data" / "images.csv")) == 10


def test_no_pairing_of_a_fold_is_in_pretraining() -> None:
    assert [class_id for fold in shapes5i.FOLDS for class_id in fold] == list(range(1, 21))
    pairings = {tuple(name.split("-")) for name in shapes5i.CLASSES}
    seen = {(look.texture, look.shape) for look in shapes5i.PRETRAINING_LOOKS}
    assert len(pairings) == 20
    assert len(seen) == 80
    assert len(set(shapes5i.PRETRAINING_LOOKS)) == 160
    assert not pairings & seen
    assert {shape for _, shape in pairings} == set(SHAPES)
    assert {texture for texture, _ in pairings} == set(TEXTURES)


def test_pretraining_batch_digest_and_labels() -> None:
    images, labels = shapes5i.pretraining_batch(np.random.default_rng(3), 20, 64)
    assert (images.shape, labels.shape) == ((20, 64, 64, 3), (20, 64, 64))
    assert hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() == PRETRAINING_DIGEST
    kinds = np.unique(labels)
    assert kinds[0] == 0
    assert kinds[-1] <= len(shapes5i.PRETRAINING_LOOKS)
    assert len(kinds) > 30


@pytest.mark.parametrize("shape", SHAPES)
def test_area_of_an_object_is_what_was_asked_for(shape: str) -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(40):
        canvas = background(rng, 200, 200)
        assert paint(canvas, rng, Look(shape, "striped", ("red", "blue")), 1, 60, visible=99, tries=200)
        areas.append(canvas.areas[1] / 40_000)
    assert np.mean(areas) == pytest.approx(0.06, rel=0.1)  # stretched by 0.85 to 1.18 one by one


def test_an_object_that_would_hide_another_is_not_painted() -> None:
    rng = np.random.default_rng(0)
    canvas = background(rng, 64, 64)
    assert paint(canvas, rng, Look("disc", "dotted", ("red", "blue")), 5, 100, tries=50)
    image, instances = canvas.image.copy(), canvas.instances.copy()
    canvas.areas[1] *= 10  # as if most of it were hidden already
    assert not paint(canvas, rng, Look("square", "netted", ("green", "white")), 6, 900)
    assert np.array_equal(canvas.image, image)
    assert np.array_equal(canvas.instances, instances)
    assert canvas.labels == [0, 5]


def test_void_border_is_both_sides_of_labelled_outlines_only() -> None:
    instances = np.zeros((5, 7), np.uint8)
    instances[:, 2:4], instances[:, 4:6] = 1, 2
    image = np.zeros((5, 7, 3), np.uint8)
    assert void_border(Scene(image, instances, [0, 9, 0], [0, 0, 0]))[2].tolist() == [0, 255, 255, 255, 255, 0, 0]
    assert void_border(Scene(image, instances, [0, 9, 9], [0, 0, 0]))[2].tolist() == [0, 255, 255, 255, 255, 255, 255]
    assert not void_border(Scene(image, instances, [0, 0, 0], [0, 0, 0])).any()


def test_smooth_noise_is_bilinear_between_its_lattice() -> None:
    noise = smooth_noise(np.random.default_rng(1), 17, 17, 16)
    lattice = np.random.default_rng(1).integers(0, 257, (3, 3), np.int32)
    assert noise[0, 0] == lattice[0, 0]
    assert noise[16, 16] == lattice[1, 1]
    assert noise[0, 8] == (lattice[0, 0] + lattice[0, 1]) // 2


def recolour(image: np.ndarray, view: int) -> np.ndarray:
    return apply_view("recolour", view, image)


def test_recolourings_are_twelve_exact_permutations() -> None:
    image = np.array([[[10, 20, 40]]], np.uint8)
    views = [recolour(image, view)[0, 0].tolist() for view in range(VIEWS["recolour"])]
    assert views[0] == [10, 20, 40]
    assert views[3] == [20, 40, 10]
    assert views[9] == [235, 215, 245]
    assert len({tuple(view) for view in views}) == 12
    full = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(recolour(recolour(full, 6), 6), full)
    assert recolour(full, 0) is not full


@pytest.mark.parametrize(
    ("shape", "kind", "view"),
    [((2, 2, 3), np.uint8, 12), ((2, 2, 3), np.uint8, -1), ((2, 2, 3), np.float32, 0), ((3, 2, 2), np.uint8, 0)],
)
def test_recolour_refuses_what_it_cannot_do(shape, kind, view) -> None:
    with pytest.raises((IndexError, ValueError), match=r"views 0 to 11|takes"):
        recolour(np.zeros(shape, kind), view)
