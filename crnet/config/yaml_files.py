"""YAML read strictly: a key given twice is an error, not a silent overwrite."""

from pathlib import Path
from typing import Any

import yaml

from crnet.errors import CrnetError


class _StrictLoader(yaml.SafeLoader):
    pass


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


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises CrnetError where it is absent, broken, or not a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise CrnetError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CrnetError(f"{path}: is not valid YAML ({' '.join(str(error).split())}).") from error
    except CrnetError as error:
        raise CrnetError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CrnetError(f"{path}: holds {type(content).__name__} where settings by name are expected.")
    return content
