"""A study of an encoder that is not here: its results render and audit, and only what needs a network stops."""

import shutil

import pytest
from snake import ROOT, copy_workflow, snakemake

from crnet.audit import audit
from crnet.config import encoders, study
from crnet.config.layout import Layout
from crnet.report.partial import render

STUDY = ROOT / "configs/studies/photos.yaml"
RESULTS = ROOT / "results/photos"
SENTENCE = (
    "no module of encoder 'resnet50v2:build' is found; put its folder on PYTHONPATH, or name crnet's own encoder "
    "'resnet50v2' in a second file."
)


@pytest.fixture(autouse=True)
def without():
    assert encoders.absent("resnet50v2:build") == SENTENCE, "take it off the path of the tests"


@pytest.fixture
def clone(tmp_path):
    copy_workflow(tmp_path)
    shutil.copytree(RESULTS, tmp_path / "out" / RESULTS.name)
    return tmp_path


def contents(clone) -> dict[str, bytes]:
    results = clone / "out" / RESULTS.name
    return {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("*") if p.suffix in (".csv", ".md")}


def test_published_results_pass_the_audit():
    text, differences = audit(RESULTS, sample=0)
    assert differences == 0, text
    cells = next(line for line in text.splitlines() if line.startswith("tables: cells made again from counts"))
    assert int(cells.split()[-3].replace(",", "")) > 100


def test_the_workflow_makes_tables_and_claims_again_and_stops_before_it_trains(clone):
    before = contents(clone)
    done = snakemake(clone, "claims", "out/photos/tables/table2.csv", study=str(STUDY))
    assert done.returncode == 0, done.output
    assert contents(clone) == before
    stopped = snakemake(clone, study=str(STUDY))
    assert stopped.returncode != 0
    assert f"study photos: {SENTENCE}" in stopped.output
    assert "Traceback" not in stopped.output
    assert not (clone / "data").exists()  # nothing was downloaded for what cannot run
    assert contents(clone) == before


def test_render_makes_the_same_files(clone, monkeypatch):
    monkeypatch.chdir(clone)
    before = contents(clone)
    render([STUDY])
    assert contents(clone) == before


def test_names_of_encoders():
    assert encoders.absent("small") is None
    assert encoders.absent("crnet.encoders.small:network") is None
    assert encoders.absent("nowhere.at:build").endswith("'nowhere.at:build' is found; put its folder on PYTHONPATH.")


def test_the_shipped_encoder_runs_the_study_in_a_second_file(tmp_path):
    """On what is named so: the data, rows and seeds of the study, with weights that can be fetched."""
    second = tmp_path / "again.yaml"
    second.write_text("study: photos-again\nencoders: {main: {name: resnet50v2}}\n")
    plan, before = study.load([STUDY, second]), study.load([STUDY])
    assert [spec["name"] for spec in plan.encoders.values()] == ["resnet50v2"]
    assert len(plan.trainings) == len(before.trainings)
    assert Layout(plan).archive_names("encoder", *plan.encoders.values()) == ["resnet50-v2-7.onnx"]
