"""Tables from synthetic counts: every number is recomputed here, and what is missing must say so."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from crnet.errors import CrnetError
from crnet.metrics.iou import QUERY_COLUMNS
from crnet.report.tables.render import HEADER, render_table
from crnet.report.tables.tex import escape_tex
from crnet.runtime.files import read_csv, write_csv, write_json

FOLDS, SEEDS, EPISODES = (0, 1, 2, 3), (0, 1), 60


def write_counts(path: Path, fold: int, iou: np.ndarray, void: int, query: str = "q") -> None:
    """Episodes of five classes with these IoU in [0, 1]; void as background adds ``void`` pixels to every union.

    The report beside them has 10 test pairs of the fold's first class, 20 of the next, and so on.
    """
    hits = np.rint(1000 * np.clip(iou, 0, 1)).astype(int)
    rows = [
        (0, i, 5 * fold + i % 5 + 1, f"{query}{i}", h, 1000, 8000, 9000 - h, h, 1000 + void, 8000, 9000 + void - h)
        for i, h in enumerate(hits)
    ]
    write_csv(path, ("episode_seed", "episode", "class", "query", *QUERY_COLUMNS), rows)
    write_json(path.with_name("evaluation.json"), {"class_pairs": {5 * fold + i + 1: 10 * (i + 1) for i in range(5)}})


def around(iou: float, fold: int, seed: int) -> np.ndarray:
    return iou + np.random.default_rng([fold, seed]).normal(0, 0.1, EPISODES)


def make_job(folder: Path) -> dict:
    """Two trained rows with two seeds and one control, four folds, counts on disk."""
    rows = [
        ("condition", "Condition only", {"Condition": True, "Cross-reference": False}, False, 0.40, 36.3),
        ("both", "Both: 100 % & more_", {"Condition": True, "Cross-reference": True}, False, 0.60, 49.1),
        ("all-fg", "All foreground", {}, True, 0.20, None),
    ]
    job = {
        **{"study": "demo", "study_title": "Demo", "classes": {}, "caption": "Generated scenes.", "table": "table2"},
        **{"title": "Ablation of modules", "source": "CRNet (CVPR 2020), Table 2", "folds": list(FOLDS)},
        **{"shots": [1], "metrics": ["miou", "fbiou_pairs"], "orientation_only": True, "rows": []},
    }
    for name, label, switches, control, iou, paper in rows:
        cells = []
        for fold in FOLDS:
            for seed in (0,) if control else SEEDS:
                path = folder / f"{name}-{fold}-{seed}/counts.csv"
                write_counts(path, fold, around(iou + 0.01 * fold, fold, seed), 100)
                cells.append({"shots": 1, "fold": fold, "seed": seed, "counts": str(path)})
        row = {"id": name, "label": label, "switches": switches, "control": control, "cells": cells}
        job["rows"].append(row | {"paper": {"1-shot": {"miou": paper}} if paper else {}})
    return job


@pytest.fixture
def job(tmp_path: Path) -> dict:
    return make_job(tmp_path)


def render(job: dict, folder: Path) -> tuple[dict[tuple, dict], str, str]:
    """The CSV's lines by (row, shots if there are several, fold, metric, void), the Markdown and the LaTeX."""
    prefix = folder / "out" / "table2"
    render_table(job, prefix)
    lines, tex = read_csv(f"{prefix}.csv"), Path(f"{prefix}.tex").read_text(encoding="utf-8")
    assert tuple(lines[0]) == HEADER
    keys = ["row", *(["shots"] if len(job["shots"]) > 1 else []), "fold", "metric", "void"]
    by_key = {tuple(line[key] for key in keys): line for line in lines}
    assert len(by_key) == len(lines)
    check_tex(tex)
    return by_key, Path(f"{prefix}.md").read_text(encoding="utf-8"), tex


def markdown_row(text: str, label: str) -> list[str]:
    """Cells of the first line of a grid with that label."""
    line = next(line for line in text.splitlines() if line.startswith("|") and label in line)
    return [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.strip("|").split("|")]


def expected_miou(job: dict, row: int, fold: int, union: int, seeds: Sequence[int] = SEEDS) -> float:
    values = []
    for cell in job["rows"][row]["cells"]:
        if cell["fold"] == fold and cell["seed"] in seeds:
            hits = {}
            for line in read_csv(cell["counts"]):
                hits.setdefault(line["class"], []).append(int(line["ignore_fg_intersection"]))
            values.append(np.mean([sum(h) / (union * len(h)) for h in hits.values()]))
    return 100 * float(np.mean(values))


def test_csv_holds_every_fold_and_mean(job: dict, tmp_path: Path) -> None:
    lines, _, _ = render(job, tmp_path)
    assert len(lines) == 3 * 5 * 2 * 2
    for void, union in (("ignore", 1000), ("background", 1100)):
        folds = [expected_miou(job, 1, fold, union) for fold in FOLDS]
        for fold in FOLDS:
            assert float(lines["both", str(fold), "miou", void]["value"]) == pytest.approx(folds[fold], abs=0.006)
        mean = lines["both", "mean", "miou", void]
        assert float(mean["value"]) == pytest.approx(np.mean(folds), abs=0.006)
        assert float(mean["low"]) < float(mean["value"]) < float(mean["high"])
        assert [mean[key] for key in ("seeds", "episodes", "photos", "pairs")] == ["2", "240", "60", "240"]
        by_seed = [np.mean([expected_miou(job, 1, fold, union, [seed]) for fold in FOLDS]) for seed in SEEDS]
        assert 0 < float(mean["seed_sd"]) == pytest.approx(np.std(by_seed, ddof=1), abs=0.006)
        if void == "ignore":  # the paper's convention is one
            assert mean["paper"] == mean["difference"] == ""
        else:
            assert float(mean["difference"]) == pytest.approx(np.mean(folds) - 49.1, abs=0.006)
    control = lines["all-fg", "mean", "miou", "ignore"]
    assert (control["seeds"], control["seed_sd"], control["paper"]) == ("1", "", "")
    assert lines["both", "mean", "fbiou_pairs", "ignore"]["difference"] == ""


def test_markdown_for_readers(job: dict, tmp_path: Path) -> None:
    lines, text, _ = render(job, tmp_path)
    mean = lines["condition", "mean", "miou", "background"]
    low, value, high = (float(mean[key]) for key in ("low", "value", "high"))
    compact, details = text.split("## Details by fold")
    ours = f"**{value:.1f}** [{low:.1f}, {high:.1f}]"
    *row, fbiou = markdown_row(compact, "Condition only")
    assert row == ["Condition only", "✓", "", ours, "36.3"] and fbiou  # FB-IoU has no value of the paper
    row = markdown_row(details, "Condition only")
    assert row[-4:-1] == [ours, f"{float(mean['seed_sd']):.1f}", "36.3"]
    assert len(row) == 1 + 4 + 4  # no ticks: beside the folds they would not fit
    assert "Paper" not in details.split("### 1-shot mIoU, void ignored")[1]
    assert "SD of seeds" in details and "SD of seeds" not in compact
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## 1-shot, void counted as background",
        "## Details by fold",
        "### 1-shot mIoU, void counted as background",
        "### 1-shot mIoU, void ignored",
        "### 1-shot FB-IoU, void counted as background",
        "### 1-shot FB-IoU, void ignored",
        "## How to read the numbers",
    ]
    grid = [line for line in compact.splitlines() if line.startswith("|")]
    assert len({len(line) for line in grid}) == 1  # aligned in the source
    assert [line.split("|")[1].strip() for line in grid[-2:]] == ["*Controls*", "*All foreground*"]
    assert not re.search(r"\d\.\d{3}", text)


def test_caption_names_estimator_sizes_and_limits(job: dict, tmp_path: Path) -> None:
    _, text, tex = render(job, tmp_path)
    for words in (
        "Generated scenes.",
        "[low, high] is the 95 % interval of a jackknife, which leaves out one query photo of a class with all its "
        "episodes, or one training seed of a fold, at a time",
        "2 training seeds and 60 episodes a fold on 60 query photos",
        "Standard deviation of the mean mIoU between training seeds: ",
        "The mean is over folds 0, 1, 2 and 3.",
        "orientation only",
    ):
        assert words in text
        assert escape_tex(words) in tex
        assert all(escape_tex(words) not in caption for caption in re.findall(r"\\caption\{.*", tex))
    assert "Both: 100 \\% \\& more\\_" in tex
    _, text, _ = render(job | {"orientation_only": False}, tmp_path)
    assert "orientation" not in text


def test_missing_fold_prints_and_takes_the_mean_with_it(job: dict, tmp_path: Path) -> None:
    Path(job["rows"][1]["cells"][5]["counts"]).unlink()  # fold 2, seed 1
    lines, text, tex = render(job, tmp_path)
    missing = "missing (fold 2, seed 1)"
    for fold in ("2", "mean"):
        cell = lines["both", fold, "miou", "ignore"]
        assert (cell["value"], cell["low"], cell["difference"], cell["note"]) == ("", "", "", missing)
    assert lines["both", "1", "miou", "ignore"]["value"] != ""
    compact, details = text.split("## Details by fold")
    row = markdown_row(details, "Both")
    assert (row[3], row[-4:]) == (missing, [missing, "—", "49.1", "—"])
    assert markdown_row(compact, "Both")[3:5] == [missing, "49.1"]
    assert escape_tex(f"Both: 100 % & more_ 1-shot: {missing}.") in tex


def several_shots(job: dict) -> dict:
    """Table 4 in small: the second row is finetuned and has no 1-shot cells; one method is only quoted."""
    job = job | {"shots": [1, 5, 10], "metrics": ["miou"], "table": "table4"}
    for row in job["rows"]:
        row["cells"] += [cell | {"shots": 5} for cell in row["cells"]]
        row["switches"] = {"Model": "stripped"} if not row["control"] else {}
    job["rows"][1]["cells"] = [cell for cell in job["rows"][1]["cells"] if cell["shots"] == 5]
    job["rows"][1]["absent"] = {"1-shot": "needs two supports", "10-shot": "needs two supports"}
    job["rows"][1]["paper"] = {"5-shot": {"miou": 57.5}}
    canet = {"id": "canet", "label": "CANet", "switches": {"Model": "ResNet-50"}, "control": False, "cells": []}
    job["rows"].insert(0, canet | {"reported": True, "paper": {"5-shot": {"miou": 57.1}}})
    return job


def test_several_shots_are_the_columns(job: dict, tmp_path: Path) -> None:
    lines, text, _ = render(several_shots(job), tmp_path)
    compact, details = text.split("## Details by fold")
    assert "## mIoU, void counted as background\n" in compact
    assert markdown_row(compact, "paper") == ["", "Model", "1-shot", "paper", "5-shot", "paper"]
    assert markdown_row(compact, "CANet") == ["CANet", "ResNet-50", "—", "—", "—", "57.1"]
    assert markdown_row(compact, "Condition only")[1] == "stripped"
    row = markdown_row(compact, "Both")
    assert (row[2:4], row[5]) == (["N/A", "—"], "57.5")
    assert compact.count("needs two supports") == 1  # the reason is said once
    assert "N/A: needs two supports. Not part of this study: 10-shot." in compact
    headings = [line.split("|")[1].strip() for line in compact.splitlines() if line.startswith("| *")]
    assert headings == ["*Reported, not run here*", "*Run here*", "*Controls*", "*All foreground*"]
    assert "CANet" not in details and "10-shot" not in details  # no folds to show; nothing was to be run
    quoted = lines["canet", "5", "mean", "miou", "ignore"]
    assert (quoted["note"], quoted["paper"]) == ("reported, not run here", "")
    assert lines["canet", "5", "mean", "miou", "background"]["paper"] == "57.10"
    assert lines["both", "1", "0", "miou", "ignore"]["note"] == "N/A: needs two supports"


def test_two_metrics_at_one_shot_are_the_columns(job: dict, tmp_path: Path) -> None:
    job["rows"][0]["paper"] = {"1-shot": {"miou": 36.3, "fbiou_pairs": 61.3}}
    _, text, _ = render(job, tmp_path)
    head = markdown_row(text.split("## Details")[0], "paper")
    assert head == ["", "Condition", "Cross-reference", "mIoU", "paper", "FB-IoU", "paper"]
    assert markdown_row(text, "Condition only")[-1] == "61.3"


def test_both_fb_iou_stand_beside_each_other_and_the_papers_beside_the_headline(job: dict, tmp_path: Path) -> None:
    job["rows"][0]["paper"] = {"1-shot": {"miou": 36.3, "fbiou_pairs": 61.3}}
    job["metrics"] = ["miou", "fbiou_pairs", "fbiou"]
    lines, text, _ = render(job, tmp_path)
    head = markdown_row(text.split("## Details")[0], "paper")
    assert head[3:] == ["mIoU", "paper", "FB-IoU", "paper", "FB-IoU, classes equal"]
    assert "the test list has of it, as where queries follow" in text and "classes equal: pooled over the" in text
    hits = {}
    for line in read_csv(job["rows"][1]["cells"][0]["counts"]):
        hits.setdefault(int(line["class"]), []).append(int(line["ignore_fg_intersection"]))
    for metric, weights in (("fbiou_pairs", [1, 2, 3, 4, 5]), ("fbiou", [1] * 5)):
        pooled = sum(w * np.mean(hits[c]) for c, w in enumerate(weights, 1)) / sum(weights)
        one_seed = 50 * (pooled / 1000 + 8000 / (9000 - pooled))
        job["rows"][1]["cells"] = [cell for cell in job["rows"][1]["cells"] if cell["seed"] == 0]
        lines, _, _ = render(job, tmp_path)
        assert float(lines["both", "0", metric, "ignore"]["value"]) == pytest.approx(one_seed, abs=0.006)


def test_what_was_scored_before_weights_were_recorded_has_a_dash_and_a_note(job: dict, tmp_path: Path) -> None:
    job["metrics"] = ["miou", "fbiou_pairs", "fbiou"]
    for cell in job["rows"][1]["cells"]:
        write_json(Path(cell["counts"]).with_name("evaluation.json"), {})
    lines, text, _ = render(job, tmp_path)
    gap = lines["both", "mean", "fbiou_pairs", "background"]
    assert gap["value"] == gap["low"] == "" and gap["note"].startswith("scored by an earlier version")
    assert lines["both", "mean", "fbiou", "background"]["value"] and lines["both", "mean", "miou", "ignore"]["value"]
    assert markdown_row(text, "Both")[-2] == "—" and markdown_row(text, "Condition only")[-2] != "—"
    assert text.count("Without a value: Both: 100 % & more_ 1-shot: scored by an earlier version") == 1


@pytest.mark.parametrize(
    ("folds", "heading", "sentence"),
    [
        ((1, 2, 3), "Mean of folds 1, 2, 3", "Here the mean is over folds 1, 2 and 3 of the data set's 4."),
        ((1,), "Fold 1", "Here it is fold 1 alone, of the data set's 4."),
        ((0, 1, 2, 3), "Mean", "The mean is over folds 0, 1, 2 and 3."),
    ],
)
def test_fewer_folds_than_the_data_set_has(job, tmp_path, folds, heading, sentence) -> None:
    for row in job["rows"]:
        row["cells"] = [cell for cell in row["cells"] if cell["fold"] in folds]
    _, text, tex = render(job | {"folds": list(folds), "dataset_folds": 4}, tmp_path)
    compact, details = text.split("## Details by fold")
    columns = [f"Fold {fold}" for fold in folds] if len(folds) > 1 else []
    assert markdown_row(details, "Difference")[1:] == [*columns, heading, "SD of seeds", "Paper", "Difference"]
    assert sentence in compact and sentence in tex
    title = next(line for line in compact.splitlines() if line.startswith("## "))
    assert (heading.lower() in title) == (len(folds) < 4)


def test_encoders_and_what_the_evaluations_say_of_their_data(job: dict, tmp_path: Path) -> None:
    said = {"split_note": "The 40/20/20 split is ours.", "subset": "a subset: 7 of 9 photos", "left_out": {"bus": 2}}
    write_json(tmp_path / "both-1-0/evaluation.json", said)
    _, text, tex = render(job | {"encoders": {"main": "small (layer3, layer4)"}}, tmp_path)
    for words in (
        "main: small (layer3, layer4)",
        "The 40/20/20 split is ours.",
        "The data are a subset: 7 of 9 photos.",
    ):
        assert text.count(words) == 1
        assert words in tex
    assert "bus (2) of fold" in text


def test_a_table_that_nobody_ran_still_quotes_the_paper(job: dict, tmp_path: Path) -> None:
    for row in job["rows"]:
        row["cells"] = []
        row["absent"] = {"1-shot": "not in this study"}
    _, text, _ = render(job, tmp_path)
    assert markdown_row(text, "Condition only")[3:5] == ["N/A", "36.3"]
    assert "No row of this table is run in this study." in text
    assert "###" not in text


def check_tex(tex: str) -> None:
    """Braces are balanced, environments closed, and every line has as many cells as its tabular has columns."""
    bare = re.sub(r"\\[{}%&_#$]", "", tex)
    assert bare.count("{") == bare.count("}")
    assert tex.isascii()
    for name in ("table", "tabular"):
        assert tex.count(f"\\begin{{{name}}}") == tex.count(f"\\end{{{name}}}") >= 1
    for tabular in bare.split("\\begin{tabular}{")[1:]:
        columns = len(tabular.partition("}")[0])
        lines = tabular.partition("\\end{tabular}")[0].splitlines()
        widths = {line.count("&") + 1 for line in lines if line.endswith(r"\\") and "multicolumn" not in line}
        assert widths == {columns}
        assert set(re.findall(r"multicolumn\{(\d+)\}", tabular)) <= {str(columns)}


def test_photos_are_counted_once_and_pairs_beside_them(job: dict, tmp_path: Path) -> None:
    for row in job["rows"]:
        for cell in row["cells"]:
            path = Path(cell["counts"])
            path.write_text(
                re.sub(
                    r",q\d+,", lambda found: f",q{int(found[0][2:-1]) % 20 // 2},", path.read_text(encoding="utf-8")
                ),
                encoding="utf-8",
            )
    lines, text, _ = render(job, tmp_path)
    fold = lines["both", "0", "miou", "ignore"]
    assert (fold["photos"], fold["pairs"]) == ("10", "20")  # neighbours share a photo and differ in class
    assert "60 episodes a fold on 10 query photos (20 pairs of a photo and a class), the same" in text


def test_quotes_of_a_label_are_latexs(job: dict, tmp_path: Path) -> None:
    job["rows"][0]["label"] = "“Weight the support’s”: F"
    assert "``Weight the support's'': F & " in render(job, tmp_path)[2]


def test_tex_names_folds_ticks_and_fits_a_page(job: dict, tmp_path: Path) -> None:
    job["rows"][0]["label"] = "A row whose name is so long that with its folds beside it no page would hold it"
    _, _, tex = render(job, tmp_path)
    assert " & Fold 0 & Fold 1 & " in tex and r"\checkmark{}" in tex
    assert all(len(caption) < 150 for caption in re.findall(r"\\caption\{(.*)", tex))
    compile_tex([tmp_path / "out/table2.tex"], tmp_path)


def test_committed_tables_fit_a_page(tmp_path: Path) -> None:
    compile_tex(sorted((Path(__file__).parents[1] / "results").glob("*/tables/*.tex")), tmp_path)


def compile_tex(tables: Sequence[Path], folder: Path) -> None:
    """As an article of LaTeX's own measures, without a box that is too wide or too high."""
    if not shutil.which("pdflatex"):
        pytest.skip("no pdflatex here")
    inputs = "\n".join(f"\\input{{{path}}}\\clearpage" for path in tables)
    packages = r"\documentclass{article}\usepackage{booktabs,amssymb,graphicx}"
    (folder / "all.tex").write_text(f"{packages}\\begin{{document}}\n{inputs}\n\\end{{document}}\n")
    for _ in range(2):  # the second time references are known
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    log = (folder / "all.log").read_text(errors="replace")
    assert not re.findall(r"Overfull .*|Float too large.*|LaTeX Warning: .*undefined.*", log)


def test_same_bytes_again(job: dict, tmp_path: Path) -> None:
    assert render(job, tmp_path) == render(job, tmp_path)


def test_rows_on_other_episodes_cannot_share_a_table(job: dict, tmp_path: Path) -> None:
    write_counts(Path(job["rows"][2]["cells"][1]["counts"]), 1, around(0.2, 1, 0), 100, query="other")
    with pytest.raises(CrnetError, match="different episodes of fold 1"):
        render(job, tmp_path)
