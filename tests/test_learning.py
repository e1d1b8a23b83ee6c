"""An encoder that is trained with the method: what learns, what it goes by, and that tests see what was learnt."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import own_study
import pytest
import torch
from faults import frozen, one_sentence, paths, trained, training
from safetensors.torch import load_file, save_file

import crnet
from crnet import encoders
from crnet.config.encoders import before_training, encoder_spec, learns
from crnet.config.labels import encoder_text
from crnet.config.layout import Layout
from crnet.config.resolve import Plan, encoder_name, resolve
from crnet.config.schema import Study, parse
from crnet.cost import memory
from crnet.cost.networks import networks
from crnet.data.index import Index
from crnet.encoders.learning import PREFIX, LearningEncoder
from crnet.errors import CrnetError
from crnet.evaluation.predict import Predictor, learnt_encoder
from crnet.runtime.files import read_json
from crnet.runtime.limits import NONE, Limits
from crnet.training.loop import Training
from crnet.yours.export import LICENCES, export
from crnet.yours.load import WEIGHTS, find
from crnet.yours.places import cell
from crnet.yours.program import one_support

CPU = torch.device("cpu")
LIVE = {"features": "live", "views": "identity", "augment": "support", "epochs": 1, "epoch_episodes": 10}
SWITCHES = """
title: A table
source: ours
benchmark: pascal
shots: [1]
rows:
  - {id: frozen, label: Frozen, set: {}}
  - {id: trained, label: Trained, set: {encoder: trained, train: TRAIN}}
"""


def specification(tiny, factor: float = 0.5, layers: tuple[str, ...] = ("layer3", "layer4"), **train) -> dict:
    spec = tiny.training(train={**LIVE, **train})
    given = {"name": "small", "layers": list(layers)}
    return spec | {"encoder": encoder_spec({**given, "lr_factor": factor} if factor else given, "test")}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    return {name.removeprefix(PREFIX): t for name, t in weights(folder).items() if name.startswith(PREFIX)}


def plan_of(folder: Path, train: str, **main) -> Plan:
    (folder / "own.yaml").write_text(SWITCHES.replace("TRAIN", train), encoding="utf-8")
    told = own_study.STUDY | {"tables": ["own"], "shots": None, "controls": ["prototype"]}
    told["encoders"] = {"main": {"name": "small", **main}, "trained": {"name": "small", "lr_factor": 0.1}}
    told["train"] = told["train"] | {"features": "cached", "views": "recolour"}
    if main:
        told["train"]["features"] = "live"
    return resolve(parse(Study, told, "study"), folder)


def encoders_of(plan: Plan) -> dict[str, bool]:
    """Row -> whether its encoder learns."""
    return {cell.row: learns(plan.evaluations[cell.evaluation]["train"]["encoder"]) for cell in plan.cells}


class TestSettings:
    def test_a_frozen_encoder_is_called_as_ever(self):
        plain = encoder_spec({"name": "small"}, "t")
        assert encoder_spec({"name": "small", "lr_factor": 0}, "t") == plain
        assert "lr_factor" not in plain and encoder_text(plain) == "small (layer3, layer4)"

    def test_one_that_learns_begins_with_the_same_weights_file(self):
        learning = encoder_spec({"name": "small", "lr_factor": 0.1}, "t")
        assert learning["lr_factor"] == 0.1 and encoder_text(learning) == "small (layer3, layer4), trained"
        assert encoder_name(learning) == encoder_name(before_training(learning))

    @pytest.mark.parametrize("wrong", [-0.1, 1000, "fast", True])
    def test_a_factor_that_does_not_fit_is_refused(self, wrong):
        with pytest.raises(CrnetError, match=r"^encoders\.main\.lr_factor: ") as caught:
            encoder_spec({"name": "small", "lr_factor": wrong}, "encoders.main")
        one_sentence(caught.value, "lr_factor")

    def test_a_row_of_its_own_beside_cached_ones(self, tmp_path):
        plan = plan_of(tmp_path, "{features: live}")
        assert encoders_of(plan) == {"frozen": False, "trained": True, "prototype": False}
        assert plan.features and not any(learns(spec["encoder"]) for spec in plan.features.values())
        assert len(plan.encoders) == 1

    def test_a_control_has_it_as_it_was(self, tmp_path):
        plan = plan_of(tmp_path, "{}", lr_factor=1.0)
        assert encoders_of(plan) == {"frozen": True, "trained": True, "prototype": False}

    def test_cached_features_of_it_are_refused(self, tmp_path):
        with pytest.raises(CrnetError, match="features: live") as caught:
            plan_of(tmp_path, "{}")
        one_sentence(caught.value, "own.rows.trained.set.train.features")


class TestTraining:
    def test_weights_move_and_statistics_do_not(self, tiny, tmp_path):
        spec = specification(tiny)
        out, before = trained(tiny, tmp_path, spec), encoders.build(spec["encoder"], tiny.encoder)
        own, moved = dict(before.named_parameters()), learnt(out)
        assert moved.keys() == own.keys()
        assert all(not torch.equal(own[name], value) for name, value in moved.items())
        told = read_json(out / "train.json")
        assert told["parameters"] == sum(value.numel() for value in weights(out).values())
        assert told["encoder_digest"] == encoders.digest(before) == frozen(tiny).digest

    def test_the_factor_scales_its_rate(self, tiny, tmp_path):
        def distance(factor: float) -> float:
            spec = specification(tiny, factor, optimizer="sgd", lr=1e-3, epoch_episodes=4, weight_decay=0.0)
            out = trained(tiny, tmp_path / str(factor), spec)
            own = dict(encoders.build(spec["encoder"], tiny.encoder).named_parameters())
            return float(sum(((own[name] - value) ** 2).sum() for name, value in learnt(out).items()) ** 0.5)

        assert distance(2.0) == pytest.approx(4 * distance(0.5), rel=0.02)  # one step

    def test_only_what_its_maps_depend_on_learns(self, tiny, tmp_path):
        out = trained(tiny, tmp_path, specification(tiny, layers=("layer2", "layer3")))
        stages = {name.split(".")[0] for name in learnt(out)}
        assert stages == {"stem", "layer1", "layer2", "layer3"}

    def test_in_parts_it_ends_where_the_whole_does(self, tiny, tmp_path):
        spec = specification(tiny, optimizer="sgd", lr=1e-2)
        whole, parts = (
            weights(trained(tiny, tmp_path / str(limits.pairs_at_once), spec, limits=limits))
            for limits in (NONE, Limits(1, 2))
        )
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)

    def test_killed_it_ends_with_the_same_bits(self, tiny, tmp_path):
        spec = specification(tiny, epoch_episodes=60)
        undisturbed = weights(trained(tiny, tmp_path / "undisturbed", spec))
        where = paths(tiny, tmp_path / "killed", features=None)
        command = [sys.executable, "-m", "crnet", *training(spec, where, "--checkpoint-seconds", 0)]
        seed = int.from_bytes(os.urandom(4))
        with subprocess.Popen(command) as process:
            deadline = time.monotonic() + 60
            while not where.state.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(random.Random(seed).uniform(0, 0.2))
            process.kill()
        assert process.returncode == -signal.SIGKILL, f"it finished before it could be killed, seed {seed}"
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "resumed at step" in done.stdout, done.stderr
        ended = weights(where.out)
        assert ended.keys() == undisturbed.keys()
        assert all(torch.equal(ended[name], value) for name, value in undisturbed.items()), f"seed {seed}"

    def test_a_statistic_that_drifts_stops_it(self, tiny):
        spec = specification(tiny)
        encoder = LearningEncoder(spec["encoder"], tiny.encoder, CPU, "float32")
        encoder.verify()
        encoder.network.layer1.bn1.running_mean += 1
        with pytest.raises(CrnetError, match="batch-norm statistic changed"):
            encoder.verify()

    def test_one_that_leaves_no_gradient_is_refused(self, tiny, monkeypatch):
        encoder = LearningEncoder(specification(tiny)["encoder"], tiny.encoder, CPU, "float32")
        monkeypatch.setattr(type(encoder.network), "forward", torch.no_grad()(type(encoder.network).forward))
        with pytest.raises(CrnetError, match="leaves no gradient"):
            encoder.reach((0, 1), 65)

    def test_its_memory_is_counted(self, tiny):
        held, learning = (memory.training(specification(tiny, factor), NONE).parts for factor in (0.0, 1.0))
        parameters = sum(p.numel() for p in encoders.network(specification(tiny)["encoder"]).parameters())
        assert learning["weights"] - held["weights"] == 4 * parameters * 5  # weights, gradients, two moments, a copy
        assert learning["encoding"] > 1.5 * held["encoding"], "what the backward pass reads is kept"
        photo = networks(specification(tiny)).encoder
        assert photo.photo_training(65).multiply_adds == pytest.approx(3 * photo.photo(65).multiply_adds, rel=0.05)


class TestPrediction:
    def test_tests_see_the_encoder_as_training_left_it(self, tiny, tmp_path):
        spec = specification(tiny, lr=1e-2)
        state = Training(spec, paths(tiny, tmp_path, features=None), CPU, 1, 0, 60.0)
        state.run()
        file = tmp_path / "run/model.safetensors"
        predictor = Predictor(tiny.evaluation(spec), tiny.data, tiny.encoder, file, "cpu")
        photo = next(iter(Index.load(tiny.data).photos))
        images = torch.from_numpy(np.array(Index.load(tiny.data).read_image(photo))).permute(2, 0, 1)[None]
        images = torch.nn.functional.interpolate(images.float(), (65, 65)).byte()
        with torch.no_grad():
            expected = state.encoder.maps(state.encoder(images)[0], state.method.maps)
        for ours, theirs, before in zip(predictor.encoder(images), expected, frozen(tiny)(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # its norms are folded
            assert not torch.allclose(ours, before, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize("factor", [0.0, 0.5])
    def test_weights_of_the_other_kind_are_refused(self, tiny, tmp_path, factor):
        other = trained(tiny, tmp_path, specification(tiny, 0.5 - factor)) / "model.safetensors"
        with pytest.raises(CrnetError, match="of an encoder") as caught:
            Predictor(tiny.evaluation(specification(tiny, factor)), tiny.data, tiny.encoder, other, "cpu")
        one_sentence(caught.value, other)

    def test_weights_of_another_encoder_are_refused(self, tiny, tmp_path):
        out = trained(tiny, tmp_path, specification(tiny))
        tensors = weights(out)
        tensors[f"{PREFIX}layer9.weight"] = torch.zeros(3)
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(CrnetError, match=r"has no weight layer9\.weight"):
            Predictor(
                tiny.evaluation(specification(tiny)), tiny.data, tiny.encoder, tmp_path / "other.safetensors", "cpu"
            )


class TestTakenAlong:
    @pytest.fixture
    def run(self, tmp_path, monkeypatch) -> Path:
        """An evaluation on a trained encoder."""
        monkeypatch.chdir(tmp_path)
        told = {"encoders": {"main": {"name": "small", "lr_factor": 0.5}}, "tables": ["table3"], "shots": [1]}
        monkeypatch.setattr(own_study, "STUDY", own_study.STUDY | told)
        plan = own_study.build(tmp_path)
        layout, spec = Layout(plan), plan.evaluations[cell(plan, "table3", "full", 1, 0, None).evaluation]
        file, generator = Path(layout.weights(spec)), torch.Generator().manual_seed(1)
        own = load_file(layout.encoder(spec["train"]["encoder"]))
        weights = {name: own[name] for name, _ in encoders.network(spec["train"]["encoder"]).named_parameters()}
        moved = {f"{PREFIX}{k}": v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in weights.items()}
        save_file(load_file(file) | moved, file)
        return own_study.run(plan, "table3", "full", 1, 0).resolve()

    def test_an_exported_folder_and_its_program_have_what_was_learnt(self, run, tmp_path):
        export(run, tmp_path / "model", program=True)
        scene, mask = np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8), np.zeros((50, 70), np.uint8)
        mask[10:30, 20:50] = 255
        here, there = (
            next(crnet.load(place).each([(scene, mask)], [scene])).probability for place in (run, tmp_path / "model")
        )
        assert (here == there).all()
        learnt = learnt_encoder(read_json(run / "evaluation.json")["spec"]["train"], tmp_path / "model" / WEIGHTS)
        program = dict(one_support(find(run))[0].encoder.named_parameters())
        assert learnt and all(torch.equal(program[name], weight) for name, weight in learnt.items())

    def test_weights_that_come_of_somebodys_are_theirs(self, run, tmp_path, monkeypatch):
        monkeypatch.setitem(LICENCES, "small", (False, "somebody's"))
        with pytest.raises(CrnetError, match=r"somebody's.*--with-encoder") as caught:
            export(run, tmp_path / "model")
        one_sentence(caught.value, run)
        assert not (tmp_path / "model").exists()
        export(run, tmp_path / "model", with_encoder=True)
