"""Which cell of which study's table is meant, from what a command was given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crnet.config import resolve, study
from crnet.config.jobs import headline_table
from crnet.config.layout import Layout
from crnet.config.resolve import Cell, Plan
from crnet.data.episodes import EpisodeTable
from crnet.data.episodes import read as read_episodes
from crnet.data.index import Index
from crnet.errors import CrnetError

NAMES = ("table", "row", "shots", "fold", "seed")  # of what names a cell


def study_files(name: str, root: Path = study.ROOT) -> list[Path]:
    """The file of the study called ``name``; raises CrnetError that lists the known ones."""
    folder = root / "configs/studies"
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise CrnetError(f"--study: unknown study {name!r}; known: {known}; give a file of your own with --configfile.")
    return [folder / f"{name}.yaml"]


def require(*files: Path | None) -> None:
    """Raise CrnetError, with what to run, for the first file that is not here."""
    for path in filter(None, files):
        if not path.is_file():
            raise CrnetError(f"{path}: is not here; run `snakemake --cores all {path}` with the study's --configfile.")


@dataclass(frozen=True)
class Place:
    """Episodes of one fold as a table asks for them."""

    table: str
    shots: int
    fold: int
    spec: dict  # of any evaluation on them
    episodes_file: Path
    data: Path

    @property
    def episodes_name(self) -> str:
        return self.episodes_file.stem

    def read(self) -> tuple[Index, EpisodeTable]:
        """The prepared data and the stored episodes; raises CrnetError, with what to run, if either is not here."""
        require(self.data / "dataset.json", self.episodes_file, self.episodes_file.with_suffix(".json"))
        index = Index.load(self.data)
        return index, read_episodes(self.episodes_file, index)

    def episode_id(self, seed: int, number: int) -> str:
        """How an episode is called in files: unique within a table."""
        return f"f{self.fold}-s{seed}-{number:05d}"


def places(plan: Plan, table: str | None, shots: int | None, folds: Sequence[int] = ()) -> list[Place]:
    """One for each fold of a table, by default the headline's at its first shots.

    Raises:
        CrnetError: No such table, shots or fold in the study; the known ones are listed.
    """
    layout = Layout(plan)
    cells = _cells_of(plan, table)
    table = cells[0].table
    shots = _one_of("shots", shots, [cell.shots for cell in cells], table)
    cells = [cell for cell in cells if cell.shots == shots]
    known = sorted({cell.fold for cell in cells})
    for fold in folds:
        _one_of("fold", fold, known, table)
    found = []
    for fold in folds or known:
        spec = plan.evaluations[next(cell.evaluation for cell in cells if cell.fold == fold)]
        where = Path(layout.episodes(spec)), Path(layout.data(spec["train"]["dataset"]))
        found.append(Place(table, shots, fold, spec, *where))
    return found


def cell(plan: Plan, table: str | None, row: str | None, shots: int | None, fold: int | None, seed: int | None) -> Cell:
    """One cell; what is not given is the headline table, its last row that is run, and the first of each.

    Raises:
        CrnetError: There is no such cell; the known ones are listed.
    """
    cells = _cells_of(plan, table)
    table = cells[0].table
    rows = [each.id for each in plan.tables[table].rows if not each.reported]
    there = [name for name in dict.fromkeys(each.row for each in cells) if row or name in rows]
    row = _one_of("row", row, [there[-1], *there] if there else there, table)
    cells = [each for each in cells if each.row == row]
    for name, given in (("shots", shots), ("fold", fold), ("seed", seed)):
        chosen = _one_of(name, given, [getattr(each, name) for each in cells], f"{table}, {row}")
        cells = [each for each in cells if getattr(each, name) == chosen]
    return cells[0]


def _cells_of(plan: Plan, table: str | None) -> list[Cell]:
    name = headline_table(plan) if table is None else table
    if name not in plan.tables:
        raise CrnetError(f"--table: study {plan.study.study} has no table {name!r}; known: {', '.join(plan.tables)}.")
    if not (cells := [cell for cell in plan.cells if cell.table == name]):
        raise CrnetError(f"--table: study {plan.study.study} runs nothing of {name}; choose another table.")
    return cells


def _one_of(name: str, given, known: Sequence, where: str):
    """``given``, or the first known one if it is None."""
    if given is None and known:
        return known[0]
    if given not in known:
        listed = ", ".join(map(str, dict.fromkeys(known)))
        raise CrnetError(f"--{name}: {where} has no {name} {given!r}; known: {listed}.")
    return given


def files_of(layout: Layout, evaluation: resolve.Spec) -> dict[str, Path | None]:
    """Data, encoder, weights and features that an evaluation predicts with; features only if all of them are here."""
    train = evaluation["train"]
    weights, encoder = layout.weights(evaluation), layout.encoder(train["encoder"])
    features = [Path(folder) for folder in layout.test_features(evaluation)]
    whole = all((folder / "features.json").is_file() for folder in features)
    return {
        "data": Path(layout.data(train["dataset"])),
        "encoder": Path(encoder) if encoder else None,
        "weights": Path(weights) if weights else None,
        "features": features if whole else [],
    }
