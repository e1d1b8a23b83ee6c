"""A trained network in a folder of its own: it predicts what it did in the study, on a machine without the study."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_study
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import crnet
from crnet.cli import cli
from crnet.data import transforms
from crnet.errors import CrnetError
from crnet.model.grid import at_own_size
from crnet.runtime.files import read_json, write_json
from crnet.yours import export as exporting
from crnet.yours.export import card, export
from crnet.yours.load import find
from crnet.yours.program import one_support

SCENES = np.random.default_rng(2).integers(0, 256, (2, 50, 70, 3), np.uint8)
MASK = np.zeros((50, 70), np.uint8)
MASK[10:30, 20:50] = 255


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return own_study.run(own_study.build(folder), "table3", "full", 1, 0).resolve()


@pytest.fixture(scope="module")
def model(run, tmp_path_factory) -> Path:
    """The exported folder, moved away from its study."""
    folder = tmp_path_factory.mktemp("elsewhere")
    words = ["export", "--run", str(run), "--out", str(folder / "tmp"), "--program"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0 and "with the encoder small" in done.output
    return shutil.move(folder / "tmp", folder / "a model ü")


def test_the_folder_alone_predicts_as_the_run_does(run, model):
    here, there = (crnet.load(place).segment([(SCENES[0], MASK)], [SCENES[1]])[0] for place in (run, model))
    assert (here == there).all()


def test_it_holds_no_pickle_and_says_what_it_is(run, model):
    assert {path.name for path in model.iterdir()} == set(exporting.OWN)
    about, card = read_json(model / "model.json"), (model / "README.md").read_text(encoding="utf-8")
    assert about["spec"] == read_json(run / "evaluation.json")["spec"]
    value, low, high = about["scores"]["miou"]["background"]
    assert low <= value <= high and f"| mIoU | background | {value:.1f} | [{low:.1f}, {high:.1f}] |" in card
    for name, metric in (("FB-IoU", "fbiou_pairs"), ("FB-IoU, classes equal", "fbiou")):
        value, low, high = about["scores"][metric]["ignore"]
        assert f"| {name} | ignore | {value:.1f} | [{low:.1f}, {high:.1f}] |" in card
    assert "a class weighs as many pairs" in card and "FB-IoU, classes equal: pooled over the episodes" in card
    assert "MIT" in (model / "LICENCE.txt").read_text(encoding="utf-8")


def test_the_program_gives_the_logits_of_the_network(run, model):
    program = torch.export.load(model / "predictor.pt2").module()
    network, size = one_support(find(run))
    photos = [torch.from_numpy(transforms.squash(s, size)).permute(2, 0, 1)[None] for s in SCENES]
    mask = torch.from_numpy(transforms.squash_mask(MASK // 255, size))[None]
    with torch.no_grad():
        ours, theirs = network(photos[1], photos[0], mask), program(photos[1], photos[0], mask)
    assert torch.allclose(ours, theirs, atol=1e-5)
    # And the network is the one that segments: the same mask, but for rounding.
    whole = crnet.load(run)
    whole.spec = {**whole.spec, "evaluate": {**whole.spec["evaluate"], "scales": [1.0]}}
    found = next(whole.each([(SCENES[0], MASK)], [SCENES[1]]))
    probability = at_own_size(theirs, (size, size), MASK.shape).softmax(1)[0, 1]
    assert np.abs(probability.numpy() - found.probability).max() < 1e-3


def test_an_encoder_of_others_travels_only_if_asked_and_is_asked_for(run, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.LICENCES, "small", (False, "somebody's"))
    export(run, tmp_path / "without")
    export(run, tmp_path / "with", with_encoder=True)
    assert not (tmp_path / "without/encoder.safetensors").exists()
    with pytest.raises(CrnetError, match="does not bring the encoder small; give its weights"):
        crnet.load(tmp_path / "without")
    snippets = [(tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("without", "with")]
    assert 'crnet.load("this/folder", encoder="the/encoder.safetensors")' in snippets[0]
    assert 'crnet.load("this/folder")' in snippets[1]
    crnet.load(tmp_path / "without", encoder=tmp_path / "with/encoder.safetensors")
    other = tmp_path / "other.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({k: v + 1 for k, v in load_file(tmp_path / "with/encoder.safetensors").items()}, other)
    with pytest.raises(CrnetError, match=r"is not the encoder that .* was scored with"):
        crnet.load(tmp_path / "without", encoder=other)


def test_the_card_of_an_encoder_that_is_a_module_names_it_where_it_is_loaded(run):
    found = find(run)
    train = {**found.spec["train"], "encoder": {"name": "somewhere:build"}}
    text = card(replace(found, spec={**found.spec, "train": train}), {}, "unknown", brings=False, program=False)
    assert 'crnet.load("this/folder", encoder="somewhere:build")' in text


def test_a_folder_of_a_stranger_runs_no_code_and_is_refused_in_a_sentence(model, tmp_path):
    def changed(name: str, **train) -> Path:
        shutil.copytree(model, tmp_path / name)
        about = read_json(model / "model.json")
        about["spec"]["train"] |= train
        write_json(tmp_path / name / "model.json", about)
        return tmp_path / name

    encoder = {"name": "os:getcwd", "rev": 1}
    with pytest.raises(CrnetError, match=r"asks for the encoder os:getcwd, code on PYTHONPATH .* if you trust it"):
        crnet.load(changed("code", encoder=encoder))
    with pytest.raises(CrnetError, match=r"asks for the method os:getcwd, code on PYTHONPATH .* must not run"):
        crnet.load(changed("foreign", method="os:getcwd"))
    for name, change in (("method", {"method": "nosuch"}), ("model", {"model": {}})):
        with pytest.raises(CrnetError, match=r"does not describe a network of this crnet .* with the version 0"):
            crnet.load(changed(name, **change))
    write_json(tmp_path / "model/model.json", {"spec": 3})
    with pytest.raises(CrnetError, match="describes no network"):
        crnet.load(tmp_path / "model")


def test_nothing_is_overwritten_and_an_exported_folder_is_segmented_with(run, model, tmp_path, monkeypatch):
    with pytest.raises(CrnetError, match="is not empty; give another folder, or --force"):
        export(run, model)
    monkeypatch.chdir(tmp_path)
    for name, picture in (("s.png", SCENES[0]), ("m.png", MASK), ("q.png", SCENES[1])):
        Image.fromarray(picture).save(name)
    words = ["segment", "--run", str(model), "--support", "s.png:m.png", "--query", "q.png", "--out", "out"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    assert Path("out/q-mask.png").is_file()
    with pytest.raises(CrnetError, match="--run: names the run already"):
        CliRunner().invoke(cli, [*words, "--fold", "1"], catch_exceptions=False)
