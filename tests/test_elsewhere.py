"""Predictions made elsewhere: handed out, checked, counted as the study's own, and shown in its tables."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_study
import pytest
from click.testing import CliRunner
from PIL import Image

from crnet.audit import audit
from crnet.cli import cli
from crnet.config import elsewhere, study
from crnet.config.jobs import table_job
from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv, read_json

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a study with ü")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = own_study.build(folder)
        for fold in (0, 1):
            own_study.run(plan, "table3", "full", 1, fold)
        own_study.run(plan, "table4", "full-finetune", 5, 0)
    return folder


@pytest.fixture
def at(made, tmp_path, monkeypatch) -> Plan:
    """The study, in a folder of this test's own."""
    shutil.copytree(made, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return study.load([Path("study.yaml")])


def crnet(*words) -> str:
    """What a command prints that succeeds."""
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def counts(path: Path) -> list[dict[str, str]]:
    return read_csv(path)


def test_own_predictions_are_counted_to_the_last_pixel_as_the_run_was(at):
    for fold in (0, 1):
        text = crnet("predictions", "--configfile", "study.yaml", "--row", "full", "--fold", fold, "--out", f"m{fold}")
        assert "6 masks" in text and "6 of them with the counts that are stored" in text
    masks = Path("both masks")
    masks.mkdir()
    for path in [*Path("m0").iterdir(), *Path("m1").iterdir()]:
        shutil.copy(path, masks)
    crnet("score", "--configfile", "study.yaml", "--predictions", masks, "--label", "Again", "--no-render")
    row = elsewhere.row_id("Again")
    for name, fold in (("full", 0), ("full", 1)):
        [cell] = [c for c in at.cells if (c.table, c.row, c.fold) == ("table3", name, fold)]
        mine = elsewhere.folder("out/own", row, "table3", 1, fold, 0) / "counts.csv"
        assert mine.read_bytes() == Path(f"out/own/evaluate/{cell.evaluation}/counts.csv").read_bytes()
        own, theirs = read_json(mine.with_name("score.json")), f"out/own/evaluate/{cell.evaluation}/evaluation.json"
        assert own["class_pairs"] == read_json(Path(theirs))["class_pairs"] != {}


@pytest.mark.parametrize(("row", "file"), [("full-finetune", "counts"), ("full-finetune-fusion", "counts-fusion")])
def test_a_finetuned_run_is_written_as_it_was_counted(at, row, file):
    place = ["--configfile", "study.yaml", "--table", "table4", "--shots", 5]
    text = crnet("predictions", *place, "--row", row, "--out", "masks")
    assert "3 of them with the counts that are stored" in text
    crnet("score", *place, "--predictions", "masks", "--label", "Tuned", "--no-render")
    [cell] = [c for c in at.cells if (c.table, c.row, c.shots) == ("table4", row, 5)]
    mine = read_csv(elsewhere.folder("out/own", elsewhere.row_id("Tuned"), "table4", 5, 0, 0) / "counts.csv")
    theirs = read_csv(f"out/own/evaluate/{cell.evaluation}/{file}.csv")
    assert mine == [{key: each[key] for key in mine[0]} for each in theirs]


def test_the_example_needs_numpy_and_pillow_only_and_its_row_stands_in_table_and_claims(at):
    crnet("episodes-for-others", "--configfile", "study.yaml", "--photos", "--out", "for others")
    example = ROOT / "examples/predict_elsewhere.py"
    others = re.findall(r"^(?:from|import) (\w+)", example.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(others) <= {"json", "sys", "pathlib", "numpy", "PIL"}
    subprocess.run([sys.executable, example, "for others", "masks"], check=True)
    crnet("score", "--configfile", "study.yaml", "--predictions", "masks", "--label", "Mean | colour")
    lines = [line for line in read_csv("out/own/tables/table3.csv") if line["row"].startswith("elsewhere-")]
    digest = read_json(next(Path("out/own/elsewhere").glob("*/*/score.json")))["predictions_digest"]
    assert {line["label"] for line in lines} == {f"Mean | colour (predicted elsewhere, {digest[:8]})"}
    [mean] = [e for e in lines if (e["fold"], e["metric"], e["void"]) == ("mean", "miou", "background")]
    assert float(mean["low"]) <= float(mean["value"]) <= float(mean["high"])
    text = Path("out/own/tables/table3.md").read_text(encoding="utf-8")
    assert "Predicted elsewhere" in text and "knows nothing else of them" in text and "Run here" in text
    claims = {line["id"]: line for line in read_csv("out/own/claims.csv")}
    mine = claims[f"{elsewhere.row_id('Mean | colour')}-full-table3-1-shot"]
    assert mine["verdict"] in ("supported", "contradicted", "undecided")
    [full] = [e for e in read_csv("out/own/tables/table3.csv")
              if (e["row"], e["fold"], e["metric"], e["void"]) == ("full", "mean", "miou", "background")]  # fmt: skip
    assert float(mine["estimate"]) == pytest.approx(float(mean["value"]) - float(full["value"]), abs=0.011)
    listed = Path("out/own/claims.md").read_text(encoding="utf-8")
    assert "## Predicted elsewhere, in pairs" in listed
    assert f"Of {len(claims) - 4} claims" in listed  # the four comparisons are not the paper's
    found, _ = audit(Path("out/own"), [Path("study.yaml")], sample=0, everything=True)
    assert "tables: cells made again" in found
    assert not [line for line in found.splitlines() if "elsewhere" in line]


def test_no_query_mask_is_handed_out(at):
    crnet("episodes-for-others", "--configfile", "study.yaml", "--photos", "--fold", 1, "--out", "given")
    about = json.loads(Path("given/episodes.json").read_text(encoding="utf-8"))
    supports = {(photo, str(e["class"])) for e in about["episodes"] for photo in e["supports"]}
    given = {(photo, c) for photo, masks in about["support_masks"].items() for c in masks}
    assert given == supports and {e["fold"] for e in about["episodes"]} == {1}
    assert len(list(Path("given/masks").iterdir())) == len(supports)
    assert {e["query"] for e in about["episodes"]} <= set(about["photos"])
    values = {v for path in Path("given/masks").iterdir() for v in np.unique(np.array(Image.open(path))).tolist()}
    assert values <= {0, 1, 255} and 1 in values
    first = about["episodes"][0]
    with Image.open(Path("given") / about["photos"][first["query"]]) as photo:
        assert photo.size == (first["query_width"], first["query_height"])


def test_without_photos_only_the_list_is_written_and_nothing_is_overwritten(at):
    crnet("episodes-for-others", "--configfile", "study.yaml", "--out", "given")
    assert [path.name for path in Path("given").iterdir()] == ["episodes.json"]
    with pytest.raises(CrnetError, match="given: is not empty; give another folder, or --force"):
        crnet("episodes-for-others", "--configfile", "study.yaml", "--out", "given")
    crnet("episodes-for-others", "--configfile", "study.yaml", "--out", "given", "--force")


def test_all_that_is_wrong_is_listed_and_nothing_is_scored(at):
    crnet("predictions", "--configfile", "study.yaml", "--row", "full", "--fold", 0, "--out", "masks")
    first, second, third, fourth, fifth, _ = sorted(Path("masks").iterdir())
    first.unlink()
    width, height = Image.open(second).size
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(second)
    Image.fromarray(np.full_like(np.array(Image.open(third)), 3)).save(third)
    Image.open(fourth).convert("RGB").save(fourth)
    fifth.write_bytes(b"no picture")
    Path("masks/notes.txt").write_text("x", encoding="utf-8")
    done = CliRunner().invoke(
        cli, ["score", "--configfile", "study.yaml", "--predictions", "masks", "--label", "Bad", "--fold", "0"]
    )
    assert done.exit_code == 3
    wrong = {
        first: "is missing",
        second: f"is 7x5 px but its query is {width}x{height} px",
        third: "is not binary, it holds the value 3",
        fourth: "is of mode RGB",
        fifth: "is not a readable mask",
        Path("notes.txt"): "is no prediction of an episode",
    }
    for path, what in wrong.items():
        assert f"{path.name}: {what}" in done.output
    assert "6 findings; nothing was scored" in done.output
    assert not Path("out/own/elsewhere").exists()


def test_scores_are_not_replaced_without_force_and_a_changed_count_is_seen(at):
    words = ["score", "--configfile", "study.yaml", "--predictions", "m", "--label", "Mine", "--fold", 0, "--no-render"]
    crnet("predictions", "--configfile", "study.yaml", "--row", "full", "--fold", 0, "--out", "m")
    crnet(*words)
    with pytest.raises(CrnetError, match="'Mine' is scored there already; add --force"):
        crnet(*words)
    crnet(*words, "--force")
    [file] = Path("out/own/elsewhere").glob("*/*/counts.csv")
    file.write_text(file.read_text(encoding="utf-8").replace("0", "1", 1), encoding="utf-8")
    with pytest.raises(CrnetError, match="is not what was scored"):
        study.load([Path("study.yaml")])


def test_a_score_on_other_episodes_is_said_to_be_stale_and_not_shown(at):
    crnet("predictions", "--configfile", "study.yaml", "--row", "full", "--fold", 0, "--out", "m")
    words = ["--configfile", "study.yaml", "--predictions", "m", "--label", "Mine", "--fold", 0, "--no-render"]
    crnet("score", *words)
    other = study.load([Path("study.yaml")], {"benchmarks": {"pascal": {"episodes": {"count": 5}}}})
    [row] = [r for r in table_job(other, Layout(other), "table3")["rows"] if r.get("elsewhere")]
    assert row["cells"] == [] and "other episodes" in row["absent"]["1-shot"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--study", "nosuch"], "unknown study 'nosuch'; known: coco-photos, demo"),
        (["--configfile", "study.yaml", "--table", "table9"], "has no table 'table9'; known: table3, table4"),
        (["--configfile", "study.yaml", "--shots", "3"], "--shots: table3 has no shots 3; known: 1"),
        (["--configfile", "study.yaml", "--fold", "3"], "--fold: table3 has no fold 3; known: 0, 1"),
        (["--configfile", "study.yaml", "--study", "demo"], "two ways to name a study"),
    ],
)
def test_what_is_not_in_the_study_is_one_sentence(at, words, sentence):
    with pytest.raises(CrnetError, match=re.escape(sentence)):
        crnet("episodes-for-others", *words, "--out", "given")


def test_without_data_it_says_what_to_run(at):
    shutil.rmtree("work/data")
    with pytest.raises(CrnetError, match=r"dataset.json: is not here; run `snakemake --cores all work/data/shapes5i-"):
        crnet("episodes-for-others", "--configfile", "study.yaml", "--out", "given")
