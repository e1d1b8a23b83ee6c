"""Training: killed and resumed it ends with the same bits; workers and caches do not change what is learnt."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import frozen, paths, trained, training
from safetensors.torch import load_file

from crnet.data.index import Index
from crnet.data.transforms import WHOLE, Placement, draw_placement, squash, squash_mask
from crnet.errors import CrnetError
from crnet.runtime.checkpoint import load_state, save_state
from crnet.runtime.files import read_csv, read_json
from crnet.training import loop
from crnet.training.cache import ProbabilityCache, moved
from crnet.training.episodes import EpisodeSource, TrainingEpisode
from crnet.training.log import constant_loss
from crnet.training.loop import Training
from crnet.training.optimisation import learning_rate
from crnet.training.sources import _EpisodePhotos


def run(tiny, tmp_path, name, workers=0, **changes):
    return trained(tiny, tmp_path / name, tiny.training(**changes), workers=workers)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_writes_weights_log_and_provenance(tiny, tmp_path):
    out = run(tiny, tmp_path, "run")
    log, about = read_csv(out / "log.csv"), read_json(out / "train.json")
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert float(log[-1]["loss"]) < float(log[0]["loss"])
    assert all(0 <= float(row["base_miou"]) <= 1 and float(row["images_per_second"]) > 0 for row in log)
    assert about["dataset_digest"] == Index.load(tiny.data).digest
    assert not out.with_suffix(".pt").exists(), "the state of a finished run is in nobody's way"


def test_base_classes_that_are_not_scored_are_empty_in_the_log(tiny, tmp_path, capsys):
    out = run(tiny, tmp_path, "run", train={"base_episodes": 0})
    assert [(row["base_miou"], row["support_iou"]) for row in read_csv(out / "log.csv")] == [("", "")] * 2
    assert "base mIoU" not in capsys.readouterr().out


def test_the_loss_of_one_answer_for_all_pixels_by_hand():
    assert constant_loss(0.5) == pytest.approx(np.log(2))
    assert constant_loss(0.1) == pytest.approx(0.3251, abs=1e-4)  # -0.1 ln 0.1 - 0.9 ln 0.9
    assert constant_loss(0.0) == constant_loss(1.0) == 0


def test_a_training_that_learns_nothing_warns_in_its_log(tiny, tmp_path, capsys, monkeypatch):
    run(tiny, tmp_path, "idle", train={"lr": 1e-8})
    said = capsys.readouterr().out
    assert "WARNING after 10 steps: the loss on queries, " in said and "WARNING after 20 steps" in said
    monkeypatch.setattr(loop, "constant_loss", lambda share: 9.0 if 0.05 < share < 0.6 else 0.0)
    run(tiny, tmp_path, "busy")
    assert "WARNING" not in capsys.readouterr().out


def test_killed_at_a_random_moment_ends_with_the_same_bits(tiny, tmp_path):
    undisturbed = run(tiny, tmp_path, "undisturbed")
    where = paths(tiny, tmp_path / "killed")
    out, state = where.out, where.state
    command = [sys.executable, "-m", "crnet", *training(tiny.training(), where, "--checkpoint-seconds", 0)]
    seed = int.from_bytes(os.urandom(4))
    moments = random.Random(seed)
    kills = 0
    while not (out / "model.safetensors").exists():
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            deadline = time.monotonic() + 60
            while kills < 2 and not state.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if kills < 2:
                time.sleep(moments.uniform(0, 0.5))
                kills += process.poll() is None
                process.send_signal(signal.SIGKILL)
            output = process.communicate()[0].decode()
        assert process.returncode in (0, -signal.SIGKILL), output
    assert kills > 0, f"finished before it could be killed, seed {seed}"
    assert "resumed at step" in output
    assert same(weights(undisturbed), weights(out)), f"seed {seed}"
    timing = {"images_per_second", "seconds", "peak_memory_bytes"}
    logs = [
        [{k: v for k, v in row.items() if k not in timing} for row in read_csv(f / "log.csv")]
        for f in (undisturbed, out)
    ]
    assert logs[0] == logs[1]


def test_who_watches_a_training_finds_its_log_so_far_beside_its_state(tiny, tmp_path, monkeypatch):
    """It is never ahead of the state, and what a second start goes on with is the beginning of the final log."""
    where, log_epoch = paths(tiny, tmp_path), loop.Training._log_epoch
    spec = tiny.training(train={"epochs": 3})

    def killed_in_the_second(self, epoch):
        log_epoch(self, epoch)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_log_epoch", killed_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            trained(tiny, tmp_path, spec)
    so_far = read_csv(where.log_so_far)
    assert [row["epoch"] for row in so_far] == ["1"]
    trained(tiny, tmp_path, spec)
    log = read_csv(where.out / "log.csv")
    assert log[:1] == so_far and len(log) == 3
    assert not list(tmp_path.glob("*run.csv*")) and not where.state.exists()


def test_sigterm_saves_the_state_and_says_so(tiny, tmp_path):
    where = paths(tiny, tmp_path)
    command = [sys.executable, "-m", "crnet", *training(tiny.training(train={"epochs": 500}), where)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()  # the first epoch is over
        started = time.monotonic()
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - started < 10
    assert "the state is in" in errors
    assert load_state(where.state)["progress"]["step"] > 0


def test_a_damaged_state_is_noticed_and_the_one_before_used(tmp_path, capsys):
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})
    save_state(path, {"step": 2})
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert load_state(path) == {"step": 1}
    assert "damaged" in capsys.readouterr().err
    path.write_bytes(content[:50])
    assert load_state(path) == {"step": 1}


def test_a_state_of_another_training_is_refused(tiny, tmp_path):
    save_state(paths(tiny, tmp_path / "run").state, {"spec": "{}"})
    with pytest.raises(CrnetError, match="belongs to another training"):
        run(tiny, tmp_path, "run")


def test_live_features_any_number_of_workers(tiny, tmp_path):
    changes = {"train": {"features": "live", "views": "flip", "augment": "both", "epochs": 1, "epoch_episodes": 6}}
    alone, helped = (run(tiny, tmp_path, f"w{n}", workers=n, **changes) for n in (0, 2))
    assert same(weights(alone), weights(helped))


def test_cached_features_are_the_live_ones(tiny, tmp_path):
    changes = {"augment": "none", "views": "recolour", "epochs": 1, "epoch_episodes": 4, "lr": 1e-3}
    cached = run(tiny, tmp_path, "cached", train={**changes, "features": "cached"})
    live = run(tiny, tmp_path, "live", train={**changes, "features": "live"})
    losses = [float(read_csv(folder / "log.csv")[0]["loss"]) for folder in (cached, live)]
    assert math.isclose(*losses, rel_tol=2e-3)  # float16 on disk


def test_folds_begin_with_weights_of_their_own(tiny, tmp_path):
    """Intervals take folds for independent, so that one draw of initial weights must not be in all of them."""

    def initial(fold: int) -> dict[str, torch.Tensor]:
        return Training(
            tiny.training(fold=fold), paths(tiny, tmp_path), torch.device("cpu"), 1, 0, 60.0
        ).method.state_dict()

    first, again, other = initial(0), initial(0), initial(1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["enter.weight"], other["enter.weight"])


def test_two_seeds_differ(tiny, tmp_path):
    assert not same(weights(run(tiny, tmp_path, "a")), weights(run(tiny, tmp_path, "b", seed=1)))


@pytest.mark.parametrize("cache", ["stored", "unrolled"])
def test_both_kinds_of_cache_train(tiny, tmp_path, cache):
    out = run(tiny, tmp_path, cache, model={"cache": cache, "refinement": True})
    assert np.isfinite(float(read_csv(out / "log.csv")[-1]["loss"]))


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(tiny, tmp_path):
    with pytest.raises(CrnetError, match=r"loss is (nan|inf).* at step \d+ \(lr"):
        run(tiny, tmp_path, "bad", train={"optimizer": "sgd", "schedule": "constant", "lr": 10.0, "epochs": 20})


def test_training_episodes_come_from_other_folds_and_other_photos(tiny):
    index = Index.load(tiny.data)
    source = EpisodeSource(index, index.training_pairs(1), fold=1, seed=0, views="recolour")
    episodes = source.epoch(0, 300)
    assert not {e.class_id for e in episodes} & set(index.novel_classes(1))
    assert all(e.query != e.support for e in episodes)
    assert {index.photos[p].split for e in episodes for p in (e.query, e.support)} == {"train"}
    assert all(e.query_view == e.support_view for e in episodes), "recoloured alike"
    assert episodes == source.epoch(0, 300) != source.epoch(1, 300)
    assert episodes[:10] == source.epoch(0, 10), "the count only appends"


def test_the_encoder_is_frozen_and_a_drift_is_found(tiny):
    encoder = frozen(tiny)
    assert not encoder.network.training
    encoder(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    encoder.verify()
    next(encoder.network.parameters()).add_(1e-6)
    with pytest.raises(CrnetError, match="batch-norm"):
        encoder.verify()


A, B = ("a", 1), ("b", 1)
LIKE = torch.zeros(1, 8, 3, 3)


def remembering(stored: torch.Tensor, at: Placement, size: int) -> ProbabilityCache:
    """A cache that never resets, in which the query's branch saw photo A at a place."""
    cache = ProbabilityCache(reset=0.0, fold=0, seed=0, size=size)
    cache.write("query", [A], [at], stored)
    return cache


def test_probability_cache_unmirrors_and_resets():
    stored = torch.rand(1, 2, 3, 3)
    cache = remembering(stored, Placement(flipped=True), size=17)
    kept = stored.half().float()
    assert torch.equal(cache.read("query", [A], [WHOLE], 0, LIKE), kept.flip(-1))
    assert torch.equal(cache.read("query", [A], [Placement(flipped=True)], 0, LIKE), kept)
    assert cache.read("query", [B], [WHOLE], 0, LIKE).abs().sum() == 0
    again = ProbabilityCache(reset=1.0, fold=0, seed=0, size=17)
    again.restore(cache.state())
    assert again.read("query", [A], [WHOLE], 0, LIKE).abs().sum() == 0


def test_each_branch_has_a_cache_of_its_own():
    cache = remembering(torch.full((1, 2, 3, 3), 0.25), WHOLE, size=17)
    assert cache.read("support", [A], [WHOLE], 0, LIKE).abs().sum() == 0
    cache.write("support", [A], [WHOLE], torch.full((1, 2, 3, 3), 0.75))
    for branch, value in (("query", 0.25), ("support", 0.75)):
        assert torch.equal(cache.read(branch, [A], [WHOLE], 0, LIKE), torch.full((1, 2, 3, 3), value))


# Cells of the whole photo lie at (p + 1/2) / S: for corners of S = 17, p = 0, 8, 16; tiles of S = 24, 3.5, 11.5, 19.5.
@pytest.mark.parametrize(
    ("size", "now", "expected"),
    [
        # Twice as large from the left edge: the cells, at 1/68, 17/68, 33/68 of the width, lie at -1/32, 15/32, 31/32
        # of those that were seen, of which the first is kept to the left.
        (17, Placement(2.0, 0.0, 0.0), [0.0, 15 / 32, 31 / 32]),
        (17, Placement(2.0, 0.0, 0.0, flipped=True), [31 / 32, 15 / 32, 0.0]),
        # From the middle: 35/68, 51/68, 67/68, which is 33/32, 49/32 and 65/32 cells.
        (17, Placement(2.0, 0.0, 0.5), [33 / 32, 49 / 32, 2.0]),
        # Cells tile the photo: 1/12, 3/12, 5/12 of the width are -1/4, 1/4 and 3/4 cells.
        (24, Placement(2.0, 0.0, 0.0), [0.0, 0.25, 0.75]),
        (24, Placement(2.0, 0.0, 0.5), [1.25, 1.75, 2.0]),
    ],
)
def test_a_stored_prediction_moves_with_the_crop_by_hand(size, now, expected):
    columns = torch.tensor([0.0, 1.0, 2.0]).expand(1, 2, 3, 3)  # the number of each cell
    read = remembering(columns, WHOLE, size).read("query", [A], [now], 0, LIKE)
    torch.testing.assert_close(read, torch.tensor(expected).expand(1, 2, 3, 3))


def test_what_was_not_seen_is_zero_by_hand():
    """The left half of the photo, seen twice as large, in the whole: the middle cell of corners lies on its edge."""
    columns, before = torch.tensor([1.0, 2.0, 3.0]).expand(1, 2, 3, 3), Placement(2.0, 0.25, 0.0)
    read = remembering(columns, before, size=17).read("query", [A], [WHOLE], 0, LIKE)
    # 0 and 8 px of 17 are 1/34 and 1/2 of the width: 1/17 and all of what was seen, 1/16 and 2 1/16 cells; rows 0 and 2
    # lie outside the half that was seen.
    expected = torch.zeros(3, 3)
    expected[1, :2] = torch.tensor([1 + 1 / 16, 3.0])
    torch.testing.assert_close(read, expected.expand(1, 2, 3, 3))
    mirrored = remembering(columns.flip(-1), replace(before, flipped=True), 17)
    torch.testing.assert_close(mirrored.read("query", [A], [WHOLE], 0, LIKE), read)


def test_a_moved_prediction_is_that_of_the_place():
    """Seen in one crop and looked at in another, a ramp over the photo is the same ramp."""
    cells = (8 * torch.arange(9) + 0.5) / 65

    def over_the_photo(at: Placement) -> torch.Tensor:
        across = at.left + (1 - cells if at.flipped else cells) / at.scale
        return (at.top + cells / at.scale)[:, None] + 2 * across

    for seed in range(10):
        chance = np.random.default_rng(seed)
        before, now = (draw_placement(np.ones((50, 70), np.uint8), 65, 1, chance) for _ in range(2))
        found = moved(over_the_photo(before).expand(2, 9, 9), before, now, 65)
        exact = over_the_photo(now).expand(2, 9, 9)
        assert (found - exact)[found > 0].abs().max() < 0.03  # up to 1/16 of a cell beyond the outermost
        assert 0.2 < (found > 0).float().mean() <= 1


def test_under_augmentation_predictions_are_kept_and_a_restored_cache_gives_the_same(tiny, tmp_path):
    how = {"features": "live", "views": "flip", "augment": "support"}
    spec = tiny.training(train=how, model={"cache_reset": 0.0})
    training = loop.Training(spec, paths(tiny, tmp_path, features=None), torch.device("cpu"), 1, 0, 60.0)
    [first] = training.source.batches(training.episodes.epoch(0, 4), 4)
    [again] = training.source.batches([replace(e, seed=e.seed + 1) for e in first.episodes], 4)
    assert first.support_placements != again.support_placements
    training.step(first)
    with torch.no_grad():
        pairs = training._pairs(again)
        for cache in (pairs.query_cache, pairs.support_cache):
            assert (cache.sum((1, 2, 3)) > 0).all(), "each photo finds what it gave"
        save_state(tmp_path / "state", training.cache.state())
        training.cache = ProbabilityCache(0.0, 0, 0, tiny.SIZE)
        assert training._pairs(again).support_cache.abs().sum() == 0
        training.cache.restore(load_state(tmp_path / "state"))
        assert torch.equal(training._pairs(again).support_cache, pairs.support_cache)


def test_crops_keep_the_class():
    mask = np.zeros((60, 90), np.uint8)
    mask[:2, :2] = 7
    drawn = [draw_placement(mask, 65, 7, np.random.default_rng(seed)) for seed in range(20)]
    assert all((squash_mask(mask, 65, placement) == 7).any() for placement in drawn)
    assert {placement.flipped for placement in drawn} == {True, False}


def test_crops_are_scaled_up_by_half_at_most_and_lie_in_the_photo():
    drawn = [draw_placement(np.ones((60, 90), np.uint8), 65, 1, np.random.default_rng(seed)) for seed in range(300)]
    scales = np.array([each.scale for each in drawn])
    assert 1 <= scales.min() < 1.02 and 1.48 < scales.max() <= 1.5
    for side in ("top", "left"):
        starts = np.array([getattr(each, side) for each in drawn])
        assert starts.min() >= 0 and (starts + 1 / scales).max() <= 1 + 1e-12 and starts.std() > 0.05


def sharpness(image: np.ndarray) -> float:
    """Mean absolute Laplacian."""
    x = image[..., 0].astype(float)
    return np.abs(4 * x[1:-1, 1:-1] - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]).mean()


def test_an_augmented_photo_is_as_sharp_as_the_photo_allows():
    """Resampled once, from the photo: what was squashed and enlarged again has lost its texture."""
    texture = np.random.default_rng(0).integers(0, 256, (375, 500, 1), np.uint8).repeat(3, -1)
    size, mask = 321, np.ones((375, 500), np.uint8)
    for seed in range(5):
        placement = draw_placement(mask, size, 1, np.random.default_rng(seed))
        left, top, right, bottom = (round(side) for side in placement.box(500, 375))
        directly = sharpness(squash(texture[top:bottom, left:right], size))
        large = round(size * placement.scale)
        y, x = (round(start * large) for start in (placement.top, placement.left))
        twice = sharpness(squash(squash(texture, size), large)[y : y + size, x : x + size])
        once = sharpness(squash(texture, size, placement))
        assert once == pytest.approx(directly, rel=0.03) and once > 1.3 * twice


def test_photo_and_mask_of_a_crop_lie_on_each_other():
    """Where the crop cuts and flips, a bright square of the photo stays the foreground of its mask."""
    mask = np.zeros((120, 200), np.uint8)
    mask[30:90, 60:140] = 1
    photo = (200 * mask)[..., None].repeat(3, -1)
    for seed in range(20):
        placement = draw_placement(mask, 97, 1, np.random.default_rng(seed))
        bright = squash(photo, 97, placement)[..., 0] > 100
        assert (bright != squash_mask(mask, 97, placement)).mean() < 0.02
    cut = squash_mask(mask, 100, Placement(2.0, top=0.0, left=0.5))  # the upper right quarter, by hand
    expected = np.zeros((100, 100), np.uint8)
    expected[50:, :40] = 1
    assert (cut == expected).all()
    assert (squash_mask(mask, 100, Placement(2.0, 0.0, 0.5, flipped=True)) == expected[:, ::-1]).all()


def test_a_photo_that_is_augmented_and_seen_in_a_view_is_flipped_once_for_each(tiny):
    """What the cache is told of a visit is what the loader did to photo and mask."""
    index = Index.load(tiny.data)
    pair = index.training_pairs(0)[0]
    photo, mask = index.read_image(pair.image), index.class_mask(pair.image, pair.class_id)
    settings = {"size": 65, "views": "flip", "void": "ignored"}
    for seed, view in product(range(4), (0, 1)):
        episode = TrainingEpisode(pair.class_id, pair.image, pair.image, view, view, seed)
        *query, support, support_mask, placement = _EpisodePhotos(index, [episode], settings, "support", ())[0]
        assert query[2] == Placement(flipped=bool(view))
        assert (support == squash(photo, 65, placement)).all()
        assert (support_mask == squash_mask(mask, 65, placement)).all()


def test_schedules():
    one_cycle = [learning_rate({"schedule": "one-cycle", "lr": 1.0}, s, 100) for s in range(100)]
    assert max(one_cycle) == pytest.approx(1.0)
    assert one_cycle.index(max(one_cycle)) == 10
    assert one_cycle[0] == pytest.approx(0.04)
    assert one_cycle[-1] < 0.01
    poly = [learning_rate({"schedule": "poly", "lr": 1.0}, s, 100) for s in (0, 50)]
    assert poly == [1.0, pytest.approx(0.5**0.9)]
    assert learning_rate({"schedule": "constant", "lr": 0.3}, 77, 100) == 0.3
