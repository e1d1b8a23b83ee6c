"""docs/reference.md says what the code takes."""

import re
from pathlib import Path

from crnet.config import defaults
from crnet.config.reference import STUDY, reference
from crnet.config.settings import KINDS, components

PAGE = reference()


def section(title: str) -> dict[str, list[str]]:
    """Key -> default, what it may be, meaning."""
    part = re.split(r"^#+ ", PAGE.split(f"\n### {title}\n")[1], flags=re.MULTILINE)[0]
    rows = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in part.splitlines() if line.startswith("| `")]
    return {key.strip("`"): rest for key, *rest in rows}


def test_the_committed_page_is_of_this_code():
    path = Path(__file__).resolve().parents[1] / "docs/reference.md"
    assert path.read_text(encoding="utf-8") == PAGE, "run `make reference`"


def test_every_key_of_the_schema_is_there_and_explained():
    for model in STUDY:
        rows = section(model.__name__)
        assert set(rows) == set(model.model_fields)
        assert not [key for key, (_, allowed, meaning) in rows.items() if not allowed or not meaning], model


def test_settings_have_their_defaults_limits_and_comments():
    assert set(section("train")) == set(defaults.TRAIN)
    assert section("train")["batch"] == ["`4`", "1 to 256", "episodes a step [CANet]"]
    assert section("finetune")["momentum"][2] == section("train")["momentum"][2] != ""
    assert section("train")["features"][2].startswith('"cached": the frozen encoder runs once')  # lines above the key
    assert section("Study")["threads"][:2] == ["`1`", "whole number 1 to 256"]
    for kind in KINDS:
        for name, each in components(kind).items():
            assert set(each.literals["SETTINGS"]) <= set(section(name)), name
