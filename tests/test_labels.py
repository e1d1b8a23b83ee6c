"""How rows and runs are called: by what ran, and everywhere the same."""

from pathlib import Path

import pytest

from crnet.config import resolve, study
from crnet.config.jobs import headline_table, page_job, table_job
from crnet.config.labels import run_labels, table_heading, table_name
from crnet.config.layout import Layout
from crnet.report.runs import label_of

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs/studies/demo.yaml"


def backbones(table: str, *files: Path, **overrides) -> dict[str, str]:
    """Row -> what its column Backbone says."""
    plan = study.load([*files], overrides)
    rows = table_job(plan, Layout(plan), table)["rows"]
    return {row["id"]: dict(row["switches"]).get("Backbone", "") for row in rows}


@pytest.mark.parametrize("table", ["table5", "table6"])
def test_rows_that_are_run_name_their_encoder_and_quoted_ones_the_papers(table: str) -> None:
    found = backbones(table, DEMO)
    assert found["crnet-resnet50"] == "small layer3+layer4"
    assert found["crnet-vgg16"] == "small layer2+layer3"
    assert (found["oslsm"], found["canet"], found["prototype"]) == ("VGG16", "ResNet-50", "")


def test_the_papers_word_stays_where_its_encoder_runs() -> None:
    found = backbones("table5", ROOT / "configs/studies/paper.yaml")
    assert (found["crnet-resnet50"], found["crnet-vgg16"]) == ("ResNet-50", "VGG16")


def test_a_row_without_an_encoder_is_not_run_and_keeps_the_papers_word() -> None:
    assert backbones("table5", DEMO, encoders={"vgg16": None})["crnet-vgg16"] == "VGG16"


def test_every_run_has_one_label_and_it_is_a_rows() -> None:
    plan = study.load([DEMO])
    labels = run_labels(plan)
    names = [name for runs in labels.values() for name in runs]
    controls = {resolve.training_name(spec["train"]) for spec in plan.evaluations.values()} - set(plan.trainings)
    assert sorted(names) == sorted({*plan.trainings, *plan.trials, *plan.choices, *plan.evaluations, *controls})
    name = label_of(list(labels.items()))
    tuned = next(run for run in plan.choices)
    assert name({"run": tuned, "variant": "crnet without refinement"}).startswith("Table 4: Finetune (")
    assert {label.partition(":")[0] for label in labels} <= {
        *(f"Table {n}" for n in range(2, 8)),
        *("Refinement steps", "All foreground", "Prototype"),
    }
    shared = next(c.evaluation for c in plan.cells if (c.table, c.row) == ("table3", "base"))
    assert name({"run": shared, "variant": ""}) == name({"run": f"{shared}+fusion", "variant": ""}) == "Table 2: Both"
    assert name({"run": "of another study", "variant": "wide", "method": "crnet"}) == "wide"
    assert name({"run": "of another study", "variant": "", "method": "crnet"}) == "crnet"


def test_a_page_begins_with_the_full_model_or_with_what_is_run() -> None:
    assert headline_table(study.load([DEMO])) == "table3"
    others = {"tables": ["table2", "table7"], "sheet": None}
    assert headline_table(study.load([DEMO], others)) == "table2"
    job = page_job(study.load([DEMO], others))
    assert (job["headline"], job["sheet"]) == ("table2", False)


def test_class_ids_have_the_names_of_their_data_set() -> None:
    plan = study.load([DEMO])
    jobs = {name: table_job(plan, Layout(plan), name)["classes"] for name in ("table3", "table7")}
    assert sorted(map(int, jobs["table3"])) == list(range(1, 21))
    assert sorted(map(int, jobs["table7"])) == list(range(61, 81))  # of 40/20/20 the last are tested
    assert jobs["table3"]["1"] == "striped-star"


def test_headings() -> None:
    assert table_heading("table4", "Shots") == "Table 4: Shots"
    assert table_heading("refinement-steps", "Runs") == "Runs"
    assert table_name("refinement-steps") == "Refinement steps"
