"""The probe: its counts unchanged, possible and of the episodes they claim, what was swapped in, and its table."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from crnet.audit.counts import IDENTITY, Sizes, check_possible
from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, parting
from crnet.audit.published import same_files, same_rows
from crnet.config import resolve
from crnet.config.jobs import probe_job
from crnet.config.probe import FOLDER, UNTOUCHED, swaps
from crnet.data.episodes import EpisodeTable, draw_others
from crnet.metrics.iou import QUERY_COLUMNS
from crnet.report.partial import mark
from crnet.report.probe import KEYS, render_probe
from crnet.runtime.files import read_csv, sha256_file

CHECKS = DIGEST, POSSIBLE, EPISODES, OTHERS, EVALUATED, TABLE = (
    "probe: digests are the files'",
    "probe: counts possible, image sizes agree",
    "probe: rows are the episodes, every swap",
    "probe: what is put in is another class's",
    "probe: untouched is as evaluated",
    "probe: table made again from counts",
)
# Of a query's pixels, by which an untouched count may be off the evaluation's: it may have been made by another machine
# and in other batches. As much as ``crnet.audit.sample`` allows at most between machines.
SHARE, LEAST = 0.02, 4


def check_probes(folder: Folder, ledger: Ledger, tables: Mapping[str, EpisodeTable]) -> None:
    """All probes that are there, planned or not; ``tables`` as ``crnet.audit.episodes.check_episodes`` gives them."""
    sizes: Sizes = {}
    for about in folder.probes.values():
        path = about["path"].with_name("counts.csv")
        where = folder.relative(path)
        if not path.is_file():
            ledger[DIGEST].differs(where, "is missing")
            continue
        ledger[DIGEST].same(where, sha256_file(path), about.get("counts_sha256"), "probe.json has")
        with ledger[POSSIBLE].reading(where):
            rows, spec = read_csv(path), about["spec"]
            check_possible(ledger[POSSIBLE], where, rows, folder, spec["train"]["dataset"], sizes)
            _episodes(folder, ledger, where, rows, about, tables)
            _evaluated(folder, ledger[EVALUATED], where, rows, spec)
    _table(folder, ledger[TABLE])


def _episodes(
    folder: Folder, ledger: Ledger, where: str, rows: list[dict], about: dict, tables: Mapping[str, EpisodeTable]
) -> None:
    """A line for each episode and reading, in order; and the supports of other classes."""
    spec = about["spec"]
    name = resolve.episodes_name(resolve.episodes_spec(spec))
    table = tables.get(name)
    if table is None:
        ledger[EPISODES].unknown(f"there is no readable table episodes/{name}.csv")
        return
    digest = sha256_file(folder.results / "episodes" / f"{name}.csv")
    ledger[DIGEST].same(f"{folder.relative(about['path'])}, episodes_digest", about.get("episodes_digest"), digest)
    asked, readings = table.episodes[: spec["probe"]["episodes"]], (UNTOUCHED, *swaps(spec["train"]))
    expected = [(str(e.seed), str(e.number), str(e.class_id), e.query, swap) for e in asked for swap in readings]
    found = [tuple(row.get(column) for column in (*IDENTITY, "swap")) for row in rows]
    if other := parting(found, expected):
        line, one, wanted = other
        text = f"is of {', '.join(map(str, one or ['no episode']))}; the probe has {', '.join(wanted or ['no more'])}"
        ledger[EPISODES].differs(f"{where}, line {line + 2}", text)
        return
    ledger[EPISODES].ok()
    put_in = [(row["other_class"], row["other_support"]) for row in rows]
    _others(folder, ledger[OTHERS], where, put_in, readings, table, spec)


def _others(
    folder: Folder, check: Check, where: str, put_in: list, readings: tuple, table: EpisodeTable, spec: dict
) -> None:
    """Drawn again if the data are at hand; else held against the supports of other classes in the table."""
    asked = table.episodes[: spec["probe"]["episodes"]]
    index = folder.index(spec["train"]["dataset"])
    supports = {(str(e.class_id), e.supports[0]) for e in table.episodes}
    drawn = [(str(o.class_id), o.photo) for o in draw_others(table, index, len(asked))] if index else None
    if drawn is None:
        check.unknown("the data of the runs are not at hand to draw the others again")
    for line, pair in enumerate(put_in):
        number, reading = divmod(line, len(readings))
        place, own = f"{where}, line {line + 2}", str(asked[number].class_id)
        if readings[reading] == UNTOUCHED:
            check.judge(place, "is untouched and names another support" if any(pair) else None)
        elif drawn is not None:
            check.same(place, " ".join(pair), " ".join(drawn[number]), "drawn again")
        else:
            possible = pair[0] != own and pair in supports
            check.judge(place, None if possible else f"puts in {' '.join(pair)}, no support of another class")


def _evaluated(folder: Folder, check: Check, where: str, rows: list[dict], spec: dict) -> None:
    """The untouched counts against those of the evaluation of the same model."""
    evaluation = resolve.evaluation_name({key: value for key, value in spec.items() if key != "probe"})
    path = folder.results / "evaluate" / evaluation / "counts.csv"
    if not path.is_file():
        check.unknown(f"there is no evaluate/{evaluation}/counts.csv")
        return
    untouched = [(line, row) for line, row in enumerate(rows, 2) if row["swap"] == UNTOUCHED]
    for (line, row), evaluated in zip(untouched, read_csv(path), strict=False):
        pixels = int(evaluated["void_fg_union"]) + int(evaluated["void_bg_intersection"])
        off = {column: abs(int(row[column]) - int(evaluated[column])) for column in QUERY_COLUMNS}
        worst = max(off, key=off.get)
        text = f"{worst} is {row[worst]}, evaluate/{evaluation} has {evaluated[worst]}"
        check.judge(f"{where}, line {line}", text if off[worst] > max(LEAST, SHARE * pixels) else None)


def _table(folder: Folder, check: Check) -> None:
    job = probe_job(folder.plan, folder.layout)
    if job is None:
        return
    name = f"{FOLDER}/table.csv"
    if not any(Path(cell["counts"]).is_file() for row in job["rows"] for cell in row["cells"]):
        try:
            stored = read_csv(folder.results / name) if (folder.results / name).is_file() else []
        except UNREADABLE as error:
            check.differs(name, f"cannot be read ({error})")
            return
        if values := sum(bool(row.get("miou")) for row in stored):
            check.differs(name, f"holds {values} values, but the counts from which the study makes them are missing")
        else:
            check.unknown("the counts that the study makes it from are missing")
        return
    with check.reading(name, "cannot be made again"), TemporaryDirectory() as temporary:
        render_probe(mark(job, folder.plan, folder.layout, folder.failed), Path(temporary) / "table")
        same_rows(folder, check, Path(temporary), name, KEYS)
        same_files(folder, check, Path(temporary), name, f"{FOLDER}/table.md")
