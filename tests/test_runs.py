"""The index of runs: every run is in it once, with its settings, its scores and the reason if it failed."""

import json
from pathlib import Path

import pytest

from crnet.errors import CrnetError
from crnet.metrics.iou import QUERY_COLUMNS
from crnet.report.runs import collect, variants
from crnet.runtime.files import read_csv, read_json, write_csv, write_json

LOG = ("epoch", "step", "loss", "query", "support", "lr", "images_per_second", "peak_memory_bytes")
ORIGIN = {
    **{"commit": "c0ffee", "dirty": False, "device": "cpu", "threads": 1, "dataset_digest": "d1"},
    **{"encoder_digest": "e1", "versions": {"python": "3.11.9", "torch": "2.11.0"}},
    **{"seconds": 12.5, "peak_memory_bytes": 1000},
}


def training_spec(fold: int = 0, method: str = "crnet", **model) -> dict:
    spec = {"method": method, "dataset": {"name": "shapes5i", "size": 128}, "fold": fold, "seed": 0}
    spec["encoder"] = {"name": "small", "layers": ["layer2", "layer3"]}
    spec["model"] = {"condition": True, "cross_reference": True, **model}
    return spec | {"train": {"lr": 0.0025, "rev": 1}}


def control_spec(method: str) -> dict:
    spec = training_spec(method=method) | {"model": {}}
    del spec["train"]
    return spec


def write_counts(path: Path, *rows: list, more: tuple[str, ...] = ()) -> None:
    write_csv(path, ("episode_seed", "episode", "class", "query", *QUERY_COLUMNS, *more), rows)


def write_training(folder: Path, run: str, spec: dict, log: bool = True, **more) -> None:
    write_json(folder / "train" / run / "train.json", {"run": run, "spec": spec, **ORIGIN, **more})
    if log:
        lines = [[epoch, 10 * epoch, 1 / (1 + epoch), 0.5, 0.25, 0.0025, 100, 1000] for epoch in range(2)]
        write_csv(folder / "train" / run / "log.csv", LOG, lines)


def write_evaluation(folder: Path, run: str, spec: dict, scales: tuple[float, ...] = (1.0,)) -> None:
    place = folder / "evaluate" / run
    spec = {"train": spec, "evaluate": {"shots": 1, "scales": list(scales)}, "episodes": {"count": 2}}
    measured = {"episodes_per_second": 3.5, "left_out": {"potted plant 1.5": 1}, "class_pairs": {"1": 3, "2": 1}}
    write_json(place / "evaluation.json", {"run": run, "spec": spec, **ORIGIN, **measured})
    first = [0, 0, 1, "a", *(10, 20, 60, 80), *(10, 40, 60, 100)]
    second = [0, 1, 2, "b", *(30, 30, 20, 20), *(30, 30, 40, 50)]
    write_counts(place / "counts.csv", first, second)


def index(folder: Path, reverse: bool = False) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    finetune = ("finetune/*/trials.json", "finetune/*/choice.json")
    patterns = ("train/*/train.json", "train/*/log.csv", *finetune, "evaluate/*/evaluation.json")
    found = [sorted(folder.glob(pattern), reverse=reverse) for pattern in patterns]
    collect(*found, folder / "runs.csv", folder / "training.csv")
    return read_csv(folder / "runs.csv"), read_csv(folder / "training.csv")


def test_rows_hold_settings_scores_and_origin(tmp_path: Path) -> None:
    write_training(tmp_path, "a", training_spec(), images_per_second=80.0)
    write_evaluation(tmp_path, "a-1shot", training_spec(), (0.75, 1.0))
    write_evaluation(tmp_path, "p-1shot", control_spec("prototype"))
    about = read_json(tmp_path / "evaluate/a-1shot/evaluation.json")
    rows, _ = index(tmp_path)
    runs = {row["run"]: row for row in rows}
    train, evaluation, control = runs["a"], runs["a-1shot"], runs["p-1shot"]

    assert (train["kind"], train["status"], train["shots"], train["miou_ignore"]) == ("train", "finished", "", "")
    assert (train["train.lr"], train["model.condition"], train["evaluate.scales"]) == ("0.0025", "true", "")
    assert (train["images_per_second"], train["versions.torch"], train["dirty"]) == ("80.0", "2.11.0", "false")
    assert (evaluation["train_run"], evaluation["shots"], evaluation["train.lr"]) == ("a", "1", "0.0025")
    assert evaluation["evaluate.scales"] == "[0.75,1.0]"
    assert (control["train_run"], control["train.lr"], control["method"]) == ("", "", "prototype")
    # a mapping by class name, which never becomes a column
    assert json.loads(control["left_out"]) == {"potted plant 1.5": 1}
    assert not any("potted" in name for name in control)
    # By hand: classes 10/20 and 30/30; pooled foreground 40/50, background 80/100. With void: 10/40, 30/30;
    # 40/70, 100/150.
    assert float(evaluation["miou_ignore"]) == pytest.approx(75.0)
    assert float(evaluation["fbiou_ignore"]) == pytest.approx(80.0)
    assert float(evaluation["miou_background"]) == pytest.approx(62.5)
    assert float(evaluation["fbiou_background"]) == pytest.approx(100 * (40 / 70 + 100 / 150) / 2, abs=1e-3)
    # weighed 3 to 1: 60/90 and 200/260; with void 60/150 and 220/350
    assert float(evaluation["fbiou_pairs_ignore"]) == pytest.approx(100 * (60 / 90 + 200 / 260) / 2, abs=1e-3)
    assert float(evaluation["fbiou_pairs_background"]) == pytest.approx(100 * (60 / 150 + 220 / 350) / 2, abs=1e-3)
    # Of an earlier version, which did not record the weights, all but these.
    write_json(tmp_path / "evaluate/a-1shot/evaluation.json", about | {"class_pairs": {}})
    old = next(row for row in index(tmp_path)[0] if row["run"] == "a-1shot")
    assert (old["fbiou_pairs_ignore"], old["fbiou_ignore"]) == ("", evaluation["fbiou_ignore"])


def test_order_of_reports_changes_no_byte(tmp_path: Path) -> None:
    for fold in (1, 0):
        write_training(tmp_path, f"run-{fold}", training_spec(fold))
        write_evaluation(tmp_path, f"run-{fold}-1shot", training_spec(fold))
    index(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("runs.csv", "training.csv")]
    rows, _ = index(tmp_path, reverse=True)
    assert [(tmp_path / name).read_bytes() for name in ("runs.csv", "training.csv")] == first
    assert [row["run"] for row in rows] == ["run-0", "run-1", "run-0-1shot", "run-1-1shot"]


def test_a_failed_run_stays_with_its_reason(tmp_path: Path) -> None:
    write_training(tmp_path, "good", training_spec(0))
    write_training(tmp_path, "bad", training_spec(1), log=False, failed="loss is NaN at step 40, lr 0.0025")
    rows, curve = index(tmp_path)
    told = {row["run"]: (row["status"], row["failed"]) for row in rows}
    assert told == {"good": ("finished", ""), "bad": ("failed", "loss is NaN at step 40, lr 0.0025")}
    assert {line["run"] for line in curve} == {"good"}


def test_training_logs_are_joined_with_their_runs(tmp_path: Path) -> None:
    write_training(tmp_path, "full", training_spec())
    write_training(tmp_path, "ablated", training_spec(cross_reference=False))
    _, curve = index(tmp_path)
    names, losses = ("crnet", "crnet without cross_reference"), (("0", "1.0"), ("1", "0.5"))
    found = [(line["variant"], line["epoch"], line["loss"]) for line in curve]
    assert found == [(name, *loss) for name in names for loss in losses]
    assert (curve[0]["base_miou"], curve[0]["query"]) == ("", "0.5")


def test_variants_name_what_differs() -> None:
    shared = {"encoder.size": 3, "evaluate.scales": [1.0]}
    full = {"method": "crnet", "model.a": True, "model.b": True, "train.size": 1, **shared}
    rows = [
        full,
        full | {"model.a": False, "model.b": False},
        full | {"train.size": 2, "encoder.size": 4, "evaluate.scales": [0.5]},
        {"method": "prototype", **shared},
    ]
    assert variants(rows) == [
        "crnet, encoder.size=3, scales=[1.0], train.size=1",
        "crnet without a, b, encoder.size=3, scales=[1.0], train.size=1",
        "crnet, encoder.size=4, scales=[0.5], train.size=2",
        "prototype",
    ]


def test_faulty_reports_are_refused_by_name(tmp_path: Path) -> None:
    write_training(tmp_path, "a", training_spec())
    report, log = tmp_path / "train/a/train.json", tmp_path / "train/a/log.csv"
    outputs = (tmp_path / "runs.csv", tmp_path / "training.csv")
    with pytest.raises(CrnetError, match=r"log.csv: has no train.json beside it"):
        collect([], [log], [], [], [], *outputs)
    copy = tmp_path / "copy/train.json"
    write_json(copy, json.loads(report.read_text()))
    with pytest.raises(CrnetError, match="run 'a' is reported twice"):
        collect([report, copy], [], [], [], [], *outputs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda report: [], "it holds a list"),
        (lambda report: "text", "it holds a str"),
        (lambda report: report | {"spec": []}, "TypeError"),
        (lambda report: {"run": "b"}, "spec"),
        (lambda report: report | {"spec": {"train": training_spec()}}, "evaluate"),
    ],
)
def test_a_report_of_another_shape_is_one_sentence(tmp_path: Path, change, words: str) -> None:
    write_evaluation(tmp_path, "a", training_spec())
    path = tmp_path / "evaluate/a/evaluation.json"
    write_json(path, change(json.loads(path.read_text())))
    message = rf"evaluation\.json: is not the report of a run .*{words}.*; delete it and run its job again\.$"
    with pytest.raises(CrnetError, match=message) as caught:
        index(tmp_path)
    assert "is missing" not in str(caught.value)


def test_an_evaluation_without_its_counts_is_one_sentence(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "a", training_spec())
    (tmp_path / "evaluate/a/counts.csv").unlink()
    with pytest.raises(CrnetError, match=r"a/counts\.csv: is absent, .* delete evaluation\.json and run its job again"):
        index(tmp_path)


def test_trials_are_runs_and_a_finetuned_evaluation_is_two_rows(tmp_path: Path) -> None:
    spec = training_spec()
    write_training(tmp_path, "a", spec)
    tuning = {"train": spec, "evaluate": {"shots": 5}, "finetune": {"lr": [0.1, 0.2]}}
    write_json(tmp_path / "finetune/t/trials.json", {"run": "t", "spec": tuning, **ORIGIN, "classes": ["cat"]})
    chosen = {"lr": 0.2, "steps": 10, "edge_lr": "highest", "edge_steps": "", "tried_on": "novel"}
    found = {"miou": 51.5, "miou_untouched": 50.0, "trials": [{"lr": 0.2}], "trials_sha256": {"t": "1"}}
    write_json(tmp_path / "finetune/c/choice.json", {"run": "c", "spec": tuning, **ORIGIN, **chosen, **found})
    folder = tmp_path / "evaluate/a-5shot"
    choice = {"choice": {"lr": 0.2, "steps": 10}}
    finetuned = tuning | {"episodes": {"count": 1}, "evaluate": {"shots": 5, "strategy": "finetune"}}
    write_json(folder / "evaluation.json", {"run": "a-5shot", "spec": finetuned, **ORIGIN, **choice})
    losses = ("support_loss_before", "support_loss_after")
    for name, hit in (("counts", 10), ("counts-fusion", 20)):
        row = [0, 0, 1, "a", *(hit, 20, 60, 80), *(hit, 40, 60, 100), 0.8, 0.2]
        write_counts(folder / f"{name}.csv", row, more=losses)
    rows = {row["run"]: row for row in index(tmp_path)[0]}
    assert [row["kind"] for row in rows.values()] == ["train", "trials", "choice", "evaluate", "evaluate"]
    assert (rows["c"]["choice.lr"], rows["c"]["choice.steps"], rows["c"]["miou_ignore"]) == ("0.2", "10", "51.5")
    assert (rows["c"]["choice.edge_lr"], rows["c"]["choice.tried_on"]) == ("highest", "novel")
    assert not {"trials", "trials_sha256"} & set(rows["c"]), "they are in its file"
    assert {rows[name]["train_run"] for name in ("t", "c", "a-5shot", "a-5shot+fusion")} == {"a"}
    first, fused = rows["a-5shot"], rows["a-5shot+fusion"]
    assert (first["miou_ignore"], fused["miou_ignore"]) == ("50.0", "100.0")
    assert (first["support_loss_before"], first["support_loss_after"]) == ("0.8", "0.2")
    assert (first["evaluate.strategy"], fused["evaluate.strategy"]) == ("finetune", "finetune-fusion")
    assert first["seconds"] == "12.5" and fused["seconds"] == ""
    (folder / "counts-fusion.csv").unlink()
    with pytest.raises(CrnetError, match=r"counts-fusion\.csv: is absent, though evaluation\.json"):
        index(tmp_path)
