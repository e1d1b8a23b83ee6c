"""``crnet reference``: every key of studies and tables, written from the code that checks them and its comments.

Nothing is said twice: types, defaults and limits are the schema's and the settings' own, meanings are the comments and
docstrings beside them.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from crnet.config import defaults, encoders, schema
from crnet.config.settings import KINDS, PACKAGE, components, k_shot
from crnet.runtime.files import canonical

STUDY = (
    *(
        schema.Study,
        schema.Benchmark,
        schema.Sheet,
        schema.Probe,
        schema.ArchiveSettings,
        schema.LimitSettings,
        schema.Folders,
    ),
    *(schema.Table, schema.Row, schema.Switches),
)
SECTIONS = ("TRAIN", "EVALUATE", "FINETUNE", "EPISODES")
REV = "raised when the code behaves otherwise, so that finished runs are made again"
HEAD = """# Every key

Written by `make reference` from the code that checks studies and tables; a key that is not here is refused. What a
study leaves out has the default. Tables and rows differ from it by `set`. Sources: [P] the paper, [CANet] the public
code of the same group, [ours] where neither says."""
Rows = list[Sequence[str]]


def reference() -> str:
    """The page, as Markdown."""
    parts = [HEAD, "## Studies and tables"]
    for model in STUDY:
        parts += [f"### {model.__name__}", _first_paragraph(model.__doc__ or ""), _grid(_fields(model))]
    parts.append("## Settings of training, evaluation, finetuning and episodes")
    file = Path(defaults.__file__)
    for name in SECTIONS:
        limits = getattr(defaults, f"{name}_LIMITS")
        parts += [f"### {name.lower()}", _grid(_settings(file, name, getattr(defaults, name), limits))]
    for kind, folder in KINDS.items():
        parts.append(f"## Settings of each {'data set' if kind == 'dataset' else kind}: `crnet/{folder}`")
        if kind == "encoder":
            rows = _settings(Path(encoders.__file__), "LEARNING", encoders.LEARNING, encoders.LEARNING_LIMITS)
            parts += ["### each encoder", _grid(rows)]
        for name, each in components(kind).items():
            literals = each.literals
            rows = _settings(each.path, "SETTINGS", literals["SETTINGS"], literals.get("LIMITS", {}))
            if "LAYERS" in literals:
                layers = " ".join(f"`{layer}`" for layer in literals["LAYERS"])
                default = canonical(literals["DEFAULT_LAYERS"])
                rows.append(("layers", f"`{default}`", f"list of {layers}", "whose maps are joined"))
            parts += [f"### {name}", *_of_method(name, literals if kind == "method" else None), _grid(rows)]
    return "\n\n".join(parts) + "\n"


def _of_method(name: str, literals: Mapping[str, Any] | None) -> list[str]:
    """What a method makes of several supports, and how it is trained where a study says nothing."""
    if literals is None:
        return []
    own = ", ".join(f"`{key}: {canonical(value)}`" for key, value in literals.get("TRAIN", {}).items())
    return [f"Several supports: {k_shot(name)}.{f' Training, where the study is silent: {own}.' if own else ''}"]


def _grid(rows: Rows) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        [
            "| key | default | may be | meaning |",
            "|---|---|---|---|",
            *(f"| `{k}` | {' | '.join(r)} |" for k, *r in cells),
        ]
    )


def _settings(file: Path, name: str, values: Mapping[str, Any], limits: Mapping[str, Any]) -> Rows:
    # What evaluation and finetuning share with training is explained there.
    said = _comments_of_keys(Path(defaults.__file__), "TRAIN") | _comments_of_keys(file, name)
    return [
        (key, f"`{canonical(value)}`", _allowed(value, limits.get(key)), REV if key == "rev" else said.get(key, ""))
        for key, value in values.items()
    ]


def _allowed(default: Any, limit: Any) -> str:
    item = default[0] if isinstance(default, list | tuple) and default else default
    if isinstance(limit, set | frozenset):
        words = " ".join(f"`{canonical(value)}`" for value in sorted(limit))
    elif limit is not None:
        words = f"{limit[0]:,} to {limit[1]:,}"
    else:
        words = {bool: "`true` `false`", int: "whole number", float: "number", str: "text"}.get(type(item), "")
    return f"list of {words}" if isinstance(default, list | tuple) else words


def _comments(source: str) -> dict[int, tuple[bool, str]]:
    """Line -> whether the comment stands alone, and its text."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = (token.line.lstrip().startswith("#"), token.string.lstrip("# ").strip())
    return found


def _said(comments: Mapping[int, tuple[bool, str]], first: int, last: int) -> str:
    """The comments above a line that stand alone, and those behind it up to the ``last``."""
    start = first
    while comments.get(start - 1, (False, ""))[0]:
        start -= 1
    return " ".join(comments[line][1] for line in range(start, last + 1) if line in comments)


def _comments_of_keys(file: Path, name: str) -> dict[str, str]:
    source = file.read_text(encoding="utf-8")
    comments = _comments(source)
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and node.targets[0].id == name:
            pairs = zip(node.value.keys, node.value.values, strict=True)
            said = {key.value: _said(comments, key.lineno, value.end_lineno) for key, value in pairs}
            return {key: text.replace("``", "`") for key, text in said.items() if text}
    return {}


def _fields(model: type[BaseModel]) -> Rows:
    """The keys of a model, as its JSON schema, its docstring and its comments have them."""
    described = model.model_json_schema()
    attributes = _attributes(model.__doc__ or "")
    source = (PACKAGE / "config/schema.py").read_text(encoding="utf-8")
    comments = _comments(source)
    body = next(n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == model.__name__)
    behind = {n.target.id: _said(comments, n.lineno, n.end_lineno) for n in body if isinstance(n, ast.AnnAssign)}
    rows = []
    for key, about in described["properties"].items():
        default = "required" if key in described.get("required", ()) else f"`{canonical(about.get('default'))}`"
        meaning = "; ".join(filter(None, [attributes.get(key, ""), behind.get(key, "")]))
        rows.append((key, default, _type(about), meaning))
    return rows


def _type(about: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in about:
        return " or ".join(_type(each) for each in about["anyOf"])
    if "$ref" in about:
        return f"see {about['$ref'].rpartition('/')[2]}"
    if "enum" in about or "const" in about:
        return " ".join(f"`{value}`" for value in about.get("enum", [about.get("const")]))
    low, high = about.get("minimum"), about.get("maximum")
    between = "" if low is None else f" from {low:,}" if high is None else f" {low:,} to {high:,}"
    match about.get("type"):
        case "integer":
            return f"whole number{between}"
        case "number":
            return f"number{between}"
        case "string":
            return f"text `{about['pattern']}`" if "pattern" in about else "text"
        case "boolean":
            return "`true` `false`"
        case "array":
            return f"list of {_type(about['items'])}"
        case "null":
            return "`null`"
    names = about.get("patternProperties") or {"": about.get("additionalProperties", True)}
    inner = next(iter(names.values()))
    return f"by name: {_type(inner)}" if isinstance(inner, Mapping) else "settings by name"


def _attributes(doc: str) -> dict[str, str]:
    """Meanings in the ``Attributes`` of a docstring; one line may speak of several names."""
    found: dict[str, str] = {}
    names: Iterable[str] = ()
    for line in _lines_of_attributes(doc):
        if match := re.match(r"([a-z_]+(?:, [a-z_]+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        else:
            found |= {name: f"{found[name]} {line}" for name in names}
    return {name: text.replace("``", "`") for name, text in found.items()}


def _lines_of_attributes(doc: str) -> Iterator[str]:
    _, _, part = doc.partition("Attributes:\n")
    yield from filter(None, map(str.strip, part.splitlines()))


def _first_paragraph(doc: str) -> str:
    return " ".join(doc.partition("\n\n")[0].split()).replace("``", "`")
