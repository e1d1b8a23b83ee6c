"""The audit: it passes what a study published, says what it could not check, and its own parts."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest
from audited import SEED, counts_of, edit, edit_row
from click.testing import CliRunner

from crnet.audit import CHECKS, audit
from crnet.audit.at_hand import encoder_digest
from crnet.audit.counts import row_problem
from crnet.audit.ledger import Ledger, first_difference, shown
from crnet.cli import cli
from crnet.config import sources, study
from crnet.data import episodes
from crnet.errors import CrnetError
from crnet.planning.plan import describe
from crnet.report.partial import render
from crnet.runtime.files import read_json, write_json


class TestUntouched:
    def test_nothing_differs_and_everything_is_checked(self, finished):
        text, count = finished.audit(sample=6)
        assert count == 0, text
        assert text.endswith("result: nothing differs")
        assert counts_of(text, "sample: episodes predicted again") == ["6", "-", "-"]
        assert counts_of(text, "tables: cells made again from counts")[0] != "-"
        for name in set(CHECKS) - {"data: pairs are the published lists"}:
            assert counts_of(text, name)[0] != "-", name
            assert counts_of(text, name)[1:] == ["-", "-"], name

    def test_it_fits_a_terminal_and_says_how_to_sample_the_same(self, finished):
        text, _ = finished.audit(sample=1)
        assert max(map(len, text.partition("\n\n")[2].splitlines())) <= 110
        assert f"--seed {SEED}" in text

    def test_the_sample_is_a_function_of_its_seed(self):
        from crnet.audit.sample import _choose

        table = episodes.EpisodeTable(0, "", 3, (0,), 1, {}, tuple(range(3)))
        usable = dict.fromkeys("abc", table)
        assert _choose(usable, 5, 1) == _choose(usable, 5, 1)
        assert len({json.dumps(_choose(usable, 5, seed)) for seed in range(8)}) > 1
        chosen = _choose(usable, 99, 1)
        assert {name: sorted(numbers) for name, numbers in chosen.items()} == {name: [0, 1, 2] for name in "abc"}

    def test_without_a_work_folder_it_says_what_it_could_not_check(self, copy):
        shutil.rmtree(copy.work)
        copy.work.mkdir()
        text, count = copy.audit(sample=4)
        assert count == 0, text
        assert "weights: files are the reports': not at hand in a work folder" in text
        assert counts_of(text, "sample: episodes predicted again")[0] == "-"
        assert counts_of(text, "tables: cells made again from counts")[0] != "-"

    def test_torch_is_imported_for_the_sample_only(self, finished):
        code = (
            "import sys; from pathlib import Path; from crnet.audit import audit; "
            f"audit(Path({str(finished.results)!r}), [Path({str(finished.file)!r})], (), 0); "
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestCommandLine:
    def run(self, *arguments: object):
        return CliRunner().invoke(cli, ["audit", *map(str, arguments)])

    def test_status(self, copy):
        options = [copy.results, "--configfile", copy.file, "--work", copy.work, "--sample", 0]
        assert self.run(*options).exit_code == 0
        edit_row(copy.results / "tables/table2.csv", 2, value="99.99")
        done = self.run(*options)
        assert done.exit_code == 3
        assert "'99.99'" in done.output

    def test_counts_without_digest_are_not_called_verified(self, copy):
        path = copy.evaluation() / "evaluation.json"
        edit(path, counts_sha256=None)
        text, _ = copy.audit()
        assert "was written by an earlier version" in " ".join(text.split())
        assert counts_of(text, "counts: digest is the run's")[1:] == ["-", "1"]

    def test_wrong_use_is_one_sentence(self, tmp_path):
        with pytest.raises(CrnetError, match="is no folder"):
            audit(tmp_path / "absent")
        with pytest.raises(CrnetError, match=f"there is no configs/studies/{tmp_path.name}.yaml"):
            audit(tmp_path)
        with pytest.raises(CrnetError, match=r"--work .*absent: is no folder"):
            audit(tmp_path, [study.ROOT / study.DEFAULT_STUDY], [tmp_path / "absent"])


def test_the_digest_of_an_encoder_is_made_without_torch_as_with_it(tiny):
    from crnet.encoders import build, digest

    assert encoder_digest(tiny.encoder) == digest(build(tiny._encoder(), tiny.encoder))


def test_what_no_prediction_can_have_given():
    parts = itertools.product(("ignore", "void"), ("fg", "bg"), ("intersection", "union"))
    good = dict(zip(map("_".join, parts), ("3", "5", "4", "6", "3", "6", "6", "9"), strict=True))
    assert row_problem(good) is None
    assert "not a number" in row_problem(good | {"void_fg_union": "-6"})
    assert "more than" in row_problem(good | {"ignore_fg_intersection": "6"})
    assert "add up" in row_problem(good | {"ignore_bg_union": "7"})
    assert "equal" in row_problem(good | {"void_fg_intersection": "2", "void_bg_union": "10"})


def test_lines_of_differences():
    assert first_difference("a\nb\n", "a\nc\n") == "line 2 holds 'b', made again 'c'"
    assert first_difference("a\n", "a\nc\n") == "line 2 holds nothing, made again 'c'"
    assert shown("ab" * 32) == "abababababab..."
    ledger = Ledger(["one"])
    for number in range(30):
        ledger["one"].differs(f"file {number}", "x")
    assert "and 21 more of 'one' (--all lists them)" in ledger.text()
    assert "more of" not in ledger.text(everything=True)


def test_another_source_is_warned_of_by_audit_plan_and_page_and_no_difference(copy, monkeypatch):
    """As after an edit of a method's file that raised no ``rev``; runs that recorded nothing are passed over."""
    before = (copy.results / "README.md").read_bytes()
    reports = [*copy.results.glob("evaluate/crnet-*/evaluation.json"), *copy.results.glob("finetune/*/*.json")]
    reports += copy.work.glob("train/*/train.json")
    probes = list(copy.results.glob("probe/*/probe.json"))  # no runs of the page's list
    assert "WARNING" not in copy.audit()[0] + describe([copy.file])
    monkeypatch.setattr(sources, "digest", lambda kind, name: "0" * 64 if name == "crnet" else "")
    text, number = copy.audit()
    assert number == 0, text
    said = "source of method crnet is not the one that {} runs were made by"
    for found in (text, describe([copy.file])):
        assert "WARNING" in found and said.format(len(reports) + len(probes)) in " ".join(found.split())
    render([copy.file])
    assert said.format(len(reports)) in (copy.results / "README.md").read_text()
    assert copy.audit()[1] == 0
    for path in reports + probes:
        report = read_json(path)
        write_json(path, {key: value for key, value in report.items() if not key.endswith("_source")})
    render([copy.file])
    assert "WARNING" not in copy.audit()[0] + describe([copy.file])
    assert (copy.results / "README.md").read_bytes() == before
