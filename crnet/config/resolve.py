"""Study x table x row x fold x seed -> runs. Equal specifications are one run, whatever table asks for it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crnet.config import encoders, tuning
from crnet.config.defaults import (
    EPISODES,
    EPISODES_LIMITS,
    EVALUATE,
    EVALUATE_LIMITS,
    FINETUNE,
    FINETUNE_LIMITS,
    TRAIN,
    TRAIN_LIMITS,
    scaled,
)
from crnet.config.names import Spec, name_of, slug
from crnet.config.rates import train_settings
from crnet.config.schema import Row, Study, Switches, Table, load_table
from crnet.config.settings import (
    check,
    component,
    components,
    is_timm,
    sees_all_supports,
)
from crnet.data.grid import fitted
from crnet.errors import CrnetError

DEFAULT_METHOD = "crnet"


@dataclass(frozen=True)
class Cell:
    """One evaluation's place in a table; ``fused``: of a finetuned network, the mean over its supports is meant."""

    table: str
    row: str
    shots: int
    fold: int
    seed: int
    evaluation: str
    fused: bool = False


@dataclass
class Plan:
    """Everything a study runs, by name; names end in a hash of what they name, so unequal things never collide.

    Attributes:
        datasets, encoders, features, episodes, trainings, evaluations, probes: name -> specification.
        trials, choices: Likewise, of how finetuning is chosen; see ``crnet.config.tuning``.
        cells: Which evaluation fills which cell of which table.
        not_run: (table, row, shots) -> why the study leaves it out.
    """

    study: Study
    tables: dict[str, Table]
    datasets: dict[str, Spec] = field(default_factory=dict)
    encoders: dict[str, Spec] = field(default_factory=dict)
    features: dict[str, Spec] = field(default_factory=dict)
    episodes: dict[str, Spec] = field(default_factory=dict)
    trainings: dict[str, Spec] = field(default_factory=dict)
    trials: dict[str, Spec] = field(default_factory=dict)
    choices: dict[str, Spec] = field(default_factory=dict)
    evaluations: dict[str, Spec] = field(default_factory=dict)
    probes: dict[str, Spec] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    not_run: dict[tuple[str, str, int], str] = field(default_factory=dict)

    @property
    def caches_test_photos(self) -> bool:
        """Whether test photos too are encoded once for all evaluations, as training photos are for all trainings."""
        return self.study.train.get("features", TRAIN["features"]) == "cached"


def dataset_name(spec: Spec) -> str:
    return name_of(spec["name"], spec)


def encoder_name(spec: Spec) -> str:
    """``layers`` only selects among a built-in's maps: two selections share its weights; timm builds what they need."""
    spec = encoders.before_training(spec)
    called = re.sub(r"\W+", "-", spec["name"], flags=re.ASCII)
    return name_of(called, {key: value for key, value in spec.items() if key != "layers" or is_timm(spec["name"])})


def features_spec(training: Spec) -> Spec | None:
    """What the cached features of a training are a function of; None if it encodes while it trains."""
    train = training["train"]
    if train["features"] != "cached":
        return None
    kept = {key: train[key] for key in ("size", "views", "precision")}
    return {"dataset": training["dataset"], "encoder": training["encoder"], **kept}


def test_features_specs(evaluation: Spec) -> list[Spec]:
    """What cached features of test photos are a function of, one for each scale; none where the encoder learnt."""
    train, evaluate = evaluation["train"], evaluation["evaluate"]
    if encoders.learns(train["encoder"]):
        return []
    shared = {"dataset": train["dataset"], "encoder": train["encoder"], "precision": evaluate["precision"]}
    sizes = dict.fromkeys(scaled(evaluate["size"], scale) for scale in evaluate["scales"])
    return [{**shared, "size": size, "views": "identity", "split": "val"} for size in sizes]


def features_name(spec: Spec) -> str:
    split = f"-{spec['split']}" if "split" in spec else ""
    return name_of(f"{spec['dataset']['name']}-{spec['size']}px-{spec['views']}{split}", spec)


def episodes_spec(evaluation: Spec) -> Spec:
    kept = {key: evaluation["train"][key] for key in ("dataset", "fold")}
    return {**kept, "episodes": evaluation["episodes"]}


def episodes_name(spec: Spec) -> str:
    return name_of(f"{spec['dataset']['name']}-f{spec['fold']}", spec)


def training_name(spec: Spec) -> str:
    return name_of(slug(spec), spec)


def evaluation_name(spec: Spec) -> str:
    finetuned = "-finetuned" if "finetune" in spec else ""
    return name_of(f"{slug(spec['train'])}-{spec['evaluate']['shots']}shot{finetuned}", spec)


def trains(method: str, where: str = "method") -> bool:
    """Whether a method has weights of its own to train; controls declare ``TRAINS = False``."""
    return component("method", method, where).literals.get("TRAINS", True)


def resolve(study: Study, tables_folder: Path) -> Plan:
    """All runs of a study. Raises CrnetError on anything that does not fit, naming the key and the valid ones."""
    for method in study.leave_out:
        component("method", method, "leave_out")
    plan = Plan(study, {name: without_left_out(study, load_table(tables_folder, name)) for name in study.tables})
    train_settings(study.train, TRAIN, "train")
    check(study.evaluate, EVALUATE, EVALUATE_LIMITS, "evaluate")
    check(study.finetune, FINETUNE, FINETUNE_LIMITS, "finetune")
    for method, settings in study.methods.items():
        component("method", method, "methods").settings(settings, f"methods.{method}")
    for name, table in plan.tables.items():
        if table.benchmark not in study.benchmarks:
            known = ", ".join(study.benchmarks)
            raise CrnetError(
                f"{name}: benchmark {table.benchmark!r} is not defined by study {study.study!r}; known: {known}."
            )
        for row in table.rows:
            if not row.reported:
                shots = table.shots if row.shots is None else row.shots
                _add_row(plan, name, row.id, _merge(table.set, row.set), shots)
        for control in study.controls:
            _add_row(plan, name, control, Switches(method=control), table.shots, control=True)
    if study.sheet:
        table, row = study.sheet.table, study.sheet.row
        if table not in plan.tables:
            raise CrnetError(f"sheet.table: {table!r} is not among the study's tables: {', '.join(plan.tables)}.")
        known = [r.id for r in plan.tables[table].rows]
        if row not in known:
            raise CrnetError(f"sheet.row: {table} has no row {row!r}; known: {', '.join(known)}.")
    return plan


def _add_row(plan: Plan, name: str, row: str, switches: Switches, all_shots: list[int], control: bool = False) -> None:
    """Add what a row of table ``name`` runs at these shots, or note why the study leaves it out.

    Controls have nothing to train and nothing random: one run a fold, at one scale, shared by all tables.
    """
    study, table = plan.study, plan.tables[name]
    where = f"controls.{row}" if control else f"{name}.rows.{row}.set"
    for shots in all_shots:
        if reason := _left_out(study, switches.encoder or "main", shots):
            plan.not_run[name, row, shots] = reason
            continue
        if control and trains(row, "controls"):
            untrained = ", ".join(m for m in components("method") if not trains(m))
            raise CrnetError(f"controls: {row!r} has weights to train, a control has none; known: {untrained}.")
        for fold in study.benchmarks[table.benchmark].folds:
            for seed in [0] if control else study.seeds:
                evaluation, fused = _evaluation(study, table, switches, shots, fold, seed, where)
                _add(plan, evaluation, Cell(name, row, shots, fold, seed, evaluation_name(evaluation), fused))


def _left_out(study: Study, encoder: str, shots: int) -> str | None:
    """Why a study leaves out a row at some shots; None if it does not."""
    if study.shots is not None and shots not in study.shots:
        return f"the study leaves out {shots} shots"
    if encoder in study.encoders and study.encoders[encoder] is None:
        return f"the study has no encoder {encoder}"
    return None


def without_left_out(study: Study, table: Table) -> Table:
    """The table as a study runs it: rows of the methods that it leaves out are reported with the paper's values."""

    def as_run(row: Row) -> Row:
        if row.reported or method_of(table, row) not in study.leave_out:
            return row
        return row.model_copy(update={"reported": True, "set": Switches(), "shots": None, "absent": {}})

    rows = [as_run(row) for row in table.rows]
    return table.model_copy(update={"rows": rows})


def method_of(table: Table, row: Row) -> str:
    """The method of a row that is run."""
    return _merge(table.set, row.set).method or DEFAULT_METHOD


def role(table: Table, row: Row) -> str:
    """Which of the study's encoders a row asks for."""
    return _merge(table.set, row.set).encoder or "main"


def _merge(*layers: Switches) -> Switches:
    """Later ones win; switches of a model stay with its method."""
    merged: dict[str, Any] = {}
    for layer in layers:
        if layer.method and layer.method != merged.get("method", DEFAULT_METHOD):
            merged.pop("model", None)
        for key, value in layer.model_dump(exclude_unset=True).items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return Switches(**merged)


def _evaluation(
    study: Study, table: Table, switches: Switches, shots: int, fold: int, seed: int, where: str
) -> tuple[Spec, bool]:
    """The specification of one run, and whether its cell is the one that fuses finetuned predictions."""
    benchmark = study.benchmarks[table.benchmark]
    method = switches.method or DEFAULT_METHOD
    model = {**study.methods.get(method, {}), **switches.model}
    encoder = encoders.of_role(study.encoders, switches.encoder or "main", where)
    training = {
        "method": method,
        "model": component("method", method, where).settings(model, f"{where}.model"),
        "dataset": _dataset(benchmark.dataset, fold, f"benchmarks.{table.benchmark}"),
        "encoder": encoder if trains(method) else encoders.before_training(encoder),
        "fold": fold,
        "seed": seed,
    }
    _check_base_classes(training, where)
    sees_all_supports(method)  # or a literal that is neither comes to light when all is trained
    if trains(method):
        own = component("method", method, where).literals.get("TRAIN", {})
        defaults = check(own, TRAIN, TRAIN_LIMITS, f"{where}: TRAIN of method {method}")
        given = {**study.train, **benchmark.train, **switches.train}
        training["train"] = train_settings(given, defaults, f"{where}.train")
        encoders.check_features(training, where)
    alignment = encoders.alignment_of(training["encoder"])
    if "train" in training:
        training["train"]["size"] = fitted(training["train"]["size"], alignment)
    evaluate = {**study.evaluate, **switches.evaluate}
    if "shots" in evaluate:
        raise CrnetError(f"{where}.evaluate.shots: is given by the table's key 'shots', leave it out here.")
    evaluate = check({**evaluate, "shots": shots}, EVALUATE, EVALUATE_LIMITS, f"{where}.evaluate")
    evaluate["size"] = fitted(evaluate["size"], alignment)
    episodes = check(benchmark.episodes, EPISODES, EPISODES_LIMITS, f"benchmarks.{table.benchmark}.episodes")
    if shots > episodes["shots"]:
        raise CrnetError(
            f"{where}: needs {shots} supports an episode, but benchmarks.{table.benchmark}.episodes.shots stores "
            f"{episodes['shots']}; raise it."
        )
    evaluation = {"train": training, "evaluate": evaluate, "episodes": episodes}
    if evaluate["strategy"] == "fusion":
        return evaluation, False
    if shots < 2:
        raise CrnetError(
            f"{where}.evaluate.strategy: {evaluate['strategy']} takes pairs of supports, at least 2 shots."
        )
    if not trains(method):
        raise CrnetError(f"{where}.evaluate.strategy: {method} has no weights to finetune; its strategy is fusion.")
    if not component("method", method, where).literals.get("FINETUNES", True):
        raise CrnetError(
            f"{where}.evaluate.strategy: {method} cannot learn from supports alone; its strategy is fusion."
        )
    # One job finetunes and writes both readings: they differ in the last step only.
    fused = evaluate["strategy"] == "finetune-fusion"
    evaluation["evaluate"] = {**evaluate, "strategy": "finetune"}
    settings = check(study.finetune, FINETUNE, FINETUNE_LIMITS, "finetune")
    return evaluation | {"finetune": tuning.with_folds(settings, fold, benchmark.folds)}, fused


def _check_base_classes(training: Spec, where: str) -> None:
    """Raise CrnetError if a method that learns the base classes themselves has room for fewer than the fold has."""
    known, dataset = training["model"].get("base_classes"), training["dataset"]
    if known is None:
        return
    count = component("dataset", dataset["name"], where).splits(dataset).base_count(training["fold"])
    if known < count:
        raise CrnetError(
            f"{where}.model.base_classes: {training['method']} has weights for {known}, and fold {training['fold']} of "
            f"{dataset['name']} has {count} base classes; raise it."
        )


def _add(plan: Plan, evaluation: Spec, cell: Cell) -> None:
    training = evaluation["train"]
    plan.cells.append(cell)
    plan.evaluations[cell.evaluation] = evaluation
    plan.datasets[dataset_name(training["dataset"])] = training["dataset"]
    plan.encoders[encoder_name(training["encoder"])] = encoders.before_training(training["encoder"])
    episodes = episodes_spec(evaluation)
    plan.episodes[episodes_name(episodes)] = episodes
    if "train" in training:
        plan.trainings[training_name(training)] = training
        if features := features_spec(training):
            plan.features[features_name(features)] = features
    predicting = [evaluation]
    if choice := tuning.choice_spec(evaluation):
        plan.choices[tuning.choice_name(choice)] = choice
        tried = tuning.trials_specs(choice)
        plan.trials |= {tuning.trials_name(spec): spec for spec in tried}
        predicting += tried
    if plan.caches_test_photos:
        for predicted in predicting:
            plan.features |= {features_name(spec): spec for spec in test_features_specs(predicted)}


def _dataset(given: Mapping[str, Any], fold: int, where: str) -> Spec:
    settings = dict(given)
    name = settings.pop("name", None)
    if name is None:
        raise CrnetError(f"{where}.dataset.name: is missing; known data sets: {', '.join(components('dataset'))}.")
    known = component("dataset", name, f"{where}.dataset.name")
    settings = known.with_content(known.settings(settings, f"{where}.dataset"))
    folds = known.class_names(settings)
    if fold not in folds:
        raise CrnetError(f"{where}.folds: {name} has folds 0 to {len(folds) - 1}, not {fold}.")
    return {"name": name, **settings}
