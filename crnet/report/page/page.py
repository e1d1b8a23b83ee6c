"""The page that people read: ``results/<study>/README.md``, made from the files that lie beside it.

It begins with the headline table by fold, and holds of every part what one wants to see first, with links to the rest;
text that several tables share stands once. What a study does not do has no section; what is missing is said in its
place, with how to make it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crnet.config.labels import table_heading
from crnet.config.probe import FOLDER
from crnet.errors import CrnetError
from crnet.report.classes import render_classes
from crnet.report.page.citation import render_citation
from crnet.report.page.cost import render_cost
from crnet.report.page.finetuning import render_finetuning
from crnet.report.page.methods import render_methods
from crnet.report.page.provenance import render_provenance
from crnet.report.page.rates import render_rates
from crnet.report.probe import TITLE as PROBE_TITLE
from crnet.report.tables.layout import DETAILS, READING
from crnet.report.tables.markdown import ORIENTATION
from crnet.runtime.files import atomic_write, read_csv

PAGE = "README.md"
CLASSES = "classes.csv"
RESULTS = "Results"
READ_TABLES = "How to read the tables"
CURVE_TABLE = "table4"  # whose rows the k-shot curve shows


class TablePart(NamedTuple):
    """What the page takes from ``tables/<name>.md``: the compact grid, the first by fold, and the paragraphs."""

    heading: str
    grid: str
    by_fold: list[str]  # its title and the grid; empty where nothing is run
    own: list[str]
    reading: list[str]


def write_page(job: Mapping[str, Any], results: Path) -> None:
    """Write the page of ``crnet.config.study.page_job`` into the study's folder, e.g. ``results/demo``.

    Raises:
        CrnetError: the folder does not exist, or a file in it is not what it should be.
    """
    if not results.is_dir():
        raise CrnetError(f"{results}: is no folder of results; run the study first: {job['command']}.")
    parts = {table["name"]: _read_table(results / "tables" / f"{table['name']}.md") for table in job["tables"]}
    shared = _shared(job, parts)
    runs = read_csv(results / "runs.csv") if (results / "runs.csv").is_file() else []
    no_runs = _missing(job, "The list of runs", results, "runs.csv")
    sections = [
        (RESULTS, _headline(job, parts)),
        *_tables(job, results, parts, shared),
        ("IoU by class", _classes(job, results)),
        ("Test episodes", _sheet(job, results)),
        ("The paper's claims", _claims(job, results)),
        (READ_TABLES, [*shared.values()] or ["No table has been made yet."]),
        ("Finetuning: settings and loss on the supports", render_finetuning(runs, job["labels"])),
        ("The methods' cost", render_methods(runs, job["labels"])),
        ("Learning rates", render_rates(runs, job["labels"])),
        ("Training", _losses(job, results)),
        ("Cost", render_cost(runs, job["labels"]) if runs else no_runs),
        ("Provenance", render_provenance(runs, job.get("sources", {})) if runs else no_runs),
        ("Make it again", _again(job, results)),
        ("How to cite", render_citation(job, runs)),
    ]
    sections = [(title, paragraphs) for title, paragraphs in sections if paragraphs]
    head = [f"# {job['title']}", *([ORIENTATION] if job["orientation_only"] else []), job["caption"].strip()]
    contents = " · ".join(f"[{title.partition(':')[0]}](#{slug(title)})" for title, _ in sections)
    body = [text for title, paragraphs in sections for text in (f"## {title}", *paragraphs)]
    atomic_write(results / PAGE, "\n\n".join([*head, contents, *body]) + "\n")


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _headline(job: Mapping[str, Any], parts: Mapping[str, TablePart | None]) -> list[str]:
    """The headline table by fold; nothing where it is missing, which its own section says, or is not run."""
    name = job["headline"]
    if (part := parts.get(name)) is None or not part.by_fold:
        return []
    title, grid = part.by_fold
    what = table_heading(name, next(table["title"] for table in job["tables"] if table["name"] == name))
    text = "Percent, with 95 % intervals in brackets"
    return [f"**{what}. {title}**", grid, f"{text}: [{READ_TABLES.lower()}](#{slug(READ_TABLES)})."]


def _number(name: str) -> str:
    """ "2" of "table2"; "" if the name is another."""
    number = name.removeprefix("table")
    return number if number.isdigit() else ""


def _missing(job: Mapping[str, Any], what: str, results: Path, file: str) -> list[str]:
    return [f"*{what} is missing: `{file}` has not been made. {_how(job, results, file)}*"]


def _how(job: Mapping[str, Any], results: Path, file: str) -> str:
    """The study's command for one file, if Snakemake is what it calls; the target first, as options take many."""
    command = job["command"]
    if Path(job["results"]).is_absolute():  # of one machine, and not a page's to name
        return "A run of the study makes it."
    if command.startswith("snakemake "):
        command = command.replace("snakemake", f"snakemake {job['results']}/{file}", 1)
    return f"`{command}` makes it."


def _claims(job: Mapping[str, Any], results: Path) -> list[str]:
    """The summary, the plot and the claims that were tested of ``claims.md``; nothing where none was.

    The rest of the claims, and how verdicts are reached, are a click away.
    """
    path = results / "claims.md"
    if not path.is_file():
        return _missing(job, "The verdict on each claim", results, "claims.md")
    paragraphs = [text for text in _paragraphs(path) if not text.startswith("# ") and text != ORIENTATION]
    parts = [i for i, text in enumerate(paragraphs) if text.startswith("## ")]
    paragraphs = paragraphs[: parts[0] if parts else None]
    if not any(text.startswith("|") for text in paragraphs):
        return []
    figure = _figure(job, results, "claims", "All claims, ours against the paper's")
    return [*paragraphs, *figure, "[The other claims, and how the verdicts are reached](claims.md)."]


def _classes(job: Mapping[str, Any], results: Path) -> list[str]:
    """The plot, and every number in a fold-out; nothing where no count is there."""
    path = results / CLASSES
    if not path.is_file():
        return _missing(job, "The IoU of each class", results, CLASSES)
    title_and_grid = render_classes(path)
    if not title_and_grid:
        return []
    figure = _figure(job, results, "classes", "IoU of each test class, with intervals")
    link = f"With intervals and both void conventions: [{CLASSES}]({CLASSES})."
    return [*figure, "<details><summary>Every class and row</summary>", *title_and_grid, "</details>", link]


def _paragraphs(path: Path) -> list[str]:
    return [text.strip() for text in path.read_text(encoding="utf-8").split("\n\n") if text.strip()]


def _read_table(path: Path) -> TablePart | None:
    if not path.is_file():
        return None
    paragraphs = _paragraphs(path)
    try:
        details = paragraphs.index(f"## {DETAILS}")
        reading = paragraphs.index(f"## {READING}")
        start = next(i for i, text in enumerate(paragraphs) if text.startswith("## "))
    except ValueError as error:
        raise CrnetError(f"{path}: is not a table as this version writes it; render it again.") from error
    heading, body, *own = paragraphs[start:details]
    first = paragraphs[details + 1 : details + 3]
    by_fold = [first[0].removeprefix("### "), first[1]] if first[0].startswith("### ") else []
    return TablePart(heading.removeprefix("## "), body, by_fold, own, paragraphs[reading + 1 :])


def _shared(job: Mapping[str, Any], parts: Mapping[str, TablePart | None]) -> dict[str, str]:
    """Paragraphs that several tables have, in order, and as the page prints them: which tables they concern."""
    known = {name: part for name, part in parts.items() if part}
    users: dict[str, list[str]] = {}
    for texts in ("reading", "own"):
        for name, part in known.items():
            for text in getattr(part, texts):
                if text != job["caption"].strip():
                    users.setdefault(text, []).append(name)
    shared = {}
    for text, names in users.items():
        common = len(names) == len(known)
        if common or len(names) > 1 or text in known[names[0]].reading:
            shared[text] = text if common else f"*{_listed(job, names)}:* {text}"
    return shared


def _listed(job: Mapping[str, Any], names: Sequence[str]) -> str:
    """ "Tables 2, 3 and 5"; tables that are not the paper's by their titles, after a comma."""
    numbers = [_number(name) for name in names if _number(name)]
    titles = {table["name"]: table["title"] for table in job["tables"]}
    others = [f'"{titles[name]}"' for name in names if not _number(name)]
    if numbers:
        words = " and ".join(filter(None, [", ".join(numbers[:-1]), numbers[-1]]))
        others.insert(0, f"Table{'' if len(numbers) == 1 else 's'} {words}")
    return ", and ".join(others)


def _tables(
    job: Mapping[str, Any], results: Path, parts: Mapping[str, TablePart | None], shared: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """A section for each table; after it the curve over shots, or the probe, that is of its rows."""
    sections = []
    for table in job["tables"]:
        heading, name = table_heading(table["name"], table["title"]), table["name"]
        if part := parts[name]:
            figure = _figure(job, results, name, heading)
            own = [text for text in part.own if text not in shared]
            sections.append((heading, [f"**{part.heading}**", part.grid, *figure, *own, _links(results, name)]))
        else:
            sections.append((heading, _missing(job, "This table", results, f"tables/{name}.md")))
        if name == CURVE_TABLE:
            sections.append(("Shots and strategies", _curve(job, results)))
        if name == job.get("probe"):
            sections.append((PROBE_TITLE, _probe(job, results)))
    return sections


def _links(results: Path, name: str) -> str:
    files = {"CSV": f"tables/{name}.csv", "LaTeX": f"tables/{name}.tex"}
    links = [f"[{word}]({file})" for word, file in files.items() if (results / file).is_file()]
    return f"In full: {', '.join([f'[each fold, both void conventions](tables/{name}.md)', *links])}."


def _figure(job: Mapping[str, Any], results: Path, name: str, alternative: str) -> list[str]:
    file = f"figures/{name}.png"
    there = (results / file).is_file()
    return [f"![{alternative}]({file})"] if there else _missing(job, "The plot", results, file)


def _curve(job: Mapping[str, Any], results: Path) -> list[str]:
    text = (
        "Table 4 as a curve: mean over folds with 95 % intervals. Finetuning takes two supports, so its lines begin at "
        "the second number of shots; the dotted lines join them to the 1-shot result from which they start."
    )
    return [*_figure(job, results, "k-shot", "mIoU by number of supports, for each strategy"), text]


def _probe(job: Mapping[str, Any], results: Path) -> list[str]:
    """Grid and sentences of the probe's table; its folds are a click away."""
    file = f"{FOLDER}/table.md"
    if not (results / file).is_file():
        return _missing(job, "The probe's table", results, file)
    _, *paragraphs = _paragraphs(results / file)
    end = next(i for i, text in enumerate(paragraphs) if text.startswith("## "))
    return [*paragraphs[:end], f"In full: [each fold, both void conventions]({file}), [CSV]({FOLDER}/table.csv)."]


def _sheet(job: Mapping[str, Any], results: Path) -> list[str]:
    file = "figures/episodes.png"
    if not (results / file).is_file():
        if not job["sheet"]:
            return []
        return [
            "*The sheet of test episodes is not here: it was not drawn, or its photos may not be passed on. "
            f"{_how(job, results, file)} Its place is `{file}`.*"
        ]
    text = (
        "From above: support with its mask, query, prediction, truth. Chosen by rule, not by eye: the first episodes "
        "of each fold, queries that hold several classes first, since they show whether the support decides what is "
        "segmented."
    )
    return [f"![Test episodes]({file})", text]


def _losses(job: Mapping[str, Any], results: Path) -> list[str]:
    if (path := results / "training.csv").is_file() and not read_csv(path):
        return []
    text = (
        "Loss and base-class mIoU of every training, the latter on training photos at input size, with one run of the "
        "refinement. Classes of the test fold take no part."
    )
    link = " The numbers: [training.csv](training.csv)." if (results / "training.csv").is_file() else ""
    return [*_figure(job, results, "losses", "Loss curves"), text + link]


def _again(job: Mapping[str, Any], results: Path) -> list[str]:
    texts = [
        "Only what is not there, or whose settings changed, is run. This page is written by the same command; "
        "`crnet audit`, given this folder, makes every number of it again from the counts and compares."
    ]
    known = {
        "runs.csv": "every run with all its settings",
        "training.csv": "every training's log",
        "claims.csv": "claims for programs",
        CLASSES: "IoU by class for programs",
    }
    if files := [f"[{file}]({file}): {what}" for file, what in known.items() if (results / file).is_file()]:
        texts.append(f"Beside this page: {'; '.join(files)}.")
    return [f"```\n{job['command']}\n```", *texts]
