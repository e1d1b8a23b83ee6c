"""COCO on real photos: from the archives in ../shared to a trained network that is better than all-foreground.

The specifications are those of the study coco-photos, with the split 40-20-20, which holds classes out, at a small size.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from crnet.config import resolve, study
from crnet.data import archives, coco2014, episodes
from crnet.data.index import Index, Pair
from crnet.data.prepare import prepare
from crnet.encoding import FrozenEncoder
from crnet.errors import CrnetError
from crnet.evaluate import evaluate
from crnet.features import FeatureStore, write_store
from crnet.files import read_csv, read_json, sha256_text, write_csv
from crnet.metrics import miou
from crnet.training.episodes import EpisodeSource
from crnet.training.loop import Paths, train

STUDY = study.ROOT / "configs/studies/coco-photos.yaml"
SMALL = {
    "benchmarks": {
        "coco": {"dataset": {"split": "40-20-20"}, "folds": [0], "episodes": {"count": 60}},
    },
    "train": {"size": 97, "batch": 8, "epochs": 2, "epoch_episodes": 320, "base_episodes": 20, "precision": "float32"},
    "evaluate": {"size": 97, "precision": "float32"},
    "methods": {"crnet": {"width": 32, "gate_width": 16}},
}


@dataclass(frozen=True)
class Chain:
    """What each link of the chain left behind."""

    root: Path
    plan: resolve.Plan
    data: Path
    episodes: Path
    features: Path
    training: Path
    row: dict  # specification of the evaluation of Table 7's third row

    @property
    def index(self) -> Index:
        return Index.load(self.data)


@pytest.fixture(scope="module")
def chain(shared, tmp_path_factory) -> Chain:
    folder = shared / "real"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "encoders")
        root = tmp_path_factory.mktemp("coco-photos")
        plan = study.load([STUDY], SMALL)
        [cell] = [cell for cell in plan.cells if cell.row == "both"]
        row = plan.evaluations[cell.evaluation]
        spec, train_spec = row["train"]["dataset"], row["train"]

        fetch_archives(folder, root / "archives")
        prepare(spec, root / "archives", root / "extracted", root / "data")
        drawing = {key: value for key, value in row["episodes"].items() if key != "rev"}
        table = episodes.draw(Index.load(root / "data"), train_spec["fold"], **drawing)
        episodes.write(root / "f0.csv", table)

        encoder = FrozenEncoder(train_spec["encoder"], None, torch.device("cpu"), "float32")
        write_store(resolve.features_spec(train_spec), root / "data", encoder, root / "features")
        paths = Paths(root / "data", None, root / "features", root / "training", root / "state.pt")
        train(train_spec, paths, "cpu", 1)
        yield Chain(root, plan, root / "data", root / "f0.csv", root / "features", root / "training", row)


def fetch_archives(folder: Path, out: Path) -> None:
    """As the rule ``download`` does, from ``file://`` addresses, verified by the checksums beside the photos."""
    out.mkdir()
    sums = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    for name in coco2014.ARCHIVES:
        mirror = {"url": (folder / "coco" / name).resolve().as_uri(), "checksum": f"sha256:{sums[f'coco/{name}']}"}
        archives.fetch(archives.resolve(name, {name: mirror}), out)


def test_the_photos_are_read_in_place_and_counted(chain):
    index = chain.index
    assert not (chain.root / "extracted").exists()
    assert {photo.path.resolve().parent for photo in index.photos.values()} == {(chain.root / "archives").resolve()}
    assert [sum(photo.split == split for photo in index.photos.values()) for split in ("train", "val")] == [119, 109]
    assert [len(index.training_pairs(0)), len(index.test_pairs(0))] == [119, 60]
    assert len({pair.image for pair in index.training_pairs(0)}) == 73


def test_no_unseen_class_and_no_test_photo_trains(chain):
    index = chain.index
    unseen = {*range(41, 61), *range(61, 81)}  # held out and tested
    assert unseen == set(index.unseen_classes(0))
    pairs = index.training_pairs(0)
    photos = {pair.image for pair in pairs}
    assert not {pair.class_id for pair in pairs} & unseen
    assert all(index.photos[image].split == "train" for image in photos)
    drawn = EpisodeSource(index, pairs, 0, 0, "identity").epoch(0, 200)
    assert {(e.query, e.class_id) for e in drawn} | {(e.support, e.class_id) for e in drawn} <= {
        (pair.image, pair.class_id) for pair in pairs
    }
    tested = episodes.read(chain.episodes, index).episodes
    assert not {photo for e in tested for photo in (e.query, *e.supports)} & photos
    assert {e.class_id for e in tested} <= set(range(61, 81))
    for class_id, use in ((50, "holds out"), (70, "tests")):
        photo = next(p.image for p in index.pairs("train", [class_id]))
        with pytest.raises(CrnetError, match=use):
            index.check_training_pairs(0, [*pairs, Pair(photo, class_id)])


def test_unseen_pixels_of_training_photos_can_be_void(chain):
    index = chain.index
    unseen = index.unseen_classes(0)
    pair = next(p for p in index.training_pairs(0) if index.photos[p.image].classes & set(unseen))
    plain, void = index.class_mask(pair.image, pair.class_id), index.class_mask(pair.image, pair.class_id, unseen)
    assert (void == 255).sum() > (plain == 255).sum()
    assert ((plain == 1) == (void == 1)).all(), "where classes overlap, the asked one wins"


def test_episodes_leave_out_classes_by_name(chain):
    about = read_json(chain.episodes.with_suffix(".json"))
    assert len(about["left_out"]) == 7
    assert set(about["left_out"].values()) <= {0, 1}
    assert all(e.query not in e.supports and len(e.supports) == 1 for e in episodes.read(chain.episodes).episodes)


def test_features_are_of_training_photos_only(chain):
    index = chain.index
    about = read_json(chain.features / "features.json")
    assert all(index.photos[image].split == "train" for image in about["photos"])
    with pytest.raises(CrnetError, match="another dataset"):
        other = Index.load(chain.data)
        other.digest = sha256_text("other photos")
        FeatureStore(chain.features, other, about["encoder_digest"])


def test_a_short_training_is_better_than_all_foreground(chain):
    log = read_csv(chain.training / "log.csv")
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    floor = next(cell for cell in chain.plan.cells if cell.row == "all-foreground")
    scores = {}
    for name, spec, weights in (
        ("both", chain.row, chain.training / "model.safetensors"),
        ("all-foreground", chain.plan.evaluations[floor.evaluation], None),
    ):
        out = chain.root / name
        evaluate(spec, chain.data, chain.episodes, None, weights, None, None, out, "cpu", 1)
        about = read_json(out / "evaluation.json")
        assert about["subset"] == "a subset: 119 of 82,783 train photos and 109 of 40,504 val photos"
        assert about["split_note"] == (
            "40/20/20 split by sorted category ids (ours; the paper's classes were never published), "
            f"digest {read_json(chain.data / 'dataset.json')['split_digest'][:8]}"
        )
        assert len(about["left_out"]) == 7
        scores[name] = {void: one_shot_miou(out / "counts.csv", void) for void in ("ignore", "void")}
    for void in ("ignore", "void"):
        assert scores["both"][void] > scores["all-foreground"][void] + 0.03, scores
    print(scores)


def one_shot_miou(counts: Path, void: str) -> float:
    sums: dict[str, list[int]] = {}
    for row in read_csv(counts):
        found = sums.setdefault(row["class"], [0, 0])
        found[0] += int(row[f"{void}_fg_intersection"])
        found[1] += int(row[f"{void}_fg_union"])
    assert len(sums) == 13
    return float(miou(*zip(*sums.values(), strict=True)))


def test_the_episodes_are_of_these_archives(chain, tmp_path):
    """Episodes whose table was edited are refused, so that no run can choose its own."""
    copy = tmp_path / "f0.csv"
    rows = read_csv(chain.episodes)
    rows[0]["query"], rows[0]["support_1"] = rows[0]["support_1"], rows[0]["query"]
    write_csv(copy, list(rows[0]), [list(row.values()) for row in rows])
    copy.with_suffix(".json").write_bytes(chain.episodes.with_suffix(".json").read_bytes())
    with pytest.raises(CrnetError, match="changed after it was drawn"):
        evaluate(chain.row, chain.data, copy, None, None, None, None, tmp_path / "out", "cpu", 1)
