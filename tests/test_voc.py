"""VOC and SBD layouts to a prepared data set, and reading it back."""

import subprocess
import sys
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import save_mask, save_photo

from crnet.data.formats import voc
from crnet.data.index import Index, Pair
from crnet.data.splits import plain
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv

CLASSES = ("cat", "dog", "cow", "car")
FOLDS = ((1, 2), (3, 4))


def square(class_id: int, side: int = 20, size: tuple[int, int] = (40, 48)) -> np.ndarray:
    """A mask (H, W) with ``side`` x ``side`` px of a class at the upper left, inside a line of void."""
    mask = np.zeros(size, np.uint8)
    mask[: side + 1, : side + 1] = 255
    mask[:side, :side] = class_id
    return mask


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """VOC: t1 (cat), t2 (cow and cat), v1 (dog). SBD: t2 again, v1 again, s1 (car), all with other masks."""
    both, car = square(3), square(4, side=10)
    both[30:40, 30:40] = 1
    voc_masks = {"train": {"t1": square(1), "t2": both}, "val": {"v1": square(2)}}
    layouts.write(tmp_path / "voc", tmp_path / "sbd", voc_masks, {"train": {"t2": car, "v1": car}, "val": {"s1": car}})
    return tmp_path / "voc", tmp_path / "sbd"


def prepare(roots: tuple[Path, Path | None], name: str = "prepared", **overrides) -> tuple[dict, Path]:
    out = roots[0].parent / name
    asked = {"name": "tiny", "splits": plain(CLASSES, FOLDS), "settings": {"rule_grid": 4}} | overrides
    return voc.prepare(*roots, out, voc.Choice(**asked)), out


def test_prepared_tables(roots):
    description, out = prepare(roots)
    assert [(row["image"], row["split"], row["classes"]) for row in read_csv(out / "images.csv")] == [
        ("s1", "train", "4"),
        ("t1", "train", "1"),
        ("t2", "train", "1 3"),  # VOC's mask, not SBD's car
        ("v1", "val", "2"),  # in SBD's training list, and yet a test photo
    ]
    assert [tuple(row.values()) for row in read_csv(out / "pairs.csv")] == [
        ("s1", "4", "1", "train", "100"),
        ("t1", "1", "0", "train", "400"),
        ("t2", "1", "0", "train", "100"),
        ("t2", "3", "1", "train", "400"),
        ("v1", "2", "0", "val", "400"),
    ]
    assert description["counts"] == {"train": [2, 2], "val": [1, 0]}
    assert (description["pairs_from"], description["subset"]) == ("rule", None)
    assert "rule_check" not in description


def test_index_reads_what_was_prepared(roots):
    description, out = prepare(roots)
    index = Index.load(out)
    assert (index.name, index.classes, index.folds) == ("tiny", CLASSES, FOLDS)
    assert index.digest == description["digest"]
    np.testing.assert_array_equal(index.read_mask("s1"), square(4, side=10))
    np.testing.assert_array_equal(index.read_mask("v1"), square(2))
    assert index.read_image("v1").shape == (40, 48, 3)
    assert index.size("v1") == (40, 48)
    with pytest.raises(CrnetError, match="no photo 'x9'"):
        index.read_image("x9")


def test_training_never_sees_test_photos_or_novel_classes(roots):
    index = Index.load(prepare(roots)[1])
    assert index.training_pairs(0) == [Pair("s1", 4), Pair("t2", 3)]
    assert index.training_pairs(0, "void") == index.training_pairs(0)
    assert index.training_pairs(0, "drop") == [Pair("s1", 4)]  # t2 shows a cat
    assert index.training_pairs(1) == [Pair("t1", 1), Pair("t2", 1)]
    assert index.test_pairs(0) == [Pair("v1", 2)]
    with pytest.raises(CrnetError, match="v1 is a test photo"):
        index.check_training_pairs(1, [Pair("v1", 2)])
    with pytest.raises(CrnetError, match="on cat, which that fold tests"):
        index.check_training_pairs(0, [Pair("t1", 1)])
    with pytest.raises(CrnetError, match="background, void, drop"):
        index.training_pairs(0, "keep")
    with pytest.raises(CrnetError, match="its folds are 0 to 1"):
        index.test_pairs(2)


def test_the_mask_of_one_class(roots):
    save_mask(roots[0] / "SegmentationClass/t1.png", np.tile(np.array([0, 1, 2, 3, 255, 0], np.uint8), (40, 8)))
    index = Index.load(prepare(roots)[1])
    assert index.class_mask("t1", 2)[7, :5].tolist() == [0, 0, 1, 0, 255]
    assert index.class_mask("t1", 2, void_classes=(1, 4))[7, :5].tolist() == [0, 255, 1, 0, 255]
    void, seen = (index.class_mask("t1", 2, (1,), void) for void in ("ignored", "background"))
    own_void = index.read_mask("t1") == 255
    assert own_void.any()
    np.testing.assert_array_equal(seen, np.where(own_void, 0, void))


@pytest.mark.parametrize(("positives", "kept"), [(2, False), (3, True)])
def test_rule_wants_more_than_two_sampled_pixels(roots, positives, kept):
    mask = np.zeros((40, 48), np.uint8)
    mask[1, 1] = mask[1, 33] = mask[33, 1] = 255  # void is no positive
    mask[[1, 33, 33][:positives], [33, 1, 33][:positives]] = 1
    mask[2:30, 2:30] = 1  # many pixels, none of them on the grid
    save_mask(roots[0] / "SegmentationClass" / "t1.png", mask)
    _, out = prepare(roots, settings={})
    assert (("t1", "1") in {(row["image"], row["class"]) for row in read_csv(out / "pairs.csv")}) is kept


def test_pair_list_is_taken_as_far_as_at_hand_and_refused_if_of_other_data(roots):
    listed = [("train", "t1", 1), ("train", "t2", 3), ("val", "v1", 2), ("val", "v2", 2)]
    description, out = prepare(roots, pairs=listed)
    assert description["subset"] == "a subset: 3 of 4 photos and 3 of 4 pairs of the published lists"
    kept = [(row["image"], row["class"]) for row in read_csv(out / "pairs.csv")]
    assert kept == [("t1", "1"), ("t2", "3"), ("v1", "2")]
    assert description["pairs_from"] == "published"
    assert description["rule_check"]["train"] == [
        {"published": 1, "by_rule": 2, "missing": 0, "extra": 1},
        {"published": 1, "by_rule": 2, "missing": 0, "extra": 1},
    ]
    assert prepare(roots, pairs=listed[:3])[0]["subset"] is None
    with pytest.raises(CrnetError, match="has t1 in val, but this data has it in train"):
        prepare(roots, pairs=[("val", "t1", 1)])
    with pytest.raises(CrnetError, match="has class 2 in t1"):
        prepare(roots, pairs=[("train", "t1", 2)])


def test_subset(roots):
    description, out = prepare(roots, subset_ids=["t1", "v1"])
    assert description["subset"] == "a subset: 2 of 4 photos"
    assert list(Index.load(out).photos) == ["t1", "v1"]
    with pytest.raises(CrnetError, match=r"1 photos .* among them x9"):
        prepare(roots, subset_ids=["t1", "x9"])


def test_digest_tells_content_from_place(roots):
    digest = prepare(roots)[0]["digest"]
    assert prepare(roots, "elsewhere")[0]["digest"] == digest
    mask = square(1)
    mask[39, 47] = 1
    save_mask(roots[0] / "SegmentationClass" / "t1.png", mask)
    assert prepare(roots)[0]["digest"] != digest


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


# What is wrong with a photo or mask itself is in test_bad_input.py.
DAMAGES = {
    "no mask": (
        lambda v, s: (v / "SegmentationClass/t2.png").unlink(),
        r"t2\.png is absent, but the mask of t2 is needed",
    ),
    "no sbd mask": (lambda v, s: (s / "cls/s1.mat").unlink(), r"s1\.mat is absent, but the mask of s1 is needed"),
    "no photo": (
        lambda v, s: (v / "JPEGImages/v1.jpg").unlink() or (s / "img/v1.jpg").unlink(),
        r"v1\.jpg is absent, but the photo v1 is listed",
    ),
    "no list": (lambda v, s: (s / "val.txt").unlink(), r"list .*val\.txt is absent"),
    "mask cut": (lambda v, s: _truncate(v / "SegmentationClass/t1.png"), r"t1\.png is not a readable mask"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_named(roots, damage):
    prepare(roots)
    harm, message = DAMAGES[damage]
    harm(*roots)
    with pytest.raises(CrnetError, match=message):
        prepare(roots)
    # What was there before does not pass for new.
    with pytest.raises(CrnetError, match="no prepared data set"):
        Index.load(roots[0].parent / "prepared")


def test_wrong_folds_and_pairs(roots):
    with pytest.raises(CrnetError, match="each class id 1 to 4 exactly once"):
        prepare(roots, splits=plain(CLASSES, ((1, 2), (2, 3))))
    with pytest.raises(CrnetError, match="unknown choice of pairs 'all'"):
        prepare(roots, pairs="all")


def test_photos_that_break_after_preparation(roots):
    index = Index.load(prepare(roots)[1])
    save_photo(roots[0] / "JPEGImages" / "t1.jpg", (30, 30))
    with pytest.raises(CrnetError, match="30x30 px but was 48x40"):
        index.read_image("t1")


def test_data_modules_import_only_numpy_and_pil():
    code = (
        "import sys, crnet.data.episodes, crnet.data.index, crnet.data.sets.pascal5i, crnet.data.formats.voc\n"
        "import crnet.data.sets.coco2014, crnet.data.sets.shapes80\n"
        "print({'torch', 'scipy', 'pandas', 'tqdm', 'pydantic'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
