"""The small encoder and its pre-training: shapes, frozen use, learning, and going on after a kill."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from crnet import encoders
from crnet.encoders import pretrain, small
from crnet.errors import CrnetError

TINY = {"steps": 6, "batch": 2, "size": 32, "images": 6}


def run(settings: dict, out: Path) -> list[dict]:
    return pretrain.pretrain(small.network(small.DEFAULT_LAYERS), {**small.SETTINGS, **settings}, out, threads=1)


@pytest.fixture
def saves_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(pretrain, "LOG_EVERY", 3)


def test_unknown_layer_is_named():
    with pytest.raises(CrnetError, match=r"'layer5'.*layer2, layer3, layer4"):
        small.network(["layer3", "layer5"])


def test_prepared_encoder_is_frozen_and_treats_images_one_by_one(tmp_path):
    spec = {"name": "small", "layers": ["layer3", "layer4"], **TINY}
    encoders.prepare(spec, tmp_path, tmp_path / "small.safetensors", 1)
    encoder = encoders.build(spec, tmp_path / "small.safetensors")
    assert not encoder.training
    assert not any(weight.requires_grad for weight in encoder.parameters())
    images = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    before = encoders.digest(encoder)
    alone, together = encoder(images[:1]), encoder(images)
    assert encoders.digest(encoder) == before
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(one, many[:1])


def test_weights_carry_their_settings(tmp_path):
    run(TINY, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert '"steps":6' in file.metadata()["settings"]
    assert set(load_file(tmp_path / "a.safetensors")) == set(small.network([]).state_dict())


@pytest.mark.usefixtures("saves_often")
@pytest.mark.parametrize("steps_before_kill", [1, 3, 5])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path, monkeypatch, steps_before_kill):
    whole = run(TINY, tmp_path / "whole.safetensors")
    undisturbed, calls = pretrain._step, []

    def killed(*arguments):
        if len(calls) == steps_before_kill:
            raise KeyboardInterrupt
        calls.append(1)
        return undisturbed(*arguments)

    out = tmp_path / "killed.safetensors"
    monkeypatch.setattr(pretrain, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, out)
    assert not out.exists()
    assert out.with_suffix(".state").exists()

    monkeypatch.setattr(pretrain, "_step", undisturbed)
    assert run(TINY, out) == whole
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.safetensors", "whole.safetensors"]


@pytest.mark.usefixtures("saves_often")
def test_state_of_other_settings_is_refused(tmp_path, monkeypatch):
    def stop(path: Path, state: dict) -> None:
        save(path, state)
        raise KeyboardInterrupt

    save = pretrain.save_state
    monkeypatch.setattr(pretrain, "save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, tmp_path / "a.safetensors")
    with pytest.raises(CrnetError, match="other settings"):
        run(TINY | {"seed": 1}, tmp_path / "a.safetensors")


@pytest.mark.usefixtures("saves_often")
@pytest.mark.parametrize("harm", ["the loss", "a weight"])
def test_what_is_not_finite_stops_it_and_the_last_good_state_stays(tmp_path, monkeypatch, harm):
    whole = run(TINY, tmp_path / "whole.safetensors")
    step, done = pretrain._step, []

    def poisoned(model, *arguments):
        if len(done) == 3 and harm == "the loss":
            next(model.parameters()).data.fill_(float("nan"))
        loss = step(model, *arguments)
        done.append(loss)
        if len(done) == 4 and harm == "a weight":
            next(model.parameters()).data.fill_(float("inf"))
        return loss

    monkeypatch.setattr(pretrain, "_step", poisoned)
    out = tmp_path / "a.safetensors"
    kept = r"the last good state, after 3 steps, is .*a\.state"
    with pytest.raises(CrnetError, match=rf"{harm} is .* at step 3 \(lr [\d.e-]+\); {kept}"):
        run(TINY, out)
    monkeypatch.setattr(pretrain, "_step", step)
    assert run(TINY, out) == whole
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_loss_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "LOG_EVERY", 20)
    log = run({"steps": 60, "batch": 4, "size": 64, "images": 16}, tmp_path / "a.safetensors")
    assert [row["step"] for row in log] == [20, 40, 60]
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]


def test_learning_rate_is_one_cycle():
    rates = [pretrain.learning_rate(step, 100, 0.01) for step in range(100)]
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[20] == pytest.approx(0.01)
    assert rates[99] == pytest.approx(1e-6)
    assert max(rates) == rates[20]
    assert pretrain.learning_rate(0, 1, 0.01) > 0
