"""PASCAL-5i: the shipped pair lists, and the practice photos in the layout of the official archives."""

from collections import Counter
from pathlib import Path

import pytest

from crnet.data.archives.extract import unpack
from crnet.data.index import Index
from crnet.data.sets import pascal5i
from crnet.errors import CrnetError

# ../shared/real/README.md: pairs that the rule keeps among the 253 photos of VOC val, by class id from 1.
README_VAL_BY_RULE = [1, 3, 0, 1, 5, 2, 6, 61, 10, 31, 7, 66, 39, 1, 54, 6, 21, 15, 4, 6]


@pytest.fixture(scope="module")
def extracted(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extracted")
    for archive in pascal5i.ARCHIVES:
        unpack(shared / "real" / "voc" / archive, folder / archive, archive)
    return folder


def prepare(extracted: Path, out: Path, **changes) -> tuple[dict, Index]:
    description = pascal5i.prepare(out, extracted, out, pascal5i.SETTINGS | changes)
    return description, Index.load(out)


def test_published_counts():
    pairs = pascal5i.published_pairs()
    counts = Counter((split, (c - 1) // 5) for split, _, c in pairs)
    assert [counts["train", fold] for fold in range(4)] == [2286, 3425, 5883, 2086]
    assert [counts["val", fold] for fold in range(4)] == [346, 451, 725, 346]
    assert len({image for split, image, _ in pairs if split == "train"}) == 10_092
    assert len({image for split, image, _ in pairs if split == "val"}) == 1_381
    per_class = Counter(c for split, _, c in pairs if split == "val")  # protocol B1, "val per class"
    assert [per_class[c] for c in range(1, 21)] == [
        *(80, 57, 86, 58, 65),
        *(69, 96, 115, 102, 69),
        *(74, 125, 76, 72, 378),
        *(58, 49, 90, 82, 67),
    ]


def test_published_equal_the_lists(shared):
    listed = [
        (split, line.split("__")[0], int(line.split("__")[1]))
        for split in ("train", "val")
        for fold in range(4)
        for line in (shared / "lists/pascal5i" / split / f"fold{fold}.txt").read_text().split()
    ]
    assert pascal5i.published_pairs() == sorted(listed)


def test_a_changed_list_is_refused(tmp_path):
    changed = tmp_path / "pairs.csv"
    text = pascal5i.PAIRS_FILE.read_text()
    changed.write_text(text.replace("train,2007_000032,1\n", "train,2007_000033,1\n"))
    assert changed.read_text() != text
    with pytest.raises(CrnetError, match="not the published list of train fold 0"):
        pascal5i.published_pairs(changed)


def test_absent_archive_is_named(tmp_path):
    (tmp_path / "VOCtrainval_11-May-2012.tar" / "VOCdevkit" / "VOC2012").mkdir(parents=True)
    with pytest.raises(CrnetError, match=r"extract benchmark\.tgz"):
        prepare(tmp_path, tmp_path / "out")


def test_real_photos_by_published_lists(extracted, tmp_path):
    description, index = prepare(extracted, tmp_path)
    splits = Counter(photo.split for photo in index.photos.values())
    assert splits == {"train": 475, "val": 253}
    assert description["counts"] == {"train": [31, 300, 315, 164], "val": [10, 110, 167, 53]}
    assert index.subset == "a subset: 712 of 11,473 photos and 1,150 of 15,548 pairs of the published lists"
    # Protocol H: the rule is right to within 0.5 %.
    unlike = {s: [(f["missing"], f["extra"]) for f in folds] for s, folds in description["rule_check"].items()}
    assert unlike == {"train": [(0, 1), (1, 1), (0, 0), (1, 0)], "val": [(0, 0), (0, 0), (0, 0), (1, 0)]}


def test_real_photos_by_rule(extracted, tmp_path):
    description, index = prepare(extracted, tmp_path, pairs="rule")
    assert [len(index.pairs("val", [c])) for c in range(1, 21)] == README_VAL_BY_RULE
    assert description["counts"]["val"] == [10, 110, 167, 52]
    assert description["pairs_from"] == "rule"


def test_subset_of_the_real_photos(extracted, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("2007_000032\n2007_000033\n")
    with pytest.raises(CrnetError, match="the subset names"):
        prepare(extracted, tmp_path / "out", subset=str(ids))
    masks = pascal5i.roots_in(extracted)[0] / "SegmentationClass"
    present = sorted(path.stem for path in masks.iterdir())[:20]
    ids.write_text("\n".join(present))
    _, index = prepare(extracted, tmp_path / "out", subset=str(ids))
    assert list(index.photos) == present
