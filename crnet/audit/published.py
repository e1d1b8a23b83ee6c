"""What is published, made again from what is stored: tables and claims from counts, the page, the index of runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, shown
from crnet.config import claims as paper_claims
from crnet.config import study
from crnet.config.jobs import headline_table, page_job, table_job
from crnet.report import runs as index
from crnet.report.claims import render_claims
from crnet.report.classes import write_classes
from crnet.report.page.page import CLASSES, write_page
from crnet.report.page.page import PAGE as PAGE_FILE
from crnet.report.partial import mark
from crnet.report.tables.render import render_table
from crnet.runtime.files import read_csv

CHECKS = CELLS, TEXTS, CLAIMS, PAGE, RUNS, LOG = (
    "tables: cells made again from counts",
    "tables: .csv, .md, .tex byte for byte",
    "claims: made again from counts",
    "page: made again from the files",
    "runs.csv: rows made again from reports",
    "training.csv: made again from logs",
)

CELL_KEYS = ("row", "shots", "fold", "metric", "void")


def check_published(folder: Folder, ledger: Ledger) -> None:
    cells, texts = ledger[CELLS], ledger[TEXTS]
    for name in folder.plan.tables:
        job = _table_job(folder, name)
        if any(Path(cell["counts"]).is_file() for row in job["rows"] for cell in row["cells"]):
            with texts.reading(f"tables/{name}", "cannot be made again"), TemporaryDirectory() as temporary:
                render_table(job, Path(temporary) / name)
                same_rows(folder, cells, Path(temporary), f"tables/{name}.csv", CELL_KEYS)
                same_files(folder, texts, Path(temporary), *(f"tables/{name}.{kind}" for kind in ("csv", "md", "tex")))
        else:
            _without_counts(folder, ledger, f"tables/{name}.csv")
    _classes(folder, texts)
    job = paper_claims.claims_job(folder.plan, folder.layout, study.ROOT / paper_claims.CLAIMS)
    with ledger[CLAIMS].reading("claims.csv", "cannot be made again"), TemporaryDirectory() as temporary:
        render_claims(job, Path(temporary) / "claims")
        same_rows(folder, ledger[CLAIMS], Path(temporary), "claims.csv", ("id",))
        same_files(folder, ledger[CLAIMS], Path(temporary), "claims.csv", "claims.md")
    _page(folder, ledger[PAGE])
    if cells.verified and not cells.differences and (texts.differences or ledger[PAGE].differences):
        ledger.notes.append(
            "All numbers of the tables that are here come out again; a text that differs was edited, or written by "
            "another version of crnet."
        )
    _index(folder, ledger)


def _classes(folder: Folder, check: Check) -> None:
    """The IoU of each class, unless all counts that it is made from are absent."""
    job = _table_job(folder, headline_table(folder.plan))
    with check.reading(CLASSES, "cannot be made again"), TemporaryDirectory() as temporary:
        write_classes(job, Path(temporary) / CLASSES)
        if read_csv(Path(temporary) / CLASSES):
            same_files(folder, check, Path(temporary), CLASSES)


def _table_job(folder: Folder, name: str) -> dict:
    """As the table was made: cells without counts say so if their training failed."""
    return mark(table_job(folder.plan, folder.layout, name), folder.plan, folder.layout, folder.failed)


def _without_counts(folder: Folder, ledger: Ledger, name: str) -> None:
    """A table of which the study's counts are all absent must not hold a number: one line says it for all its cells."""
    path = folder.results / name
    if not path.is_file():
        ledger[TEXTS].differs(name, "is missing, and so are its counts")
        return
    with ledger[CELLS].reading(name):
        if values := sum(bool(row.get("value")) for row in read_csv(path)):
            text = f"holds {values} values, but the counts from which the study makes them are missing"
            ledger[CELLS].differs(name, text)
        ledger[TEXTS].unknown("the counts that the study makes them from are missing", 3)  # .csv, .md, .tex


def same_files(folder: Folder, check: Check, made: Path, *names: str) -> None:
    """Compare files with what was made again of them in the folder ``made``."""
    for name in names:
        check.same_bytes(name, folder.results / name, made / Path(name).name)


def same_rows(folder: Folder, check: Check, made: Path, name: str, keys: Sequence[str]) -> None:
    """Compare a CSV with the one in the folder ``made`` row by row, a row known by its ``keys``."""
    path = folder.results / name
    if not path.is_file():
        check.unknown(f"{name} is missing")
        return
    try:
        stored = {tuple(row[key] for key in keys): (line, row) for line, row in enumerate(read_csv(path), 2)}
    except UNREADABLE as error:
        check.differs(name, f"cannot be read ({type(error).__name__}: {error})")
        return
    for row in read_csv(made / path.name):
        key = tuple(row[k] for k in keys)
        line, found = stored.pop(key, (None, None))
        if found is None:
            check.differs(f"{name}, {_named(keys, key)}", "is missing")
        else:
            check.judge(f"{name}, line {line}, {_named(keys, key)}", _first_other(found, row, row))
    for key, (line, _) in stored.items():
        check.differs(f"{name}, line {line}, {_named(keys, key)}", "does not come out of the counts")


def _first_other(found: Mapping[str, str], made: Mapping[str, str], columns: Iterable[str]) -> str | None:
    """The first column of a row in which it differs from the one made again."""
    column = next((column for column in columns if found.get(column) != made[column]), None)
    return column and f"{column} is {shown(found.get(column))}, made again {shown(made[column])}"


def _named(keys: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{k} {v}" if k in ("fold", "row", "id") else f"{v}-shot" if k == "shots" else str(v)
                     for k, v in zip(keys, values, strict=True))  # fmt: skip


def _page(folder: Folder, check: Check) -> None:
    """The page, made from the files beside it as they are: one that differs is found by its own check."""
    with TemporaryDirectory() as temporary:
        mirror = Path(temporary) / folder.plan.study.study
        mirror.mkdir()
        for path in folder.results.iterdir():
            if path.name != PAGE_FILE:
                (mirror / path.name).symlink_to(path)
        job = page_job(folder.plan)
        try:
            if (folder.results / PAGE_FILE).is_file():
                write_page(job, mirror)
                # Made before a source was changed, it holds no warning; the audit's own notes have it.
                if (mirror / PAGE_FILE).read_bytes() != (folder.results / PAGE_FILE).read_bytes():
                    write_page(job | {"sources": {}}, mirror)
        except UNREADABLE as error:
            check.unknown(f"{PAGE_FILE} cannot be made again ({str(error).replace(f'{mirror}/', '')})")
        else:
            same_files(folder, check, mirror, PAGE_FILE)


def _index(folder: Folder, ledger: Ledger) -> None:
    check, log_check = ledger[RUNS], ledger[LOG]
    stored = folder.rows("runs.csv")
    if not stored or not {"run", "kind"} <= set(stored[0]):
        there = (folder.results / "runs.csv").is_file()
        check.differs("runs.csv", "holds no runs" if there else "is missing")
        log_check.unknown("runs.csv holds no runs" if there else "runs.csv is missing")
        return
    listed = {str(row["run"]).removesuffix("+fusion") for row in stored}
    plan, there = folder.plan, folder.reports
    for name in [*plan.trainings, *plan.trials, *plan.choices, *plan.evaluations]:
        if name in there and name not in listed:
            check.differs("runs.csv", f"lacks the run {name}")
    trained, *others = (
        [about["path"] for name, about in reports.items() if name in listed]
        for reports in (folder.trainings, folder.trials, folder.choices, folder.evaluations)
    )
    logs = [log for log in (path.with_name("log.csv") for path in trained) if log.is_file()]
    trained += [path for name, path in folder.failures.items() if name in listed]
    absent = len(set(plan.trainings) - set(folder.failed)) - len(logs)
    with TemporaryDirectory() as temporary:
        runs, log = Path(temporary) / "runs.csv", Path(temporary) / "training.csv"
        with check.reading("runs.csv", "cannot be made again"):
            index.collect(trained, [], *others, runs, log)
            _compare_runs(check, stored, {row["run"]: row for row in read_csv(runs)})
        if absent:
            log_check.unknown(f"log.csv of {absent} trainings is not at hand in a work folder")
            return
        with log_check.reading("training.csv", "cannot be made again from each training's log.csv"):
            index.collect(trained, logs, *others, runs, log)
            same_files(folder, log_check, Path(temporary), "training.csv")


def _compare_runs(check: Check, stored: Sequence[Mapping[str, str]], made: Mapping[str, Mapping[str, str]]) -> None:
    # Names of variants say in what runs of a kind differ: they need all runs of that kind.
    complete = {kind for kind in index.KINDS if all(row["run"] in made for row in stored if row["kind"] == kind)}
    newer = sorted({column for row in made.values() for column in row} - set(stored[0]))
    if newer:
        check.unknown(f"columns that this version writes and the file lacks: {', '.join(newer)}")
    for run in sorted(set(made) - {row["run"] for row in stored}):
        check.differs("runs.csv", f"lacks the run {run}")
    for line, row in enumerate(stored, 2):
        again = made.get(row["run"])
        if again is None:
            check.unknown(f"no report of these runs is at hand (kind {row['kind']})")
            continue
        skipped = {*newer, *(() if row["kind"] in complete else ("variant",))}
        skipped |= set() if "train" in complete else {"train_run"}
        columns = [column for column in again if column not in skipped]
        check.judge(f"runs.csv, line {line}, {row['run']}", _first_other(row, again, columns))
