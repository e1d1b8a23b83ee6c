"""YAML read strictly: a key given twice is an error, not a silent overwrite."""

from pathlib import Path
from typing import Any

import yaml

from crnet.errors import CrnetError

LARGEST_NUMBER = 2**63 - 1
LARGEST = 100_000  # values in a file, aliases written out: a few lines of them can stand for millions


class _StrictLoader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        """The document, refused where its aliases make it endless or huge."""
        node = super().get_single_node()
        if node is not None:
            _size(node, {}, set())
        return node


def _size(node: yaml.Node, known: dict[yaml.Node, int], above: set[yaml.Node]) -> int:
    """How many values a node stands for."""
    line = node.start_mark.line + 1
    if node in above:
        raise CrnetError(f"line {line}: an alias stands inside what it names; write it out.")
    if node not in known:
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[node] = 1 + sum(_size(part, known, above | {node}) for part in parts)
        if known[node] > LARGEST:
            raise CrnetError(f"line {line}: stands for more than {LARGEST:,} values; write it shorter.")
    return known[node]


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict:
    result: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int):
            raise CrnetError(
                f"line {key_node.start_mark.line + 1}: a key must be a word or a whole number, not {key!r}."
            )
        if key in result:
            raise CrnetError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; keep one.")
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _number(loader: _StrictLoader, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    if abs(value) > LARGEST_NUMBER:  # beyond any setting; of thousands of digits, Python cannot even print them
        raise CrnetError(f"line {node.start_mark.line + 1}: a number is above {LARGEST_NUMBER}; no setting is.")
    return value


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _number)
_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises CrnetError where it is absent, broken, or not a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise CrnetError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: another encoding, a date or number that is none
        raise CrnetError(f"{path}: is not valid YAML ({' '.join(str(error).split())[:300]}).") from error
    except RecursionError as error:
        raise CrnetError(f"{path}: is nested too deeply; no setting is.") from error
    except CrnetError as error:
        raise CrnetError(f"{path}: {error}") from error
    if isinstance(content, dict) and "__use_yte__" in content:
        raise CrnetError(f"{path}: __use_yte__ makes Snakemake run the file as code; take it out, a study is data.")
    if not isinstance(content, dict):
        raise CrnetError(f"{path}: holds {type(content).__name__} where settings by name are expected.")
    return content
