"""How far a study is: from its files alone, weighed by the work that they stand for."""

import io
from pathlib import Path

import pytest

from crnet.config import study
from crnet.planning import progress
from crnet.planning.progress import Progress, describe, watch
from crnet.report.headline import headline

TINY = Path(__file__).parent / "tiny.yaml"


@pytest.fixture
def tiny_study(monkeypatch, tmp_path):
    """Nothing of it is there yet."""
    monkeypatch.chdir(tmp_path)
    return study.load([TINY])


def finish(made: Progress, rule: str, count: int | None = None) -> None:
    for job in [job for job in made.graph if job[0] == rule][:count]:
        made._files[job].parent.mkdir(parents=True, exist_ok=True)
        made._files[job].touch()


def test_stages_are_counted_and_work_is_weighed(tiny_study, monkeypatch):
    made = Progress(tiny_study)
    assert made.counts(made.done()) == {
        "data": (0, 2), "encoders": (0, 1), "episodes": (0, 4), "features": (0, 6), "trainings": (0, 10),
        "trials": (0, 2), "evaluations": (0, 26), "finetuned evaluations": (0, 2), "probes": (0, 2),
    }  # fmt: skip
    finish(made, "train", 4)
    assert made.counts(made.done())["trainings"] == (4, 10)
    assert made.share(made.done()) == pytest.approx(4 / 55)  # of the jobs, until their work is counted
    made.predict()
    by_work = made.share(made.done())
    assert by_work != pytest.approx(4 / 55)
    finish(made, "train")
    assert by_work < made.share(made.done()) < 1
    for rule in progress.STAGES:
        finish(made, rule)
    assert made.share(made.done()) == pytest.approx(1)
    monkeypatch.setattr(Progress, "predict", lambda self: setattr(self, "hours", made.hours))
    assert describe(tiny_study).endswith("100 % of the work is done; page: out/tiny/README.md")


def test_the_files_are_those_that_the_rules_make(tiny_study):
    """Each job's file is an output of a rule, so that progress ends when the study does: names as in Layout."""
    made = Progress(tiny_study)
    assert {str(file.parent.parent) for job, file in made._files.items() if job[0] == "evaluate"} == {
        "out/tiny/evaluate"
    }
    assert {file.name for file in made._files.values()} >= {"train.json", "trials.json", "evaluation.json"}


def test_the_last_epoch_of_the_training_that_wrote_last(tiny_study):
    made = Progress(tiny_study)
    assert made.last_words() == ""
    run = next(name for rule, name in made.graph if rule == "train")
    log = Path(f"logs/train/{run}.log")
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1/2  loss 3\nepoch 2/2  loss 2\nsaved\n", encoding="utf-8")
    assert made.last_words() == f"{run}: epoch 2/2  loss 2"


def test_a_run_is_watched_line_by_line_until_its_end(tiny_study, monkeypatch):
    """A line when something was done, not sooner than due; the end from the pace of this run."""
    made, out = Progress(tiny_study), io.StringIO()

    def ticks(started):
        yield 5.0  # too soon for a word
        finish(made, "encoder")
        yield 21.0
        yield 30.0  # too soon after the last one
        finish(made, "train")
        yield 40.0
        yield 80.0  # nothing new

    monkeypatch.setattr(progress, "_ticks", ticks)
    watch(tiny_study, out)
    first, second = out.getvalue().splitlines()
    assert first.startswith("crnet    21 s  data 0/2  episodes 0/4  features 0/6  trainings 0/10  trials 0/2")
    assert ", ends in about " in second
    assert "trainings" not in second  # they are done


def test_the_headline_is_a_tables_first_grid_and_the_page(tmp_path):
    (tmp_path / "tables").mkdir()
    text = "# Title\n\n**Other data.**\n\n## 1-shot\n\n| a |\n| - |\n| 1 |\n\nNotes.\n\n## Details\n\n| b |\n"
    (tmp_path / "tables/table3.md").write_text(text.replace("Title", "table3"))
    assert headline(tmp_path, "table3") == f"\ntable3\n| a |\n| - |\n| 1 |\n\npage: {tmp_path}/README.md"
