"""What a study may name, with a line on each: for ``crnet list``."""

import ast
from collections.abc import Iterable
from pathlib import Path

from crnet.config import study
from crnet.config.settings import components
from crnet.config.yaml_files import load_yaml


def known(kind: str) -> list[tuple[str, str]]:
    """(name, what it is) of all ``studies``, ``tables``, ``methods``, ``encoders`` or ``datasets`` of the checkout."""
    if kind in ("studies", "tables"):
        study.require_checkout(study.ROOT)
        files = sorted((study.ROOT / "configs" / kind).glob("*.yaml"))
        return [(file.stem, load_yaml(file)["title"]) for file in files]
    return [(name, _first_sentence(each.path)) for name, each in components(kind.removesuffix("s")).items()]


def _first_sentence(path: Path) -> str:
    lines: Iterable[str] = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    return next(iter(lines), "").rstrip(".")
