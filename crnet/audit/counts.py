"""Stored counts: unchanged since they were written, possible, and of the episodes that they claim."""

from collections.abc import Mapping

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, parting, shown
from crnet.config import resolve
from crnet.data.episodes import EpisodeTable
from crnet.data.index import Index
from crnet.metrics.iou import PAIRS, QUERY_COLUMNS
from crnet.runtime.files import canonical, read_csv, sha256_file

CHECKS = DIGEST, POSSIBLE, EPISODES, WEIGHTS = (
    "counts: digest is the run's",
    "counts: possible, image sizes agree",
    "counts: rows are the episodes",
    "counts: weights of classes are the data's",
)

DIGESTS = {"counts.csv": "counts_sha256", "counts-fusion.csv": "counts_fusion_sha256"}
IDENTITY = ("episode_seed", "episode", "class", "query")
Size = tuple[int, int]  # of a query: pixels, and pixels that are not void
Sizes = dict[tuple[str, str, str], tuple[Size, str]]  # by data set, query and class, and where it was read first


def check_counts(folder: Folder, ledger: Ledger, tables: Mapping[str, EpisodeTable]) -> None:
    """All counts that are there, planned or not; ``tables`` as ``crnet.audit.episodes.check_episodes`` gives them."""
    sizes: Sizes = {}
    for name, about in folder.evaluations.items():
        if about.get("failed"):
            ledger[POSSIBLE].unknown("runs that failed have no counts")
            continue
        _weights(ledger[WEIGHTS], folder, about)
        readings = []
        for file in folder.counts_files(name):
            path = about["path"].with_name(file)
            where = folder.relative(path)
            if not path.is_file():
                ledger[DIGEST].differs(where, "is missing")
                continue
            if recorded := about.get(DIGESTS[file]):
                ledger[DIGEST].same(where, sha256_file(path), recorded, "evaluation.json has")
            else:
                ledger[DIGEST].unknown(
                    "evaluation.json holds no digest of the counts: it was written by an earlier version"
                )
            try:
                rows = read_csv(path)
                readings.append(rows)
                check_possible(ledger[POSSIBLE], where, rows, folder, about["spec"]["train"]["dataset"], sizes)
                _episodes(ledger[EPISODES], where, rows, about, tables)
            except UNREADABLE as error:
                ledger[POSSIBLE].differs(where, f"cannot be read ({type(error).__name__}: {error})")
        if len(readings) == 2 and _of_supports(readings[0]) != _of_supports(readings[1]):
            text = "has other episodes or losses on the supports than counts.csv"
            ledger[POSSIBLE].differs(folder.relative(about["path"].with_name("counts-fusion.csv")), text)


def _weights(check: Check, folder: Folder, about: Mapping) -> None:
    """The test pairs by which FB-IoU weighs classes, held against the data if they are at hand."""
    if PAIRS not in about:
        check.unknown(f"evaluation.json holds no {PAIRS}: it was written by an earlier version")
        return
    with check.reading(where := folder.relative(about["path"]), "does not say what was tested"):
        train = about["spec"]["train"]
        index = folder.index(train["dataset"])
        if index is None:
            check.unknown(f"the data set {train['dataset']['name']} of the runs is not at hand")
            return
        made = {str(class_id): count for class_id, count in index.class_pairs(train["fold"]).items()}
        check.same(f"{where}, {PAIRS}", canonical(about[PAIRS]), canonical(made), "the data have")


def check_possible(
    check: Check, where: str, rows: list[dict[str, str]], folder: Folder, dataset: dict, sizes: Sizes
) -> None:
    """Judge every line; ``sizes`` are of all runs that were read before, and get those of this one."""
    name, index = resolve.dataset_name(dataset), folder.index(dataset)
    for line, row in enumerate(rows, 2):
        place = f"{where}, line {line}"
        check.judge(place, row_problem(row) or _size_problem(row, name, index, sizes, place))


def _size_problem(row: Mapping[str, str], dataset: str, index: Index | None, sizes: Sizes, place: str) -> str | None:
    """Held against the data if they are at hand, and against all runs that were read before."""
    total = int(row["void_fg_union"]) + int(row["void_bg_intersection"])
    seen = int(row["ignore_fg_union"]) + int(row["ignore_bg_intersection"])
    if index is not None:
        photo = index.photos.get(row["query"])
        if photo is None:
            return f"the data have no photo {row['query']!r}"
        if photo.width * photo.height != total:
            return f"counts {total} pixels, photo {row['query']} has {photo.width * photo.height}"
    first, other = sizes.setdefault((dataset, row["query"], row["class"]), ((total, seen), place))
    if first == (total, seen):
        return None
    return f"counts {total} pixels, {seen} of them not void; {other} has {first[0]} and {first[1]}"


def row_problem(row: Mapping[str, str]) -> str | None:
    """Why no prediction on any mask can have given these counts; None if one can."""
    values = {}
    for column in QUERY_COLUMNS:
        text = row.get(column)
        if text is None or not text.isascii() or not text.isdigit():
            return f"{column} is {shown(text)}, not a number of pixels"
        values[column] = int(text)
    for first in QUERY_COLUMNS[::2]:
        union = first.replace("intersection", "union")
        if values[first] > values[union]:
            return f"{first} {values[first]} is more than {union} {values[union]}"
    fg, fg_union, bg, bg_union, void_fg, void_fg_union, void_bg, void_bg_union = (values[c] for c in QUERY_COLUMNS)
    if fg_union + bg != bg_union + fg or void_fg_union + void_bg != void_bg_union + void_fg:
        return "foreground and background do not add up to one number of pixels"
    if fg != void_fg:
        return f"ignore_fg_intersection {fg} and void_fg_intersection {void_fg} have to be equal"
    if fg_union > void_fg_union or bg > void_bg:
        return "more is counted without void than with it"
    return None


def _episodes(
    check: Check, where: str, rows: list[dict[str, str]], about: dict, tables: Mapping[str, EpisodeTable]
) -> None:
    name = resolve.episodes_name(resolve.episodes_spec(about["spec"]))
    table = tables.get(name)
    if table is None:
        check.unknown(f"there is no readable table episodes/{name}.csv")
        return
    expected = [(str(e.seed), str(e.number), str(e.class_id), e.query) for e in table.episodes]
    found = [tuple(row.get(column) for column in IDENTITY) for row in rows]
    if len(found) != len(expected):
        check.differs(where, f"has {len(found)} rows, episodes/{name}.csv {len(expected)}")
    elif other := parting(found, expected):
        line, one, wanted = other
        text = f"is of episode {', '.join(map(str, one))}; episodes/{name}.csv has {', '.join(wanted)}"
        check.differs(f"{where}, line {line + 2}", text)
    else:
        check.ok()


def _of_supports(rows: list[dict[str, str]]) -> list[list[str | None]]:
    """What both readings of a finetuned network have in common."""
    shared = (*IDENTITY, "support_loss_before", "support_loss_after")
    return [[row.get(column) for column in shared] for row in rows]
