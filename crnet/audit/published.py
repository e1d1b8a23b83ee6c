"""What is published, made again from what is stored: tables and claims from counts, the page, the index of runs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from crnet.audit.folder import UNREADABLE, Folder
from crnet.audit.ledger import Check, Ledger, first_difference, shown
from crnet.config import claims as paper_claims
from crnet.config import resolve, study
from crnet.metrics.bootstrap import Bootstrap
from crnet.report import runs as index
from crnet.report.claims import render_claims
from crnet.report.page.page import PAGE as PAGE_FILE
from crnet.report.page.page import write_page
from crnet.report.tables.render import render_table
from crnet.runtime.files import read_csv

CELLS = "tables: cells made again from counts"
TEXTS = "tables: .csv, .md, .tex byte for byte"
CLAIMS = "claims: made again from counts"
PAGE = "page: made again from the files"
RUNS = "runs.csv: rows made again from reports"
LOG = "training.csv: made again from logs"

CELL_KEYS = ("row", "shots", "fold", "metric", "void")
Made = Callable[[Path], None]


def check_published(folder: Folder, ledger: Ledger) -> None:
    bootstrap = Bootstrap()  # shared: its draws depend on folds, episodes and seeds alone
    for name in folder.plan.tables:
        job = _table_job(folder, name)
        counts = [cell["counts"] for row in job["rows"] for cell in row["cells"]]
        if not any(Path(path).is_file() for path in counts):
            _without_counts(folder, ledger, f"tables/{name}.csv", ("csv", "md", "tex"))
            continue
        with _made(ledger[TEXTS], f"tables/{name}", lambda to, job=job: render_table(job, to, bootstrap)) as again:
            if again:
                _rows(folder, ledger[CELLS], again.with_suffix(".csv"), f"tables/{name}.csv", CELL_KEYS)
                for kind in ("csv", "md", "tex"):
                    _bytes(folder, ledger[TEXTS], again.with_suffix(f".{kind}"), f"tables/{name}.{kind}")
    job = paper_claims.claims_job(folder.plan, folder.layout, study.ROOT / paper_claims.CLAIMS)
    with _made(ledger[CLAIMS], "claims.csv", lambda to: render_claims(job, to, bootstrap)) as again:
        if again:
            _rows(folder, ledger[CLAIMS], again.with_suffix(".csv"), "claims.csv", ("id",))
            for kind in ("csv", "md"):
                _bytes(folder, ledger[CLAIMS], again.with_suffix(f".{kind}"), f"claims.{kind}")
    _page(folder, ledger[PAGE])
    if (
        ledger[CELLS].verified
        and not ledger[CELLS].differences
        and (ledger[TEXTS].differences or ledger[PAGE].differences)
    ):
        ledger.notes.append(
            "All numbers of the tables that are here come out again; a text that differs was edited, or written by "
            "another version of crnet."
        )
    _index(folder, ledger)


def _table_job(folder: Folder, name: str) -> dict:
    """As the table was made: cells without counts say so if their training failed."""
    job = study.table_job(folder.plan, folder.layout, name)
    training_of = {
        folder.layout.counts_of(cell): resolve.training_name(folder.plan.evaluations[cell.evaluation]["train"])
        for cell in folder.plan.cells
    }
    for row in job["rows"]:
        for cell in row["cells"]:
            if why := folder.failed.get(training_of[cell["counts"]]):
                cell["failed"] = why
    return job


@contextmanager
def _made(check: Check, where: str, make: Made):
    """Path of what ``make`` wrote; None, and a difference noted, if the counts do not allow it."""
    with TemporaryDirectory() as temporary:
        again: Path | None = Path(temporary) / Path(where).stem
        try:
            make(again)
        except UNREADABLE as error:
            check.differs(where, f"cannot be made again ({error})")
            again = None
        yield again


def _without_counts(folder: Folder, ledger: Ledger, name: str, kinds: Sequence[str]) -> None:
    """A table of which the study's counts are all absent must not hold a number: one line says it for all its cells."""
    path = folder.results / name
    if not path.is_file():
        ledger[TEXTS].differs(name, "is missing, and so are its counts")
        return
    try:
        values = sum(bool(row.get("value")) for row in read_csv(path))
    except UNREADABLE as error:
        ledger[CELLS].differs(name, f"cannot be read ({error})")
        return
    if values:
        ledger[CELLS].differs(
            name, f"holds {values} values, but the counts from which the study makes them are missing"
        )
    ledger[TEXTS].unknown("the counts that the study makes them from are missing", len(kinds))


def _bytes(folder: Folder, check: Check, made: Path, name: str) -> None:
    stored = folder.results / name
    if not stored.is_file():
        check.differs(name, "is missing")
        return
    if stored.read_bytes() == made.read_bytes():
        check.ok()
    else:
        check.differs(name, first_difference(stored.read_text(errors="replace"), made.read_text()))


def _rows(folder: Folder, check: Check, made: Path, name: str, keys: Sequence[str]) -> None:
    """Compare two CSVs row by row, a row known by its ``keys``."""
    path = folder.results / name
    if not path.is_file():
        check.unknown(f"{name} is missing")
        return
    try:
        stored = {tuple(row[key] for key in keys): (line, row) for line, row in enumerate(read_csv(path), 2)}
    except UNREADABLE as error:
        check.differs(name, f"cannot be read ({type(error).__name__}: {error})")
        return
    for row in read_csv(made):
        key = tuple(row[k] for k in keys)
        line, found = stored.pop(key, (None, None))
        where = f"{name}, line {line}, {_named(keys, key)}"
        if found is None:
            check.differs(f"{name}, {_named(keys, key)}", "is missing")
        elif column := next((column for column in row if found.get(column) != row[column]), None):
            check.differs(where, f"{column} is {shown(found.get(column))}, made again {shown(row[column])}")
        else:
            check.ok()
    for key, (line, _) in stored.items():
        check.differs(f"{name}, line {line}, {_named(keys, key)}", "does not come out of the counts")


def _named(keys: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{k} {v}" if k in ("fold", "row", "id") else f"{v}-shot" if k == "shots" else str(v)
                     for k, v in zip(keys, values, strict=True))  # fmt: skip


def _page(folder: Folder, check: Check) -> None:
    """The page, made from the files beside it as they are: one that differs is found by its own check."""
    if not (folder.results / PAGE_FILE).is_file():
        check.differs(PAGE_FILE, "is missing")
        return
    with TemporaryDirectory() as temporary:
        mirror = Path(temporary) / folder.plan.study.study
        mirror.mkdir()
        for path in folder.results.iterdir():
            if path.name != PAGE_FILE:
                (mirror / path.name).symlink_to(path)
        try:
            write_page(study.page_job(folder.plan), mirror)
        except UNREADABLE as error:
            check.unknown(f"{PAGE_FILE} cannot be made again ({str(error).replace(f'{mirror}/', '')})")
            return
        _bytes(folder, check, mirror / PAGE_FILE, PAGE_FILE)


# ---------------------------------------------------------------- index of runs


def _index(folder: Folder, ledger: Ledger) -> None:
    path = folder.results / "runs.csv"
    if not path.is_file():
        ledger[RUNS].differs("runs.csv", "is missing")
        ledger[LOG].unknown("runs.csv is missing")
        return
    stored = folder.rows("runs.csv")
    if not stored or not {"run", "kind"} <= set(stored[0]):
        ledger[RUNS].differs("runs.csv", "holds no runs")
        ledger[LOG].unknown("runs.csv holds no runs")
        return
    listed = {str(row["run"]).removesuffix("+fusion") for row in stored}
    plan, there = folder.plan, {*folder.trainings, *folder.tunings, *folder.evaluations}
    for name in [*plan.trainings, *plan.tunings, *plan.evaluations]:
        if name in there and name not in listed:
            ledger[RUNS].differs("runs.csv", f"lacks the run {name}")
    trained = [about["path"] for name, about in folder.trainings.items() if name in listed]
    failed = [path for name, path in folder.failures.items() if name in listed]
    reports = (
        [about["path"] for name, about in folder.tunings.items() if name in listed],
        [about["path"] for name, about in folder.evaluations.items() if name in listed],
    )
    logs = [log for log in (path.with_name("log.csv") for path in trained) if log.is_file()]
    absent = len(set(plan.trainings) - set(folder.failed)) - len(logs)
    with TemporaryDirectory() as temporary:
        again, log = Path(temporary) / "runs.csv", Path(temporary) / "training.csv"
        try:
            index.collect([*trained, *failed], [], *reports, again, log)
        except UNREADABLE as error:
            ledger[RUNS].differs("runs.csv", f"cannot be made again ({error})")
        else:
            _compare_runs(ledger[RUNS], stored, {row["run"]: row for row in read_csv(again)})
        if absent:
            ledger[LOG].unknown(f"log.csv of {absent} trainings is not at hand in a work folder")
            return
        try:
            index.collect([*trained, *failed], logs, *reports, again, log)
        except UNREADABLE as error:
            ledger[LOG].differs("training.csv", f"cannot be made again from each training's log.csv ({error})")
        else:
            _bytes(folder, ledger[LOG], log, "training.csv")


def _compare_runs(check: Check, stored: Sequence[Mapping[str, str]], made: Mapping[str, Mapping[str, str]]) -> None:
    # Names of variants say in what runs of a kind differ: they need all runs of that kind.
    complete = {kind for kind in index.KINDS if all(row["run"] in made for row in stored if row["kind"] == kind)}
    newer = sorted({column for row in made.values() for column in row} - set(stored[0] if stored else ()))
    if newer:
        check.unknown(f"columns that this version writes and the file lacks: {', '.join(newer)}")
    for run in set(made) - {row["run"] for row in stored}:
        check.differs("runs.csv", f"lacks the run {run}")
    for line, row in enumerate(stored, 2):
        where = f"runs.csv, line {line}, {row['run']}"
        again = made.get(row["run"])
        if again is None:
            check.unknown(f"no report of these runs is at hand (kind {row['kind']})")
            continue
        skipped = {*newer, *(() if row["kind"] in complete else ("variant",))}
        skipped |= set() if "train" in complete else {"train_run"}
        columns = [column for column in again if column not in skipped]
        if column := next((column for column in columns if row.get(column) != again[column]), None):
            check.differs(where, f"{column} is {shown(row.get(column))}, made again {shown(again[column])}")
        else:
            check.ok()
