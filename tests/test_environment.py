"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = [Requirement(line) for line in LOCK.splitlines()]


def test_conda_environment_is_the_lock():
    text = (ROOT / "environment.yml").read_text()
    assert yaml.safe_load(text)["dependencies"][-1]["pip"] == LOCK.splitlines(), "run `make lock`"


def test_lock_pins_everything_exactly_and_names_no_index():
    assert all(re.fullmatch(r"==[^,*]+", str(pin.specifier)) and pin.url is None for pin in PINS)
    assert "://" not in LOCK
    assert "--" not in LOCK


def test_lock_satisfies_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in PINS}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["test"], *extras["timm"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), text
        assert "==" not in str(wanted.specifier), f"{text}: exact versions are the lock's"


@pytest.mark.parametrize("name", ["torch", "torchvision", "numpy", "snakemake", "mlflow", "pydantic", "pandas"])
def test_what_is_installed_is_what_is_pinned(name):
    pinned = {pin.name: pin.specifier for pin in PINS}
    assert pinned[name].contains(version(name))


@pytest.mark.parametrize("cpu", ["", "1"])
def test_make_installs_the_lock_and_on_a_machine_without_gpu_no_cuda(tmp_path, cpu):
    """With programs that note what they are called with in place of Python and pip."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> called.txt\n')
    python.chmod(0o755)
    words = ["make", ".venv/ready", f"PYTHON={python}", *(["CPU_WHEELS=file:///wheels"] if cpu else [])]
    made = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ("about 2 GB" if cpu else "about 5.6 GB") in made.stdout
    called = (tmp_path / "called.txt").read_text()
    assert ("--requirement requirements.lock" in called) is not bool(cpu)
    if cpu:
        assert "--index-url file:///wheels --requirement .venv/torch.txt" in called
        torch, others = ((tmp_path / f".venv/{name}.txt").read_text().splitlines() for name in ("torch", "others"))
        assert [line.split("==")[0] for line in torch] == ["torch", "torchvision"]
        dropped = set(LOCK.splitlines()) - {*torch, *others}
        assert dropped and all(line.startswith(("nvidia-", "cuda-", "triton")) for line in dropped)
