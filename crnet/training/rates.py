"""One training, or one for each learning rate of a list, of which the one stays that knows its base classes best.

How it is chosen: ``crnet.config.rates``. All rates start from the same weights and take the same episodes.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from crnet.config.rates import best, rates_of, with_rate
from crnet.errors import CrnetError
from crnet.runtime.checkpoint import load_state, remove_state
from crnet.runtime.files import atomic_write, canonical, read_csv, read_json, sha256_file, write_json
from crnet.training import loop
from crnet.training.loop import FAILED, Paths


def train(spec: dict, paths: Paths, *where: Any, **options: Any) -> None:
    """As ``crnet.training.loop.train``; of a list as ``train.lr``, ``train.json`` has ``choice`` and ``trials``.

    A rate that is finished stays in a folder beside ``paths.state`` until all are: a killed job goes on behind it.

    Raises:
        CrnetError, Preempted: As there. A rate that diverges is a trial that lost; it is an error when all do.
    """
    if not isinstance(spec["train"]["lr"], list):
        loop.train(spec, paths, *where, **options)
        return
    kept = paths.state.with_suffix(".rates")
    folders = {rate: kept / f"{rate:g}" for rate in rates_of(spec)}
    for rate, folder in folders.items():
        if not any((folder / name).is_file() for name in ("train.json", FAILED)):
            _train(with_rate(spec, rate), replace(paths, out=folder), *where, **options)
    try:
        _choose(spec, paths, kept, folders)
    except FileNotFoundError:
        if not _is_finished(spec, paths.out):
            raise
        print("another copy of this job has chosen and taken the trials away", flush=True)


def _choose(spec: dict, paths: Paths, kept: Path, folders: dict[float, Path]) -> None:
    trials = [{"lr": rate, **_result(folder)} for rate, folder in folders.items()]
    try:
        choice = best(trials)
    except CrnetError as error:
        write_json(paths.out / FAILED, {"run": paths.out.name, "spec": spec, "failed": str(error)})
        _forget(paths, kept)  # or a second start would believe them, whatever has been mended
        raise CrnetError(f"{paths.out.name}: {error}") from error
    _keep(spec, folders[choice["lr"]], paths.out, choice, trials)
    _forget(paths, kept)


def _is_finished(spec: dict, out: Path) -> bool:
    file = out / "train.json"
    return file.is_file() and canonical(read_json(file)["spec"]) == canonical(spec)


def _forget(paths: Paths, kept: Path) -> None:
    remove_state(paths.state)
    shutil.rmtree(kept)


def _train(spec: dict, paths: Paths, *where: Any, **options: Any) -> None:
    state = load_state(paths.state)
    if state and state.get("spec") != canonical(spec):
        remove_state(paths.state)  # of the rate before, which had finished or diverged
    paths.out.mkdir(parents=True, exist_ok=True)
    try:
        loop.train(spec, paths, *where, **options)
    except CrnetError as error:
        if not (paths.out / FAILED).is_file():
            raise
        print(f"lr {spec['train']['lr']:g} is out: {error}", flush=True)


def _result(folder: Path) -> dict[str, Any]:
    """What a rate reached: base-class mIoU after the last step in [0, 1], and what both readings of its cost are."""
    if (folder / FAILED).is_file():
        return {"base_miou": None, "seconds": None, "cpu_seconds": None}
    report = read_json(folder / "train.json")
    reached = float(read_csv(folder / "log.csv")[-1]["base_miou"])
    return {"base_miou": reached, **{key: report[key] for key in ("seconds", "cpu_seconds")}}


def _keep(spec: dict, folder: Path, out: Path, choice: dict, trials: list[dict]) -> None:
    """Make the chosen rate's result that of the training; its costs are those of all rates."""
    out.mkdir(parents=True, exist_ok=True)
    weights, report = out / "model.safetensors", read_json(folder / "train.json")
    tensors = load_file(folder / weights.name)
    atomic_write(weights, save(tensors, metadata={"spec": canonical(spec)}))
    atomic_write(out / "log.csv", (folder / "log.csv").read_bytes())
    costs = {key: round(sum(trial.pop(key) or 0.0 for trial in trials), 2) for key in ("seconds", "cpu_seconds")}
    changed = {"run": out.name, "spec": spec, "weights_sha256": sha256_file(weights)}
    write_json(out / "train.json", {**report, **costs, **changed, "choice": choice, "trials": trials})
    (out / FAILED).unlink(missing_ok=True)
