"""A study's encoders: their settings, how their cells lie, and whether their code is here."""

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from crnet.config.names import Spec
from crnet.config.settings import FACTORY, Component, brings_weights, check, component, components, is_timm
from crnet.data.grid import CORNERS, TILES
from crnet.errors import CrnetError

# Of every encoder.
LEARNING = {
    # it learns with the method, at this factor of the method's rate, batch norms in evaluation mode; 0: it is frozen
    # [P 4.2]; rows that have such an encoder say `train: {features: live}`
    "lr_factor": 0.0,
}
LEARNING_LIMITS = {"lr_factor": (0.0, 100.0)}
# Of an encoder from outside the package.
FACTORY_SETTINGS = {"rev": 1, "alignment": CORNERS}
FACTORY_LIMITS = {"alignment": {CORNERS, TILES}}


def absent(name: str) -> str | None:
    """A sentence if the module of an encoder ``package.module:factory``, or timm, is not here; it is not imported.

    Whoever trains or predicts asks; tables and their audit are made from counts and need no encoder.
    """
    if is_timm(name) and importlib.util.find_spec("timm") is None:
        return f"encoder {name!r} needs the library timm; `pip install 'crnet[timm]'` brings it."
    if not brings_weights(name):
        return None
    module = name.split(":")[0]
    own = module.replace("_", "-")
    hint = f", or name crnet's own encoder {own!r} in a second file" if own in components("encoder") else ""
    try:
        found = importlib.util.find_spec(module.split(".")[0])
    except (ImportError, ValueError):  # as __main__, which has no file
        found = None
    return None if found else f"no module of encoder {name!r} is found; put its folder on PYTHONPATH{hint}."


def alignment_of(encoder: Spec) -> str:
    """Where an encoder's cells lie in its input, "corners" or "tiles": see ``crnet/data/grid.py``."""
    if ":" in encoder["name"]:
        return encoder.get("alignment", CORNERS)
    return component("encoder", encoder["name"], "encoders").literals["ALIGNMENT"]


def of_role(encoders: Mapping[str, Any], role: str, where: str) -> Spec:
    """The encoder that stands for a role in a study; raises CrnetError, beginning with ``where``, if there is none."""
    if role not in encoders:
        raise CrnetError(f"{where}.encoder: unknown encoder role {role!r}; the study defines: {', '.join(encoders)}.")
    if encoders[role] is None:
        raise CrnetError(f"encoders.{role}: is null, but controls and other rows need it; name an encoder.")
    return encoder_spec(encoders[role], f"encoders.{role}")


def learns(encoder: Spec) -> bool:
    """Whether an encoder is trained with the method."""
    return "lr_factor" in encoder


def before_training(encoder: Spec) -> Spec:
    """The encoder whose weights a training begins with."""
    return {key: value for key, value in encoder.items() if key != "lr_factor"}


def check_features(training: Spec, where: str) -> None:
    """Raise CrnetError if features would be cached of an encoder that learns."""
    if learns(training["encoder"]) and training["train"]["features"] == "cached":
        raise CrnetError(
            f"{where}.train.features: are cached, but the encoder has an lr_factor and changes at each step; set "
            "features: live for this row, or take lr_factor out of the study's encoders."
        )


def encoder_spec(given: Mapping[str, Any], place: str) -> Spec:
    """An encoder's settings, whole; raises CrnetError on what does not fit. ``place`` begins the sentence.

    ``lr_factor`` is among them only where it learns, so that a frozen one is called as before there was such a setting.
    """
    own = {key: value for key, value in given.items() if key in LEARNING}
    factor = check(own, LEARNING, LEARNING_LIMITS, place)["lr_factor"]
    frozen = _frozen(before_training(dict(given)), place)
    return {**frozen, "lr_factor": factor} if factor else frozen


def _frozen(settings: dict[str, Any], place: str) -> Spec:
    known = components("encoder")
    names = ", ".join(f"{name}:MODEL" if name == "timm" else name for name in known)
    name, choices = settings.pop("name", None), f"{names}, or package.module:factory"
    if name is None:
        raise CrnetError(f"{place}.name: is missing; known: {choices}.")
    if is_timm(name):
        return {"name": name, **_timm(component("encoder", name, place), settings, place)}
    if isinstance(name, str) and FACTORY.fullmatch(name):
        return {"name": name, **check(settings, FACTORY_SETTINGS, FACTORY_LIMITS, place)}
    if not isinstance(name, str) or name not in known or name == "timm":
        raise CrnetError(f"{place}.name: unknown encoder {name!r}; known: {choices}.")
    layers = settings.pop("layers", known[name].literals["DEFAULT_LAYERS"])
    available = known[name].literals["LAYERS"]
    if not isinstance(layers, list | tuple) or not layers or not all(layer in available for layer in layers):
        raise CrnetError(
            f"{place}.layers: {layers!r} is not a list of layers of {name}; known: {', '.join(available)}."
        )
    return {"name": name, "layers": list(layers), **known[name].settings(settings, place)}


def _timm(about: Component, given: Mapping[str, Any], place: str) -> Spec:
    """The settings of a model of timm; whether timm has the model is found when it is built."""
    model = about.name.partition(":")[2]
    usual = {"alignment": "corners"} if re.match(about.literals["CORNERS"], model) else {}
    settings = about.settings({**usual, **given}, place)
    layers, weights, digest = settings["layers"], settings["weights"], settings["sha256"]
    if len(set(layers)) < len(layers):
        raise CrnetError(f"{place}.layers: {layers} names a map twice; keep one.")
    from_file = weights not in ("pretrained", "random")
    if from_file and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CrnetError(
            f"{place}.sha256: {digest!r} is not the SHA-256 of {weights}, 64 lowercase hex digits; a file of weights "
            "is used only with its checksum (`sha256sum FILE`)."
        )
    if not from_file and digest:
        raise CrnetError(f"{place}.sha256: goes with a file or URL as weights, not with {weights!r}; leave it out.")
    return settings
