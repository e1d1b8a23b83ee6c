"""A trained network, found where a study's workflow left it or in a folder that ``crnet export`` wrote."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crnet.config import resolve
from crnet.config.settings import brings_weights, components
from crnet.errors import CrnetError
from crnet.runtime.files import DamagedFile, read_mapping, sha256_file
from crnet.yours.model import Model

REPORT, EXPORTED = "evaluation.json", "model.json"
WEIGHTS, ENCODER = "weights.safetensors", "encoder.safetensors"


@dataclass(frozen=True)
class Files:
    """Where a run's parts lie, and what they have to be."""

    spec: dict[str, Any]
    encoder: Path | None
    weights: Path | None
    choice: dict[str, Any]
    encoder_digest: str
    weights_sha256: str
    report: dict[str, Any]  # evaluation.json or model.json


def load(
    run: str | os.PathLike,
    work: str | os.PathLike | None = None,
    encoder: str | os.PathLike | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> Model:
    """The trained network of a run.

    Args:
        run: ``out/<study>/evaluate/<name>``, or a folder that ``crnet export`` wrote.
        work: Where weights and encoder of a study's run lie; by default ``work`` beside ``out``.
        encoder: The encoder's weights, where the folder does not bring them; or ``package.module:factory``, where it
            names that one: no module of yours is imported because a file says so.
        device: "cpu" or "cuda".

    Raises:
        CrnetError: No such run, or its weights or encoder are not here or are not those that it was scored with.
    """
    found = find(Path(run), None if work is None else Path(work), None if encoder is None else Path(encoder))
    try:
        if ":" not in (method := found.spec["train"]["method"]) and method not in components("method"):
            raise KeyError(method)
        model = Model(found.spec, found.encoder, found.weights, found.choice, device, threads)
    except (KeyError, TypeError, ImportError) as error:  # a specification of another version, or made up
        made = found.report.get("crnet", "that made it")
        raise CrnetError(
            f"{run}: does not describe a network of this crnet ({error!r}); load it with the version {made}."
        ) from error
    if model.predictor.encoder.digest != found.encoder_digest:
        name = found.spec["train"]["encoder"]["name"]
        raise CrnetError(f"{found.encoder or name}: is not the encoder that {run} was scored with; bring that one.")
    return model


def find(run: Path, work: Path | None = None, encoder: Path | None = None) -> Files:
    """What ``load`` reads; raises CrnetError like it, but for the encoder's digest."""
    if (run / EXPORTED).is_file():
        found = _exported(run, encoder)
    elif (run / REPORT).is_file():
        found = _of_study(run, work, encoder)
    else:
        raise CrnetError(
            f"{run}: holds no {REPORT} and no {EXPORTED}; give out/<study>/evaluate/<run>, or an exported folder."
        )
    for kind, path in (("encoder", found.encoder), ("weights", found.weights)):
        if path is not None and not path.is_file():
            raise CrnetError(f"{path}: the {kind} of {run.name} is not here; bring it, or say where its folder is.")
    if found.weights is not None and sha256_file(found.weights) != found.weights_sha256:
        raise CrnetError(f"{found.weights}: are not the weights that {run} was scored with; bring those.")
    return found


def _of_study(run: Path, work: Path | None, encoder: Path | None) -> Files:
    report = read_mapping(run / REPORT)
    spec = report["spec"]
    work = run.resolve().parents[2].parent / "work" if work is None else work
    train = spec["train"]
    weights = work / "train" / resolve.training_name(train) / "model.safetensors" if "train" in train else None
    if encoder is None and not brings_weights(train["encoder"]["name"]):
        encoder = work / "encoders" / f"{resolve.encoder_name(train['encoder'])}.safetensors"
    return _files(run / REPORT, report, encoder, weights)


def _exported(run: Path, encoder: Path | None) -> Files:
    about = read_mapping(run / EXPORTED)
    try:
        train = about["spec"]["train"]
        name, method = str(train["encoder"]["name"]), str(train["method"])
    except (KeyError, TypeError) as error:
        raise DamagedFile(run / EXPORTED, f"describes no network ({error!r})") from error
    if ":" in method:
        what = "code on PYTHONPATH that a folder of somebody else must not run"
        raise CrnetError(f"{run}: asks for the method {method}, {what}; load it from the study that trained it.")
    if brings_weights(name):
        if str(encoder) != name:
            what = "code on PYTHONPATH that is run when it is loaded"
            raise CrnetError(f"{run}: asks for the encoder {name}, {what}; if you trust it, give {name!r} as encoder.")
        encoder = None
    elif encoder is None:
        encoder = run / ENCODER
        if not encoder.is_file():
            raise CrnetError(f"{run}: does not bring the encoder {name}; give its weights, a .safetensors, as encoder.")
    weights = run / WEIGHTS if "train" in train else None
    return _files(run / EXPORTED, about, encoder, weights)


def _files(file: Path, about: dict[str, Any], encoder: Path | None, weights: Path | None) -> Files:
    try:
        return Files(
            spec=about["spec"],
            encoder=encoder,
            weights=weights,
            choice=about.get("choice") or {},
            encoder_digest=about["encoder_digest"],
            weights_sha256=about["weights_sha256"],
            report=about,
        )
    except KeyError as error:
        raise DamagedFile(file, f"lacks {error.args[0]}") from error
