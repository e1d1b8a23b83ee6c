"""Provenance is right inside a checkout, honest outside one, and never fails."""

import json
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crnet.runtime import provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a package, a results folder, and an ignored virtual environment."""
    git(tmp_path, "init", "-q")
    for folder in ("crnet", "results", ".venv/crnet"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv/\n__pycache__/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit_of_a_clean_checkout(checkout: Path) -> None:
    assert provenance.checkout(checkout / "crnet") == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize(
    ("change", "dirty"),
    [
        ("crnet/__init__.py", True),
        ("crnet/new_method.py", True),
        ("results/__init__.py", False),
        ("results/table.csv", False),
    ],
)
def test_changed_and_new_code_is_dirty_and_results_are_not(checkout: Path, change: str, dirty: bool) -> None:
    (checkout / change).write_text("x = 1\n")
    assert provenance.checkout(checkout / "crnet")[1] is dirty


def test_unknown_outside_a_checkout_in_an_untracked_copy_and_without_git(checkout, tmp_path_factory, monkeypatch):
    outside = tmp_path_factory.mktemp("installed")
    (outside / "__init__.py").write_text("")
    unknown = ("unknown", "unknown")
    assert provenance.checkout(outside) == provenance.checkout(checkout / ".venv/crnet") == unknown
    monkeypatch.setenv("PATH", "")
    assert provenance.checkout(checkout / "crnet") == unknown


def test_record_is_plain_and_complete() -> None:
    facts = provenance.record("cpu", 2)
    assert json.loads(json.dumps(facts)) == facts
    assert set(facts["versions"]) == {"python", "torch", "torchvision", "numpy"}
    assert facts["versions"]["python"] == platform.python_version()
    assert facts["versions"]["numpy"] == np.__version__
    assert (facts["device"], facts["threads"], facts["gpu"]) == ("cpu", 2, "")
    assert facts["cpu"]
    assert facts["platform"]


def test_peak_memory_is_in_bytes_and_grows() -> None:
    before = provenance.peak_memory_bytes("cpu")
    assert 10 * 2**20 < before < 2**40
    held = np.ones(before // 8 + 4 * 2**20)  # as much again as the peak so far, and 32 MiB
    assert provenance.peak_memory_bytes("cpu") - before > 16 * 2**20
    assert held.size
