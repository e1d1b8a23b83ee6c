"""Guards against results that lie: each fault is planted, and refused where it would take effect."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import drawn, frozen, one_sentence, paths, untrained
from pycocotools import mask as run_lengths

from crnet import methods
from crnet.config import tuning
from crnet.config.defaults import FINETUNE, FINETUNE_LIMITS
from crnet.config.settings import check
from crnet.data import episodes, index, packed, transforms
from crnet.data.index import Index
from crnet.encoders.features import FeatureStore, write_store
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError
from crnet.evaluation import trials
from crnet.evaluation.evaluate import evaluate
from crnet.runtime import saved_rows
from crnet.runtime.files import read_csv, read_json, sha256_file, write_csv, write_json
from crnet.training.episodes import EpisodeSource, TrainingEpisode
from crnet.training.loop import Paths, train
from crnet.training.sources import CachedSource, LiveSource

ROOT = Path(__file__).resolve().parents[1]
LIVE = {"features": "live", "views": "identity", "epochs": 1, "epoch_episodes": 4}


@pytest.fixture
def prepared(tiny, tmp_path) -> Path:
    """A copy of the prepared data set's three files, which point at the original's photos."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "VOCdevkit").symlink_to(tiny.data / "VOCdevkit")
    for name in (index.IMAGES, index.PAIRS, index.ABOUT):
        (folder / name).write_bytes((tiny.data / name).read_bytes())
    return folder


def rewrite(folder: Path, table: str, change) -> None:
    """Change a table, and make the digest of the data set fit, as a fault of the preparation would."""
    rows = read_csv(folder / table)
    change(rows)
    write_csv(folder / table, rows[0], [row.values() for row in rows])
    reseal(folder)


def reseal(folder: Path, **changes) -> None:
    about = read_json(folder / index.ABOUT) | changes
    about.pop("seal")
    write_json(folder / index.ABOUT, about | {"seal": index._seal(folder, about)})


def refused(words: str, call, *arguments, **options) -> str:
    with pytest.raises(CrnetError) as caught:
        call(*arguments, **options)
    one_sentence(caught.value, words)
    return str(caught.value)


class TestTestPhotos:
    """Training never sees a photo of the split val."""

    @pytest.mark.parametrize("name", [index.IMAGES, index.PAIRS, index.ABOUT])
    def test_a_flipped_bit_in_a_list_is_refused(self, prepared, name):
        content = bytearray((prepared / name).read_bytes())
        content[len(content) // 2] ^= 1
        (prepared / name).write_bytes(content)
        refused("no prepared data set any more", Index.load, prepared)

    def test_a_list_that_gives_a_test_photo_to_training_is_refused(self, tiny, prepared, tmp_path):
        def plant(rows):
            next(row for row in rows if row["split"] == "val").update(split="train")

        rewrite(prepared, index.PAIRS, plant)
        refused("contradicts", Index.load, prepared)
        for features in (None, tiny.features):
            spec = tiny.training(train=LIVE | {"features": "live" if features is None else "cached"})
            refused("contradicts", train, spec, paths(tiny, tmp_path, prepared, features), "cpu", 1)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("features", ["live", "cached"])
    def test_a_test_photo_among_the_training_pairs_is_refused(self, tiny, tmp_path, monkeypatch, features):
        genuine = Index.training_pairs

        def plant(self, fold, novel_pixels="background"):
            return genuine(self, fold, novel_pixels) + self.pairs("val", self.base_classes(fold))[:1]

        monkeypatch.setattr(Index, "training_pairs", plant)
        spec = tiny.training(train=LIVE | {"features": features})
        store = tiny.features if features == "cached" else None
        refused("is a test photo (split val)", train, spec, paths(tiny, tmp_path, features=store), "cpu", 1)

    def test_features_hold_no_test_photo(self, tiny):
        data = Index.load(tiny.data)
        stored = read_json(tiny.features / "features.json")
        assert {data.photos[photo].split for photo in stored["photos"]} == {"train"}
        store = FeatureStore(tiny.features, data, stored["encoder_digest"])
        photo = next(name for name, photo in data.photos.items() if photo.split == "val")
        with pytest.raises(KeyError):
            store.maps([(photo, None, 0)], (0,))


class TestNovelClasses:
    """No (photo, class) pair of a class that the fold tests or holds out is ever foreground."""

    @pytest.mark.parametrize("novel_pixels", index.NOVEL_PIXELS)
    @pytest.mark.parametrize("features", ["live", "cached"])
    def test_a_novel_class_among_the_training_pairs_is_refused(
        self, tiny, tmp_path, monkeypatch, features, novel_pixels
    ):
        def plant(self, fold, novel_pixels="background"):
            return self.pairs("train", range(1, len(self.classes) + 1))

        monkeypatch.setattr(Index, "training_pairs", plant)
        spec = tiny.training(train=LIVE | {"features": features, "novel_pixels": novel_pixels})
        store = tiny.features if features == "cached" else None
        refused("which that fold tests", train, spec, paths(tiny, tmp_path, features=store), "cpu", 1)

    def test_a_fold_that_lost_a_class_is_refused(self, prepared):
        folds = read_json(prepared / index.ABOUT)["folds"]
        reseal(prepared, folds=[folds[0][1:], *folds[1:]])
        refused("contradicts", Index.load, prepared)

    @pytest.mark.parametrize("novel_pixels", ["background", "void"])
    @pytest.mark.parametrize("features", ["live", "cached"])
    @pytest.mark.parametrize("void", ["ignored", "background"])
    def test_foreground_is_the_asked_class_and_nothing_else(self, tiny, features, novel_pixels, void):
        """Masks as the network gets them, pixel by pixel, of photos that show a novel class too."""
        data, fold = Index.load(tiny.data), 0
        unseen = set(data.unseen_classes(fold))
        pairs = [p for p in data.training_pairs(fold, novel_pixels) if unseen & data.photos[p.image].classes]
        wanted = [TrainingEpisode(p.class_id, p.image, p.image, 0, 0, 0) for p in pairs]
        assert len(wanted) > 10, "photos with both are what this is about"
        spec = tiny.training(fold, train=LIVE | {"features": features, "novel_pixels": novel_pixels, "void": void})
        encoder = frozen(tiny)
        method = methods.build("crnet", encoder.channels, spec["model"])
        void_classes = tuple(unseen) if novel_pixels == "void" else ()
        if features == "cached":
            source = CachedSource(FeatureStore(tiny.features, data, encoder.digest), method, void_classes, void)
        else:
            source = LiveSource(data, encoder, method, {**spec["train"], "augment": "none"}, void_classes, 0)
        seen, borders = {0: 0, 1: 0, 255: 0}, 0
        for batch in source.batches(wanted, 4, augment=False):
            for episode, mask in zip(batch.episodes, batch.query_mask.numpy(), strict=True):
                truth = data.read_mask(episode.query)
                there = transforms.squash_mask(truth, tiny.SIZE)
                novel = np.isin(there, list(unseen))
                assert mask.shape == there.shape
                assert not (mask == 1)[novel].any(), "a pixel of a novel class is foreground"
                seen[255 if novel_pixels == "void" else 0] += int(novel.sum())
                seen[1] += int((mask == 1).sum())
                assert set(mask[there == 255].tolist()) <= {255 if void == "ignored" else 0}
                borders += int((there == 255).sum())
                if novel.any():
                    values = np.unique(mask[novel]).tolist()
                    assert values == ([255] if novel_pixels == "void" else [0])
        assert borders and seen[1] and seen[255 if novel_pixels == "void" else 0]


class TestEpisodes:
    """Supports never equal the query."""

    @pytest.fixture
    def table(self, tiny, tmp_path) -> Path:
        return drawn(tiny, tmp_path, 5, 2)

    def plant(self, path: Path, **changes) -> None:
        """Change the third episode, and make the file's digest fit."""
        rows = read_csv(path)
        rows[2] |= {key: rows[2].get(value, value) for key, value in changes.items()}
        write_csv(path, rows[0], [row.values() for row in rows])
        write_json(path.with_suffix(".json"), read_json(path.with_suffix(".json")) | {"digest": sha256_file(path)})

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"support_1": "query"}, "is among its own supports"),
            ({"support_2": "query"}, "is among its own supports"),
            ({"support_2": "support_1"}, "a support is there twice"),
            ({"query": "train_000001"}, "train_000001 is no test photo of class"),
            ({"support_1": "nowhere"}, "nowhere is no test photo of class"),
            ({"class": "7"}, "is no test photo of class 7 in fold 0"),
        ],
    )
    def test_a_planted_episode_is_refused_when_read(self, tiny, table, changes, words):
        data = Index.load(tiny.data)
        assert len(episodes.read(table, data).episodes) == 5
        self.plant(table, **changes)
        assert "line 4" in refused(words, episodes.read, table, data)

    def test_no_evaluation_uses_it(self, tiny, table, tmp_path):
        self.plant(table, support_1="query")
        spec = tiny.evaluation(tiny.training(method="prototype"), shots=2)
        out = tmp_path / "out"
        refused("own supports", evaluate, spec, tiny.data, table, tiny.encoder, None, None, None, out, "cpu", 1)
        assert not out.exists()

    def test_training_pairs_differ_even_in_a_pool_of_two(self, tiny):
        data = Index.load(tiny.data)
        chosen = data.training_pairs(0)
        two = [pair for pair in chosen if pair.class_id == chosen[0].class_id][:2]
        pairs = EpisodeSource(data, two, 0, 0, "identity").epoch(0, 50)
        assert all(episode.query != episode.support for episode in pairs)


DRIFTING = """
import torch
from torch import nn

class Drifting(nn.Module):
    channels = (8,)
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 9, 8, 4), nn.BatchNorm2d(8)
    def forward(self, x):
        if len(x) > 1:  # not when it is first tried
            self.norm.running_mean += 1e-6
        return [self.norm(self.conv(x))]

def build(): return Drifting()
"""


class TestFrozenEncoder:
    """Weights and buffers of the encoder are those that it had at first."""

    @pytest.fixture
    def drifting(self, tmp_path, monkeypatch) -> dict:
        (tmp_path / "drifting_encoder.py").write_text(DRIFTING)
        monkeypatch.syspath_prepend(tmp_path)
        return {"name": "drifting_encoder:build", "rev": 1}

    def test_a_drift_ends_a_training_and_the_next_start_too(self, tiny, drifting, tmp_path):
        spec = tiny.training(model={"multi_level": False}, train=LIVE) | {"encoder": drifting}
        where = Paths(tiny.data, None, None, tmp_path / "run", tmp_path / "run.pt")
        for _ in range(2):  # what a drifting encoder gave is not kept, so that nobody goes on from it
            refused("batch-norm statistic changed while it was in use", train, spec, where, "cpu", 1)
            assert not where.state.exists()
            assert not (tmp_path / "run").exists()

    def test_a_drift_writes_no_features(self, tiny, drifting, tmp_path):
        spec = {"dataset": tiny.dataset, "encoder": drifting, "size": 32, "views": "identity", "precision": "float32"}
        encoder = FrozenEncoder(drifting, None, torch.device("cpu"), "float32")
        refused("batch-norm", write_store, spec, tiny.data, encoder, tmp_path / "features")
        assert not (tmp_path / "features/features.json").exists()

    def test_a_drift_writes_no_counts(self, tiny, drifting, tmp_path, monkeypatch):
        monkeypatch.setattr(saved_rows, "SAVE_SECONDS", -1.0)  # save after every episode
        table, out, state = drawn(tiny, tmp_path, 3, 1), tmp_path / "out", tmp_path / "state.json"
        spec = tiny.evaluation(tiny.training(method="prototype") | {"encoder": drifting})
        for _ in range(2):
            refused("batch-norm", evaluate, spec, tiny.data, table, None, None, None, state, out, "cpu", 1)
            assert not out.exists() and not state.exists()


class TestChoices:
    """No setting is chosen on classes that are tested."""

    def test_a_class_that_is_tested_and_held_out_is_refused(self, prepared):
        about = read_json(prepared / index.ABOUT)
        reseal(prepared, held_out=[about["folds"][0][:1], *about["held_out"][1:]])
        refused("tests striped-star and holds it out for choosing settings", Index.load, prepared)

    @pytest.fixture
    def finetuned(self, tiny, tmp_path) -> tuple[dict, Path]:
        settings = {"lr": [1e-3], "steps": [1], "trial_episodes": 2, "trial_shots": 2, "batch": 2}
        spec = tiny.evaluation(tiny.training(), shots=2, strategy="finetune")
        how = check(settings, FINETUNE, FINETUNE_LIMITS, "test")
        return spec | {"finetune": tuning.with_folds(how, 0, [0])}, untrained(tiny, tmp_path)

    def test_trials_on_a_test_class_are_refused(self, tiny, finetuned, tmp_path, monkeypatch):
        spec, weights = finetuned
        monkeypatch.setattr(Index, "selection_classes", lambda self, fold: (*self.base_classes(fold), 3))
        words = "would serve to choose settings of fold 0, which tests it"
        refused(words, episodes.draw_trials, Index.load(tiny.data), 0, 5, 2)
        out = tmp_path / "choice"
        (tried,) = tuning.trials_specs(tuning.choice_spec(spec))
        arguments = {"spec": tried, "data": tiny.data, "encoder": tiny.encoder, "weights": weights}
        refused(words, trials.run, **arguments, state=None, out=out, device="cpu", threads=1)
        assert not out.exists()

    def test_a_choice_made_on_a_test_class_is_not_used(self, tiny, finetuned, tmp_path):
        spec, weights = finetuned
        table, choice = drawn(tiny, tmp_path, 2, 2), tmp_path / "choice.json"
        write_json(choice, {"spec": spec, "lr": 1e-3, "steps": 1, "classes": ["dotted-heart", "zigzag-disc"]})
        out = tmp_path / "out"
        arguments = (spec, tiny.data, table, tiny.encoder, weights, choice, None, out, "cpu", 1)
        refused("was chosen on dotted-heart, which fold 0 tests", evaluate, *arguments)
        assert not out.exists()


class TestMasks:
    """A flipped bit in a mask is noticed, also where what is left can still be decoded."""

    def test_in_a_line_of_run_lengths(self, tmp_path):
        """Each bit of a line, one after the other."""
        mask = np.zeros((40, 48), np.uint8)
        mask[5:20, 7:30] = 1
        runs = run_lengths.encode(np.asfortranarray(mask))["counts"].decode()
        line = packed.PackedMasks({3: runs}, None).line()
        path, checksum = tmp_path / "masks.jsonl", zlib.crc32(line)
        path.write_bytes(line + line)
        assert packed.read_packed(path, len(line), checksum).masks == {3: runs}
        for bit in range(8 * len(line)):
            content = bytearray(line + line)
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            with pytest.raises(CrnetError, match="holds no masks at byte 0"):
                packed.read_packed(path, 0, checksum)

    def test_in_a_png(self, tiny, tmp_path, prepared):
        """PNG's own checksums do not find all: some bits change pixels and nothing else."""
        image, photo = next((i, p) for i, p in Index.load(tiny.data).photos.items() if len(p.classes) > 1)
        content = photo.mask.read_bytes()
        mask = tmp_path / "mask.png"
        rewrite(prepared, index.IMAGES, lambda rows: [r.update(mask=str(mask)) for r in rows if r["image"] == image])
        mask.write_bytes(content)
        data = Index.load(prepared)
        before = data.read_mask(image)
        silent = 0
        for byte in range(len(content)):
            changed = bytearray(content)
            changed[byte] ^= 1
            mask.write_bytes(changed)
            with pytest.raises(CrnetError) as caught:
                data.read_mask(image)
            silent += "its checksum differs" in str(caught.value)
        assert silent, "otherwise the checksum is not needed"
        mask.write_bytes(content)
        np.testing.assert_array_equal(data.read_mask(image), before)

    def test_data_of_a_version_without_checksums_are_made_again(self, prepared):
        rows = read_csv(prepared / index.IMAGES)
        kept = [key for key in rows[0] if key != "mask_crc32"]
        write_csv(prepared / index.IMAGES, kept, [[row[key] for key in kept] for row in rows])
        about = read_json(prepared / index.ABOUT)
        about.pop("seal")
        write_json(prepared / index.ABOUT, about)
        assert "delete its dataset.json" in refused("of an earlier version", Index.load, prepared)


def test_every_test_that_the_document_names_is_there():
    document = (ROOT / "docs/reliability.md").read_text()
    named = set(re.findall(r"`(tests/\w+\.py)((?:::\w+)*)`", document))
    assert len(named) > 40
    for file, place in sorted(named):
        path = ROOT / file
        assert path.is_file(), f"{file} is named and not there"
        source = path.read_text()
        for name in filter(None, place.split("::")):
            assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), f"{file}{place} is not there"
