"""The command line: what it lists, how it takes files, and what it says of a job that is not described whole."""

import pytest
from click.testing import CliRunner

from crnet.cli import cli
from crnet.config import study
from crnet.errors import CrnetError

PAPER, LIMITS = (study.ROOT / "configs" / name for name in ("studies/paper.yaml", "limits/8gb-gpu.yaml"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("studies", "paper"), ("tables", "table4"), ("methods", "prototype"), ("encoders", "vgg16"),
     ("datasets", "pascal5i")],
)  # fmt: skip
def test_what_a_study_may_name_is_listed(kind, name):
    lines = CliRunner().invoke(cli, ["list", kind]).output.splitlines()
    assert len(lines) > 2
    [found] = [line for line in lines if line.startswith(f"{name} ")]
    assert len(found.split()) > 4  # with some words on it


@pytest.mark.parametrize(
    "words",
    [["--configfile", PAPER, LIMITS], ["--configfile", PAPER, "--configfile", LIMITS], [PAPER, LIMITS]],
    ids=["as Snakemake takes them", "one by one", "without the option"],
)
def test_files_of_a_study_are_taken_as_snakemake_takes_them(words, monkeypatch):
    given = []
    monkeypatch.setattr("crnet.planning.plan.describe", lambda files, rates: given.append(files) or "planned")
    done = CliRunner().invoke(cli, ["plan", *map(str, words)])
    assert done.output == "planned\n"
    assert given == [(PAPER, LIMITS)]


class Started(Exception):
    """In the place of another program that takes over."""


def started(words, monkeypatch) -> list[str]:
    """What `crnet run` hands to Python."""
    monkeypatch.chdir(study.ROOT)
    calls = []

    def take_over(program, arguments):
        calls.append(arguments[1:])
        raise Started

    monkeypatch.setattr("os.execv", take_over)
    done = CliRunner().invoke(cli, ["run", *map(str, words)])
    assert isinstance(done.exception, Started), done.output
    return calls[0]


def test_run_hands_its_words_to_snakemake_on_all_cores_unless_they_say_otherwise(monkeypatch):
    words = ["tables", "--configfile", str(PAPER), str(LIMITS), "-n"]
    assert started(words, monkeypatch) == ["-m", "snakemake", "--cores", "all", *words]
    assert started(["-c2", *words], monkeypatch) == ["-m", "snakemake", "-c2", *words]
    assert started([], monkeypatch) == ["-m", "snakemake", "--cores", "all"]


def test_run_says_in_a_sentence_what_would_stop_snakemake_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(study.ROOT)
    broken = tmp_path / "broken.yaml"
    broken.write_text("study: [", encoding="utf-8")
    for words in (["--configfile", PAPER, "nosuch.yaml", "-n"], ["--configfile=nosuch.yaml"]):
        done = CliRunner().invoke(cli, ["run", *map(str, words)])
        assert isinstance(done.exception, CrnetError) and "nosuch.yaml: cannot be read" in str(done.exception)
    done = CliRunner().invoke(cli, ["run", "--configfile", str(broken)])
    assert isinstance(done.exception, CrnetError) and "broken.yaml" in str(done.exception)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["run"])
    assert isinstance(done.exception, CrnetError) and "holds no Snakefile" in str(done.exception)


@pytest.mark.parametrize(
    ("job", "spec", "lacks"),
    [
        (["train", "--state=s"], "{}", "'train'"),
        (["evaluate", "--episodes=e"], '{"train": {}}', "'method'"),
        (["trials", "--weights=w"], '{"evaluate": {}}', "'train'"),
        (["features"], "{}", "'encoder'"),
    ],
)
def test_a_job_that_is_not_described_whole_is_one_sentence(job, spec, lacks, tmp_path, tiny):
    words = [*job, "--spec", spec, "--data", str(tiny.data), "--out", str(tmp_path)]
    with pytest.raises(CrnetError, match=f"the JSON of this job has no {lacks}; give it whole"):
        cli(["job", *words], standalone_mode=False)


@pytest.mark.parametrize("spec", ["[]", "3", "{"])
def test_a_job_that_is_no_mapping_is_refused(spec):
    done = CliRunner().invoke(cli, ["job", "train", "--spec", spec, "--data", "d", "--out", "o", "--state", "s"])
    assert done.exit_code == 2
    assert "Error: Invalid value for '--spec': is" in done.output
