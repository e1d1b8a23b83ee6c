"""Settings as literals: read from a component's source without importing it, and checked in one sentence."""

import ast
import difflib
import importlib
import importlib.util
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from crnet.data.splits import Splits
from crnet.errors import CrnetError

PACKAGE = Path(__file__).resolve().parents[1]
LITERALS = {"SETTINGS", "LIMITS", "LAYERS", "DEFAULT_LAYERS", "ALIGNMENT", "CORNERS", "ARCHIVES", "OWN",
             "TRAINS", "FINETUNES", "TRAIN", "FUSION", "K_SHOT", "SWAPS"}  # fmt: skip
# A component from outside the package: what stands behind the colon is the function that makes it.
FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
# An encoder that the library timm builds: ``timm:MODEL`` or ``timm:MODEL.WEIGHTS``, as timm calls them.
TIMM = re.compile(r"timm:(\w+(?:\.\w+)?)", re.ASCII)
KINDS = {"method": "methods", "encoder": "encoders", "dataset": "data/sets"}  # kind -> folder


@dataclass(frozen=True)
class Component:
    """A method, encoder or data set: one file whose literals say what may be set.

    Attributes:
        name: File name with ``-`` for ``_``; how studies and tables call it. Or ``package.module:function``.
        literals: Those of the names in ``LITERALS`` that the file assigns.
    """

    kind: str
    name: str
    path: Path
    literals: Mapping[str, Any]

    @property
    def module(self) -> str:
        if ":" in self.name and not is_timm(self.name):
            return self.name.split(":")[0]
        return f"crnet.{KINDS[self.kind].replace('/', '.')}.{self.path.stem}"

    def splits(self, given: Mapping[str, Any]) -> Splits:
        """Of a data set with the settings ``given`` (its "name" may be among them): classes and their roles by fold.

        Imports the data set's file, which imports no torch.
        """
        settings = {key: value for key, value in given.items() if key != "name"}
        return importlib.import_module(self.module).splits(self.settings(settings, self.name))

    def class_names(self, given: Mapping[str, Any]) -> dict[int, list[str]]:
        """Of a data set with the settings ``given``: names of each fold's test classes."""
        return self.splits(given).test_names()

    def with_content(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Of a data set that is your own: with the digest of its files as they are now, unless it is given."""
        if settings.get("content") != "":
            return settings
        return {**settings, "content": importlib.import_module(self.module).content(settings)}

    def settings(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Defaults completed by ``given``; raises CrnetError on an unknown key or a value that does not fit."""
        return check(given, self.literals["SETTINGS"], self.literals.get("LIMITS", {}), where)


def is_timm(name: Any) -> bool:
    """Whether an encoder is one of the library timm's models."""
    return isinstance(name, str) and TIMM.fullmatch(name) is not None


def brings_weights(encoder: str) -> bool:
    """Whether an encoder is ``package.module:factory``, which makes its weights itself; of others we have a file."""
    return ":" in encoder and not is_timm(encoder)


def read_literals(path: Path) -> dict[str, Any]:
    """What a module assigns to the names in ``LITERALS``, without running any of its code."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) if name in LITERALS:
                try:
                    found[name] = ast.literal_eval(node.value)
                except ValueError as error:
                    raise CrnetError(f"{path}: {name} must be a plain literal, it is read without import.") from error
    return found


def sees_all_supports(method: str) -> bool:
    """Whether one prediction of the method sees all supports; otherwise each support has one, and they are averaged.

    Raises:
        CrnetError: its ``FUSION`` is neither.
    """
    fusion = component("method", method, "method").literals.get("FUSION", "average")
    if fusion not in ("average", "own"):
        raise CrnetError(f"method {method}: FUSION is {fusion!r}; it is 'average' or 'own'.")
    return fusion == "own"


def k_shot(method: str) -> str:
    """What the method makes of several supports, in a few words."""
    return component("method", method, "method").literals.get("K_SHOT", "mean of probabilities")


@cache
def components(kind: str) -> dict[str, Component]:
    """All components of a kind by name: the files of its folder that declare ``SETTINGS``."""
    found = {}
    for path in sorted((PACKAGE / KINDS[kind]).glob("*.py")):
        literals = read_literals(path)
        if "SETTINGS" in literals:
            name = path.stem.replace("_", "-")
            found[name] = Component(kind, name, path, literals)
    return found


def component(kind: str, name: str, where: str) -> Component:
    """The component called ``name``; raises CrnetError that lists the known ones, or says what an outside one lacks."""
    if kind != "encoder" and isinstance(name, str) and FACTORY.fullmatch(name):
        return _from_outside(kind, name, where)
    known = components(kind)
    if kind == "encoder" and is_timm(name):
        return replace(known["timm"], name=name)
    if not isinstance(name, str) or name not in known:
        raise CrnetError(f"{where}: unknown {kind} {name!r}{_nearest(name, known)}; known: {', '.join(known)}.")
    return known[name]


def _from_outside(kind: str, name: str, where: str) -> Component:
    """A method's or data set's file that is no part of the package, found as Python finds its module."""
    path = module_file(name)
    if path is None:
        raise CrnetError(f"{where}: no module of {kind} {name!r} is found; put its folder on PYTHONPATH.")
    try:
        literals = read_literals(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise CrnetError(
            f"{where}: {path}, the file of {kind} {name!r}, cannot be read as Python ({error})."
        ) from error
    if "SETTINGS" not in literals:
        raise CrnetError(f"{where}: {path}, the file of {kind} {name!r}, declares no SETTINGS; see README.md.")
    return Component(kind, name, path, literals)


def module_file(name: str) -> Path | None:
    """Where the module of ``package.module:function`` lies; not imported, as its package would be with it."""
    top, *rest = name.split(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # as __main__, which has no file
        return None
    if spec is None or spec.origin is None:
        return None
    places = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")] if rest else []
    return next(filter(Path.is_file, files if rest else [Path(spec.origin)]), None)


def check(given: Mapping[str, Any], defaults: Mapping[str, Any], limits: Mapping[str, Any], where: str) -> dict:
    """Complete ``given`` by ``defaults`` after checking names, types and limits.

    Args:
        limits: For a name, an inclusive range ``(low, high)`` or a set of choices. For lists it holds for each item.
        where: Prefix of error messages: file and key path.

    Raises:
        CrnetError: An unknown name, a type other than the default's, or a value outside its limits.
    """
    result = dict(defaults)
    for name, value in given.items():
        place = f"{where}.{name}"
        if name not in defaults:
            raise CrnetError(f"{place}: unknown setting{_nearest(name, defaults)}; known: {', '.join(defaults)}.")
        result[name] = _fit(value, defaults[name], place)
        if name in limits:
            for item in result[name] if isinstance(result[name], list) else [result[name]]:
                _inside(item, limits[name], place)
    return result


def is_text(value: str) -> bool:
    """Whether files, terminals and plots can show it: no control character but tab and line end, no half character."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in value)


def _fit(value: Any, default: Any, place: str) -> Any:
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(value, bool) and isinstance(default, bool)
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and abs(value) <= sys.float_info.max
        value = float(value) if fits else value
    elif isinstance(default, list | tuple):
        fits = isinstance(value, list | tuple) and (len(value) > 0 or not default)
        if fits and default:
            value = [_fit(item, default[0], f"{place}[{i}]") for i, item in enumerate(value)]
    else:
        fits = isinstance(value, type(default))
        if isinstance(value, str) and fits and not is_text(value):
            raise CrnetError(f"{place}: {value!r} holds a character that no text or file name does; take it out.")
    if not fits:
        wanted = "list (not empty)" if isinstance(default, list | tuple) else type(default).__name__
        raise CrnetError(f"{place}: {value!r} is not a {wanted} like the default {default!r}.")
    return value


def _inside(value: Any, limit: Any, place: str) -> None:
    if isinstance(limit, set | frozenset):
        if value not in limit:
            raise CrnetError(f"{place}: {value!r} is not one of {', '.join(map(repr, sorted(limit)))}.")
    elif not limit[0] <= value <= limit[1]:
        raise CrnetError(f"{place}: {value!r} is outside {limit[0]} to {limit[1]}.")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
