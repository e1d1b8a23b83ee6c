"""``crnet export``: a trained network as one folder that needs nothing of the study; ``crnet.load`` takes it."""

import shutil
from pathlib import Path
from typing import Any

from crnet import __version__
from crnet.config.encoders import learns
from crnet.config.resolve import Spec
from crnet.config.settings import brings_weights, is_timm
from crnet.errors import CrnetError
from crnet.metrics.intervals import METHOD, interval, read_fold, unknown
from crnet.report.tables.cells import METRIC_MEANINGS, METRIC_NAMES, VOIDS
from crnet.runtime.files import atomic_write, sha256_file, write_json
from crnet.yours.hand_out import fresh_folder
from crnet.yours.load import ENCODER, EXPORTED, WEIGHTS, Files, find

FORMAT = 1
CARD, LICENCE, PROGRAM = "README.md", "LICENCE.txt", "predictor.pt2"
OWN = (WEIGHTS, ENCODER, EXPORTED, CARD, LICENCE, PROGRAM)
# Whose weights the built-in encoders have, and whether a folder brings them without being asked to.
LICENCES = {
    "small": (True, "trained by crnet on pictures that it generated; MIT, as crnet"),
    "resnet50": (False, "torchvision's, BSD 3-Clause, trained on ImageNet, whose photos are for research only"),
    "resnet101": (False, "torchvision's, BSD 3-Clause, trained on ImageNet, whose photos are for research only"),
    "vgg16": (False, "torchvision's, BSD 3-Clause, trained on ImageNet, whose photos are for research only"),
    "resnet50v2": (False, "the ONNX model zoo's, Apache 2.0, trained on ImageNet, whose photos are for research only"),
}


def export(
    run: Path,
    out: Path,
    work: Path | None = None,
    with_encoder: bool = False,
    program: bool = False,
    force: bool = False,
) -> str:
    """Write weights, specification, licence note and model card of a run into the folder ``out``.

    Args:
        run: ``out/<study>/evaluate/<name>``.
        work: Where weights and encoder lie; by default ``work`` beside ``results``.
        with_encoder: Bring the encoder's weights too where they are not crnet's own: you answer for their licence.
        program: Also write ``predictor.pt2``, see ``crnet.yours.program``.

    Raises:
        CrnetError: The run's parts are not here or not its own, or ``out`` has content and ``force`` is not given.
    """
    found = find(run, work)
    if (run / EXPORTED).is_file():
        raise CrnetError(f"{run}: is an exported folder already; copy it, or give a run of a study.")
    encoder = found.spec["train"]["encoder"]["name"]
    free, licence = _licence_of(encoder)
    if learns(found.spec["train"]["encoder"]) and not (free or with_encoder):
        raise CrnetError(
            f"{run}: its weights hold those of the encoder {encoder} as training changed them ({licence}); give "
            "--with-encoder if you answer for that licence."
        )
    brings = found.encoder is not None and (free or with_encoder)
    fresh_folder(out, force, set(OWN))
    if program:
        from crnet.yours.program import write_program

        write_program(found, out / PROGRAM)
    if found.weights is not None:
        shutil.copyfile(found.weights, out / WEIGHTS)
    if brings:
        shutil.copyfile(found.encoder, out / ENCODER)
    scores = _scores(found, run)
    atomic_write(out / LICENCE, _licence(encoder, licence, brings))
    atomic_write(out / CARD, card(found, scores, licence, brings, program))
    about = {
        "format": FORMAT,
        "crnet": __version__,
        "run": run.resolve().name,
        "spec": found.spec,
        "choice": found.choice,
        "encoder": encoder,
        "encoder_digest": found.encoder_digest,
        "encoder_sha256": sha256_file(found.encoder) if found.encoder else "",
        "weights_sha256": found.weights_sha256,
        "dataset_digest": found.report["dataset_digest"],
        "scores": scores,
    }
    write_json(out / EXPORTED, about)  # last: where it is, all of it is there
    return f"{out}: {about['run']}, {'with' if brings else 'without'} the encoder {encoder} ({licence})"


def _licence_of(encoder: str) -> tuple[bool, str]:
    """As in ``LICENCES``."""
    if not is_timm(encoder):
        return LICENCES.get(encoder, (False, "unknown to crnet: it is a module of yours"))
    from crnet.encoders import timm

    said = timm.licence(encoder)
    return False, f"timm says of its weights: {said}" if said else "timm says nothing of its weights' licence"


def _scores(found: Files, run: Path) -> dict[str, Any]:
    """Of the run's fold and seed, in percent, by metric and void convention; without those that are not known."""
    train = found.spec["train"]
    if sha256_file(run / "counts.csv") != found.report["counts_sha256"]:
        raise CrnetError(f"{run / 'counts.csv'}: was changed since the run was scored; put it back.")
    part = read_fold(train["fold"], {train["seed"]: run / "counts.csv"})
    return {
        metric: {void: [round(100 * x, 2) for x in interval([part], metric, void)] for void in VOIDS}
        for metric in METRIC_NAMES
        if not unknown([part], metric)
    }


def card(found: Files, scores: dict[str, Any], licence: str, brings: bool, program: bool) -> str:
    """The model card, in Markdown."""
    spec, report = found.spec, found.report
    train, evaluate = spec["train"], spec["evaluate"]
    lines = [
        f"| {METRIC_NAMES[metric]} | {void} | {value:.1f} | [{low:.1f}, {high:.1f}] |"
        for metric, by_void in scores.items()
        for void, (value, low, high) in by_void.items()
    ]
    encoder = train["encoder"]["name"]
    where, given = _encoder_of(encoder, brings)
    data = report.get("subset") or "all of it"
    facts = {
        "Method": f"{train['method']}, {_settings(train['model'])}",
        "Encoder": f"{encoder}, {_settings({k: v for k, v in train['encoder'].items() if k != 'name'})}; {where}",
        "Data": f"{train['dataset']['name']} ({data}), digest {report['dataset_digest'][:16]}",
        "Training": f"fold {train['fold']}, seed {train['seed']}, {_settings(train.get('train', {})) or 'none'}",
        "Evaluation": f"{_settings(evaluate)}; test episodes {report['episodes_digest'][:16]}",
        "Made by": f"crnet {__version__}, commit {str(report.get('commit', 'unknown'))[:12]}",
    }
    program_text = (
        [
            "",
            f"`{PROGRAM}` is the same network for one support as a `torch.export` program; see docs/using.md of crnet.",
        ]
        if program
        else []
    )
    return "\n".join([
        f"# {report['run']}",
        "",
        "Few-shot segmentation: given photos with a mask of something, one or several, it marks the like in another.",
        "",
        "```python",
        "import crnet",
        "",
        f'model = crnet.load("this/folder"{given})',
        'masks = model.segment([("support.jpg", "support-mask.png")], ["query.jpg"])',
        "```",
        *program_text,
        "",
        "## What it scored",
        "",
        f"On classes that fold {train['fold']} tests and its training never labelled, {evaluate['shots']}-shot, in "
        f"percent; [low, high] is {METHOD}. One training seed: the interval covers the choice of photos only.",
        "",
        "| Metric | Void pixels | Value | Interval |",
        "|:---|:---|---:|:---|",
        *lines,
        "",
        " ".join(METRIC_MEANINGS[metric] for metric in scores if metric in METRIC_MEANINGS),
        "",
        "## What it is",
        "",
        *(f"- {name}: {text}" for name, text in facts.items()),
        "",
        "## Licence",
        "",
        f"Head: MIT, as crnet. Encoder: {licence}. See `{LICENCE}`; the photos that it was trained on have terms of "
        "their own.",
        "",
    ])  # fmt: skip


def _encoder_of(name: str, brings: bool) -> tuple[str, str]:
    """Where an encoder's weights are, and what ``crnet.load`` is to be told of them."""
    if brings:
        return f"`{ENCODER}`", ""
    if brings_weights(name):
        return "a module that brings its own weights, not in this folder", f', encoder="{name}"'
    return "its weights are not in this folder", ', encoder="the/encoder.safetensors"'


def _settings(values: Spec) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != "rev")


def _licence(encoder: str, licence: str, brings: bool) -> str:
    own = Path(__file__).resolve().parents[2] / "LICENSE"
    text = own.read_text(encoding="utf-8") if own.is_file() else "MIT licence.\n"
    kept = "are in this folder" if brings else "are not in this folder"
    return f"{WEIGHTS}: the licence of crnet, below.\nThe weights of the encoder {encoder} {kept}: {licence}.\n\n{text}"
