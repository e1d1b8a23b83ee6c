"""Data of one's own: a folder with masks, or a COCO file, through all that a study does, without a line of code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from crnet.audit import audit
from crnet.audit.at_hand import data_digest
from crnet.cli import cli
from crnet.config import claims, resolve, study
from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.data import episodes, sets
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.encoders.small import network
from crnet.errors import CrnetError
from crnet.evaluation.evaluate import evaluate
from crnet.report.partial import render
from crnet.runtime.files import read_csv
from crnet.training.loop import Paths, train

CLASSES = {10: "rote Scheibe", 20: "blue box", 40: "green stripe"}
COLOURS = {10: (200, 30, 30), 20: (30, 30, 200), 40: (30, 180, 40)}
KINDS = ("jpg", "png", "grey.png", "deep.png", "JPEG", "tif")
COUNT = 36


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo with one or two things, and its mask; its border is void."""
    draw = np.random.default_rng(number)
    pixels = draw.integers(90, 160, (48, 64, 3), np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    for place, value in enumerate(draw.permutation(list(CLASSES))[: 1 + number % 2]):
        top, left = draw.integers(4, 16), 4 + 30 * place
        mask[top : top + 18, left : left + 22] = value
        pixels[mask == value] = COLOURS[int(value)]
    mask[0] = 250
    return pixels, mask


def write_folder(folder: Path) -> None:
    """Photos of six kinds, masks of two, names with blanks and of other scripts, in two folders."""
    for number in range(COUNT):
        kind = KINDS[number % len(KINDS)]
        pixels, mask = scene(number)
        name = f"{'süd' if number % 2 else 'a b'}/photo {number}"
        photo = folder / "photos" / f"{name}.{kind.split('.')[-1]}"
        target = folder / "masks" / f"{name}.png"
        for path in (photo, target):
            path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels)
        if kind == "grey.png":
            picture = picture.convert("L")
        if kind == "deep.png":
            picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        picture.save(photo)
        drawn = Image.fromarray(mask)
        if number % 3 == 0:
            drawn.putpalette([value % 251 for value in range(768)])
        drawn.save(target)
    (folder / "classes.yaml").write_text(yaml.safe_dump({0: "background", **CLASSES}), encoding="utf-8")


DATASET = {
    "name": "folder",
    "images": "my data/photos",
    "masks": "my data/masks",
    "classes": "my data/classes.yaml",
    "void": 250,
    "folds": 3,
    "rule_grid": 4,
}
STUDY = {
    "study": "mine",
    "title": "Mine",
    "caption": "Three things of mine.",
    "orientation_only": True,
    "tables": ["table3"],
    "benchmarks": {"pascal": {"dataset": DATASET, "folds": [0, 1], "episodes": {"count": 6, "seeds": [0]}}},
    "encoders": {"main": {"name": "small"}},
    "seeds": [0],
    "controls": ["all-foreground"],
    "methods": {"crnet": {"width": 8, "gate_width": 4, "initialisation": "kaiming", "path_dropout": 0.0}},
    "train": {"size": 48, "batch": 4, "epochs": 1, "epoch_episodes": 8, "augment": "none", "precision": "float32",
              "base_episodes": 2},
    "evaluate": {"size": 48, "precision": "float32", "refinements": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_folder(folder / "my data")
    return folder


@pytest.fixture
def here(photos, tmp_path, monkeypatch) -> Path:
    """The data in the current folder, a test's own, and a study on them."""
    shutil.copytree(photos, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("study.yaml").write_text(yaml.safe_dump(STUDY, allow_unicode=True), encoding="utf-8")
    return tmp_path / "here"


def load(**dataset) -> Plan:
    changed = {"benchmarks": {"pascal": {"dataset": dataset}}} if dataset else {}
    return study.load([Path("study.yaml")], changed)


def prepared(plan: Plan) -> Index:
    [spec] = plan.datasets.values()
    data = Path(Layout(plan).data(spec))
    prepare(spec, Path("archives"), Path("extracted"), data)
    return Index.load(data)


def test_a_folder_goes_through_training_evaluation_table_and_audit(here):
    plan = load()
    layout = Layout(plan)
    index = prepared(plan)
    data = Path(layout.data(next(iter(plan.datasets.values()))))
    [encoder] = {layout.encoder(spec) for spec in plan.encoders.values()}
    torch.manual_seed(0)
    Path(encoder).parent.mkdir(parents=True)
    save_file(network(["layer3", "layer4"]).state_dict(), encoder)
    used = {resolve.training_name(plan.evaluations[c.evaluation]["train"]) for c in plan.cells if c.row == "full"}
    for name, spec in plan.trainings.items():
        if name in used:
            files = Paths(data, Path(encoder), None, Path(layout.training(name)), Path("state.pt"))
            train(spec, files, "cpu", 1)
    for cell in plan.cells:
        spec = plan.evaluations[cell.evaluation]
        if cell.row not in ("full", "all-foreground") or Path(layout.counts_of(cell)).is_file():
            continue
        table = Path(layout.episodes(spec))
        if not table.is_file():
            how = {key: value for key, value in spec["episodes"].items() if key != "rev"}
            episodes.write(table, episodes.draw(index, cell.fold, **how))
        weights = Path(layout.weights(spec)) if layout.weights(spec) else None
        out = Path(layout.evaluation(cell.evaluation))
        evaluate(spec, data, table, Path(encoder), weights, None, None, out, "cpu", 1)
    render([Path("study.yaml")])
    rows = read_csv("out/mine/tables/table3.csv")
    assert all(row["value"] for row in rows if row["row"] in ("full", "all-foreground"))
    text = Path("out/mine/tables/table3.md").read_text(encoding="utf-8")
    assert "3 folds by order of the classes, 50 % of the photos are for testing, by seed 0" in text
    assert "generated" not in Path("out/mine/claims.md").read_text(encoding="utf-8").split("##")[0]
    found, _ = audit(Path("out/mine"), [Path("study.yaml")], sample=2, seed=1, everything=True)
    counts = {line[:48].strip(): line.split()[-3:] for line in found.splitlines()}  # verified, differ, not checked
    for name in (
        "data: digest made again from photos",
        "episodes: drawn again from the data",
        "sample: episodes predicted again",
    ):
        assert counts[name][0].isdigit() and counts[name][1:] == ["-", "-"], found


def test_masks_are_read_as_their_numbers_say_and_kinds_of_photos_are_mixed(here):
    index = prepared(load())
    assert index.classes == tuple(CLASSES.values()) and index.folds == ((1,), (2,), (3,))
    assert len(index.photos) == COUNT
    for number in (0, 1, 2, 3, 4, 5):
        name = f"{'süd' if number % 2 else 'a b'}/photo {number}"
        pixels, mask = scene(number)
        wanted = np.select([mask == n for n in CLASSES] + [mask == 250], [1, 2, 3, 255], 0)
        assert (index.read_mask(name) == wanted).all()
        assert index.read_image(name).shape == pixels.shape
    splits = {photo.split for photo in index.photos.values()}
    assert splits == {"train", "val"}


def test_a_changed_photo_makes_every_run_another(here):
    before = load()
    assert set(load().trainings) == set(before.trainings)
    photo = sorted(Path("my data/photos").rglob("*.png"))[0]
    Image.fromarray(scene(99)[0]).save(photo)
    after = load()
    assert not set(after.trainings) & set(before.trainings)
    assert not set(after.evaluations) & set(before.evaluations)
    [old] = before.datasets.values()
    with pytest.raises(CrnetError, match=r"are not those of content [0-9a-f]{16} .* start the study again"):
        prepare(old, Path("a"), Path("e"), Path("out"))
    stated = load(content=old["content"])  # as results are looked at where the photos are not
    assert set(stated.trainings) == set(before.trainings)


def test_folds_and_photos_by_lists_and_names(here):
    names = [f"{'süd' if n % 2 else 'a b'}/photo {n}" for n in range(COUNT)]
    Path("val.txt").write_text("".join(f"{name}\n" for name in names[::2]), encoding="utf-8")
    Path("train.txt").write_text("".join(f"{name}.jpg\n" for name in names[1:20:2]), encoding="utf-8")
    index = prepared(load(val="val.txt", train="train.txt", test_classes=[["green stripe"], ["rote Scheibe"]]))
    assert index.folds == ((3,), (1,))
    assert {name for name, p in index.photos.items() if p.split == "val"} == set(names[::2])
    assert {name for name, p in index.photos.items() if p.split == "train"} == set(names[1:20:2])
    Path("folds.yaml").write_text(yaml.safe_dump([["blue box", "green stripe"], ["rote Scheibe"]], allow_unicode=True),
                                  encoding="utf-8")  # fmt: skip
    assert prepared(load(folds_file="folds.yaml")).folds == ((2, 3), (1,))


def test_masks_beside_the_photos_are_told_apart_by_a_suffix(here):
    for mask in sorted(Path("my data/masks").rglob("*.png")):
        place = Path("my data/photos") / mask.relative_to("my data/masks").with_suffix("")
        shutil.move(mask, f"{place}_mask.png")
    with pytest.raises(CrnetError, match="is the folder of the photos; set mask_suffix"):
        load(masks="my data/photos")
    assert len(prepared(load(masks="my data/photos", mask_suffix="_mask")).photos) == COUNT


def test_all_that_is_wrong_with_a_folder_is_listed_at_once(here):
    masks = sorted(Path("my data/masks").rglob("*.png"))
    masks[0].unlink()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(masks[1])
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(masks[2])
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(masks[3])
    sorted(Path("my data/photos").rglob("*.jpg"))[-1].write_bytes(b"x")
    done = CliRunner().invoke(cli, ["check-data", "--configfile", "study.yaml"])
    assert done.exit_code == 3, done.output
    for words in ("is absent, but the photo", "is 6x5 px but its photo", "holds the number 77", "is no mask",
                  "is not a readable image", "5 findings"):  # fmt: skip
        assert words in done.output
    assert "work" not in {path.name for path in here.iterdir()}


@pytest.mark.parametrize(
    ("dataset", "sentence"),
    [
        ({"images": "nosuch"}, "dataset.images: nosuch is no folder; give one"),
        ({"classes": ""}, "dataset.classes: '' is no file"),
        ({"folds": 4}, "4 folds of 3 classes; choose 2 to 3"),
        ({"test_classes": [["red"]]}, "unknown class 'red'; known: rote Scheibe, blue box, green stripe"),
        ({"test_classes": [["blue box"], ["blue box"]]}, "class 'blue box' is tested twice"),
        ({"test_classes": [list(CLASSES.values())]}, "fold 0 tests every class and leaves none to train on"),
        ({"val_share": 2.0}, "val_share: 2.0 is outside 0.01 to 0.99"),
        ({"val_shares": 0.5}, "unknown setting .did you mean 'val_share'"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_sentence_before_anything_runs(here, dataset, sentence):
    with pytest.raises(CrnetError, match=sentence) as caught:
        load(**dataset)
    assert "\n" not in str(caught.value)


def test_too_few_test_photos_of_a_class_are_said(here):
    with pytest.raises(CrnetError, match=r"class rote Scheibe has \d+ test photos, fewer than 30"):
        prepared(load(minimum_photos=30))


def write_coco(folder: Path) -> None:
    """The same scenes as one JSON, without ``iscrowd``; one thing is a crowd."""
    (folder / "pictures").mkdir(parents=True)
    images, instances = [], []
    for number in range(COUNT):
        pixels, mask = scene(number)
        Image.fromarray(pixels).save(folder / "pictures" / f"bild {number}.png")
        images.append({"id": number, "file_name": f"bild {number}.png", "width": 64, "height": 48})
        for value in CLASSES:
            rows, columns = np.nonzero(mask == value)
            if len(rows):
                top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
                box = [left, top, right, top, right, bottom, left, bottom]
                one = {"image_id": number, "category_id": value, "segmentation": [[int(n) for n in box]]}
                instances.append({"id": len(instances), **one})
    categories = [{"id": number, "name": name} for number, name in CLASSES.items()]
    content = {"images": images, "categories": categories, "annotations": instances}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


COCO = {
    "name": "coco-json",
    "images": "coco/pictures",
    "annotations": "coco/instances.json",
    "folds": 3,
    "rule_grid": 4,
}


def test_a_coco_file_becomes_the_same_masks(here):
    write_coco(here / "coco")
    index = prepared(load(**COCO))
    assert index.classes == tuple(CLASSES.values()) and len(index.photos) == COUNT
    for number in (0, 1, 7):
        _, mask = scene(number)
        for class_id, value in enumerate(CLASSES, 1):
            assert (index.class_mask(f"bild {number}", class_id) == (mask == value)).all()
    table = episodes.draw(index, 1, 4, [0], 1)
    assert len(table.episodes) == 4


@pytest.mark.parametrize("kind", ["folder", "coco-json"])
def test_an_audit_makes_the_digest_again_and_notices_another_photo(here, kind):
    write_coco(here / "coco")
    plan = load() if kind == "folder" else load(**COCO)
    [spec] = plan.datasets.values()
    index, data = prepared(plan), Path(Layout(plan).data(spec))
    assert data_digest(data, spec) == index.digest
    photo = next(
        file for file in Path("coco/pictures" if kind == "coco-json" else "my data/photos").rglob("*") if file.is_file()
    )
    photo.write_bytes(photo.read_bytes() + b" ")
    assert data_digest(data, spec) != index.digest


def test_all_that_is_wrong_with_a_coco_file_is_listed(here):
    write_coco(here / "coco")
    file = Path("coco/instances.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    content["annotations"][0]["category_id"] = 99
    content["annotations"][1]["segmentation"] = [[1, 2, 3]]
    content["images"][5]["width"] = 7
    file.write_text(json.dumps(content), encoding="utf-8")
    Path("coco/pictures/bild 8.png").unlink()
    Path("study.yaml").write_text(
        yaml.safe_dump({**STUDY, "benchmarks": {"pascal": {"dataset": COCO, "folds": [0]}}}), encoding="utf-8"
    )
    done = CliRunner().invoke(cli, ["check-data", "--configfile", "study.yaml"])
    assert done.exit_code == 3, done.output
    for words in ("category id 99", "broken segmentation", "is 64x48 px but", "bild 8.png", "mend the file"):
        assert words in done.output


def test_both_are_listed_and_are_not_called_generated(here):
    done = CliRunner().invoke(cli, ["list", "datasets"])
    assert "folder " in done.output and "coco-json " in done.output
    plan = load()
    job = claims.claims_job(plan, Layout(plan), study.ROOT / claims.CLAIMS)
    assert not job["generated"]
    module, settings = sets.opened(next(iter(plan.datasets.values())))
    assert module.OWN and settings["content"] == module.content(settings)
