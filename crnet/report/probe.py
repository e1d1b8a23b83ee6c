"""The probe of a study as a table: what each module's swap changes in mIoU, in pairs with the untouched prediction.

Both readings are scored on the same episodes, and of both the same photos and training seeds are left out
(``crnet.metrics.intervals``). A difference is swapped minus untouched: below 0 where a module uses what was taken away.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from crnet.config.labels import named_with, table_heading, table_name
from crnet.config.probe import CATEGORY, GATE, SWAPS, UNTOUCHED
from crnet.metrics.intervals import METHOD, FoldCounts, difference, estimate, query_photos
from crnet.report.claims import points
from crnet.report.tables import layout
from crnet.report.tables.captions import episode_sizes, training_seeds
from crnet.report.tables.cells import UNDEFINED, VOID_NAMES, VOIDS, gap, read_folds, short_gap
from crnet.report.tables.markdown import grid
from crnet.report.tables.render import plain
from crnet.runtime.files import atomic_write, write_csv

TITLE = "What the modules use"
DETAILS = "By fold"
COLUMNS = {GATE: "Another class's photo in the gate", CATEGORY: "Another class's category"}
NIL = 0.5  # points of mIoU, half of the margin of the claims: what lies surely within is as good as nothing
NO_MODULE = "the row has no such module"
KEYS = ("row", "swap", "fold", "void")


@dataclass(frozen=True)
class Reading:
    """One reading of a row on a fold or in the mean of all, in percent and points.

    Attributes:
        swap: "untouched", "gate" or "category".
        miou: Of this reading.
        change, low, high: Swapped minus untouched, with its interval; None for untouched.
        note: Why there is no value.
    """

    row: str
    label: str
    swap: str
    fold: int | str
    void: str
    miou: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    episodes: int | None = None
    photos: int | None = None
    pairs: int | None = None
    note: str = ""


def render_probe(job: Mapping[str, Any], out_prefix: Path) -> None:
    """Write ``<out_prefix>.csv`` and ``.md`` from the counts that ``crnet.config.study.probe_job`` names.

    Raises:
        CrnetError: counts that cannot be read, or readings of different episodes.
    """
    found = collect(job)
    header = [each.name for each in fields(Reading)]
    write_csv(f"{out_prefix}.csv", header, [[plain(value) for value in asdict(each).values()] for each in found])
    atomic_write(f"{out_prefix}.md", render_markdown(job, found))


def collect(job: Mapping[str, Any]) -> list[Reading]:
    """All readings: rows in their order, then swaps, void conventions, folds and mean."""
    return [reading for row in job["rows"] for swap in (UNTOUCHED, *SWAPS) for reading in _of_swap(job, row, swap)]


def _of_swap(job: Mapping[str, Any], row: Mapping[str, Any], swap: str) -> Iterator[Reading]:
    places = [*job["folds"], "mean"]
    about = {"row": row["id"], "label": row["label"], "swap": swap}
    if swap != UNTOUCHED and swap not in row["swaps"]:
        yield from (Reading(**about, fold=place, void=void, note=NO_MODULE) for void in VOIDS for place in places)
        return
    parts, gaps = read_folds(job["folds"], row["cells"], swap=swap)
    untouched, _ = read_folds(job["folds"], row["cells"], swap=UNTOUCHED)
    notes = {fold: gap(fold, seeds, row["cells"]) for fold, seeds in gaps.items()}
    for void in VOIDS:
        for place in places:
            folds = job["folds"] if place == "mean" else [place]
            if lacking := [notes[fold] for fold in folds if fold in notes]:
                measured = {"note": "; ".join(dict.fromkeys(lacking))}
            else:
                measured = _measured([parts[f] for f in folds], [untouched[f] for f in folds], swap, void)
            yield Reading(**about, fold=place, void=void, **measured)


def _measured(swapped: Sequence[FoldCounts], untouched: Sequence[FoldCounts], swap: str, void: str) -> dict[str, Any]:
    """The values of a reading, or why there are none."""
    points_of = [100 * estimate(swapped, "miou", void)]
    if swap != UNTOUCHED:
        points_of += [100 * value for value in difference(swapped, untouched, "miou", void)]
    if any(map(math.isnan, points_of)):
        return {"note": UNDEFINED}
    return {
        **dict(zip(("miou", "change", "low", "high"), points_of, strict=False)),
        "seeds": min(len(part.seeds) for part in swapped),
        "episodes": sum(len(part.classes) for part in swapped),
        "photos": query_photos(swapped),
        "pairs": sum(part.pairs for part in swapped),
    }


def render_markdown(job: Mapping[str, Any], found: Sequence[Reading]) -> str:
    """The grid, the sentences that follow from it, every fold, and how to read it.

    ``crnet.report.page.page`` takes from it what stands between the title and the first heading.
    """
    heading = table_heading(job["table"], job["title"])
    parts = [f"# {TITLE}", _lead(job), _grid(job, found, "mean", VOIDS[0]), *sentences(job, found), f"## {DETAILS}"]
    folds = layout.fold_columns(job)
    for void in VOIDS:
        for place in [*folds, "mean"]:
            name = layout.mean_name(job) if place == "mean" else f"Fold {place}"
            parts += [f"### {name}, {VOID_NAMES[void]}", _grid(job, found, place, void)]
    parts += [f"## {layout.READING}", f"Rows of {heading}. {_sizes(found)}", *_reading(job), job["caption"].strip()]
    return "\n\n".join(filter(None, parts)) + "\n"


def _lead(job: Mapping[str, Any]) -> str:
    """What was done, in a sentence for readers of the page."""
    return (
        f"The trained heads of {table_name(job['table'])}, asked again on the first {job['episodes']} test episodes of "
        "each fold, or all where there are fewer, with what one module reads of the support taken from a support of "
        f"another class; 1-shot mIoU, {VOID_NAMES[VOIDS[0]]}, {layout.mean_name(job).lower()}; differences in points, "
        "swapped minus untouched, with 95 % intervals."
    )


def _grid(job: Mapping[str, Any], found: Sequence[Reading], place: int | str, void: str) -> str:
    names = layout.switch_names(job)
    lines = [["", *names, "Untouched", *COLUMNS.values()]]
    for row in job["rows"]:
        of = {r.swap: r for r in found if (r.row, r.fold, r.void) == (row["id"], place, void)}
        untouched = of[UNTOUCHED]
        first = layout.number(untouched.miou) if not untouched.note else _why(untouched)
        ticks = [layout.setting(row, name) for name in names]
        lines.append([row["label"], *ticks, first, *(_change(of[swap]) for swap in SWAPS)])
    return grid(lines, ["l", *"c" * len(names), "r", "r", "r"])


def _why(reading: Reading) -> str:
    return short_gap(reading.note) if reading.note.startswith(("missing", "failed")) else layout.NONE


def _change(reading: Reading) -> str:
    if reading.change is None:
        return _why(reading)
    return f"**{points(reading.change)}** {_interval(reading)}"


def _interval(reading: Reading) -> str:
    # the no-break space: in a narrow window the interval moves below its value whole
    return f"[{points(reading.low)},\N{NO-BREAK SPACE}{points(reading.high)}]"


def sentences(job: Mapping[str, Any], found: Sequence[Reading]) -> list[str]:
    """One paragraph: what the swaps change in each row, and whether its cross-reference uses its support here."""
    means = [r for r in found if (r.fold, r.void) == ("mean", VOIDS[0]) and r.change is not None]
    gates, categories = ([r for r in means if r.swap == swap] for swap in SWAPS)
    names = {row["id"]: named_with(row["label"], dict(row["switches"])) for row in job["rows"]}
    said = [
        f"{subject} {_listed([f'{points(r.change)} {_interval(r)} in *{names[r.row]}*' for r in readings])}"
        for subject, readings in (
            ("another class's photo in the gate changes mIoU by", gates),
            ("another category by" if gates else "another class's category changes mIoU by", categories),
        )
        if readings
    ]
    if not said:
        return []
    first = "; ".join(said)
    verdicts: dict[str, list[str]] = {}
    for reading in gates:
        verdicts.setdefault(verdict(reading), []).append(f"*{names[reading.row]}*")
    second = "; ".join(f"in {_listed(labels)} {text}" for text, labels in verdicts.items())
    return [f"{first[0].upper()}{first[1:]}." + (f" So {second}." if second else "")]


def verdict(reading: Reading) -> str:
    """What the gate's swap says of the cross-reference, by the interval of its mean."""
    if reading.low == reading.high == reading.miou == 0:
        return "nothing can be told of the cross-reference, as the head finds nothing"
    if reading.low == reading.high == 0:
        return "the cross-reference does not use what its support shows: the score stays as it is"
    if reading.low > -NIL and reading.high < NIL:
        return (
            f"what its support shows moves the score by less than {NIL:g} points: the cross-reference works without it"
        )
    if reading.high < 0:
        return "the cross-reference uses what its support shows: with another class's photo it does worse"
    if reading.low > 0:
        return "the cross-reference does better with another class's photo: its support does not help it"
    return "it is not to be told from nothing whether the cross-reference uses what its support shows"


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _sizes(found: Sequence[Reading]) -> str:
    known = [r for r in found if r.miou is not None and r.fold != "mean"]
    if not known:
        return "No fold has all its counts."
    sizes = ({getattr(r, name) for r in known} for name in ("episodes", "photos", "pairs"))
    return f"{training_seeds({r.seeds for r in known})} and {episode_sizes(*sizes)}."


def _reading(job: Mapping[str, Any]) -> list[str]:
    return [
        "In the gate (paper 4.3): the cross-reference takes the importance of the support's channels from a photo of "
        "another class of the same fold, which does not show the class asked for; the category vector stays the "
        "support's. Category (paper 4.4): the condition module takes its vector from that other support and its mask; "
        "the gate stays. The other support is drawn for each episode by a seed derived from it and stands in its row "
        f"of counts. A row without the module has {layout.NONE}.",
        f"[low, high] is {METHOD}, in pairs: of both readings the same photo is left out, and the same seed. An "
        "interval without 0 says that the module uses what was swapped; one around 0 is no proof that it does not.",
    ]
