"""Evaluation: what it counts, that nothing in it is random, and that its shortcuts change nothing."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import drawn, untrained

from crnet.config import resolve
from crnet.data import episodes, transforms
from crnet.data.index import Index
from crnet.encoders.features import write_store
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError
from crnet.evaluation.evaluate import evaluate
from crnet.evaluation.predict import Predictor
from crnet.methods import Pairs
from crnet.metrics.iou import episode_counts
from crnet.runtime.files import read_csv, read_json
from crnet.runtime.limits import NONE, Limits


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory) -> Path:
    return untrained(tiny, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory) -> Path:
    return drawn(tiny, tmp_path_factory.mktemp("episodes"), count=12, shots=2)


@pytest.fixture
def run(tiny, table, weights):
    def run(out: Path, training=None, weights=weights, features=(), limits=NONE, **changes) -> np.ndarray:
        """Score a model, of the crnet at hand if none is given, and read its counts; their bytes are in ``out``."""
        spec = tiny.evaluation(training or tiny.training(), **changes)
        evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, out, "cpu", 1, features, limits)
        rows = read_csv(out / "counts.csv")
        return np.array([[int(value) for name, value in row.items() if name != "query"] for row in rows])

    return run


def test_same_bytes_again_and_with_another_grouping(run, tmp_path):
    how = {"shots": 2, "scales": [0.75, 1.0]}
    first, _ = run(tmp_path / "a", **how), run(tmp_path / "b", **how)
    assert (tmp_path / "a/counts.csv").read_bytes() == (tmp_path / "b/counts.csv").read_bytes()
    little = Limits(pairs_at_once=5, photos_at_once=3, pool_gib=0)  # nothing is kept from one chunk to the next
    assert np.abs(first - run(tmp_path / "c", limits=little, **how)).max() <= 2, "batches differ in rounding only"


def test_counts_are_those_of_a_plain_loop(tiny, table, weights):
    """One photo, one pair at a time, written out: encode, predict, upsample, average, count."""
    spec = tiny.evaluation(tiny.training(), shots=2, scales=[0.75, 1.25], refinements=3)
    predictor = Predictor(spec, tiny.data, tiny.encoder, weights, "cpu")
    index, chosen = predictor.index, list(episodes.read(table).episodes)[:4]

    def maps(photo, size, keep=None):
        image = torch.from_numpy(transforms.squash(index.read_image(photo), size)).permute(2, 0, 1)[None]
        return predictor.encoder(image, None if keep is None else keep[None])

    for prediction in predictor.fused(chosen):
        episode = prediction.episode
        total = 0
        for size in (49, 81):
            query = predictor.method.embed(maps(episode.query, size))
            for support in episode.supports[:2]:
                mask = transforms.squash_mask(index.class_mask(support, episode.class_id), size)
                mask = torch.from_numpy(mask)
                whole, masked = maps(support, size), maps(support, size, mask == 1)
                pairs = Pairs(query, predictor.method.embed(whole), predictor.method.embed(masked), mask[None])
                logits = predictor.method.predict(pairs, 3)
                size_of_query = index.size(episode.query)
                # To every pixel of the input; the photo's are taken from there as squashing put them.
                large = torch.nn.functional.interpolate(logits, (size, size), mode="bilinear", align_corners=True)
                total = total + torch.nn.functional.interpolate(large, size_of_query, mode="bilinear").softmax(1)
        plain = (total[0, 1] > total[0, 0]).numpy()
        assert prediction.query.shape == size_of_query
        assert (plain != prediction.query).mean() < 1e-3


@pytest.mark.parametrize(("differences", "foreground"), [([6.0, -1.5, -1.5], False), ([-6.0, 1.5, 1.5], True)])
def test_supports_are_fused_as_probabilities(tiny, table, weights, monkeypatch, differences, foreground):
    """One support is sure and two lean the other way: the mean of logits is +-1, of probabilities 0.45 or 0.55."""
    predictor = Predictor(tiny.evaluation(tiny.training(), shots=3), tiny.data, tiny.encoder, weights, "cpu")
    logits = torch.tensor(differences)[:, None, None, None] * torch.tensor([-0.5, 0.5])[:, None, None]
    monkeypatch.setattr(predictor, "_logits", lambda chunk, scale, shot: iter([logits[shot].expand(2, 9, 9)]))
    monkeypatch.setattr(predictor.embedded, "fill", lambda keys: None)
    [prediction] = predictor.fused(list(episodes.read(table).episodes)[:1])
    assert (prediction.query == foreground).all()


class TestCachedTestPhotos:
    SCALES = (0.75, 1.0)

    @pytest.fixture(scope="class", params=["float32", "bfloat16"])
    def stores(self, request, tiny, tmp_path_factory):
        folder = tmp_path_factory.mktemp("stores")
        spec = tiny.evaluation(tiny.training(), scales=list(self.SCALES), precision=request.param)
        encoder = FrozenEncoder(spec["train"]["encoder"], tiny.encoder, torch.device("cpu"), request.param)
        folders = []
        for store in resolve.test_features_specs(spec):
            folders.append(folder / str(store["size"]))
            write_store(store, tiny.data, encoder, folders[-1])
        return request.param, folders

    def test_score_as_photos_do(self, run, stores, tmp_path, monkeypatch):
        precision, folders = stores
        how = {"shots": 2, "scales": list(self.SCALES), "precision": precision}
        live = run(tmp_path / "live", **how)
        monkeypatch.setattr(FrozenEncoder, "__call__", None)  # it is not asked
        cached = run(tmp_path / "cached", features=folders, **how)
        # Of 4096 pixels a photo; in bfloat16, batches of another size round otherwise.
        assert np.abs(live - cached).max() <= (2 if precision == "float32" else 40)

    def test_of_another_split_precision_or_encoder_are_refused(self, tiny, weights, stores):
        precision, folders = stores
        spec = tiny.evaluation(tiny.training(), precision="bfloat16" if precision == "float32" else "float32")
        with pytest.raises(CrnetError, match=f"holds features of {precision}, not of"):
            Predictor(spec, tiny.data, tiny.encoder, weights, "cpu", folders)
        spec = tiny.evaluation(tiny.training(), precision=precision)
        with pytest.raises(CrnetError, match="features of the train split, not of val"):
            Predictor(spec, tiny.data, tiny.encoder, weights, "cpu", [tiny.features])


def test_controls_are_scored_without_weights(tiny, table, run, tmp_path):
    run(tmp_path, tiny.training(method="all-foreground"), weights=None)
    index, about = Index.load(tiny.data), read_json(tmp_path / "evaluation.json")
    for row in read_csv(tmp_path / "counts.csv"):
        mask = index.class_mask(row["query"], int(row["class"]))
        expected = episode_counts(np.ones_like(mask, bool), mask)
        assert tuple(int(v) for v in list(row.values())[4:12]) == expected
    assert about["weights_sha256"] == ""
    found = Counter(str(pair.class_id) for pair in index.pairs("val", index.novel_classes(0)))
    assert about["class_pairs"] == found and set(found) == set(map(str, index.novel_classes(0)))
    assert about["episodes_digest"] == read_json(table.with_suffix(".json"))["digest"]


def test_more_passes_and_more_scales_change_the_prediction(run, tmp_path):
    changes = [{}, {"refinements": 1}, {"scales": [0.75, 1.0, 1.25]}, {"shots": 2}]
    assert len({run(tmp_path, **each).tobytes() for each in changes}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [({"fold": 1}, "episodes of fold 0, not 1"), ({"model": {"width": 4}}, "not weights of this crnet")],
)
def test_episodes_of_another_fold_and_weights_of_another_variant_are_refused(tiny, run, tmp_path, change, message):
    with pytest.raises(CrnetError, match=message):
        run(tmp_path, tiny.training(**change))
