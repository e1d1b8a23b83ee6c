"""The paper's claims: checked as data, judged on counts whose verdict is known, said in words, drawn."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_figures import texts
from test_tables import write_counts

from crnet.config import study
from crnet.config.claims import CLAIMS, OTHERS, claims_job, load_claims, rivals
from crnet.config.layout import Layout
from crnet.config.schema import load_table
from crnet.errors import CrnetError
from crnet.metrics.intervals import Interval, difference, interval, read_fold
from crnet.report.claims import HEADER, ONE_SEED, judge_all, render_claims, verdict
from crnet.report.claims_plot import plot_claims
from crnet.runtime.files import canonical, read_csv, write_json

ROOT = Path(__file__).resolve().parents[1]
FOLDS, EPISODES = (0, 1), 60
# IoU of each cell, in percent of the union; void as background takes a little off.
QUALITY = {"low/1": 40, "low/5": 40.2, "high/1": 55, "high/5": 60, "quoted/1": None}


def write(path: str | Path, fold: int, percent: float, salt: int = 0, noise: float = 0.0, query: str = "q") -> None:
    """Counts of episodes that are as hard for every cell (a spread of 10 points), plus noise of the cell's own."""
    shared = np.random.default_rng(fold).normal(0, 0.1, EPISODES)
    own = np.random.default_rng([fold, salt]).normal(0, noise, EPISODES)
    write_counts(Path(path), fold, percent / 100 + shared + own, 10, query)


def entry(name: str, first: str, second: str, **more) -> dict:
    """A claim of a job that compares the cells ``row/shots``."""
    given = {"paper": None, "at_least": None, "direction": "more", "metric": "miou", "note": "", **more}
    bound = 1.0 if given["direction"] == "not-more" else given["at_least"] or 0.0
    about = {"id": name, "claim": f"Claim {name}", "where": "Table 2", "table": "table2", "shots": "1"}
    return {**about, "first": first, "second": second, "bound": bound, **given}


def make_job(folder: Path, claims: list[dict], seeds=(0,), noise: float = 0.02, quality=None) -> dict:
    places = {}
    for salt, (key, percent) in enumerate((quality or QUALITY).items()):
        cells = []
        for fold in FOLDS if percent is not None else ():
            for seed in seeds:
                path = folder / f"{key.replace('/', '-')}-{fold}-{seed}/counts.csv"
                write(path, fold, percent, 10 * salt + seed, noise)
                cells.append({"fold": fold, "seed": seed, "counts": str(path)})
        reported = percent is None
        why = "the other method is quoted, not run" if reported else ""
        places[key] = {"cells": cells, "folds": list(FOLDS), "dataset_folds": 4, "reported": reported, "absent": why}
    about = {"study": "demo", "title": "Demo", "caption": "Generated scenes.", "encoders": {"main": "small (layer3)"}}
    flags = {"orientation_only": True, "generated": True, "margin": 1.0}
    return {**about, **flags, "places": places, "claims": claims}


def lines_of(job: dict, folder: Path) -> tuple[dict[str, dict], str]:
    render_claims(job, folder / "out/claims")
    lines = read_csv(folder / "out/claims.csv")
    return {line["id"]: line for line in lines}, (folder / "out/claims.md").read_text()


def drawn(job: dict, folder: Path) -> str:
    """What the plot of rendered claims says."""
    plot_claims(job, folder / "out/claims.csv", folder / "out/claims")
    return texts(folder / "out/claims.svg")


@pytest.mark.parametrize(
    ("low", "high", "direction", "bound", "expected"),
    [
        (0.1, 2, "more", 0, "supported"),
        (-0.1, 2, "more", 0, "undecided"),
        (-2, -0.1, "more", 0, "contradicted"),
        (0, 0, "more", 0, "undecided"),
        (10.1, 14, "more", 10, "supported"),
        (9, 14, "more", 10, "undecided"),
        (4, 9.9, "more", 10, "contradicted"),
        (-3, -1, "not-more", 1, "supported"),
        (-0.5, 0.9, "not-more", 1, "supported"),
        (0.2, 0.9, "not-more", 1, "supported"),
        (-0.5, 1.1, "not-more", 1, "undecided"),
        (1.1, 3, "not-more", 1, "contradicted"),
        (float("nan"), float("nan"), "more", 0, "undecided"),
    ],
)
def test_verdict(low, high, direction, bound, expected):
    assert verdict(Interval((low + high) / 2, low, high), direction, bound) == expected


KINDS = [
    (entry("helps", "high/1", "low/1", paper=15.1), "supported", "yes"),
    (entry("hurts", "low/1", "high/1", paper=3.0), "contradicted", "no"),
    (entry("same", "low/5", "low/1", paper=5.0), "undecided", "no"),
    (entry("much", "high/1", "low/1", at_least=10.0), "supported", ""),
    (entry("too-much", "high/1", "low/1", at_least=18.0), "contradicted", ""),
    (entry("saturates", "low/5", "low/1", direction="not-more", paper=0.2), "supported", "yes"),
    (entry("not-saturated", "high/5", "high/1", direction="not-more", paper=0.0), "contradicted", "no"),
    (entry("worse", "low/1", "high/1", direction="not-more"), "supported", ""),
    (entry("best", "high/1", "quoted/1", paper=0.3), "not testable", ""),
]


def test_every_kind_of_claim_gets_its_verdict_in_table_page_and_plot(tmp_path):
    job = make_job(tmp_path, [claim for claim, _, _ in KINDS])
    lines, page = lines_of(job, tmp_path)
    for claim, expected, inside in KINDS:
        assert (lines[claim["id"]]["verdict"], lines[claim["id"]]["paper_inside"]) == (expected, inside), claim["id"]
    helps = lines["helps"]
    # 15 points of a union of 1000 of 1010 pixels; ignoring void, of 1000
    assert float(helps["estimate"]) == pytest.approx(15 / 1.01, abs=0.8)
    assert float(helps["estimate_ignore"]) == pytest.approx(1.01 * float(helps["estimate"]), abs=0.02)
    assert float(helps["low"]) < float(helps["estimate"]) < float(helps["high"])
    assert (helps["seeds"], helps["episodes"], helps["folds"]) == ("1", "120", "0 1")
    assert (lines["much"]["paper"], lines["much"]["bound"]) == ("", "10.00")
    assert lines["best"]["estimate"] == "" and "quoted" in lines["best"]["note"]
    assert "Of 9 claims, 4 are supported, 3 contradicted and 1 undecided; 1 cannot be tested." in page
    said = drawn(job, tmp_path)
    for words in ("supported", "contradicted", "undecided", "Claim saturates", "Table 2", "paper (other data)"):
        assert words in said, words
    assert ONE_SEED in said and "Claim best" not in said and "Not shown, of 9 claims: 1 not testable." in said


def test_one_run_for_both_cells_tests_nothing(tmp_path):
    """As where a study has one encoder for both backbones: a difference of zero by construction is no finding."""
    job = make_job(tmp_path, [entry("backbone", "high/1", "other/1", paper=0.5), entry("helps", "high/1", "low/1")])
    job["places"]["other/1"] = job["places"]["high/1"]
    lines, page = lines_of(job, tmp_path)
    assert (lines["backbone"]["verdict"], lines["backbone"]["estimate"]) == ("not testable", "")
    assert lines["backbone"]["note"] == "both are the same runs in this study" and lines["backbone"]["note"] in page
    assert lines["helps"]["verdict"] == "supported" and "quoted by the paper" not in page


def test_an_interval_that_holds_the_margin_is_undecided(tmp_path):
    quality = {"low/1": 40, "low/5": 41}
    job = make_job(tmp_path, [entry("s", "low/5", "low/1", direction="not-more")], noise=0.1, quality=quality)
    line = lines_of(job, tmp_path)[0]["s"]
    assert float(line["low"]) < 1 < float(line["high"]) and line["verdict"] == "undecided"


def test_differences_are_paired_over_episodes(tmp_path):
    job = make_job(tmp_path, [entry("helps", "high/1", "low/1")])
    (result,) = judge_all(job)
    paired = result.difference["background"]
    widths = []
    for key in ("high/1", "low/1"):
        folds = [read_fold(cell["fold"], {0: cell["counts"]}) for cell in job["places"][key]["cells"]]
        alone = interval(folds, "miou", "background")
        widths.append(100 * (alone.high - alone.low))
    assert paired.high - paired.low < 0.5 * np.hypot(*widths)


def test_seeds_are_paired_where_equal(tmp_path):
    """Cells that differ by a constant in every seed: seeds that are far apart cancel in the difference."""
    claims = [entry("helps", "high/1", "low/1")]
    job = make_job(tmp_path, claims, seeds=(0, 1), noise=0.0)
    for key, percent in (("high/1", 55), ("low/1", 40)):
        for cell in job["places"][key]["cells"]:
            write(cell["counts"], cell["fold"], percent + 10 * cell["seed"])
    lines, page = lines_of(job, tmp_path)
    line = lines["helps"]
    assert line["seeds"] == "2" and "2 training seeds" in page and ONE_SEED not in page
    assert float(line["high"]) - float(line["low"]) < 1
    job["places"]["low/1"]["cells"] = [cell for cell in job["places"]["low/1"]["cells"] if cell["seed"] == 0]
    assert "left out apart" in lines_of(job, tmp_path)[0]["helps"]["note"]


def test_missing_counts_are_not_run_and_say_which(tmp_path):
    claims = [entry("helps", "high/1", "low/1", paper=5.0), entry("more-shots", "high/5", "high/1")]
    job = make_job(tmp_path, claims)
    Path(next(c["counts"] for c in job["places"]["low/1"]["cells"] if c["fold"] == 1)).unlink()
    job["places"]["high/5"] |= {"cells": [], "absent": "Table 4 is not in this study"}
    lines, page = lines_of(job, tmp_path)
    assert lines["helps"]["verdict"] == lines["more-shots"]["verdict"] == "not run"
    assert "low, 1" in lines["helps"]["note"] and "missing (fold 1, seed 0)" in lines["helps"]["note"]
    assert lines["helps"]["estimate"] == lines["helps"]["paper_inside"] == ""
    assert "not run: Table 4 is not in this study" in page
    assert "2 were not run in this study" in page


def test_other_episodes_stop(tmp_path):
    job = make_job(tmp_path, [entry("helps", "high/1", "low/1")])
    write(job["places"]["low/1"]["cells"][0]["counts"], 0, 40, query="other")
    with pytest.raises(CrnetError, match=r"Claim helps.*same episodes"):
        judge_all(job)


def test_files_have_the_agreed_columns_and_equal_bytes(tmp_path):
    job = make_job(tmp_path, [claim for claim, _, _ in KINDS])
    files = []
    for name in ("a", "b"):
        render_claims(job, tmp_path / name)
        plot_claims(job, tmp_path / f"{name}.csv", tmp_path / name)
        files.append([(tmp_path / f"{name}.{suffix}").read_bytes() for suffix in ("csv", "md", "png", "svg")])
    assert files[0] == files[1]
    table, page = (content.decode() for content in files[0][:2])
    head = table.splitlines()[0].split(",")
    assert head[:7] == ["id", "claim", "paper", "estimate", "low", "high", "verdict"]
    assert tuple(head) == HEADER
    assert not re.search(r"\d\.\d{3,}", table)
    assert not re.search(r"\d\.\d{2,}", page)


@pytest.mark.parametrize(
    ("generated", "orientation_only", "first"),
    [
        (True, True, "**A test of the suite, not of the paper: "),
        (False, True, "**The data differ from the paper's: "),
        (False, False, "Of 1 claim, 1 is supported"),
    ],
)
def test_page_says_first_what_the_data_are(tmp_path, generated, orientation_only, first):
    about = {"generated": generated, "orientation_only": orientation_only}
    page = lines_of(make_job(tmp_path, [KINDS[0][0]]) | about, tmp_path)[1]
    paragraphs = page.split("\n\n")
    assert paragraphs[1].startswith(first)
    assert paragraphs[3 if orientation_only else 2] == ONE_SEED
    assert "Generated scenes." in page and "folds 0, 1 of 4" in page


def test_page_says_what_the_evaluations_say_of_their_data(tmp_path):
    job = make_job(tmp_path, [KINDS[0][0]])
    write_json(
        tmp_path / "low-1-0-0/evaluation.json", {"subset": "728 photos of PASCAL", "split_note": "The split is ours."}
    )
    page = lines_of(job, tmp_path)[1]
    assert "The data are 728 photos of PASCAL. The split is ours.\n" in page
    above = page.split("| Claim")[0]
    assert "Encoders: small (layer3) where the paper has ResNet-50." in above  # what ran under that name
    assert "small (layer3) where the paper has ResNet-50" in drawn(job, tmp_path)


def test_fb_iou_is_the_one_by_pairs_and_not_run_where_its_weights_are_not_recorded(tmp_path):
    job = make_job(tmp_path, [entry("fb", "high/1", "low/1", metric="fbiou_pairs"), entry("miou", "high/1", "low/1")])
    first, second = (
        [read_fold(cell["fold"], {0: cell["counts"]}) for cell in job["places"][key]["cells"]]
        for key in ("high/1", "low/1")
    )
    line = lines_of(job, tmp_path)[0]["fb"]
    assert float(line["estimate"]) == pytest.approx(
        100 * difference(first, second, "fbiou_pairs", "background").value, abs=0.006
    )
    assert line["verdict"] == "supported"
    write_json(Path(job["places"]["low/1"]["cells"][0]["counts"]).with_name("evaluation.json"), {})
    lines, page = lines_of(job, tmp_path)
    assert (lines["fb"]["verdict"], lines["fb"]["estimate"], lines["miou"]["verdict"]) == ("not run", "", "supported")
    assert "not run: scored by an earlier version, which did not record the test pairs" in page


def test_page_names_verdicts_that_hang_on_void_pixels(tmp_path):
    job = make_job(tmp_path, [entry("helps", "high/1", "low/1")], noise=0.0)
    for cell in job["places"]["high/1"]["cells"]:  # better inside the void only
        write(cell["counts"], cell["fold"], 40)
        text = Path(cell["counts"]).read_text(encoding="utf-8").replace(",1010,", ",900,")
        Path(cell["counts"]).write_text(text, encoding="utf-8")
    lines, page = lines_of(job, tmp_path)
    assert (lines["helps"]["verdict"], lines["helps"]["verdict_ignore"]) == ("supported", "undecided")
    assert "these verdicts differ: Claim helps: undecided" in page


def test_plot_without_any_tested_claim(tmp_path):
    job = make_job(tmp_path, [KINDS[-1][0]])
    _, page = lines_of(job, tmp_path)
    assert "No claim was run." in page
    assert "No claim was tested" in drawn(job, tmp_path)


def test_plot_refuses_other_claims(tmp_path):
    job = make_job(tmp_path, [KINDS[0][0]])
    lines_of(job, tmp_path)
    with pytest.raises(CrnetError, match="render the claims first"):
        drawn({**job, "claims": [KINDS[1][0]]}, tmp_path)


def write_claims(folder: Path, content: dict) -> Path:
    tables = {
        "small": {"shots": [1, 5], "rows": [{"id": "a", "label": "A"}, {"id": "b", "label": "B"}]},
        "other": {"benchmark": "coco", "rows": [{"id": "a", "label": "A"}]},
    }
    (folder / "tables").mkdir(parents=True)
    for name, table in tables.items():
        (folder / f"tables/{name}.yaml").write_text(yaml.safe_dump({"title": name, "source": "none", **table}))
    (folder / "claims.yaml").write_text(yaml.safe_dump(content))
    return folder / "claims.yaml"


def wrong(**changes) -> dict:
    first, second = ({"table": "small", "row": row, "shots": 1} for row in "ab")
    claim = {"id": "x", "claim": "A beats B", "where": "here", "first": first, "second": second}
    for key, value in changes.items():
        claim[key] = {**claim[key], **value} if isinstance(value, dict) else value
    return {"margin": 1.0, "claims": [claim]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (wrong(first={"table": "smal"}), ["x.first", "unknown table 'smal'", "other, small"]),
        (wrong(second={"row": "c"}), ["x.second", "no row 'c'", "a, b"]),
        (wrong(second={"shots": 10}), ["x.second", "no 10-shot column", "1, 5"]),
        (wrong(second={"table": "other", "row": "a"}), ["x", "'pascal'", "'coco'", "share no episodes"]),
        (wrong(second={"row": "a"}), ["claims.0", "same cell"]),
        (wrong(at_least=10, direction="not-more"), ["claims.0", "'at_least' needs the direction 'more'"]),
        (wrong(direction="less"), ["claims.0.direction", "'more'", "'not-more'"]),
        (wrong(first={"row": "others"}), ["claims.0", "'first' is one row"]),
        (wrong(second={"row": "others"}), ["x.second", "small has no row of another method"]),
        (wrong(papper=1.0), ["claims.0.papper", "unknown key", "paper"]),
        (wrong(metric="iou"), ["claims.0.metric", "'miou'", "'fbiou_pairs'"]),
        (wrong(paper=float("nan")), ["claims.0.paper", "nan"]),
        ({**wrong(), "margin": -1}, ["margin", "-1"]),
        ({"margin": 1, "claims": 2 * wrong()["claims"]}, ["'x' is used 2 times"]),
        ({"margin": 1, "claims": []}, ["claims"]),
    ],
)
def test_wrong_claims_are_one_sentence(tmp_path, content, words):
    path = write_claims(tmp_path, content)
    with pytest.raises(CrnetError) as caught:
        load_claims(path, tmp_path / "tables")
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), *words]:
        assert word in message


def test_papers_sizes_are_the_differences_of_its_cells():
    """Where the tables quote both cells, the claim's size must be what they say."""
    folder = ROOT / "configs/tables"
    claims = load_claims(ROOT / CLAIMS, folder).claims
    checked = 0
    for claim in claims:
        values = []
        for place in (claim.first, claim.second):
            table = load_table(folder, place.table)
            ids = [each.row for each in rivals(claim, table, table)] if place.row == OTHERS else [place.row]
            printed = [
                row.paper.get(f"{place.shots}-shot", {}).get(claim.metric) for row in table.rows if row.id in ids
            ]
            values.append(max((value for value in printed if value is not None), default=None))  # of others the best
        if claim.paper is not None and None not in values:
            assert values[0] - values[1] == pytest.approx(claim.paper, abs=0.001), claim.id
            checked += 1
    assert checked >= 30


def test_job_of_a_study_holds_all_claims_with_counts_or_a_reason():
    plan = study.load([ROOT / "configs/studies/demo.yaml"], {"tables": ["table2", "table3"]})
    layout = Layout(plan)
    job = claims_job(plan, layout, ROOT / CLAIMS)
    assert job["generated"] and len(job["claims"]) > 30
    both = job["places"]["table2/both/1-shot"]
    wanted = [cell for cell in plan.cells if (cell.table, cell.row) == ("table2", "both")]
    assert [(c["fold"], c["seed"], c["counts"]) for c in both["cells"]] == [
        (cell.fold, cell.seed, layout.counts_of(cell)) for cell in wanted
    ]
    assert job["places"]["table4/stripped-fusion/1-shot"]["absent"] == "Table 4 is not in this study"
    assert job["places"]["table5/pgnet/1-shot"]["reported"]
    for claim in job["claims"]:
        for side in (claim["first"], *(claim["rivals"] or [claim["second"]])):
            assert bool(job["places"][side]["cells"]) != bool(job["places"][side]["absent"])


def test_a_job_fits_into_one_argument_of_a_command():
    """Linux takes 128 KiB in one argument; a study of three seeds and four folds fills most of them."""
    seeds = {"seeds": [0, 1, 2]}
    plan = study.load([ROOT / "configs/studies/demo.yaml"], seeds)
    job = claims_job(plan, Layout(plan), ROOT / CLAIMS)
    empty = sum(not place["cells"] for place in job["places"].values())
    cells = max(len(canonical(place["cells"])) for place in job["places"].values())
    assert len(canonical(job)) + empty * cells < 120_000


def test_claims_are_read_without_torch():
    code = "import sys, crnet.config.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def against_all(**more) -> dict:
    return entry("best", "high/1", "all/1", rivals={"low/1": "Low", "middle/1": "Middle", "quoted/1": "Quoted"}, **more)


def test_all_others_are_the_best_of_those_that_are_run(tmp_path):
    quality = {"high/1": 55, "low/1": 40, "middle/1": 50, "quoted/1": None}
    job = make_job(tmp_path, [against_all(), entry("one", "high/1", "middle/1")], quality=quality)
    lines, page = lines_of(job, tmp_path)
    assert (lines["best"]["verdict"], lines["best"]["second"]) == ("supported", "middle/1")
    assert all(lines["best"][key] == lines["one"][key] for key in ("estimate", "low", "high"))
    assert "**supported** (against Middle, the best of the 2 others that are run)" in page
    assert "judged against the one with the highest mean here" in page
    ahead = make_job(tmp_path, [against_all()], quality={**quality, "middle/1": 65})
    assert lines_of(ahead, tmp_path)[0]["best"]["verdict"] == "contradicted"


def test_an_other_that_is_not_whole_might_be_the_best(tmp_path):
    quality = {"high/1": 55, "low/1": 40, "middle/1": 50, "quoted/1": None}
    job = make_job(tmp_path, [against_all()], quality=quality)
    Path(job["places"]["low/1"]["cells"][0]["counts"]).unlink()
    line = lines_of(job, tmp_path)[0]["best"]
    assert line["verdict"] == "not run" and "low, 1: missing (fold 0, seed 0)" in line["note"]
    job["places"]["low/1"] |= {"cells": [], "absent": "the study has no encoder vgg16"}
    line = lines_of(job, tmp_path)[0]["best"]
    assert line["verdict"] == "supported" and "Middle, the best of the 1 others that are run" in line["note"]
    for key in ("low/1", "middle/1"):
        job["places"][key] |= {"cells": [], "reported": True, "absent": "the other method is quoted, not run"}
    assert lines_of(job, tmp_path)[0]["best"]["verdict"] == "not testable"


def test_others_of_the_papers_tables_are_of_other_methods():
    folder = ROOT / "configs/tables"
    claim = next(claim for claim in load_claims(ROOT / CLAIMS, folder).claims if claim.id == "best-5")
    table = load_table(folder, "table6")
    found = [place.row for place in rivals(claim, table, table)]
    assert found == [row.id for row in table.rows if not row.id.startswith("crnet")]
