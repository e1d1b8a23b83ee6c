"""pyproject.toml, requirements.lock and environment.yml describe one environment."""

import re
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
    for text in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), text


@pytest.mark.parametrize("name", ["torch", "torchvision", "numpy", "snakemake", "mlflow", "pydantic", "pandas"])
def test_what_is_installed_is_what_is_pinned(name):
    pinned = {pin.name: pin.specifier for pin in PINS}
    assert pinned[name].contains(version(name))
