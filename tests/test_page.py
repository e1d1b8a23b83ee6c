"""The page of a study and its cost: sums by hand, and every missing part is said in its place."""

import re
from pathlib import Path

import pytest
from PIL import Image
from test_tables import make_job

from crnet.errors import CrnetError
from crnet.report.page.citation import render_citation
from crnet.report.page.cost import COLUMNS, CPU, GPU, costs, render_cost
from crnet.report.page.finetuning import render_finetuning
from crnet.report.page.html import write_html
from crnet.report.page.methods import render_methods
from crnet.report.page.page import slug, write_page
from crnet.report.page.provenance import render_provenance
from crnet.report.tables.render import render_table
from crnet.runtime.files import write_csv

RUNS = (  # run, kind, method, variant, shots, status, seconds, peak, device, threads
    ("a", "train", "crnet", "crnet", "", "finished", "1800", str(2**30), "cpu", "2"),
    ("b", "train", "crnet", "crnet", "", "failed", "900", "", "cpu", "2"),
    ("c", "train", "crnet", "wide", "", "finished", "7200", str(3 * 2**30), "cuda", "8"),
    ("t", "trials", "crnet", "crnet", "5", "finished", "36", "1", "cpu", "1"),
    ("e", "evaluate", "crnet", "crnet", "5", "finished", "12.345678", "1", "cpu", "1"),
    ("e+fusion", "evaluate", "crnet", "crnet", "5", "finished", "", "", "cpu", "1"),
)


LABELS = [("Table 2: Wide", ["c"]), ("Table 4: Finetune", ["t", "e"])]


def lines(*runs: tuple) -> list[dict[str, str]]:
    return [dict(zip(COLUMNS, run, strict=True)) for run in runs or RUNS]


def test_cost_sums_hours_by_kind_device_and_variant() -> None:
    choice = ("o", "choice", "crnet", "crnet", "5", "finished", "", "", "cpu", "1")  # reads a few numbers, is no cost
    kinds, variants = costs(lines(*RUNS, choice), LABELS)
    found = {(cost.name, cost.unit): cost for cost in kinds}
    training = found["Training", CPU]
    assert training.hours == pytest.approx((1800 + 900) * 2 / 3600)  # core-hours: two threads
    assert (training.runs, training.failed, training.peak_bytes, training.seconds) == (2, 1, 2**30, (900, 1800))
    assert found["Training", GPU].hours == pytest.approx(2)  # a GPU counts once, whatever its threads
    assert found["Evaluation", CPU].runs == 1  # two readings of one job
    # as the tables name them, in their order; a run that none of them has by its variant
    assert [cost.name for cost in variants["Training"]] == ["Table 2: Wide", "crnet"]
    assert [cost.name for cost in variants["Choosing finetuning's settings"]] == ["Table 4: Finetune, 5-shot"]
    assert [(cost.name, cost.runs) for cost in variants["Evaluation"]] == [("Table 4: Finetune, 5-shot", 1)]


def test_cost_is_cpu_time_where_it_was_recorded() -> None:
    """A run that waited for the disk, or whose loaders had cores of their own, cost what it cost."""
    runs = [line | {"cpu_seconds": spent} for line, spent in zip(lines(), ("3600", "", "9", "", "18", ""), strict=True)]
    kinds, _ = costs(runs, LABELS)
    found = {(cost.name, cost.unit): cost for cost in kinds}
    assert found["Training", CPU].hours == pytest.approx((3600 + 900 * 2) / 3600)
    assert found["Training", GPU].hours == pytest.approx(2)  # of the GPU, not of the core that fed it
    assert found["Training", CPU].seconds == (900, 1800)
    text = render_cost(runs, LABELS)[-1]
    assert (
        "CPU time of a run's process and its children; of 2 runs that did not record it, seconds times threads" in text
    )
    assert "CPU time" not in render_cost(lines(), LABELS)[-1]


def test_cost_reads_without_float_tails() -> None:
    text = "\n\n".join(render_cost(lines(), []))
    assert "**1.51 CPU-core-hours and 2.00 GPU-hours** in 5 runs." in text
    for words in ("1350 (900 to 1800)", "3.00 GiB", "12.3 ", "1 run failed"):
        assert words in text
    assert "12.34" not in text and "recorded no time" not in text
    assert "1 run recorded no time." in render_cost(lines(("x", "train", "m", "m", "", "failed", *[""] * 4)), [])


NO_NUMBER = lines(("x", "train", "m", "m", "", "finished", "soon", "", "cpu", "1"))


@pytest.mark.parametrize(("runs", "message"), [([], "no line with the column"), (NO_NUMBER, "soon")])
def test_cost_refuses_other_files(runs: list, message: str) -> None:
    with pytest.raises(CrnetError, match=message):
        costs(runs, [])


def test_provenance_lists_only_what_differs() -> None:
    runs = [
        line | {"commit": "a" * 40, "dirty": "true", "versions.torch": torch, "cpu": "EPYC", "dataset.name": "voc"}
        for line, torch in zip(lines(), ("2.1", "2.1", "2.2", "2.1", "2.1", "9.9"), strict=True)
    ]
    runs = [line | {"dataset_digest": "5d796cceb7020e40633453", "fold": "0", "episodes_digest": ""} for line in runs]
    text = "\n".join(render_provenance(runs))
    assert "2.1 (4 runs); 2.2 (1 run)" in text
    assert "| EPYC " in text and "EPYC (" not in text
    assert "`aaaaaaaaaaaa` with uncommitted changes" in text
    assert "voc `5d796cceb7020e40`" in text
    assert "9.9" not in text  # a second reading is no run
    assert "GPU" not in text.replace("cuda", "")


@pytest.mark.parametrize(
    ("name", "archive", "words"),
    [
        ("resnet50", "resnet50-0676ba61.pth", "[resnet50-0676ba61.pth](https://download.pytorch.org/"),
        ("resnet50v2", "resnet50-v2-7.onnx", "resnet50-v2-7.onnx), sha256 1e80e8a7"),
        (
            "resnet50v2:build",
            "",
            "the module `resnet50v2`, which is no part of crnet; crnet's own encoder `resnet50v2` takes",
        ),
        ("mine.net:build", "", "brought by the module `mine.net`, which is no part of crnet |"),
        ("small", "", None),
    ],
)
def test_provenance_says_where_the_encoders_weights_come_from(name, archive, words):
    of = {"encoder.name": name, "encoder.archive": archive, "dataset.name": "voc", "fold": "0", "episodes_digest": ""}
    text = "\n".join(render_provenance([line | of for line in lines()]))
    assert words in " ".join(text.split()) if words else "weights" not in text


def test_provenance_warns_of_runs_by_another_source() -> None:
    of = {"encoder.name": "small", "dataset.name": "voc", "fold": "0", "episodes_digest": ""}
    runs = [line | of | {"method_source": "old", "encoder_source": "same"} for line in lines()]
    now = {"method": {"crnet": "new"}, "encoder": {"small": "same"}}
    text = render_provenance(runs, now)
    assert text[0].startswith("**Warning**: the source of method crnet is not the one that 5 runs were made by")
    assert "encoder small" not in "".join(text)
    unknown = [{key: value for key, value in line.items() if not key.endswith("_source")} for line in runs]
    for silent in (render_provenance(unknown, now), render_provenance(runs), render_provenance(runs, {"method": {}})):
        assert silent == text[1:]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A study's folder with two tables, one plot, and nothing else."""
    folder = tmp_path / "results" / "demo"
    job = make_job(tmp_path)
    for name, source in (("table2", "CRNet (CVPR 2020), Table 2"), ("table3", "CRNet (CVPR 2020), Table 3")):
        render_table(job | {"table": name, "source": source}, folder / "tables" / name)
    (folder / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "figures" / "table2.png")
    return folder


JOB = {
    **{"study": "demo", "title": "Demo", "caption": "Generated scenes.", "orientation_only": True},
    "tables": [{"name": f"table{n}", "title": title} for n, title in ((2, "Modules"), (3, "Extras"), (4, "Shots"))],
    **{"headline": "table3", "labels": [], "sheet": True},
    **{"command": "snakemake --cores all --configfile demo.yaml", "results": "out/demo"},
}


def page(results: Path, **changes) -> str:
    write_page(JOB | changes, results)
    return (results / "README.md").read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_page_says_what_is_missing(results: Path) -> None:
    text = page(results)
    for title, file in {
        **{"The paper's claims": "claims.md", "Table 4: Shots": "tables/table4.md"},
        **{"Table 3: Extras": "figures/table3.png", "Shots and strategies": "figures/k-shot.png"},
        **{"Cost": "runs.csv", "Provenance": "runs.csv", "IoU by class": "classes.csv"},
    }.items():
        assert f"`{file}` has not been made" in section(text, title)
    # the command, with the one file as its target
    how = "`snakemake out/demo/figures/episodes.png --cores all --configfile demo.yaml` makes it"
    assert how in section(text, "Test episodes")


def test_page_shows_grids_and_says_shared_text_once(results: Path) -> None:
    text = page(results)
    table = section(text, "Table 2: Modules")
    assert "| Condition only" in table and "![Table 2: Modules](figures/table2.png)" in table
    assert "](tables/table2.csv)" in table
    assert "Fold 0" not in table  # the details are a click away
    said_once = (
        "Generated scenes.",
        "interval of a jackknife",
        "2 training seeds and 60 episodes",
        "The data differ from",
    )
    for once in (*said_once, "Paper: CRNet (CVPR 2020), Table 3."):
        assert text.count(once) == 1
    first = text.index("[Table 2](#table-2-modules)")
    assert first < text.index("## Table 2") < text.index("## How to read the tables")
    assert page(results) == text


def test_page_begins_with_the_headline_table_by_fold_and_ends_with_how_to_cite(results: Path) -> None:
    (results / "claims.md").write_text("# The paper's claims\n\nOf 1 claim.\n\n| Claim |\n| :--- |\n| It works |\n")
    text = page(results)
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        *("Results", "Table 2: Modules", "Table 3: Extras", "Table 4: Shots", "Shots and strategies", "IoU by class"),
        *("Test episodes", "The paper's claims", "How to read the tables", "Training", "Cost", "Provenance"),
        *("Make it again", "How to cite"),
    ]
    first = section(text, "Results")
    assert first.strip().startswith("**Table 3: Extras. 1-shot mIoU, void counted as background**")
    assert all(
        words in first for words in ("Fold 0", "Fold 3", "Mean", "| Condition only", "(#how-to-read-the-tables)")
    )
    assert all(f"](#{slug(title)})" in text for title in titles)
    cite = section(text, "How to cite")
    assert "@inproceedings{liu2020crnet" in cite and "study `demo`" in cite


def test_sections_of_what_a_study_does_not_do_are_left_out(results: Path) -> None:
    untested = "# The paper's claims\n\nOf 42 claims.\n\n## Claims without a value here\n\n| Claim |\n| :--- |\n| A |\n"
    (results / "claims.md").write_text(untested)
    write_csv(results / "classes.csv", ("fold", "void"), [])
    write_csv(results / "training.csv", ("run", "loss"), [])
    text = page(results, tables=JOB["tables"][:1], headline="table2", sheet=False)
    for title in ("The paper's claims", "Shots and strategies", "IoU by class", "Test episodes", "Training"):
        assert f"## {title}" not in text and f"[{title}]" not in text
    assert "## Table 2" in text and "Finetuning" not in text
    assert "has not been made" not in text.replace("`runs.csv` has not been made", "")


def test_citation_names_the_commit_where_it_is_one() -> None:
    def cited(*commits: str) -> str:
        return "\n".join(render_citation(JOB, [{"commit": commit} for commit in commits]))

    assert "at commit `aaaaaaaaaaaa`" in cited("a" * 40, "a" * 40, "unknown")
    assert "commit" not in cited("a" * 40, "b" * 40) and "commit" not in cited("unknown")


def test_page_takes_claims_cost_and_provenance(results: Path) -> None:
    (results / "claims.md").write_text(
        "# The paper's claims\n\nOf 1 claim, 1 is supported.\n\n| Claim |\n| :--- |\n| It works |\n\n"
        "## How the verdicts are reached\n\nA long method.\n"
    )
    header = (*COLUMNS, "commit", "dirty")
    write_csv(results / "runs.csv", header, [(*run, "b" * 40, "false") for run in RUNS])
    text = page(results)
    claims = section(text, "The paper's claims")
    assert "Of 1 claim, 1 is supported." in claims and "| It works |" in claims
    assert "A long method." not in claims and "(claims.md)" in claims
    assert "2.00 GPU-hours" in section(text, "Cost")
    assert "`bbbbbbbbbbbb`" in section(text, "Provenance")
    assert "[runs.csv](runs.csv)" in section(text, "Make it again")


def test_page_refuses_what_it_cannot_read(results: Path) -> None:
    with pytest.raises(CrnetError, match="no folder of results"):
        write_page(JOB, results / "none")
    for file, content, message in (
        ("runs.csv", ",".join(COLUMNS) + "\nx,train", r"runs\.csv: is no CSV any more \(line 2 has 2 cells"),
        ("tables/table2.md", "# A table of another time\n", r"table2\.md: is not a table"),
    ):
        (results / file).write_text(content)
        with pytest.raises(CrnetError, match=message):
            write_page(JOB, results)
        (results / file).unlink()


def test_html_stands_alone(results: Path) -> None:
    write_page(JOB, results)
    write_html(results / "README.md", results.parent / "page.html")
    text = (results.parent / "page.html").read_text()
    assert 'src="data:image/png;base64,' in text and "figures/table2.png" not in text
    assert '<h2 id="table-2-modules">' in text and 'href="#table-2-modules"' in text
    assert 'href="tables/' not in text
    assert "<strong>" in text and "**" not in text and "\0" not in text
    assert "<code>snakemake out/demo/claims.md" in text
    assert text.count("<table>") == text.count("</table>") == 3
    assert re.search(r'<td style="text-align: ?right">', text)


def test_html_is_made_of_any_markdown(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a b.png")
    (tmp_path / "page.md").write_text(
        "# A *page* & more\n\n- one [file](x.csv), a [link](https://example.org/?a=1&b=2)\n- `a|b` <b>\n\n"
        '| a | b |\n| :-- | --: |\n| x \\| y | ![pic "1"](<a b.png>) |\n\n```\n<code>\n\n# no heading\n```\n\n'
        "<details><summary>More</summary>\n\n**strong**\n\n</details>\n"
    )
    write_html(tmp_path / "page.md", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for words in (
        '<h1 id="a-page--more">A <em>page</em> &amp; more</h1>',
        "<li>one file (x.csv), a ",
        'href="https://example.org/?a=1&amp;b=2"',
        "x | y</td>",
        "&lt;code&gt;\n\n# no heading",
        "<details><summary>More</summary>\n<p><strong>strong</strong></p>\n</details>",
        "data:image/png;base64,",
    ):
        assert words in text
    assert text.count("<h1") == 1


def test_anchors_are_githubs() -> None:
    assert slug("Table 4: K-shot, by fusion & finetuning") == "table-4-k-shot-by-fusion--finetuning"
    assert slug("The paper's claims") == "the-papers-claims"


def test_finetuning_shows_chosen_settings_and_losses_once_a_job():
    tuned = {"kind": "choice", "run": "choice", "train_run": "model", "variant": "crnet", "miou_untouched": "50.04"}
    tuned |= {"choice.lr": "0.0003", "choice.steps": "20", "choice.edge_lr": "", "choice.edge_steps": "most"}
    tuned |= {"choice.tried_on": "novel"}
    scored = {
        "kind": "evaluate",
        "run": "finetuned",
        "train_run": "model",
        "fold": "2",
        "seed": "0",
        "shots": "5",
        "variant": "crnet",
    }
    scored |= {"choice.lr": "0.0003", "choice.steps": "20", "support_loss_before": "0.8", "support_loss_after": "0.2"}
    lines = [tuned | {"miou_ignore": "52.26"}, scored, scored | {"run": "finetuned+fusion"}]
    lead, how, table, _ = render_finetuning(lines, [("Table 4: Finetune (full)", ["choice", "finetuned"])])
    assert "25 %" in lead and "the other folds' models" in how and "(the most steps once)" in how
    none = lines[0] | {"choice.steps": "0", "choice.edge_steps": ""}
    _, how, *_ = render_finetuning([none, *lines[1:]], [])
    assert "no step at all was best" in how and "end of what was tried" not in how
    _, _, row = table.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["Table 4: Finetune (full)", "2", "0", "5", "0.0003", "20", "50.0 → 52.3", "0.800 → 0.200"]
    assert render_finetuning([{"kind": "train", "run": "model", "train_run": ""}], []) == []


def test_methods_are_set_beside_each_other_with_what_they_cost():
    def rows(method, parameters, speeds):
        trained = {"run": f"{method}-t", "kind": "train", "status": "finished", "method": method, "variant": method}
        yield {**trained, "parameters": str(parameters), "shots": "", "peak_memory_bytes": str(2**31)}
        for shots, speed in speeds.items():
            tested = {"kind": "evaluate", "status": "finished", "method": method, "variant": method, "shots": shots}
            cost = {"episodes_per_second": speed, "peak_memory_bytes": str(3 * 2**20), "evaluate.strategy": "fusion"}
            yield {**tested, **cost, "run": f"{method}-{shots}", "train_run": f"{method}-t"}

    speeds = {"1": "100.0", "5": "25.0"}
    lines = [line for method in ("b", "a", "c") for line in rows(method, 1234567, speeds)]
    table, _ = render_methods(lines, [("Ring: B", ["b-t", "b-1"]), ("Ring: A", ["a-t", "a-1"])])
    heading, _, *shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert heading == ["Row", "Weights learnt", "ms an episode, 1-shot", "ms an episode, 5-shot", "Peak memory, MiB"]
    assert shown == [[name, "1,234,567", "10", "40", "3"] for name in ("Ring: B", "Ring: A", "c")]
    assert render_methods([line for line in lines if line["method"] != "c"], []) == [], (
        "of one's own variants, no table"
    )
