"""Methods and data sets that are no part of the package: found by `package.module:function`, held to the same rules."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from crnet import methods
from crnet.config import sources, study
from crnet.config.layout import Layout
from crnet.config.settings import component
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.errors import CrnetError

ROOT = Path(__file__).resolve().parents[1]
DATA = """
from crnet.data.sets import shapes5i

SETTINGS = {"rev": 1, "photos": 40}
LIMITS = {"photos": (1, 1000)}

def _settings(settings):
    return {**shapes5i.SETTINGS, "images_train": settings["photos"], "images_val": 60, "size": 64, "rule_grid": 8}

def splits(settings):
    return shapes5i.splits(_settings(settings))

def prepare(archives, extracted, out, settings):
    return shapes5i.prepare(archives, extracted, out, _settings(settings))
"""


def in_readme() -> str:
    """The method that the README shows."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Add a method")[2]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_the_readme_shows_a_method_as_it_is():
    assert in_readme() == (ROOT / "crnet/methods/co_fcn.py").read_text(encoding="utf-8")


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """A folder on Python's path with the README's method and a data set."""
    package = tmp_path / "lab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "late_fusion.py").write_text(in_readme(), encoding="utf-8")
    (package / "broken.py").write_text("SETTINGS = {", encoding="utf-8")
    (package / "scenes.py").write_text(DATA, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def plan_of(tmp_path: Path, **changes) -> study.Plan:
    content = {
        "extends": "demo.yaml",
        "study": "outside",
        "title": "t",
        "caption": "c",
        "tables": ["table3"],
        **changes,
    }
    file = tmp_path / "outside.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "demo.yaml").write_bytes((ROOT / "configs/studies/demo.yaml").read_bytes())
    return study.load([file])


def test_a_method_is_built_and_its_source_is_on_record(outside):
    name = "lab.late_fusion:build"
    method = methods.build(name, (4, 8), component("method", name, "t").settings({"width": 3}, "t"))
    assert method.embed([torch.zeros(1, 4, 5, 5), torch.zeros(1, 8, 5, 5)]).shape == (1, 3, 5, 5)
    before = sources.digest("method", name)
    assert re.fullmatch("[0-9a-f]{64}", before)
    file = outside / "late_fusion.py"
    file.write_text(file.read_text(encoding="utf-8").replace("width, 1)", "width, 3, padding=1)"), encoding="utf-8")
    sources.digest.cache_clear()
    assert sources.digest("method", name) != before


def test_a_data_set_is_planned_and_prepared_and_no_path_has_a_colon(outside, tmp_path):
    data = {"name": "lab.scenes:prepare", "photos": 30}
    plan = plan_of(tmp_path, benchmarks={"pascal": {"dataset": data}})
    [spec] = plan.datasets.values()
    layout = Layout(plan)
    assert spec == {"name": "lab.scenes:prepare", "rev": 1, "photos": 30}
    paths = [layout.data(spec), layout.extracted(spec), *map(layout.training, plan.trainings), *plan.episodes]
    assert not [path for path in [*paths, *plan.features, *plan.evaluations] if ":" in path]
    prepare(spec, tmp_path, tmp_path, tmp_path / "data")
    assert len([p for p in Index.load(tmp_path / "data").photos.values() if p.split == "train"]) <= 30


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            {"name": "lab.absent:prepare"},
            "no module of dataset 'lab.absent:prepare' is found; put its folder on PYTHONPATH",
        ),
        ({"name": "lab:prepare"}, "declares no SETTINGS"),
        ({"name": "lab.broken:prepare"}, "cannot be read as Python"),
        ({"name": "lab.scenes:prepare", "photos": 0}, "photos"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence_before_anything_runs(outside, tmp_path, dataset, words):
    with pytest.raises(CrnetError, match=re.escape(words)):
        plan_of(tmp_path, benchmarks={"pascal": {"dataset": dataset}})


def test_a_function_that_is_not_there_is_one_sentence(outside):
    with pytest.raises(CrnetError, match=r"method lab\.late_fusion:make: cannot be imported"):
        methods.build("lab.late_fusion:make", (4, 8), {"width": 3})
