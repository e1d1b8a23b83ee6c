"""What is published changes as a whole, by `crnet publish` alone, and no number of it unasked."""

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from snake import ROOT, copy_workflow, snakemake

from crnet.audit import publish as publishing
from crnet.audit.publish import compare, numbers, publish
from crnet.config import study
from crnet.config.jobs import page_job
from crnet.config.layout import Layout
from crnet.errors import CrnetError
from crnet.report.page.page import write_page
from crnet.report.partial import render
from crnet.runtime.files import read_csv, write_csv

NAME = "photos"
STUDY = ROOT / f"configs/studies/{NAME}.yaml"


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """The results of a run, in a folder of its own."""
    shutil.copytree(ROOT / "results" / NAME, tmp_path / "out" / NAME)
    monkeypatch.chdir(tmp_path)
    return Path("out") / NAME


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(path: Path, column: str, value: str) -> None:
    rows = read_csv(path)
    rows[0][column] = value
    write_csv(path, list(rows[0]), [row.values() for row in rows])


def test_runs_go_where_git_does_not_look_and_committed_studies_stay_out_of_their_way():
    plans = [study.load([file]) for file in (ROOT / "configs/studies").glob("*.yaml")]
    places = {Layout(plan).results for plan in plans}
    assert places == {f"out/{plan.study.study}" for plan in plans}
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/out", "/work", "/logs/", "/mlflow.db*", ".snakemake/"} <= set(ignored)


def test_published_is_what_the_audit_passes_without_photos_strays_and_leftovers(own):
    for stray in ("figures/episodes.png", "evaluate/old-run/counts.csv", ".README.md.partial", "notes.txt"):
        (own / stray).parent.mkdir(exist_ok=True)
        (own / stray).write_text("not to be published")
    write_page(page_job(study.load([STUDY])), own)  # it shows the sheet of photos, the published one cannot
    assert b"episodes.png" in (own / "README.md").read_bytes()
    text, differences = publish(own, sample=0)
    assert differences == 0
    assert f"results/{NAME}: 2" in text and "0 changed, 0 gone" in text
    assert contents(Path("results") / NAME) == contents(ROOT / "results" / NAME)
    again, _ = publish(own, sample=0)
    assert "0 files new, 0 changed, 0 gone" in again
    assert os.listdir("results") == [NAME]


def test_other_numbers_take_the_place_of_published_ones_by_force_alone(own):
    publish(own, sample=0)
    published = Path("results") / NAME
    change(published / "tables/table2.csv", "value", "12.34")
    (published / "evaluate/gone-00000000").mkdir()
    shutil.copy(published / "classes.csv", published / "evaluate/gone-00000000/counts.csv")
    before = contents(published)
    with pytest.raises(CrnetError, match=r"2 files hold other numbers .* e\.g\. evaluate/gone.* --force") as caught:
        publish(own, sample=0)
    assert "\n" not in str(caught.value)
    assert contents(published) == before and os.listdir("results") == [NAME]
    text, _ = publish(own, sample=0, force=True)
    assert "0 files new, 1 changed, 1 gone" in text
    assert "  tables/table2.csv: other numbers" in text
    assert contents(published) == contents(own)


def test_times_and_words_may_change_without_force(own):
    publish(own, sample=0)
    published = Path("results") / NAME
    change(published / "runs.csv", "seconds", "1.0")
    change(published / "tables/table2.csv", "label", "Another word")
    text, _ = publish(own, sample=0)
    assert "0 files new, 2 changed, 0 gone" in text and "other numbers in 0" in text
    assert contents(published) == contents(own)


def test_what_the_audit_rejects_is_not_published(own):
    change(own / "tables/table2.csv", "value", "99.99")
    text, differences = publish(own, sample=0)
    assert differences > 0 and "nothing is published" in text
    assert not Path("results").exists()


def test_a_kill_between_the_two_renames_loses_nothing(own, monkeypatch):
    publish(own, sample=0)
    published = Path("results") / NAME
    change(published / "runs.csv", "seconds", "1.0")
    before, replace = contents(published), os.replace

    def killed(source, target):
        if Path(target).name == NAME:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(publishing.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(own, sample=0)
    assert not published.exists()
    change(own / "tables/table2.csv", "label", "Another word")  # the audit will not pass this
    assert publish(own, sample=0)[1] > 0
    assert contents(published) == before


def test_the_published_folder_is_not_published_onto_itself(own):
    publish(own, sample=0)
    with pytest.raises(CrnetError, match=r"is the published folder itself; give the one of your run"):
        publish(Path("results") / NAME, sample=0)


def test_a_clone_without_own_results_makes_tables_of_the_published_counts(own, tmp_path):
    publish(own, sample=0)
    made = (own / "tables/table2.md").read_bytes()
    shutil.rmtree("out")
    published = contents(Path("results"))
    said = render([STUDY])
    assert f"{own}: was not there, so the counts are the published ones of results/{NAME}" in said
    assert (own / "tables/table2.md").read_bytes() == made
    assert contents(Path("results")) == published
    assert [path.name for path in own.parent.iterdir()] == [NAME]
    copied = [own / "runs.csv", *own.glob("evaluate/*/*"), *own.glob("finetune/*/*"), *own.glob("episodes/*")]
    assert len({path.stat().st_mtime_ns for path in copied}) == 1
    copy_workflow(tmp_path)
    planned = snakemake(tmp_path, "tables", "--dry-run", study=str(STUDY)).output
    assert "rule table:" in planned and "rule train:" not in planned


def test_who_asks_for_tables_alone_in_a_clone_is_told_what_makes_them(own, tmp_path):
    publish(own, sample=0)
    shutil.rmtree("out")
    copy_workflow(tmp_path)
    said = snakemake(tmp_path, "tables", study=str(STUDY)).output
    assert f"`crnet render`, with the same --configfile, makes the tables of the counts in results/{NAME}" in said
    assert "Traceback" not in said


def test_a_copy_of_published_counts_that_fails_leaves_none(own, monkeypatch):
    publish(own, sample=0)
    shutil.rmtree("out")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(CrnetError, match=rf"{own}"):
            render([STUDY])
    assert not own.exists()
    assert "the published ones" in render([STUDY])


@pytest.mark.parametrize("page", sorted(ROOT.glob("results/*/README.md")), ids=lambda page: page.parent.name)
def test_all_that_a_published_page_shows_or_links_is_committed(page):
    done = subprocess.run(["git", "ls-files"], cwd=page.parent, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    linked = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert len(linked) > 5
    files = {Path(name) for name in done.stdout.split()}
    assert set(map(Path, linked)) - files - {folder for file in files for folder in file.parents} == set()


def test_numbers_are_those_of_cells_not_of_words(tmp_path):
    write_csv(tmp_path / "a.csv", ["label", "value"], [["Row 2", "1.5"], ["3", ""]])
    assert numbers(tmp_path / "a.csv") == [1.5, 3.0]
    assert compare(tmp_path / "none", tmp_path)[1] == []
