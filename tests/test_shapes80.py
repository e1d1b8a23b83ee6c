"""shapes80: generated data in COCO's layout, and the polygons that it is annotated with."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as run_lengths

from crnet.data import episodes
from crnet.data.formats import annotations, coco
from crnet.data.formats.polygons import polygons
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.data.sets import shapes5i, shapes80
from crnet.runtime.files import sha256_file


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9, 1.0])
def test_polygons_give_the_same_mask_again(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(rng.integers(1, 30, 2)) < density
        found = polygons(mask)
        if not mask.any():
            assert found == []
            continue
        again = run_lengths.decode(run_lengths.merge(run_lengths.frPyObjects(found, *mask.shape)))
        np.testing.assert_array_equal(again, mask)


def test_polygons_have_corners_only_and_holes_are_cut_open():
    assert polygons(box(2, 3, 9, 7)) == [[2, 3, 9, 3, 9, 7, 2, 7]]
    ring = box(2, 2, 12, 12) & ~box(5, 5, 9, 9)
    assert len(polygons(ring)) == 2


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shapes80")
    prepare({"name": "shapes80"}, out / "none", out / "none", out)
    return out


def test_generated_classes_are_those_that_no_encoder_has_seen():
    assert (len(set(shapes80.CLASSES)), shapes80.CLASSES[60:]) == (80, shapes5i.CLASSES)
    known = {f"{look.texture}-{look.shape}" for look in shapes5i.PRETRAINING_LOOKS}
    assert set(shapes80.CLASSES[:60]) < known
    assert not {f"{look.texture}-{look.shape}" for look in shapes80._CLUTTER} & set(shapes80.CLASSES)


def test_generated_classes_have_enough_photos(generated):
    index = Index.load(generated)
    assert (len(index.photos), index.name, index.subset) == (800, "shapes80", None)
    test = Counter(pair.class_id for pair in index.test_pairs(0))
    train = Counter(pair.class_id for pair in index.training_pairs(0))
    held_out = Counter(pair.class_id for pair in index.pairs("val", index.held_out[0]))
    assert min(test[c] for c in range(61, 81)) >= 11
    assert min(train[c] for c in range(1, 41)) >= 4
    assert sum(held_out[c] >= 6 for c in range(41, 61)) >= 10  # enough for settings of 5-shot episodes
    assert not episodes.draw(index, 0, 10, [0], shots=10).left_out


def test_generated_scenes_hold_crowds_occlusions_and_several_parts(generated):
    found = annotations.read(generated / "archives" / coco.ANNOTATIONS, "annotations/instances_val2014.json")
    every = [a for each in found.by_image.values() for a in each]
    assert sum(a["iscrowd"] for a in every) > 40
    assert sum(len(a["segmentation"]) > 1 for a in every if not a["iscrowd"]) > 20
    assert max(found.class_of) == 89  # category ids have gaps


def test_generated_masks_are_what_was_painted(generated):
    index = Index.load(generated)
    for number in (0, 5, 11):
        scene, crowd_instances = shapes80.make_scene(0, "val", number, 160)
        name = f"COCO_val2014_{500_001 + number:012d}"
        assert bool(crowd_instances) == (number % 6 == 5)
        own = {i for i in range(len(scene.labels)) if i not in crowd_instances}
        for label in {scene.labels[i] for i in own} - {0}:
            painted = np.isin(scene.instances, [i for i in own if scene.labels[i] == label])
            np.testing.assert_array_equal(index.class_mask(name, label) == 1, painted)


def test_generation_is_a_function_of_the_settings(tmp_path):
    small = {**shapes80.SETTINGS, "images_train": 12, "images_val": 12, "size": 64}
    for folder, changes in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        shapes80.write_coco(tmp_path / folder, {**small, **changes})
    for name in ("train2014.zip", "val2014.zip", coco.ANNOTATIONS):
        first, again, other = (sha256_file(tmp_path / folder / name) for folder in "abc")
        assert first == again != other
    digest = shapes80.prepare(tmp_path, tmp_path, tmp_path / "d", small)["digest"]
    assert shapes80.prepare(tmp_path, tmp_path, tmp_path / "d", small)["digest"] == digest
