"""Study x table x row x fold x seed -> runs. Equal specifications are one run, whatever table asks for it."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crnet.config.defaults import (
    EPISODES,
    EPISODES_LIMITS,
    EVALUATE,
    EVALUATE_LIMITS,
    TRAIN,
    TRAIN_LIMITS,
)
from crnet.config.schema import Row, Study, Switches, Table, load_table
from crnet.config.settings import check, component, components
from crnet.errors import CrnetError
from crnet.files import canonical, sha256_text

Spec = dict[str, Any]
FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Cell:
    """One evaluation's place in a table."""

    table: str
    row: str
    shots: int
    fold: int
    seed: int
    evaluation: str


@dataclass
class Plan:
    """Everything a study runs, by name; names end in a hash of what they name, so unequal things never collide.

    Attributes:
        datasets, encoders, features, episodes, trainings, evaluations: name -> specification.
        cells: Which evaluation fills which cell of which table.
    """

    study: Study
    tables: dict[str, Table]
    datasets: dict[str, Spec] = field(default_factory=dict)
    encoders: dict[str, Spec] = field(default_factory=dict)
    features: dict[str, Spec] = field(default_factory=dict)
    episodes: dict[str, Spec] = field(default_factory=dict)
    trainings: dict[str, Spec] = field(default_factory=dict)
    evaluations: dict[str, Spec] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)


def name_of(slug: str, spec: Spec) -> str:
    return f"{slug}-{sha256_text(canonical(spec))[:8]}"


def dataset_name(spec: Spec) -> str:
    return name_of(spec["name"], spec)


def encoder_name(spec: Spec) -> str:
    """``layers`` only selects among an encoder's maps: two selections share one set of weights."""
    slug = re.sub(r"\W+", "-", spec["name"], flags=re.ASCII)
    return name_of(slug, {key: value for key, value in spec.items() if key != "layers"})


def features_spec(training: Spec) -> Spec | None:
    """What the cached features of a training are a function of; None if it encodes while it trains."""
    train = training["train"]
    if train["features"] != "cached":
        return None
    kept = {key: train[key] for key in ("size", "views", "precision")}
    return {"dataset": training["dataset"], "encoder": training["encoder"], **kept}


def features_name(spec: Spec) -> str:
    return name_of(f"{spec['dataset']['name']}-{spec['size']}px-{spec['views']}", spec)


def episodes_spec(evaluation: Spec) -> Spec:
    kept = {key: evaluation["train"][key] for key in ("dataset", "fold")}
    return {**kept, "episodes": evaluation["episodes"]}


def episodes_name(spec: Spec) -> str:
    return name_of(f"{spec['dataset']['name']}-f{spec['fold']}", spec)


def training_name(spec: Spec) -> str:
    return name_of(f"{spec['method']}-{spec['dataset']['name']}-f{spec['fold']}-s{spec['seed']}", spec)


def evaluation_name(spec: Spec) -> str:
    train, shots = spec["train"], spec["evaluate"]["shots"]
    return name_of(f"{train['method']}-{train['dataset']['name']}-f{train['fold']}-s{train['seed']}-{shots}shot", spec)


def trains(method: str) -> bool:
    """Whether a method has weights of its own to train; controls declare ``TRAINS = False``."""
    return component("method", method, "method").literals.get("TRAINS", True)


def resolve(study: Study, tables_folder: Path) -> Plan:
    """All runs of a study. Raises CrnetError on anything that does not fit, naming the key and the valid ones."""
    plan = Plan(study, {name: load_table(tables_folder, name) for name in study.tables})
    check(study.train, TRAIN, TRAIN_LIMITS, "train")
    check(study.evaluate, EVALUATE, EVALUATE_LIMITS, "evaluate")
    for method, settings in study.methods.items():
        component("method", method, "methods").settings(settings, f"methods.{method}")
    for name, table in plan.tables.items():
        if table.benchmark not in study.benchmarks:
            known = ", ".join(study.benchmarks)
            raise CrnetError(
                f"{name}: benchmark {table.benchmark!r} is not defined by study {study.study!r}; known: {known}."
            )
        for row in table.rows:
            for shots in table.shots:
                _add_row(plan, name, table, row, shots)
        for control in study.controls:
            for shots in table.shots:
                _add_control(plan, name, table, control, shots)
    if study.sheet:
        table, row = study.sheet.table, study.sheet.row
        if table not in plan.tables:
            raise CrnetError(f"sheet.table: {table!r} is not among the study's tables: {', '.join(plan.tables)}.")
        known = [r.id for r in plan.tables[table].rows]
        if row not in known:
            raise CrnetError(f"sheet.row: {table} has no row {row!r}; known: {', '.join(known)}.")
    return plan


def _add_row(plan: Plan, name: str, table: Table, row: Row, shots: int) -> None:
    where = f"{name}.rows.{row.id}.set"
    switches = _merge(table.set, row.set)
    for fold in plan.study.benchmarks[table.benchmark].folds:
        for seed in plan.study.seeds:
            evaluation = _evaluation(plan.study, table, switches, shots, fold, seed, where)
            _add(plan, evaluation, Cell(name, row.id, shots, fold, seed, evaluation_name(evaluation)))


def _add_control(plan: Plan, name: str, table: Table, control: str, shots: int) -> None:
    """Controls have nothing to train and nothing random: one run a fold, at one scale, shared by all tables."""
    if trains(control):
        untrained = ", ".join(m for m in components("method") if not trains(m))
        raise CrnetError(f"controls: {control!r} has weights to train, a control has none; known: {untrained}.")
    for fold in plan.study.benchmarks[table.benchmark].folds:
        evaluation = _evaluation(plan.study, table, Switches(method=control), shots, fold, 0, f"controls.{control}")
        _add(plan, evaluation, Cell(name, control, shots, fold, 0, evaluation_name(evaluation)))


def _merge(*layers: Switches) -> Switches:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.model_dump(exclude_unset=True).items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return Switches(**merged)


def _evaluation(study: Study, table: Table, switches: Switches, shots: int, fold: int, seed: int, where: str) -> Spec:
    benchmark = study.benchmarks[table.benchmark]
    method = switches.method or "crnet"
    model = {**study.methods.get(method, {}), **switches.model}
    training = {
        "method": method,
        "model": component("method", method, where).settings(model, f"{where}.model"),
        "dataset": _dataset(benchmark.dataset, fold, f"benchmarks.{table.benchmark}"),
        "encoder": _encoder(study.encoders, switches.encoder or "main", where),
        "fold": fold,
        "seed": seed,
    }
    if trains(method):
        training["train"] = check({**study.train, **switches.train}, TRAIN, TRAIN_LIMITS, f"{where}.train")
    evaluate = {**study.evaluate, **switches.evaluate}
    if "shots" in evaluate:
        raise CrnetError(f"{where}.evaluate.shots: is given by the table's key 'shots', leave it out here.")
    evaluate = check({**evaluate, "shots": shots}, EVALUATE, EVALUATE_LIMITS, f"{where}.evaluate")
    episodes = check(benchmark.episodes, EPISODES, EPISODES_LIMITS, f"benchmarks.{table.benchmark}.episodes")
    if shots > episodes["shots"]:
        raise CrnetError(
            f"{where}: needs {shots} supports an episode, but benchmarks.{table.benchmark}.episodes.shots stores "
            f"{episodes['shots']}; raise it."
        )
    return {"train": training, "evaluate": evaluate, "episodes": episodes}


def _add(plan: Plan, evaluation: Spec, cell: Cell) -> None:
    training = evaluation["train"]
    plan.cells.append(cell)
    plan.evaluations[cell.evaluation] = evaluation
    plan.datasets[dataset_name(training["dataset"])] = training["dataset"]
    plan.encoders[encoder_name(training["encoder"])] = training["encoder"]
    episodes = episodes_spec(evaluation)
    plan.episodes[episodes_name(episodes)] = episodes
    if "train" in training:
        plan.trainings[training_name(training)] = training
        features = features_spec(training)
        if features:
            plan.features[features_name(features)] = features


def _dataset(given: Mapping[str, Any], fold: int, where: str) -> Spec:
    settings = dict(given)
    name = settings.pop("name", None)
    if name is None:
        raise CrnetError(f"{where}.dataset.name: is missing; known data sets: {', '.join(components('dataset'))}.")
    known = component("dataset", name, f"{where}.dataset.name")
    folds = known.class_names()
    if fold not in folds:
        raise CrnetError(f"{where}.folds: {name} has folds 0 to {len(folds) - 1}, not {fold}.")
    return {"name": name, **known.settings(settings, f"{where}.dataset")}


def _encoder(encoders: Mapping[str, Any], role: str, where: str) -> Spec:
    if role not in encoders:
        raise CrnetError(f"{where}.encoder: unknown encoder role {role!r}; the study defines: {', '.join(encoders)}.")
    place = f"encoders.{role}"
    settings = dict(encoders[role])
    name = settings.pop("name", None)
    known = components("encoder")
    if name is None:
        raise CrnetError(f"{place}.name: is missing; known: {', '.join(known)}, or package.module:factory.")
    if FACTORY.fullmatch(str(name)):
        if importlib.util.find_spec(name.split(":")[0].split(".")[0]) is None:
            raise CrnetError(f"{place}.name: no module of encoder {name!r} is found; put its folder on PYTHONPATH.")
        return {"name": name, **check(settings, {"rev": 1}, {}, place)}
    if name not in known:
        raise CrnetError(
            f"{place}.name: unknown encoder {name!r}; known: {', '.join(known)}, or package.module:factory."
        )
    layers = settings.pop("layers", known[name].literals["DEFAULT_LAYERS"])
    available = known[name].literals["LAYERS"]
    if not isinstance(layers, list | tuple) or not layers or not all(layer in available for layer in layers):
        raise CrnetError(
            f"{place}.layers: {layers!r} is not a list of layers of {name}; known: {', '.join(available)}."
        )
    return {"name": name, "layers": list(layers), **known[name].settings(settings, place)}
