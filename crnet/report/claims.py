"""A verdict on each of the paper's claims, from stored counts: ``claims.csv`` for programs, ``claims.md`` for readers.

A claim compares two cells of the paper's tables. Its difference, first minus second, is paired: both cells were scored
on the same episodes, and of both the same photos are left out, and the same training seeds where these are equal
(``crnet.metrics.intervals``). The difference and its 95 % interval [low, high] are judged against one bound:

=========  =========================  ==========================  ========================
direction  bound                      supported                   contradicted
=========  =========================  ==========================  ========================
more       0, or the claim's          the interval lies above     the interval lies below
           ``at_least``               the bound: low > bound      the bound: high < bound
not-more   the margin, e.g. 1 point   the interval lies below     the interval lies above
                                      the margin: high < margin   the margin: low > margin
=========  =========================  ==========================  ========================

An interval that holds the bound leaves a claim *undecided*. ``not-more`` is for "saturates" and "adds nothing": that
a gain was not found is no support, that it is surely smaller than the margin is; a loss supports it too. The margin
stands in ``configs/claims.yaml``. A verdict is about the direction; whether the paper's size lies inside the interval
is a question of its own. Claims whose cells the study lacks are *not run*; those against figures that the paper quotes,
and those whose two cells are the same runs, are *not testable*; both are listed, never left out. A claim against all
others is judged against the one of them that the study runs and that is best here, which the verdict names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crnet.config.labels import table_name
from crnet.errors import CrnetError
from crnet.metrics.intervals import LEVEL, METHOD, FoldCounts, Interval, difference, query_photos, unknown
from crnet.report.tables.captions import data_sentences, episode_sizes, evaluations, training_seeds
from crnet.report.tables.cells import UNDEFINED, VOID_NAMES, VOIDS, place, read_folds
from crnet.report.tables.render import plain
from crnet.runtime.files import atomic_write, write_csv

HEADER = (
    *("id", "claim", "paper", "estimate", "low", "high", "verdict"),
    *("paper_inside", "direction", "bound", "metric", "void", "table", "first", "second", "shots", "folds"),
    *(
        "seeds",
        "episodes",
        "photos",
        "pairs",
        "where",
    ),
    *("estimate_ignore", "low_ignore", "high_ignore", "verdict_ignore", "note"),
)
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
NOT_RUN, NOT_TESTABLE = "not run", "not testable"
SAME_RUNS = "both are the same runs in this study"
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN, NOT_TESTABLE)
HEADLINE, OTHER = VOIDS
UNTESTED = "Claims without a value here"
ELSEWHERE = "Predicted elsewhere, in pairs with the rows run here"
METHODS = "How the verdicts are reached"
ONE_SEED = "One training seed: the intervals cover the choice of photos, not training again, which may turn a verdict."


@dataclass(frozen=True)
class Judged:
    """One claim with what was measured, in points."""

    claim: Mapping[str, Any]  # its entry in the job
    verdict: str  # one of ``VERDICTS``, under the headline's void convention
    difference: Mapping[str, Interval] = field(default_factory=dict)  # first minus second by void convention
    verdicts: Mapping[str, str] = field(default_factory=dict)  # by void convention; empty where nothing was measured
    folds: tuple[int, ...] = ()
    seeds: int | None = None  # per fold
    episodes: int | None = None  # over all folds
    photos: tuple[int, ...] = ()  # distinct query photos of each fold, and last of all folds together
    pairs: tuple[int, ...] = ()  # of a query photo and a class, of each fold
    why: str = ""  # why nothing was measured

    @property
    def paper_inside(self) -> str:
        """Whether the paper's size lies inside the headline's interval, "yes" or "no"; empty if either is missing."""
        interval, paper = self.difference.get(HEADLINE), self.claim["paper"]
        if interval is None or paper is None:
            return ""
        return "yes" if interval.low <= paper <= interval.high else "no"


def render_claims(job: dict[str, Any], out_prefix: Path) -> None:
    """Write ``<out_prefix>.csv`` and ``.md`` from ``crnet.config.claims.claims_job``.

    Raises:
        CrnetError: counts that cannot be read, or cells of one claim that were scored on different episodes.
    """
    results = judge_all(job)
    write_csv(f"{out_prefix}.csv", HEADER, (_csv_row(result) for result in results))
    atomic_write(f"{out_prefix}.md", render_markdown(job, results))


def verdict(interval: Interval, direction: str, bound: float) -> str:
    """Supported, contradicted or undecided; see the module's docstring. Bounds of NaN decide nothing."""
    above, below = interval.low > bound, interval.high < bound
    if direction == "not-more":
        above, below = below, above
    return SUPPORTED if above else CONTRADICTED if below else UNDECIDED


def judge_all(job: dict[str, Any]) -> list[Judged]:
    """Every claim of the job, in its order."""
    rows = {key: cell["absent"] or _read(cell) for key, cell in job["places"].items()}
    return [_judge(job, claim, rows) for claim in job["claims"]]


def _read(cell: Mapping[str, Any]) -> list[FoldCounts] | str:
    """The folds of a cell or, if one of them is not whole, which."""
    parts, gaps = read_folds(cell["folds"], cell["cells"])
    return f"missing ({'; '.join(place(*gap) for gap in gaps.items())})" if gaps else list(parts.values())


def _judge(job: Mapping[str, Any], claim: Mapping[str, Any], rows: Mapping[str, list[FoldCounts] | str]) -> Judged:
    chosen, notes = _against_the_best(job, claim, rows)
    sides = [chosen["first"], chosen["second"]]
    quoted = [rows[side] for side in sides if job["places"][side]["reported"]]
    if quoted:
        return Judged(claim, NOT_TESTABLE, why=str(quoted[0]))
    cells = [job["places"][side]["cells"] for side in sides]
    if cells[0] and cells[0] == cells[1]:
        return Judged(claim, NOT_TESTABLE, why=SAME_RUNS)
    reasons = {side: rows[side] for side in sides if isinstance(rows[side], str)}
    # a reason of the study's own names its cell already
    gaps = [f"{s.replace('/', ', ')}: {why}" if why.startswith("missing") else why for s, why in reasons.items()]
    if gaps:
        return Judged(claim, NOT_RUN, why="; ".join(dict.fromkeys(gaps)))
    first, second = (rows[side] for side in sides)
    if why := unknown([*first, *second], claim["metric"]):
        return Judged(claim, NOT_RUN, why=why)
    found: dict[str, Interval] = {}
    for void in VOIDS:
        try:
            points = [100 * value for value in difference(first, second, claim["metric"], void)]
        except CrnetError as error:
            raise CrnetError(f"Claim {claim['id']}, {sides[0]} against {sides[1]}: {error}") from error
        if not any(map(math.isnan, points)):
            found[void] = Interval(*points)
    verdicts = dict.fromkeys(VOIDS, UNDECIDED)
    verdicts |= {void: verdict(interval, claim["direction"], claim["bound"]) for void, interval in found.items()}
    notes += [] if len(found) == len(VOIDS) else [UNDEFINED]
    if [part.seeds for part in first] != [part.seeds for part in second]:
        notes.append("training seeds differ, so they are left out apart")
    return Judged(
        chosen,
        verdicts[HEADLINE],
        found,
        verdicts,
        folds=tuple(part.fold for part in first),
        seeds=min(len(part.seeds) for part in (*first, *second)),
        episodes=sum(len(part.classes) for part in first),
        photos=(*(query_photos([part]) for part in first), query_photos(first)),
        pairs=tuple(part.pairs for part in first),
        why="; ".join(notes),
    )


def _against_the_best(
    job: Mapping[str, Any], claim: Mapping[str, Any], rows: Mapping[str, list[FoldCounts] | str]
) -> tuple[Mapping[str, Any], list[str]]:
    """A claim against all others as one against the best of them, and a note that names it.

    Of those that are run one that is not whole stands for them, as it might be the best; if none is run, a quoted one.
    """
    rivals, first = claim.get("rivals"), rows[claim["first"]]
    if not rivals:
        return claim, []
    run = [key for key in rivals if not job["places"][key]["reported"] and job["places"][key]["cells"]]
    partly = [key for key in run if isinstance(rows[key], str)]
    if not run or partly or isinstance(first, str):
        left = [key for key in rivals if not job["places"][key]["reported"]]
        return {**claim, "second": (partly or run or left or [*rivals])[0]}, []
    gains = {key: difference(first, rows[key], claim["metric"], HEADLINE).value for key in run}
    best = min(gains, key=lambda key: math.inf if math.isnan(gains[key]) else gains[key])
    return {**claim, "second": best}, [f"against {rivals[best]}, the best of the {len(run)} others that are run"]


def _csv_row(result: Judged) -> list[Any]:
    claim = result.claim
    here, there = (result.difference.get(void, (None, None, None)) for void in VOIDS)
    values = [
        *(claim["id"], claim["claim"], claim["paper"], *here, result.verdict),
        *(result.paper_inside, claim["direction"], float(claim["bound"])),
        *(claim["metric"], HEADLINE, claim["table"], claim["first"], claim["second"], claim["shots"]),
        *(" ".join(map(str, result.folds)), result.seeds, result.episodes),
        *((result.photos or [None])[-1], sum(result.pairs) or None, claim["where"]),
        *(*there, result.verdicts.get(OTHER)),
        "; ".join(filter(None, [result.why, claim["note"]])),
    ]
    return [plain(value) for value in values]


def render_markdown(job: Mapping[str, Any], results: Sequence[Judged]) -> str:
    """What the data are, the count of verdicts, one line a claim, those without a value apart, and the method.

    ``crnet.report.page.page`` takes from it what lies above the first heading of a part.
    """
    parts = ["# The paper's claims"]
    if job["generated"]:
        parts.append("**A test of the suite, not of the paper: data are generated.**")
    elif job["orientation_only"]:
        parts.append(
            "**The data differ from the paper's: verdicts are about these data, its sizes are for orientation.**"
        )
    claims, comparisons = ([r for r in results if bool(r.claim.get("elsewhere")) == wanted] for wanted in (False, True))
    parts.append(summary(claims))
    if any(result.seeds == 1 for result in results):
        parts.append(ONE_SEED)
    parts += encoder_sentence(job)
    tested, others = ([result for result in claims if bool(result.difference) == wanted] for wanted in (True, False))
    grids = [_grid(tested)] if tested else []
    grids += [f"## {ELSEWHERE}", _grid(comparisons)] if comparisons else []
    grids += [f"## {UNTESTED}", _grid(others)] if others else []
    return "\n\n".join([*parts, *grids, f"## {METHODS}", *caption(job, results)]) + "\n"


def summary(results: Sequence[Judged]) -> str:
    """One sentence with the count of each verdict."""
    count = {name: sum(result.verdict == name for result in results) for name in VERDICTS}
    claims = "1 claim" if len(results) == 1 else f"{len(results)} claims"
    text = (
        f"Of {claims}, {count[SUPPORTED]} {'is' if count[SUPPORTED] == 1 else 'are'} supported, "
        f"{count[CONTRADICTED]} contradicted and {count[UNDECIDED]} undecided"
    )
    if count[NOT_RUN]:
        text += f"; {count[NOT_RUN]} {'was' if count[NOT_RUN] == 1 else 'were'} not run in this study"
    if count[NOT_TESTABLE]:
        text += f"; {count[NOT_TESTABLE]} cannot be tested"
    return f"{text}."


def _grid(results: Sequence[Judged]) -> str:
    lines = [
        ["Claim", "Where", "Paper", "Ours", "Verdict", "Paper's size inside?"],
        [":---", ":---", "---:", "---:", ":---", ":---:"],
    ]
    for result in results:
        claim, ours = result.claim, _ours(result.difference.get(HEADLINE))
        about = [claim["claim"], claim["where"], paper_text(claim)]
        lines.append([*about, ours, _verdict_text(result), result.paper_inside or "—"])
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def paper_text(claim: Mapping[str, Any]) -> str:
    """The paper's size, or the bound where it names only that."""
    if claim["paper"] is not None:
        return points(claim["paper"])
    return "—" if claim["at_least"] is None else f"> {claim['at_least']:g}"


def points(value: float) -> str:
    """A difference with its sign and one decimal; zero has no sign."""
    rounded = round(value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def _ours(interval: Interval | None) -> str:
    if interval is None:
        return "—"
    # no-break spaces: in a narrow window the interval moves below the estimate whole
    return f"**{points(interval.value)}** [{points(interval.low)},\N{NO-BREAK SPACE}{points(interval.high)}]"


def _verdict_text(result: Judged) -> str:
    decided = result.verdict in (SUPPORTED, CONTRADICTED)
    text = f"**{result.verdict}**" if decided else result.verdict
    if not result.why:
        return text
    return f"{text} ({result.why})" if decided else f"{text}: {result.why}"


def caption(job: Mapping[str, Any], results: Sequence[Judged]) -> list[str]:
    """The paragraphs below the table: data, estimator, verdicts, void pixels, remarks."""
    level, margin = f"{100 * LEVEL:g} %", f"{job['margin']:g} point{'' if job['margin'] == 1 else 's'}"
    tested = [result for result in results if result.difference]
    estimator = (
        f"Ours: the first cell minus the second, in points of mIoU unless the claim says FB-IoU (classes weighed by "
        f"test pairs), mean over folds; [low, high] is {METHOD}, in pairs: of both cells the same photo is left "
        f"out and, where they are equal, the same seed. {_sizes(job, tested)}"
    )
    rule = (
        "Verdict: a claim that one is above the other is supported if the whole interval lies above 0 (or above the "
        'size it says is exceeded), contradicted if it lies below. A claim of no gain ("saturates", "adds nothing") '
        f"is supported if the whole interval lies below a margin of {margin}, contradicted if it lies above: not "
        "finding a gain does not support it. Any other interval leaves a claim undecided. Verdicts are taken before "
        f"rounding and each for itself, at {level}, without a correction for their number. Whether the paper's size "
        "lies inside the interval is asked apart from the direction; the paper gives its sizes without an interval."
    )
    found = evaluations(cell for row in job["places"].values() for cell in row["cells"])
    if any(result.claim.get("rivals") for result in tested):
        rule += " A claim against all others is judged against the one with the highest mean here, which is named."
    paragraphs = [
        " ".join([job["caption"], *data_sentences([about for _, about in found])]),
        estimator,
        rule,
        _void_sentence(tested),
    ]
    if any(result.verdict == NOT_TESTABLE and result.why != SAME_RUNS for result in results):
        paragraphs.append(
            "Claims about other methods cannot be tested here: their figures are quoted by the paper, so they have no "
            "episodes to be paired with."
        )
    remarks: dict[str, list[str]] = {}
    for result in results:
        if result.claim["note"]:
            remarks.setdefault(result.claim["note"], []).append(f"“{result.claim['claim']}”")
    if remarks:
        paragraphs.append(" ".join(["Remarks.", *(f"On {', '.join(of)}: {note}." for note, of in remarks.items())]))
    return [paragraph.strip() for paragraph in paragraphs]


def _sizes(job: Mapping[str, Any], tested: Sequence[Judged]) -> str:
    if not tested:
        return "No claim was run."
    seeds = {result.seeds for result in tested}
    episodes = {result.episodes // len(result.folds) for result in tested}
    photos, pairs = ({n for r in tested for n in counts(r)} for counts in (lambda r: r.photos[:-1], lambda r: r.pairs))
    tables: dict[str, list[str]] = {}  # by their folds
    for result in tested:
        folds = f"fold{'s' if len(result.folds) > 1 else ''} {', '.join(map(str, result.folds))}"
        every = job["places"][result.claim["first"]]["dataset_folds"]
        folds += f" of {every}" if len(result.folds) < every else ""
        tables.setdefault(folds, []).append(table_name(result.claim["table"]))
    places = [f"{folds} ({', '.join(dict.fromkeys(names))})" for folds, names in tables.items()]
    where = "; ".join(places) if len(places) > 1 else next(iter(tables))
    return f"{training_seeds(seeds)}, {episode_sizes(episodes, photos, pairs)}; {where}."


def encoder_sentence(job: Mapping[str, Any]) -> list[str]:
    """What stands in this study for the paper's two backbones, by the roles that the tables name."""
    known = {"ResNet-50": job["encoders"].get("main"), "VGG16": job["encoders"].get("vgg16")}
    named = [f"{text} where the paper has {paper}" for paper, text in known.items() if text]
    return [f"Encoders: {', '.join(named)}."] if named else []


def _void_sentence(tested: Sequence[Judged]) -> str:
    text = f"Void pixels are {VOID_NAMES[HEADLINE].removeprefix('void ')}, as the code of the paper's time did."
    changed = [r for r in tested if r.verdicts[OTHER] != r.verdict]
    if changed:
        listed = "; ".join(f"{r.claim['claim']}: {r.verdicts[OTHER]}" for r in changed)
        return f"{text} With them ignored these verdicts differ: {listed}."
    return f"{text} With them ignored every verdict is the same." if tested else text
