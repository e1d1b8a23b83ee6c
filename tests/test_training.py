"""Training: killed and resumed it ends with the same bits; workers and caches do not change what is learnt."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import frozen, paths, trained, training
from safetensors.torch import load_file

from crnet.data.index import Index
from crnet.data.transforms import scale_crop_flip
from crnet.errors import CrnetError
from crnet.runtime.checkpoint import load_state, save_state
from crnet.runtime.files import read_csv, read_json
from crnet.training import loop
from crnet.training.cache import ProbabilityCache
from crnet.training.episodes import EpisodeSource
from crnet.training.loop import constant_loss
from crnet.training.optimisation import learning_rate


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


def test_probability_cache_unmirrors_and_resets():
    cache = ProbabilityCache(reset=0.0, fold=0, seed=0)
    stored = torch.rand(1, 2, 3, 4)
    cache.write([("a", 1)], [True], stored)
    like = torch.zeros(1, 8, 3, 4)
    torch.testing.assert_close(cache.read([("a", 1)], [False], 0, "query", like), stored.flip(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(cache.read([("a", 1)], [True], 0, "query", like), stored, atol=1e-3, rtol=0)
    assert cache.read([("a", 1)], None, 0, "query", like).abs().sum() == 0, "cropped photos have no history"
    assert cache.read([("b", 1)], [False], 0, "query", like).abs().sum() == 0
    again = ProbabilityCache(reset=1.0, fold=0, seed=0)
    again.restore(cache.state())
    assert again.read([("a", 1)], [False], 0, "query", like).abs().sum() == 0


def test_crops_keep_the_class():
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[:2, :2] = 7
    for seed in range(20):
        cropped, cropped_mask = scale_crop_flip(image, mask, 7, np.random.default_rng(seed))
        assert cropped.shape == image.shape
        assert (cropped_mask == 7).any()


def test_schedules():
    one_cycle = [learning_rate({"schedule": "one-cycle", "lr": 1.0}, s, 100) for s in range(100)]
    assert max(one_cycle) == pytest.approx(1.0)
    assert one_cycle.index(max(one_cycle)) == 10
    assert one_cycle[0] == pytest.approx(0.04)
    assert one_cycle[-1] < 0.01
    poly = [learning_rate({"schedule": "poly", "lr": 1.0}, s, 100) for s in (0, 50)]
    assert poly == [1.0, pytest.approx(0.5**0.9)]
    assert learning_rate({"schedule": "constant", "lr": 0.3}, 77, 100) == 0.3
