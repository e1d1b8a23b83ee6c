"""The source that a run was made by, as a digest: whoever edits a method and raises no ``rev`` gets old numbers.

Nothing is run again for it; the plan, the page and the audit say where it differs from the source that is here now.
"""

import ast
import hashlib
import importlib.metadata
import io
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from crnet.config.settings import PACKAGE, component, components, is_timm, module_file

KINDS = ("method", "encoder")
FOLLOWED = ("model", "methods", "encoders")  # rooms whose files count with the method or encoder that imports them

Used = Mapping[str, Any]  # of a run: "method" and "encoder", by name, and what was recorded with it


def recorded(training: Mapping[str, Any]) -> dict[str, str]:
    """What a run stores beside its result: ``method_source`` and ``encoder_source``, 64 hex digits, "" if not found.

    Of an encoder of timm also the library's version, ``timm_version``.

    Args:
        training: The specification of the training, or of what stands for it with a control.
    """
    used = {"method": training["method"], "encoder": training["encoder"]["name"]}
    library = {"timm_version": importlib.metadata.version("timm")} if is_timm(used["encoder"]) else {}
    return {f"{kind}_source": digest(kind, used[kind]) for kind in KINDS} | library


def used(report: Mapping[str, Any]) -> Used:
    """What ``changed`` asks, of a run's report as JSON."""
    spec = report["spec"]
    training = spec if "encoder" in spec else spec["train"]
    return {**report, "method": training["method"], "encoder": training["encoder"]["name"]}


def present(runs: Iterable[Used]) -> dict[str, dict[str, str]]:
    """The digests now of all that these runs use: kind -> name -> digest, "" of what is not found."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for run in runs:
        for kind in KINDS:
            found[kind].setdefault(run[kind], digest(kind, run[kind]))
    return found


def changed(runs: Iterable[Used], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence for each method and encoder of which the source is another now than when runs recorded it.

    Args:
        runs: Those that recorded nothing are passed over.
        now: As ``present`` gives it.
    """
    others: Counter[tuple[str, str]] = Counter()
    for run in runs:
        for kind in KINDS:
            then, here = run.get(f"{kind}_source"), now.get(kind, {}).get(run[kind])
            if then and here and then != here:
                others[kind, run[kind]] += 1
    return [
        f"the source of {kind} {name} is not the one that {count} run{'s were' if count > 1 else ' was'} made by: "
        "raise its rev if it behaves otherwise, and they run again"
        for (kind, name), count in sorted(others.items())
    ]


@cache
def digest(kind: str, name: str) -> str:
    """SHA-256 over the source of a method or encoder and of what it imports from the same rooms; "" if not found.

    Comments, docstrings, blank lines and blanks at line ends do not count. Nothing is imported.
    """
    if ":" in name and not is_timm(name):
        path = module_file(name)
    else:
        path = component(kind, name, kind).path if is_timm(name) or name in components(kind) else None
    if path is None:
        return ""
    sha = hashlib.sha256()
    try:
        for file in sorted(_with_imports(path), key=lambda file: file.name):
            sha.update(f"{file.name}\n{code(file.read_text(encoding='utf-8'))}\n".encode())
    except (OSError, SyntaxError, ValueError, tokenize.TokenError):  # as a compiled module of a factory
        return ""
    return sha.hexdigest()


def code(source: str) -> str:
    """Python source without what does not act: comments, docstrings, blank lines, blanks at line ends."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _with_imports(path: Path) -> set[Path]:
    found, waiting = {path}, [path]
    while waiting:
        new = set(_imported(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def _imported(path: Path) -> Iterator[Path]:
    """The files of ``FOLLOWED`` that a file imports, not the rooms' ``__init__``, which every one has in common."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            file = PACKAGE.joinpath(*rest).with_suffix(".py") if package == "crnet" and len(rest) > 1 else None
            if file is not None and rest[0] in FOLLOWED and file.is_file():
                yield file
