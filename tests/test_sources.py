"""Digests of sources: what acts counts, comments do not; a factory is found without being imported."""

import subprocess
import sys

import faults
import pytest

from crnet.config import settings, sources
from crnet.config.sources import changed, code, digest, present, used
from crnet.runtime.files import read_json

SOURCE = '''"""What it is."""
# why
import math  # for pi


def area(r):
    """In pixels."""
    text = """a
# no comment
"""
    return math.pi * r**2, text
'''


@pytest.fixture(autouse=True)
def forget():
    digest.cache_clear()
    yield
    digest.cache_clear()


def test_comments_docstrings_and_blank_lines_do_not_count():
    bare = code(SOURCE)
    assert bare == code(SOURCE.replace("# why", "").replace("\n\n\n", "\n").replace("In pixels", "In cells"))
    assert bare == code(SOURCE.replace("\n", "   \n"))  # but for the text, whose own blanks are at line ends too
    assert "# no comment" in bare
    for changed_ in (SOURCE.replace("r**2", "r**3"), SOURCE.replace("# no comment", "# another")):
        assert code(changed_) != bare


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one method and what it imports, in place of ours."""
    for room in ("methods", "model", "encoders", "data/sets", "training"):
        (tmp_path / room).mkdir(parents=True)
    (tmp_path / "methods/mine.py").write_text("from crnet.model.parts import head\nSETTINGS = {'rev': 1}\n")
    (tmp_path / "model/parts.py").write_text("from crnet.model import deeper\nhead = 1\n")
    (tmp_path / "model/deeper.py").write_text("from crnet.training import loop\n")
    (tmp_path / "model/other.py").write_text("x = 1\n")
    (tmp_path / "training/loop.py").write_text("x = 1\n")
    for module in (settings, sources):
        monkeypatch.setattr(module, "PACKAGE", tmp_path)
    settings.components.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    settings.components.cache_clear()


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("methods/mine.py", True),
        ("model/parts.py", True),
        ("model/deeper.py", True),
        ("model/other.py", False),
        ("training/loop.py", False),
    ],
)
def test_what_a_method_imports_counts_with_it(package, file, counts):
    before = digest("method", "mine")
    (package / file).write_text((package / file).read_text() + "# more\n")
    digest.cache_clear()
    assert digest("method", "mine") == before
    (package / file).write_text((package / file).read_text() + "y = 2\n")
    digest.cache_clear()
    assert (digest("method", "mine") != before) is counts


def test_a_factory_is_read_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "outside_encoders").mkdir()
    (tmp_path / "outside_encoders/__init__.py").write_text("raise SystemExit\n")
    (tmp_path / "outside_encoders/net.py").write_text("raise SystemExit\n")
    (tmp_path / "outside_flat.py").write_text("raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(digest("encoder", "outside_encoders.net:build")) == len(digest("encoder", "outside_flat:build")) == 64
    for absent in ("outside_encoders.gone:build", "nowhere.at:all", "no-such-encoder"):
        assert digest("encoder", absent) == ""


def test_only_recorded_digests_are_compared():
    runs = [{"method": "a", "encoder": "e", "method_source": text} for text in ("1", "1", "2", "", None)]
    runs.append({"method": "gone", "encoder": "e", "method_source": "1"})
    now = {"method": {"a": "1", "gone": ""}, "encoder": {"e": "5"}}
    assert [text.split(":")[0] for text in changed(runs, now)] == [
        "the source of method a is not the one that 1 run was made by"
    ]
    assert not changed(runs, {"method": {}, "encoder": {}})


def test_a_training_records_its_sources_and_its_cpu_time(tiny, tmp_path):
    spec = tiny.training(train={"epochs": 1, "epoch_episodes": 8})
    report = read_json(faults.trained(tiny, tmp_path, spec) / "train.json")
    assert {kind: report[f"{kind}_source"] for kind in sources.KINDS} == {
        "method": digest("method", "crnet"),
        "encoder": digest("encoder", "small"),
    }
    assert not changed([used(report)], present([used(report)]))
    assert 0 < report["cpu_seconds"] < 60


def test_cpu_time_is_that_of_children_too_and_no_waiting():
    """A child that computes counts, sleep does not."""
    program = (
        "import subprocess, sys, time\n"
        "from crnet.runtime.provenance import cpu_seconds\n"
        "start = cpu_seconds()\n"
        "time.sleep(0.6)\n"
        "slept = cpu_seconds() - start\n"
        "work = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "subprocess.run([sys.executable, '-c', work], check=True)\n"
        "print(slept < 0.3, cpu_seconds() - start - slept >= 0.5)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"]
