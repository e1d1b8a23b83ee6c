"""The bench: its plain loops give what the suite's ways give, within rounding; its figures are what they are called."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from crnet import methods
from crnet.bench import report, scaling, timing
from crnet.bench import run as running
from crnet.bench.agreement import ROUNDING, differing, gradient, recorded_logits, relative, require
from crnet.bench.inputs import Inputs, Options
from crnet.bench.plain import Plain, PlainFinetuner, PlainTraining
from crnet.bench.report import Row, Target
from crnet.bench.run import bench
from crnet.bench.timing import Ceiling, Measured
from crnet.cli import cli
from crnet.config.defaults import FINETUNE, FINETUNE_LIMITS
from crnet.config.settings import check
from crnet.data import episodes
from crnet.data.index import Index
from crnet.encoders.frozen import compute_dtype
from crnet.errors import CrnetError
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Predictor
from crnet.planning import rates
from crnet.planning.stages import ENCODER, EVALUATION
from crnet.training import loop

SHOTS = 3
VARIANTS = {
    "full": {},
    "condition": {"cross_reference": False},
    "cross-reference": {"condition": False},
    "features masked only": {"mask_input": False},
    "one pass": {"refinement": False},
    "last map": {"multi_level": False},
    "unrolled": {"cache": "unrolled"},
    "equalised, with norms": {"equalise_maps": True, "normalisation": "group"},
}


def model(**changes) -> dict:
    return {"width": 32, "gate_width": 16, "dropout": 0.0, "path_dropout": 0.0, **changes}


def rounding(precision: str):
    return ROUNDING[str(compute_dtype(torch.device("cpu"), precision)).removeprefix("torch.")]


@pytest.fixture(scope="module")
def chosen(tiny) -> list:
    table = episodes.draw(Index.load(tiny.data), fold=0, count=6, seeds=[0], shots=SHOTS, too_few="leave out")
    return list(table.episodes)


def weights_of(tiny, folder: Path, **changes) -> Path:
    torch.manual_seed(5)
    path = folder / "model.safetensors"
    save_file(methods.build("crnet", (64, 96), tiny.training(model=model(**changes))["model"]).state_dict(), path)
    return path


def both(tiny, folder: Path, settings: dict, **changes) -> tuple[Predictor, Plain]:
    """The suite's way and the plain one, with the same weights."""
    spec = tiny.evaluation(tiny.training(model=model(**changes)), **settings)
    given = spec, tiny.data, tiny.encoder, weights_of(tiny, folder, **changes), "cpu"
    return Predictor(*given), Plain(*given)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        *((variant, {"refinements": 3, "precision": "float32"}) for variant in VARIANTS),
        ("full", {"precision": "bfloat16"}),
    ],
)
def test_evaluation_gives_the_plain_loops_logits_and_masks(tiny, chosen, tmp_path, variant, settings):
    fast, plain = both(tiny, tmp_path, settings, **VARIANTS[variant])
    with recorded_logits(fast.method) as logits:
        masks = [prediction.query for prediction in fast.fused(chosen)]
    expected = [plain.predict(episode) for episode in chosen]
    allowed = rounding(settings["precision"])
    assert relative(torch.cat(logits), torch.stack([each.logits for each in expected])) < allowed.values
    assert differing(masks, [each.first for each in expected]) < allowed.pixels
    assert 0 < np.mean([mask.mean() for mask in masks]) < 1, "masks of one class would agree whatever happens"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_supports_and_scales_are_fused_as_in_the_plain_loop(tiny, chosen, tmp_path, precision):
    settings = {"shots": 2, "scales": [0.75, 1.0], "refinements": 2, "precision": precision}
    fast, plain = both(tiny, tmp_path, settings)
    masks = [prediction.query for prediction in fast.fused(chosen)]
    assert differing(masks, [plain.predict(episode).fused for episode in chosen]) < rounding(precision).pixels


def steps(tiny, folder: Path, count: int, model_changes: dict, **train) -> tuple[loop.Training, Plain]:
    """A training and the plain loop after ``count`` steps on the same batches; gradients are those of the last."""
    how = {"features": "live", "views": "identity", "optimizer": "sgd", "lr": 1e-4, "schedule": "constant", **train}
    spec = tiny.training(model=model(**model_changes), train=how)
    features = tiny.features if how["features"] == "cached" else None
    paths = loop.Paths(tiny.data, tiny.encoder, features, folder / "out", folder / "state.pt")
    training = loop.Training(spec, paths, torch.device("cpu"), 1, 0, 60.0)
    training.method.train()
    plain = PlainTraining(Plain(tiny.evaluation(spec), tiny.data, tiny.encoder, None, "cpu"), training)
    batch = training.episodes.epoch(0, 4)
    for _ in range(count):  # the same again, so that stored predictions are read
        plain.step(batch)
        for encoded in training.source.batches(batch, len(batch)):
            training.step(encoded)
    return training, plain.plain


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_has_the_plain_loops_gradients(tiny, tmp_path, variant):
    training, plain = steps(tiny, tmp_path, 1, VARIANTS[variant])
    assert gradient(plain.method).norm() > 0
    assert relative(gradient(training.method), gradient(plain.method)) < ROUNDING["float32"].gradients


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("features", "augment"), [("live", "none"), ("live", "support"), ("cached", "none")])
def test_a_second_step_reads_the_same_stored_predictions(tiny, tmp_path, precision, features, augment):
    how = {"precision": precision, "features": features, "augment": augment}
    training, plain = steps(tiny, tmp_path, 2, {"cache_reset": 0.0}, **how)
    assert training.cache.state()["keys"], "the second step had something to read"
    assert relative(gradient(training.method), gradient(plain.method)) < rounding(precision).gradients


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_finetuning_gives_the_plain_loops_losses_and_masks(tiny, chosen, tmp_path, precision):
    settings = {"shots": SHOTS, "strategy": "finetune", "refinements": 2, "precision": precision}
    fast, plain = both(tiny, tmp_path, settings, cache_reset=0.3)
    how = check({"batch": 4}, FINETUNE, FINETUNE_LIMITS, "test")
    tuner = Finetuner(fast, tiny.training(model=model(cache_reset=0.3)), how)
    ours = list(tuner.predictions(chosen[:2], 1e-4, 3))
    theirs = list(PlainFinetuner(plain, tuner).predictions(chosen[:2], 1e-4, 3))
    allowed = rounding(precision)
    for a, b in zip(ours, theirs, strict=True):
        assert abs(b.support_loss[1] - b.support_loss[0]) > 1e-3, "finetuning has to do something"
        assert a.support_loss == pytest.approx(b.support_loss, rel=allowed.values)
    masks = [mask for a in ours for mask in (a.query, a.fused)]
    assert differing(masks, [mask for b in theirs for mask in (b.first, b.fused)]) < allowed.pixels


def test_a_difference_above_rounding_stops_the_bench(tiny, chosen, tmp_path):
    fast, plain = both(tiny, tmp_path, {})
    with torch.no_grad():
        plain.method.refine.combine.classify.bias[1] += 0.5
    masks = [prediction.query for prediction in fast.fused(chosen)]
    wrong = differing(masks, [plain.predict(episode).first for episode in chosen])
    with pytest.raises(CrnetError, match="masks of the fast way and of the plain one differ by"):
        require("masks", wrong, ROUNDING["float32"].pixels)
    with pytest.raises(CrnetError, match="differ by nan"):
        require("logits", float("nan"), 1.0)


def test_operations_time_and_waiting_are_measured():
    left = torch.randn(300, 200)

    def work() -> int:
        time.sleep(0.2)
        left @ left.T
        return 2

    measured = timing.measure(lambda: work, "cpu")
    assert measured.units == 2 and measured.operations == 300 * 200 * 300
    assert 0.1 < measured.seconds < 0.3 and 0.8 < measured.waits < 1
    assert measured.peak_bytes > 1 << 20


def test_peak_memory_is_that_of_the_measured_part():
    held = torch.ones(200 << 20, dtype=torch.uint8)
    del held
    timing.reset_peak("cpu")
    before = timing.peak_bytes("cpu")
    held = torch.ones(100 << 20, dtype=torch.uint8)
    assert 90 << 20 < timing.peak_bytes("cpu") - before < 150 << 20
    del held


def test_overlapping_spans_count_once():
    assert timing.union([(5, 7), (0, 2), (1, 3), (1, 2)]) == 5
    assert timing.union([]) == 0


def test_shares_ratios_and_targets_of_a_row():
    ceiling = Ceiling("bfloat16", convolution=4e9, product=1.0, copied=1.0)
    row = Row("stage", "images", Measured(10, 0.5, operations=1e9, waits=0.25, peak_bytes=3 << 30), Measured(2, 2.0))
    row.aim(3).aim(5).targets.append(Target("at most 1 s", 0.5, 1.0, at_most=True))
    cells = dict(zip(report.HEADER, report.cells(row, ceiling), strict=True))
    assert cells["plain"] == "0.5 images/s" and cells["crnet"] == "2 images/s" and cells["ratio"] == "4.0"
    assert cells["of the ceiling"] == "50%" and cells["waits"] == "25%" and cells["peak memory"] == "3.0 GiB"
    assert cells["met"] == "met; missed; met"


def test_the_command_writes_a_table_for_people_and_figures_for_the_plan(tmp_path):
    files = {"json": tmp_path / "rates.json", "markdown": tmp_path / "table.md"}
    arguments = ["bench", "--quick", "--threads", "1", "--stage", "encoder", "--stage", "evaluation"]
    done = CliRunner().invoke(cli, [*arguments, *(f"--{kind}={path}" for kind, path in files.items())])
    assert done.exit_code == 0, done.output
    assert "encoder" in done.output and "≥ 10 × plain" in done.output
    content = json.loads(files["json"].read_text())
    assert [stage["crnet"]["units"] for stage in content["stages"]] == [16, 12]
    assert all(stage["of_ceiling"] > 0 for stage in content["stages"])
    known = rates.load([files["json"]])
    assert known.threads == 1 and set(known.measured) == {ENCODER, EVALUATION}
    table = [line for line in files["markdown"].read_text().splitlines() if line.startswith("|")]
    assert len(table) == 4 and all(line.count("|") == len(report.HEADER) + 1 for line in table)


def test_an_unknown_stage_is_one_sentence():
    with pytest.raises(CrnetError, match="has no stage 'sleep'; known: data, encoder"):
        bench(Options.quick(), ("sleep",))


@pytest.mark.parametrize("kind", ["json", "markdown"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "measure_ceiling", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "rates"):
        with pytest.raises(CrnetError, match="cannot be written"):
            bench(Options.quick(), ("encoder",), **{kind: path})


def test_what_was_measured_is_shown_though_a_file_fails(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise CrnetError("the disk is full.")

    monkeypatch.setattr(running, "write_json", fail)
    monkeypatch.setattr(running.stages, "data", lambda inputs: [])
    monkeypatch.setattr(running, "Inputs", lambda *_: None)
    monkeypatch.setattr(running, "measure_ceiling", lambda *_: Ceiling("float32", 4e9, 1.0, 1.0))
    with pytest.raises(CrnetError, match="the disk is full"):
        bench(Options.quick(threads=1), ("data",), json=tmp_path / "rates.json")
    assert report.HEADER[0] in capsys.readouterr().out


def test_photos_are_of_pascals_size_and_the_same_each_time(tmp_path):
    options = replace(Options.quick(threads=1), photo=(375, 500), train_photos=3, test_photos=5)
    first, second = (Inputs(options, tmp_path / name) for name in "ab")
    assert first.index.digest == second.index.digest
    assert {first.index.size(photo) for photo in first.index.photos} == {(375, 500)}
    assert len(first.index.photos) == 8


def test_growth_is_judged_by_the_largest_size():
    def points(seconds, sizes=(1, 2, 4)):
        return [{"size": n, "seconds": s, "anonymous_bytes": s} for n, s in zip(sizes, seconds, strict=True)]

    assert scaling._verdict("evaluation with episodes", points((2.0, 4.0, 8.0)))["holds"]
    assert not scaling._verdict("evaluation with episodes", points((1.0, 4.0, 16.0)))["holds"]
    assert scaling._verdict("memory of training with data", points((100, 101, 105)))["holds"]
    assert not scaling._verdict("memory of training with data", points((100, 200, 400)))["holds"]


def test_memory_of_a_point_is_measured_in_its_process():
    options = Options.quick(threads=1)
    point = scaling._apart("evaluation with episodes", 3, options)
    assert point["units"] == 3 and point["seconds"] > 0
    assert 50 << 20 < point["anonymous_bytes"] < point["peak_bytes"]
