"""The paper's claims as data (``configs/claims.yaml``): two cells, and what the paper says of their difference.

In place of the second's row may stand ``others``: all rows of its table that are of another method than the first's.

A claim is checked against the tables under ``configs/tables`` whether or not a study runs them: a study that leaves
a table out must say "not run" for its claims, and a misspelt row must not look like one.
"""

from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from crnet.config.elsewhere import MARK
from crnet.config.jobs import check_command, table_job
from crnet.config.labels import encoder_text, named_with, table_name
from crnet.config.layout import Layout
from crnet.config.resolve import Plan, method_of, without_left_out
from crnet.config.schema import Metric, Sentence, Shots, Slug, Strict, Table, distinct_ids, load_table, parse
from crnet.config.settings import component
from crnet.config.yaml_files import load_yaml
from crnet.errors import CrnetError

CLAIMS = Path("configs/claims.yaml")
OTHERS = "others"
Points = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Place(Strict):
    """A cell of a table of the paper, over all folds and seeds."""

    table: Slug
    row: Slug
    shots: Shots

    @property
    def key(self) -> str:
        return f"{self.table}/{self.row}/{self.shots}-shot"


class Claim(Strict):
    """``first`` minus ``second``, in points: ``more`` than 0 or than ``at_least``, or ``not-more`` than the margin."""

    id: Slug
    claim: Annotated[str, Field(min_length=1, max_length=120)]
    where: Annotated[str, Field(min_length=1, max_length=60)]
    first: Place
    second: Place
    metric: Metric = "miou"
    direction: Literal["more", "not-more"] = "more"
    at_least: Points | None = None
    paper: Points | None = None
    note: Sentence = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.first.row == OTHERS:
            raise ValueError("'first' is one row; only 'second' may be 'others'")
        if self.first == self.second:
            raise ValueError("'first' and 'second' are the same cell; compare two")
        if self.at_least is not None and self.direction != "more":
            raise ValueError("'at_least' needs the direction 'more'; leave one of them out")
        return self


class Claims(Strict):
    """All claims, and the margin in points below which a gain counts as none."""

    margin: Annotated[float, Field(ge=0, le=10)]
    claims: Annotated[list[Claim], Field(min_length=1), distinct_ids("claim")]

    def bound(self, claim: Claim) -> float:
        """What the difference is judged against, in points."""
        return self.margin if claim.direction == "not-more" else claim.at_least or 0.0


def load_claims(path: Path, tables_folder: Path) -> Claims:
    """Read and check the claims.

    Args:
        path: the YAML file.
        tables_folder: where the tables lie whose cells are compared.

    Raises:
        CrnetError: a key that does not fit, an unknown table, row or number of shots (listing the known ones), or
            cells of two benchmarks, which share no episodes.
    """
    claims = parse(Claims, load_yaml(path), str(path))
    load = cache(partial(load_table, tables_folder))  # once each: there are many claims on few tables
    for claim in claims.claims:
        tables = []
        for side, place in (("first", claim.first), ("second", claim.second)):
            try:
                tables.append(_checked(load(place.table), place))
            except CrnetError as error:
                raise CrnetError(f"{path}: {claim.id}.{side}: {error}") from error
        if claim.second.row == OTHERS and not rivals(claim, *tables):
            raise CrnetError(f"{path}: {claim.id}.second: {claim.second.table} has no row of another method.")
        one, other = (table.benchmark for table in tables)
        if one != other:
            raise CrnetError(
                f"{path}: {claim.id}: {claim.first.table} is run on benchmark {one!r} and {claim.second.table} on "
                f"{other!r}, which share no episodes; compare cells of one benchmark."
            )
    return claims


def _checked(table: Table, place: Place) -> Table:
    """The table of a place; raises CrnetError if it has no such cell."""
    rows = [row.id for row in table.rows]
    if place.row not in (*rows, OTHERS):
        raise CrnetError(f"{place.table} has no row {place.row!r}; known: {', '.join(rows)}.")
    if place.shots not in table.shots:
        known = ", ".join(map(str, table.shots))
        raise CrnetError(f"{place.table} has no {place.shots}-shot column; known shots: {known}.")
    return table


def rivals(claim: Claim, of_first: Table, of_second: Table) -> dict[Place, str]:
    """The places that ``others`` stands for, each with its row's label: of other methods, run or quoted."""
    mine = next(method_of(of_first, row) for row in of_first.rows if row.id == claim.first.row)
    return {
        Place(table=claim.second.table, row=row.id, shots=claim.second.shots): row.label
        for row in of_second.rows
        if row.reported or method_of(of_second, row) != mine
    }


def claims_job(plan: Plan, layout: Layout, path: Path) -> dict[str, Any]:
    """All that judging the claims needs; a cell that several claims name is listed once.

    Args:
        plan: the study's plan.
        layout: where its files lie.
        path: the claims; the tables are looked up in the folder ``tables`` beside it.

    Returns:
        study, title, caption, orientation_only, generated (some data are generated), encoders {role: text},
        margin, places {key: {cells [{fold, seed, counts}], folds, dataset_folds (how many the data set has),
        absent (why there are no cells), reported}} and claims [{id, claim, where, table, first and second (keys
        of places), shots, metric, direction, bound, at_least, paper, note}], and where second is ``others`` also rivals
        {key: label}.

    Raises:
        CrnetError: as ``load_claims``.
    """
    folder, study = path.parent / "tables", plan.study
    claims = load_claims(path, folder)
    named = {place.table for claim in claims.claims for place in (claim.first, claim.second)}
    known = {name: without_left_out(study, load_table(folder, name)) for name in named}
    others = {
        claim.id: rivals(claim, known[claim.first.table], known[claim.second.table])
        for claim in claims.claims
        if claim.second.row == OTHERS
    }
    used = dict.fromkeys(
        place for claim in claims.claims for place in (claim.first, *others.get(claim.id, [claim.second]))
    )
    quoted = {(name, row.id) for name in known for row in known[name].rows if row.reported}
    tables = {name: table_job(plan, layout, name) for name in plan.tables}
    comparisons = [each for table in tables.values() for each in _elsewhere(table)]
    used |= dict.fromkeys(place for _, *places in comparisons for place in places)
    job = {
        **study.model_dump(include={"study", "title", "caption", "orientation_only"}),
        "generated": any(_generated(spec, layout) for spec in plan.datasets.values()),
        "encoders": {role: encoder_text(spec) for role, spec in study.encoders.items() if spec},
        "margin": claims.margin,
        "places": {
            place.key: _place_job(place, tables.get(place.table), (place.table, place.row) in quoted) for place in used
        },
        "claims": [
            {
                **claim.model_dump(exclude={"first", "second"}),
                "table": claim.first.table,
                "first": claim.first.key,
                "second": claim.second.key,
                "rivals": {place.key: label for place, label in others.get(claim.id, {}).items()},
                "shots": " vs ".join(map(str, dict.fromkeys([claim.first.shots, claim.second.shots]))),
                "bound": claims.bound(claim),
            }
            for claim in claims.claims
        ]
        + [_comparison(*each) for each in comparisons],
    }
    check_command(str(path), job)
    return job


def _generated(spec: dict[str, Any], layout: Layout) -> bool:
    """What needs no archive, and is nobody's own, has been made up."""
    own = component("dataset", spec["name"], "dataset").literals.get("OWN", False)
    return not own and not layout.archive_names("dataset", spec)


def _elsewhere(table: dict[str, Any]) -> list[tuple[str, Place, Place]]:
    """What was predicted elsewhere against each row that is run, at the shots of both: in words, and the two places."""
    run = [row for row in table["rows"] if not row["control"] and not row.get("elsewhere")]
    shots = {row["id"]: list(dict.fromkeys(cell["shots"] for cell in row["cells"])) for row in table["rows"]}
    return [
        (
            f"{mine['label']} is above {named_with(row['label'], dict(row['switches']))}",
            *(Place(table=table["table"], row=each["id"], shots=k) for each in (mine, row)),
        )
        for mine in table["rows"]
        if mine.get("elsewhere")
        for row in run
        for k in shots[row["id"]]
        if k in shots[mine["id"]]
    ]


def _comparison(text: str, first: Place, second: Place) -> dict[str, Any]:
    """An entry of the job's claims that nobody claims: the paper does not know the method."""
    return {
        **{"id": f"{first.row}-{second.row}-{first.table}-{first.shots}-shot", "claim": text},
        **{"where": f"{table_name(first.table)}, {MARK}", "table": first.table, "shots": str(first.shots)},
        **{"first": first.key, "second": second.key, "metric": "miou", "direction": "more", "bound": 0.0},
        **{"at_least": None, "paper": None, "note": "", "elsewhere": True},
    }


def _place_job(place: Place, table: dict[str, Any] | None, quoted: bool) -> dict[str, Any]:
    """The counts of one cell by fold and seed, or a few words on why the study has none."""
    found = {"cells": [], "folds": [], "dataset_folds": 0, "absent": "", "reported": quoted}
    if quoted:
        return found | {"absent": "the other method is quoted, not run"}
    name = table_name(place.table)
    if table is None:
        return found | {"absent": f"{name} is not in this study"}
    row = next((row for row in table["rows"] if row["id"] == place.row), {"cells": [], "absent": {}})
    if cells := [cell for cell in row["cells"] if cell["shots"] == place.shots]:
        kept = [{key: cell[key] for key in ("fold", "seed", "counts")} for cell in cells]
        return found | {"cells": kept, "folds": table["folds"], "dataset_folds": table["dataset_folds"]}
    why = row["absent"].get(f"{place.shots}-shot") or "not in this study"
    # What the study leaves out as a whole needs no place, and is said once for both sides of a claim.
    place_named = "" if why.startswith("the study") else f"{name}, {place.row}, {place.shots}-shot: "
    return found | {"absent": f"{place_named}{why}"}
