"""COCO's layout to a prepared data set: overlaps, crowds, splits, wrong input; real photos."""

import io
import itertools
import json
import multiprocessing
import os
import pickle
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from crnet.config.settings import component
from crnet.data import episodes
from crnet.data.formats import coco
from crnet.data.index import Index, Pair
from crnet.data.prepare import prepare as prepare_dataset
from crnet.data.splits import Splits
from crnet.encoders.features import SquashedMasks
from crnet.errors import CrnetError
from crnet.runtime.files import canonical, read_csv, read_json

HEIGHT, WIDTH = 40, 48
# Class ids 1 to 4; category ids are 3, 5, 8, 20. Cat trains, dog is held out, cow and car are tested.
SPLITS = Splits(("cat", "dog", "cow", "car"), ((3, 4),), ((2,),), "a split for tests")
CATEGORIES = [(20, "car"), (3, "cat"), (8, "cow"), (5, "dog")]


def box(left: int, top: int, right: int, bottom: int) -> list[int]:
    return [left, top, right, top, right, bottom, left, bottom]


def crowd(mask: np.ndarray) -> dict:
    """Uncompressed run lengths: of 0 and 1 in turn, column by column, starting with 0."""
    runs = [len(list(run)) for _, run in itertools.groupby(mask.ravel(order="F"))]
    return {"size": list(mask.shape), "counts": [0, *runs] if mask[0, 0] else runs}


def region(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def annotation(number: int, image: int, category: int, segmentation: object, iscrowd: int = 0) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": iscrowd}


def prepare(archives: Path, out: Path, published: dict | None = None, splits: Splits = SPLITS) -> dict:
    return coco.prepare(archives, out, name="tiny", splits=splits, published=published, settings={"rule_grid": 4})


class Source:
    """Archives under way: what the JSONs say and which photos the zips hold, to be damaged before ``write``."""

    def __init__(self, root: Path):
        self.root = root
        self.json = {
            "train": self._json({1: "t1.jpg", 2: "t2.jpg"}),
            "val": self._json({11: "v1.jpg", 12: "v2.jpg", 13: "v3.jpg"}),
        }
        self.photos = {"train": {}, "val": {}}
        for split, content in self.json.items():
            for image in content["images"]:
                self.photos[split][image["file_name"]] = photo(image["id"])
        self.json["train"]["annotations"] = [
            annotation(1, 1, 3, [box(0, 0, 20, 20), box(30, 30, 40, 40)]),  # one cat in two parts
            annotation(2, 1, 3, [box(10, 10, 25, 25)]),  # a second cat, over the first
            annotation(3, 1, 8, [box(15, 0, 35, 20)]),  # a cow over both cats
            annotation(4, 2, 3, [box(0, 0, 20, 20)]),
            annotation(5, 2, 5, crowd(region(10, 0, 30, 20)), iscrowd=1),  # dogs, partly over the cat
            annotation(6, 2, 20, crowd(region(40, 30, 48, 40)), iscrowd=1),  # cars, of which no single one
        ]
        self.json["val"]["annotations"] = [
            annotation(1, 11, 8, [box(0, 0, 20, 20)]),
            annotation(2, 11, 20, [box(30, 2, 32, 4)]),  # too small for the rule
            annotation(3, 12, 8, [box(8, 8, 40, 40)]),
            annotation(4, 12, 5, [box(0, 0, 8, 40)]),
        ]

    @staticmethod
    def _json(images: dict[int, str]) -> dict:
        return {
            "images": [{"id": i, "file_name": n, "height": HEIGHT, "width": WIDTH} for i, n in images.items()],
            "categories": [{"id": i, "name": name} for i, name in CATEGORIES],
            "annotations": [],
        }

    def write(self) -> None:
        for split, members in self.photos.items():
            with zipfile.ZipFile(self.root / f"{split}2014.zip", "w") as archive:
                for name, content in members.items():
                    archive.writestr(f"{split}2014/{name}", content)
        with zipfile.ZipFile(self.root / coco.ANNOTATIONS, "w") as archive:
            for split, content in self.json.items():
                text = content if isinstance(content, str) else json.dumps(content)
                archive.writestr(f"annotations/instances_{split}2014.json", text)

    def prepare(self, published: dict | None = None, splits: Splits = SPLITS) -> tuple[dict, Path]:
        self.write()
        return prepare(self.root, self.root / "prepared", published, splits), self.root / "prepared"

    def index(self) -> Index:
        return Index.load(self.prepare()[1])


def photo(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def test_a_mask_is_the_union_of_instances_and_classes_may_overlap(source):
    index = source.index()
    cats = region(0, 0, 20, 20) | region(30, 30, 40, 40) | region(10, 10, 25, 25)
    cow = region(15, 0, 35, 20)
    np.testing.assert_array_equal(index.class_mask("t1", 1), cats)
    np.testing.assert_array_equal(index.class_mask("t1", 3), cow)
    assert (cats & cow).any()
    np.testing.assert_array_equal(index.class_mask("t1", 2), np.zeros_like(cats))
    # A novel class made void does not eat the pixels of the class that is trained.
    np.testing.assert_array_equal(index.class_mask("t1", 1, void_classes=(3, 4)), np.where(cats, 1, cow * 255))
    with pytest.raises(CrnetError, match="t1 may overlap"):
        index.read_mask("t1")
    with pytest.raises(CrnetError, match="no photo 't9'"):
        index.class_mask("t9", 1)


def test_crowds_are_void_but_for_the_class_s_own_instances(source):
    index = source.index()
    crowds = region(10, 0, 30, 20) | region(40, 30, 48, 40)
    np.testing.assert_array_equal(index.class_mask("t2", 1), np.where(region(0, 0, 20, 20), 1, crowds * 255))
    np.testing.assert_array_equal(index.class_mask("t2", 2), crowds * 255)
    np.testing.assert_array_equal(index.class_mask("t2", 1, void="background"), region(0, 0, 20, 20))
    # The photo shows dogs and cars, but no pair is made of a crowd.
    assert index.photos["t2"].classes == {1, 2, 4}
    assert index.pairs("train", range(1, 5)) == [Pair("t1", 1), Pair("t1", 3), Pair("t2", 1)]


def test_prepared_tables_and_description(source):
    description, out = source.prepare()
    assert description == read_json(out / "dataset.json")
    assert [tuple(row.values()) for row in read_csv(out / "pairs.csv")] == [
        ("t1", "1", "", "train", "625"),  # 400 + 100 of the first cat, and 225 of the second less 100 that both hold
        ("t1", "3", "0", "train", "400"),
        ("t2", "1", "", "train", "400"),
        ("v1", "3", "0", "val", "400"),
        ("v2", "2", "", "val", "320"),
        ("v2", "3", "0", "val", "1024"),
    ]
    assert description["counts"] == {"train": [1], "val": [2], "training": [2], "held_out": [1]}
    assert (description["subset"], description["pairs_from"]) == (None, "rule")
    assert description["split_note"] == f"a split for tests, digest {SPLITS.digest[:8]}"
    images = read_csv(out / "images.csv")
    assert [row["image"] for row in images] == ["t1", "t2", "v1", "v2", "v3"]
    assert images[-1]["classes"] == ""
    assert not list(out.rglob("*.jpg"))


def test_photos_are_read_out_of_the_archives(source):
    index = source.index()
    expected = np.array(Image.open(io.BytesIO(source.photos["val"]["v1.jpg"])))
    np.testing.assert_array_equal(index.read_image("v1"), expected)
    assert index.size("v1") == (HEIGHT, WIDTH)


def test_roles_of_classes(source):
    index = source.index()
    assert (index.novel_classes(0), index.held_out, index.base_classes(0)) == ((3, 4), ((2,),), (1,))
    assert (index.unseen_classes(0), index.selection_classes(0)) == ((2, 3, 4), (2,))
    assert index.training_pairs(0) == [Pair("t1", 1), Pair("t2", 1)]
    assert index.training_pairs(0, "drop") == []  # t1 shows a cow, t2 a crowd of dogs and one of cars
    assert index.test_pairs(0) == [Pair("v1", 3), Pair("v2", 3)]
    with pytest.raises(CrnetError, match="t1 would train fold 0 on cow, which that fold tests"):
        index.check_training_pairs(0, [Pair("t1", 3)])
    with pytest.raises(CrnetError, match="t1 would train fold 0 on dog, which that fold holds out"):
        index.check_training_pairs(0, [Pair("t1", 2)])


def test_run_lengths_polygons_and_empty_segmentations(source):
    compressed = run_lengths.encode(np.asfortranarray(region(5, 5, 15, 15)))
    source.json["val"]["annotations"] = [
        annotation(1, 11, 3, {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}),
        annotation(2, 11, 8, crowd(region(20, 5, 30, 15))),  # run lengths of a single instance
        annotation(3, 11, 5, [box(30, 20, 40, 30)], iscrowd=1),  # a crowd as polygon
        annotation(4, 12, 3, []),
        annotation(5, 12, 5, [[1, 2, 9, 9], [3, 4]]),  # a line and a point, no box
        annotation(6, 13, 20, [[], box(0, 0, 9, 9)]),
    ]
    index = source.index()
    void = region(30, 20, 40, 30) * 255
    np.testing.assert_array_equal(index.class_mask("v1", 1), region(5, 5, 15, 15) + void)
    np.testing.assert_array_equal(index.class_mask("v1", 3), region(20, 5, 30, 15) + void)
    assert index.photos["v2"].classes == set()
    np.testing.assert_array_equal(index.class_mask("v3", 4), region(0, 0, 9, 9))


def _first(source: Source, split: str, section: str) -> dict:
    return source.json[split][section][0]


DAMAGES = {
    "image that the JSON lacks": (
        lambda s: s.json["val"]["images"].pop(0),
        r"instances_val2014\.json .*, annotation 1 is of image 11, which the JSON lacks",
    ),
    "photo that the JSON lacks": (
        lambda s: s.json["val"]["images"].pop(2),
        r"instances_val2014\.json .*lacks 1 photos of .*val2014\.zip, among them v3\.jpg",
    ),
    "photo that the zip lacks": (
        lambda s: s.photos["train"].pop("t2.jpg"),
        r"train2014\.zip lacks 1 photos that .*instances_train2014\.json.* names, among them t2\.jpg",
    ),
    "category out of range": (
        lambda s: _first(s, "train", "annotations").update(category_id=21),
        r"annotation 1 has the category id 21, which is out of range: the JSON has 4 categories, 3 to 20",
    ),
    "image twice": (
        lambda s: s.json["train"]["images"].append(_first(s, "train", "images")),
        "two entries of images with the id 1",
    ),
    "one name for two photos": (
        lambda s: (
            s.json["train"]["images"][0].update(file_name="v1.jpg"),
            s.photos["train"].update({"v1.jpg": s.photos["train"].pop("t1.jpg")}),
        ),
        "2 photos called v1",
    ),
    "other categories": (
        lambda s: _first(s, "val", "categories").update(name="cart"),
        "4 categories that are not the expected ones, e.g. cart",
    ),
    "broken JSON": (lambda s: s.json.update(val='{"images": ['), r"instances_val2014\.json in .* is no JSON"),
    "other JSON": (lambda s: s.json.update(val="[]"), "has no list 'images'"),
    "no JSON": (lambda s: s.json.pop("val"), r"instances_val2014\.json in .* cannot be read"),
    "no width": (lambda s: _first(s, "val", "images").pop("width"), "entry of images without a proper 'width'"),
    "id as text": (lambda s: _first(s, "val", "images").update(id="11"), "entry of images without a proper 'id'"),
    "other size": (
        lambda s: s.photos["val"].update({"v2.jpg": photo(0, (20, 30))}),
        r"v2\.jpg in .*val2014\.zip is 30x20 px but .*instances_val2014\.json.* says 48x40",
    ),
    "no image": (lambda s: s.photos["val"].update({"v2.jpg": b"no"}), r"v2\.jpg in .* is not a readable image"),
    "odd polygon": (
        lambda s: _first(s, "train", "annotations").update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "annotation 1 has a broken segmentation .*7 numbers",
    ),
    "run lengths of another size": (
        lambda s: s.json["train"]["annotations"][4]["segmentation"].update(size=[WIDTH, HEIGHT]),
        "annotation 5 has a broken segmentation .*its size",
    ),
    "run lengths too short": (
        lambda s: s.json["train"]["annotations"][4]["segmentation"]["counts"].pop(),
        "annotation 5 has a broken segmentation .*add up to 1920",
    ),
    "segmentation of another kind": (
        lambda s: _first(s, "train", "annotations").update(segmentation=7),
        "entry of annotations without a proper 'segmentation'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_input_is_one_sentence(source, damage):
    source.prepare()
    harm, message = DAMAGES[damage]
    harm(source)
    with pytest.raises(CrnetError, match=message) as caught:
        source.prepare()
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(CrnetError, match="no prepared data set"):  # what was there before does not pass for new
        Index.load(source.root / "prepared")


def test_absent_and_broken_archives(source, tmp_path):
    index = source.index()
    (tmp_path / "val2014.zip").write_bytes(b"PK no zip")
    with pytest.raises(CrnetError, match=r"v1\.jpg cannot be read from .*val2014\.zip"):
        index.read_image("v1")
    with pytest.raises(CrnetError, match=r"val2014\.zip cannot be read"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "val2014.zip").unlink()
    with pytest.raises(CrnetError, match=r"archive .*val2014\.zip is absent: fetch it first"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "prepared" / coco.MASKS).write_bytes(b"")
    with pytest.raises(CrnetError, match=r"masks\.jsonl holds no masks at byte \d+ .*prepare the data again"):
        index.class_mask("v2", 3)


def test_digest_follows_photos_masks_and_splits(source):
    digest = source.prepare()[0]["digest"]
    assert source.prepare()[0]["digest"] == digest
    source.json["val"]["annotations"][2]["segmentation"][0][0] += 2
    moved = source.prepare()[0]["digest"]
    source.photos["val"]["v3.jpg"] = photo(99)
    other_photo = source.prepare()[0]["digest"]
    other_split = source.prepare(splits=Splits(SPLITS.classes, ((2, 4),), ((3,),), None))[0]["digest"]
    assert len({digest, moved, other_photo, other_split}) == 4


def test_a_part_of_the_published_photos_is_called_so(source):
    assert source.prepare({"train": 2, "val": 3})[0]["subset"] is None
    assert source.prepare({"train": 82_783, "val": 40_504})[0]["subset"] == (
        "a subset: 2 of 82,783 train photos and 3 of 40,504 val photos"
    )


def test_index_travels_to_workers_and_opens_archives_there(source):
    index = source.index()
    before = index.read_image("v1"), index.class_mask("t1", 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(index)).read_image("v1"), before[0])
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        image, mask = pool.apply(_read, (index,))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
    with multiprocessing.get_context("fork").Pool(2) as pool:  # an open archive must not be shared by processes
        for image, _ in pool.map(_read, [index] * 8):
            np.testing.assert_array_equal(image, before[0])


def _read(index: Index) -> tuple[np.ndarray, np.ndarray]:
    assert multiprocessing.parent_process().pid != os.getpid()
    return index.read_image("v1"), index.class_mask("t1", 1)


def test_masks_at_input_size_are_kept_within_bounds(source):
    masks = SquashedMasks(source.index(), 32, limit_bytes=150)
    first = masks.read("t1", 1, (3,)).copy()
    assert set(np.unique(first)) == {0, 1, 255}
    for _ in range(3):
        for image, class_id in (("t1", 1), ("t1", 3), ("t2", 1), ("v2", 3)):
            masks.read(image, class_id)
    assert masks._bytes == sum(map(len, masks._kept.values())) <= 150
    np.testing.assert_array_equal(masks.read("t1", 1, (3,)), first)


def test_real_photos_from_archives_to_episodes(shared, tmp_path):
    archives = shared / "real" / "coco"
    eligible = {"40-20-20": [13], "interleaved": [11, 13, 7, 12], "contiguous": [15, 6, 9, 13]}
    for split, expected in eligible.items():
        spec = {"name": "coco2014", **component("dataset", "coco2014", "test").settings({"split": split}, "test")}
        prepare_dataset(spec, archives, tmp_path / "extracted", tmp_path / split)
        assert not (tmp_path / "extracted").exists()
        index = Index.load(tmp_path / split)
        assert index.subset == "a subset: 119 of 82,783 train photos and 109 of 40,504 val photos"
        found = []
        for fold in range(len(index.folds)):
            table = episodes.draw(index, fold, 50, [0], shots=1, too_few="leave out")
            found.append(len(index.folds[fold]) - len(table.left_out))
            for episode in table.episodes[:5]:
                assert (index.class_mask(episode.query, episode.class_id) == 1).any()
                assert index.read_image(episode.supports[0]).shape[:2] == index.size(episode.supports[0])
        assert found == expected
    counts = read_json(tmp_path / "40-20-20" / "dataset.json")["counts"]
    assert counts == {"train": [62], "val": [60], "training": [119], "held_out": [96]}
    assert canonical(read_json(tmp_path / "40-20-20" / "dataset.json")["held_out"]) == canonical([list(range(41, 61))])


def add(archive: Path, name: str, content: bytes = b"x", mode: int = 0) -> None:
    with zipfile.ZipFile(archive, "a") as target:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        target.writestr(info, content)


def test_what_desktops_leave_in_an_archive_is_passed_over(source, tmp_path):
    whole, _ = source.prepare()
    for name in ("__MACOSX/val2014/._v1.jpg", "val2014/.DS_Store", "val2014/._v2.jpg", "Thumbs.db"):
        add(tmp_path / "val2014.zip", name)
    assert prepare(tmp_path, tmp_path / "again")["digest"] == whole["digest"]


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../v9.jpg", 0, "unsafe member '../v9.jpg'"),
        ("v9.jpg", stat.S_IFLNK | 0o777, "a link or a device"),
        ("other/v1.jpg", 0, r"holds two files called v1\.jpg"),
        ("notes.txt", 0, r"lacks 1 photos of .*notes\.txt: take from the archive what is no photo"),
    ],
)
def test_archives_read_in_place_are_judged_as_those_that_are_unpacked(source, tmp_path, name, mode, message):
    source.prepare()
    add(tmp_path / "val2014.zip", name, mode=mode)
    with pytest.raises(CrnetError, match=message):
        prepare(tmp_path, tmp_path / "again")


def test_a_work_folder_on_another_disk(source, tmp_path):
    source.prepare()
    (tmp_path / "disk/a/b").mkdir(parents=True)
    (tmp_path / "work").symlink_to(tmp_path / "disk/a/b")
    prepare(tmp_path, tmp_path / "work/data")
    np.testing.assert_array_equal(Index.load(tmp_path / "work/data").read_image("v1"), source.index().read_image("v1"))
