"""The shape of studies and tables. A study says on what data the tables are run; a table says what is compared."""

import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crnet.config.settings import is_text
from crnet.config.yaml_files import load_yaml
from crnet.errors import CrnetError
from crnet.runtime.limits import Limits

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


def _text(value: str) -> str:
    if not is_text(value):
        raise ValueError("holds a control character; take it out")
    return value


Sentence = Annotated[str, Field(max_length=2000), AfterValidator(_text)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Shots = Annotated[int, Field(ge=1, le=20)]
ShotName = Annotated[str, Field(pattern=r"^\d{1,2}-shot$")]
Settings = dict[str, Any]
Metric = Literal["miou", "fbiou_pairs", "fbiou"]  # as crnet.metrics.iou.METRICS
Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def distinct_ids(kind: str) -> AfterValidator:
    """Refuses a list of things, ``kind`` in words, of which two have the same id."""

    def check(things: list) -> list:
        for name, count in Counter(thing.id for thing in things).items():
            if count > 1:
                raise ValueError(f"{kind} id {name!r} is used {count} times; ids must differ")
        return things

    return AfterValidator(check)


def distinct(values: list) -> list:
    if len(set(values)) != len(values):
        raise ValueError("holds an entry twice; keep one")
    return values


class Switches(Strict):
    """Differences from the study's settings, by section; later ones win: study, then table, then row.

    Attributes:
        method: Of ``crnet list methods``; by default ``crnet``.
        encoder: A role named under the study's ``encoders``; by default ``main``.
        model: Settings of the method.
        train, evaluate: Settings of these sections.
    """

    method: Slug | None = None
    encoder: Slug | None = None
    model: Settings = {}
    train: Settings = {}
    evaluate: Settings = {}


class Row(Strict):
    """One row: its label, its ticks in the printed table, its switches, and the paper's values in percent.

    Attributes:
        id: Names the row in files and claims.
        label: Names it for readers.
        ticks: Columns in which it has a tick, or a word.
        set: Its switches.
        paper: The paper's values, by shots and metric.
        reported: The paper quotes it from others: printed with the paper's values, never run.
        shots: The shots it is run at, where not at all of the table's.
        absent: For the other shots, why not, in a few words.
    """

    id: Slug
    label: Sentence
    ticks: dict[Sentence, bool | Sentence] = {}
    reported: bool = False
    shots: list[Shots] | None = None
    absent: dict[ShotName, Sentence] = {}
    set: Switches = Switches()
    paper: dict[ShotName, dict[Metric, Percent]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> "Row":
        if self.reported and (self.set.model_fields_set or self.shots):
            raise ValueError(f"row {self.id!r} is reported, not run: leave out its set and shots")
        return self


class Table(Strict):
    """One table of the paper, independent of the data it is run on.

    Attributes:
        title: Stands above it.
        source: Where in the paper it stands.
        benchmark: A name under the study's ``benchmarks``.
        shots: Supports an episode, a column each.
        metrics: Columns of each; ``fbiou_pairs`` weighs classes by their test pairs, ``fbiou`` equally.
        set: Switches of all rows.
        rows: In the order of the printed table.
        notes: Sentences below it.
    """

    title: Sentence
    source: Sentence
    benchmark: Slug = "pascal"
    shots: Annotated[list[Shots], Field(min_length=1)] = [1]
    metrics: Annotated[list[Metric], Field(min_length=1)] = ["miou", "fbiou_pairs"]
    set: Switches = Switches()
    rows: Annotated[list[Row], Field(min_length=1), distinct_ids("row")]
    notes: list[Sentence] = []

    @model_validator(mode="after")
    def _shots_of_rows(self) -> "Table":
        for row in self.rows:
            named = {f"{shots}-shot": shots for shots in self.shots}
            if unknown := [name for name in [*row.paper, *row.absent] if name not in named]:
                raise ValueError(f"row {row.id!r} speaks of {unknown[0]}, but the table's shots are {', '.join(named)}")
            run = self.shots if row.shots is None else row.shots
            if other := [shots for shots in run if shots not in self.shots]:
                raise ValueError(
                    f"row {row.id!r} asks for {other[0]} shots, but the table's shots are {', '.join(named)}"
                )
            if clash := [name for name in row.absent if named[name] in run]:
                raise ValueError(f"row {row.id!r} is run at {clash[0]} by its shots, so it cannot be absent there")
        return self


class Benchmark(Strict):
    """Data, folds and test episodes that a table's ``benchmark`` stands for in this study.

    Attributes:
        dataset: ``name`` of ``crnet list datasets``, and its settings.
        folds: Which of its folds are run.
        episodes: Settings of the section episodes.
        train: Differences from the study's training, where other data ask for another budget.
    """

    dataset: Settings
    folds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    episodes: Settings = {}
    train: Settings = {}


class ArchiveSettings(Strict):
    """Where a file is fetched instead of from its official address, and what it must hash to.

    Attributes:
        url: A mirror.
        checksum: The kind and the hexadecimal digits.
    """

    url: str | None = None
    checksum: Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{8,64})$")] | None = None


class LimitSettings(Strict):
    """What a job may hold at once; 0: as the run's settings ask. Nothing here is part of a run's specification.

    Attributes:
        pairs_at_once: Of a batch, whose gradients are added up, and of predictions.
        photos_at_once: Through the encoder.
        pool_gib: Encoded test photos that an evaluation keeps, in GiB.
    """

    pairs_at_once: Annotated[int, Field(ge=0, le=256)] = 0
    photos_at_once: Annotated[int, Field(ge=0, le=1024)] = 0
    pool_gib: Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] = 6.0

    def values(self) -> Limits:
        return Limits(**self.model_dump())


class Sheet(Strict):
    """Whose predictions the episode sheet shows.

    Attributes:
        table, row: Of which cell.
        episodes: How many of each fold.
    """

    table: Slug
    row: Slug
    episodes: Annotated[int, Field(ge=1, le=10)] = 2


class Probe(Strict):
    """Whose modules are asked whether they use the support, by swapping what they read of it for another class's.

    Attributes:
        table, rows: Which rows, at 1 shot, of one table; their methods need a module that can be asked.
        episodes: The first so many stored test episodes of each fold, or all where there are fewer.
    """

    table: Slug
    rows: Annotated[list[Slug], Field(min_length=1)]
    episodes: Annotated[int, Field(ge=1, le=100_000)] = 200

    @field_validator("rows")
    @classmethod
    def _distinct(cls, values: list) -> list:
        return distinct(values)


class Folders(Strict):
    """Relative to the folder that ``snakemake`` is started in.

    Attributes:
        archives: Downloads, and files that you put there.
        extracted: Their content.
        work: Prepared data, features, weights: bulky, and made again when needed.
        results: What a study's runs write, in a folder of its name. Published results are not there: see
            ``crnet publish``.
    """

    archives: str = "data/archives"
    extracted: str = "data/extracted"
    work: str = "work"
    results: str = "out"

    @field_validator("*")
    @classmethod
    def _plain(cls, value: str) -> str:
        # These become file names in a workflow: braces are wildcards, blanks end an argument, - starts an option.
        if not re.fullmatch(r"[\w./+@~][\w./+@~-]{0,199}", value, re.ASCII):
            raise ValueError(f"{value!r} may hold only letters, digits and . / _ + @ ~ -, at most 200, no - in front")
        return value.rstrip("/")


class Study(Strict):
    """On what data, encoders, sizes, seeds and budget the tables are run; after ``extends: FILE``, the differences.

    Attributes:
        study: Its name, and that of its folder of results.
        title, caption: Stand above and below every table.
        orientation_only: The data differ from the paper's: its values are shown for orientation only.
        tables: Names of ``configs/tables``.
        benchmarks: What the tables' ``benchmark`` stands for.
        encoders: Role -> ``name`` of ``crnet list encoders`` or ``timm:MODEL``, with its settings, or
            ``package.module:factory``, with ``alignment``: ``corners`` (default) if its cells lie at pixels 8i of the
            input, as a ResNet's, ``tiles`` if at 8i + 3.5, as VGG16's; null: rows that ask for it are not run.
        seeds: Of trainings.
        shots: Those of the tables that are run; null: all.
        leave_out: Methods whose rows are not run: they are printed with the paper's values only.
        controls: Methods below every table.
        methods: Settings of a method in all rows.
        train, evaluate, finetune: Settings of these sections.
        device: Where networks run.
        threads: A job.
        limits: For small machines.
        sheet: What the sheet of test episodes shows; null: there is none.
        probe: Which rows are probed; null: none.
        archives: By file name: mirrors and checksums.
        folders: Where things lie.
    """

    study: Slug
    title: Sentence
    caption: Sentence
    orientation_only: bool
    tables: Annotated[list[Slug], Field(min_length=1)]
    benchmarks: Annotated[dict[Slug, Benchmark], Field(min_length=1)]
    encoders: Annotated[dict[Slug, Settings | None], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
    shots: Annotated[list[Shots], Field(min_length=1)] | None = None
    leave_out: list[Slug] = []
    controls: list[Slug] = ["all-foreground", "prototype"]
    methods: dict[Slug, Settings] = {}
    train: Settings = {}
    evaluate: Settings = {}
    finetune: Settings = {}
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    limits: LimitSettings = LimitSettings()
    sheet: Sheet | None = None
    probe: Probe | None = None
    archives: dict[str, ArchiveSettings] = {}
    folders: Folders = Folders()

    @field_validator("tables", "seeds", "leave_out", "controls")
    @classmethod
    def _distinct(cls, values: list) -> list:
        return distinct(values)


def parse(model: type[Model], content: Any, where: str) -> Model:
    """Check ``content`` against a schema; raises CrnetError with the path of the key and the known ones."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        first, more = problems[0], len(problems) - 1
        path = ".".join(str(part) for part in first["loc"]) or "the file"
        reason = _reason(model, first)
        rest = f" ({more} more {'problem' if more == 1 else 'problems'} after this one)" if more else ""
        raise CrnetError(f"{where}: {path}: {reason}{rest}.") from error


def _reason(model: type[BaseModel], problem: dict) -> str:
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, problem["loc"][:-1])
        return f"unknown key; known: {', '.join(known)}" if known else "unknown key"
    if problem["type"] == "missing":
        return "is required and missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = repr(problem["input"])
    return f"{message[0].lower()}{message[1:]}" + (f", not {given}" if len(given) <= 80 else "")


def _fields_at(model: type[BaseModel], loc: tuple) -> list[str]:
    """Names of the fields of the model that a pydantic error location leads to."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        arguments = [a for a in getattr(current, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        if arguments:
            current = arguments[-1]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def load_table(folder: Path, name: str, where: str = "tables") -> Table:
    """The table ``<folder>/<name>.yaml``; raises CrnetError, which begins with ``where`` and lists the known tables."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise CrnetError(f"{where}: unknown table {name!r}; known in {folder}: {known}.")
    return parse(Table, load_yaml(path), str(path))
