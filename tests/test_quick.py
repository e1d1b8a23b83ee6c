"""One number of a table without the rest."""

import re
from pathlib import Path

import own_study
import pytest
import yaml
from click.testing import CliRunner
from snake import copy_workflow

from crnet.cli import cli
from crnet.config import study
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv
from crnet.yours import quick
from crnet.yours.places import cell

ROOT = Path(__file__).resolve().parents[1]


def test_a_number_that_is_there_is_told_without_a_job_and_is_the_table_s(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(quick.subprocess, "run", lambda *given, **how: pytest.fail("ran something"))
    words = ["quick", "--study", "demo", "--row", "full", "--fold", "1", "--seed", "0"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    wanted = {"row": "full", "fold": "1", "metric": "miou", "void": "background"}
    [line] = [line for line in read_csv("results/demo/tables/table3.csv") if line | wanted == line]
    assert "demo: Table 3, full, fold 1, seed 0, 1-shot, 200 episodes" in done.output
    said = re.search(r"mIoU (\S+) \[(\S+), (\S+)\] with void as background", " ".join(done.output.split()))
    for text, key in zip(said.groups(), ("value", "low", "high"), strict=True):
        assert abs(float(text) - float(line[key])) < 0.056, "one decimal of what the table has with two"


def test_a_number_that_is_not_there_asks_for_its_counts_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(copy_workflow(tmp_path))
    content = {**own_study.STUDY, "tables": ["table3"], "encoders": {"main": {"name": "small", "steps": 2, "images": 8,
               "size": 48, "batch": 4}}}  # fmt: skip
    Path("study.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = ["quick", "--configfile", "study.yaml", "--row", "all-foreground", "--fold", "1"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0 and "own: Table 3, all-foreground, fold 1" in done.output
    values = r"\d+\.\d \[.*\] with void as background, \d+\.\d \[.*\] with void ignored\n"
    assert re.search(rf"FB-IoU, classes by pairs {values}FB-IoU, classes equal +{values}", done.output)
    plan = study.load([Path("study.yaml")])
    chosen = cell(plan, None, "all-foreground", None, 1, None)
    assert [path.name for path in Path("out/own/evaluate").iterdir()] == [chosen.evaluation]
    assert not Path("work/train").exists()


def test_a_published_number_is_made_here_with_its_network_if_asked(monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = []
    monkeypatch.setattr(
        quick.subprocess, "run", lambda *given, **how: asked.append(given[0]) or type("", (), {"returncode": 1})
    )
    words = ["quick", "--study", "demo", "--row", "full", "--fold", "1"]
    refused = CliRunner().invoke(cli, [*words, "--here"])
    assert "was not made" in str(refused.exception)
    counts, weights = asked[0][3:5]
    assert (
        counts.startswith("out/demo/evaluate/") and weights.startswith("work/train/") and not Path(counts).is_absolute()
    )


def test_a_network_that_is_not_here_names_the_command_that_makes_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["export", "--study", "demo", "--table", "table3", "--row", "full", "--fold", "3", "--out", "model"]
    refused = CliRunner().invoke(cli, words)
    wanted = "`crnet quick --here --table table3 --row full --shots 1 --fold 3 --configfile "
    assert wanted in str(refused.exception) and "demo.yaml` trains and scores it." in str(refused.exception)


def test_a_failure_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quick.subprocess, "run", lambda *given, **how: type("Done", (), {"returncode": 1}))
    plan = study.load([])
    with pytest.raises(CrnetError, match=r"counts.csv: was not made; see above, then call again"):
        quick.quick(plan, cell(plan, None, None, None, None, None), [], root=tmp_path)
