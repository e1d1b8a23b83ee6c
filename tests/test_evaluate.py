"""Evaluation: what it counts, that nothing in it is random, and that its shortcuts change nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crnet import methods
from crnet.config import resolve
from crnet.config.defaults import scaled
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
    training = tiny.training()
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(methods.build("crnet", (64, 96), training["model"]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory) -> Path:
    index = Index.load(tiny.data)
    path = tmp_path_factory.mktemp("episodes") / "f0.csv"
    episodes.write(path, episodes.draw(index, fold=0, count=12, seeds=[0], shots=2, too_few="leave out"))
    return path


def score(tiny, table, weights, out, limits=NONE, **changes):
    spec = tiny.evaluation(tiny.training(), **changes)
    evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, out, "cpu", 1, limits=limits)
    return (out / "counts.csv").read_bytes()


def _numbers(path: Path) -> np.ndarray:
    return np.array([[int(v) for k, v in row.items() if k != "query"] for row in read_csv(path)])


def test_same_bytes_again_and_with_another_grouping(tiny, table, weights, tmp_path):
    first = score(tiny, table, weights, tmp_path / "a", shots=2, scales=[0.75, 1.0])
    assert score(tiny, table, weights, tmp_path / "b", shots=2, scales=[0.75, 1.0]) == first
    little = Limits(pairs_at_once=5, photos_at_once=3, pool_gib=0)  # nothing is kept from one chunk to the next
    regrouped = tmp_path / "c"
    score(tiny, table, weights, regrouped, little, shots=2, scales=[0.75, 1.0])
    a, c = (_numbers(folder / "counts.csv") for folder in (tmp_path / "a", regrouped))
    assert np.abs(a - c).max() <= 2, "batches differ in rounding only"


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
        for size in (48, 80):
            query = predictor.method.embed(maps(episode.query, size))
            for support in episode.supports[:2]:
                mask = transforms.squash_mask(index.class_mask(support, episode.class_id), size)
                mask = torch.from_numpy(mask)
                whole, masked = maps(support, size), maps(support, size, mask == 1)
                pairs = Pairs(query, predictor.method.embed(whole), predictor.method.embed(masked), mask[None])
                logits = predictor.method.predict(pairs, 3)
                size_of_query = index.size(episode.query)
                total = total + torch.nn.functional.interpolate(logits, size_of_query, mode="bilinear").softmax(1)
        plain = (total[0, 1] > total[0, 0]).numpy()
        assert prediction.query.shape == size_of_query
        assert (plain != prediction.query).mean() < 1e-3


@pytest.mark.parametrize(("differences", "foreground"), [([6.0, -1.5, -1.5], False), ([-6.0, 1.5, 1.5], True)])
def test_supports_are_fused_as_probabilities(tiny, table, weights, monkeypatch, differences, foreground):
    """One support is sure and two lean the other way: the mean of logits is +-1, of probabilities 0.45 or 0.55."""
    predictor = Predictor(tiny.evaluation(tiny.training(), shots=3), tiny.data, tiny.encoder, weights, "cpu")
    logits = torch.tensor(differences)[:, None, None, None] * torch.tensor([-0.5, 0.5])[:, None, None]
    monkeypatch.setattr(predictor, "_logits", lambda chunk, scale, shot: iter([logits[shot].expand(2, 8, 8)]))
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

    def test_score_as_photos_do(self, tiny, table, weights, stores, tmp_path, monkeypatch):
        precision, folders = stores
        spec = tiny.evaluation(tiny.training(), shots=2, scales=list(self.SCALES), precision=precision)
        evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, tmp_path / "live", "cpu", 1)
        monkeypatch.setattr(FrozenEncoder, "__call__", None)  # it is not asked
        evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, tmp_path / "cached", "cpu", 1, folders)
        live, cached = (_numbers(tmp_path / name / "counts.csv") for name in ("live", "cached"))
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


def test_controls_are_scored_without_weights(tiny, table, tmp_path):
    spec = tiny.evaluation(tiny.training(method="all-foreground"))
    evaluate(spec, tiny.data, table, tiny.encoder, None, None, None, tmp_path, "cpu", 1)
    index, about = Index.load(tiny.data), read_json(tmp_path / "evaluation.json")
    for row in read_csv(tmp_path / "counts.csv"):
        mask = index.class_mask(row["query"], int(row["class"]))
        expected = episode_counts(np.ones_like(mask, bool), mask)
        assert tuple(int(v) for v in list(row.values())[4:12]) == expected
    assert about["weights_sha256"] == ""
    assert about["episodes_digest"] == read_json(table.with_suffix(".json"))["digest"]


def test_more_passes_and_more_scales_change_the_prediction(tiny, table, weights, tmp_path):
    bytes_of = [score(tiny, table, weights, tmp_path / str(i), **c) for i, c in enumerate(
        [{}, {"refinements": 1}, {"scales": [0.75, 1.0, 1.25]}, {"shots": 2}])]  # fmt: skip
    assert len(set(bytes_of)) == 4


def test_episodes_of_another_fold_are_refused(tiny, table, weights, tmp_path):
    spec = tiny.evaluation(tiny.training(fold=1))
    with pytest.raises(CrnetError, match="episodes of fold 0, not 1"):
        evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, tmp_path, "cpu", 1)


def test_weights_of_another_variant_are_refused(tiny, table, weights, tmp_path):
    spec = tiny.evaluation(tiny.training(model={"width": 4}))
    with pytest.raises(CrnetError, match="not weights of this crnet"):
        evaluate(spec, tiny.data, table, tiny.encoder, weights, None, None, tmp_path, "cpu", 1)


def test_scaled_sides_are_whole_cells():
    assert [scaled(321, s) for s in (0.75, 1.0, 1.25)] == [240, 321, 400]
