"""Tables from synthetic counts: every number is recomputed here, and what is missing must say so."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from crnet.bootstrap import Bootstrap
from crnet.errors import CrnetError
from crnet.files import write_csv
from crnet.metrics import COUNT_COLUMNS
from crnet.report.tables import HEADER, escape_tex, render_table

FOLDS, SEEDS, EPISODES = (0, 1, 2, 3), (0, 1), 60
BOOTSTRAP = Bootstrap(200)


def write_counts(path: Path, fold: int, iou: float, seed: int, query: str = "q") -> None:
    """Episodes of five classes with IoU near ``iou``; void as background adds 100 pixels to every union."""
    rng = np.random.default_rng([fold, seed])
    hit = np.rint(1000 * np.clip(iou + rng.normal(0, 0.1, EPISODES), 0, 1)).astype(int)
    rows = [
        (0, i, 5 * fold + i % 5 + 1, f"{query}{i}", h, 1000, 8000, 9000 - h, h, 1100, 8000, 9100 - h, 9, 10)
        for i, h in enumerate(hit)
    ]
    write_csv(path, ("episode_seed", "episode", "class", "query", *COUNT_COLUMNS), rows)


def make_job(folder: Path) -> dict:
    """Two trained rows with two seeds and one control, four folds, counts on disk."""
    rows = [
        ("condition", "Condition only", {"Condition": True, "Cross-reference": False}, False, 0.40, 36.3),
        ("both", "Both: 100 % & more_", {"Condition": True, "Cross-reference": True}, False, 0.60, 49.1),
        ("all-fg", "All foreground", {}, True, 0.20, None),
    ]
    job = {
        **{"study": "demo", "caption": "Generated scenes.", "table": "table2"},
        **{"title": "Ablation of modules", "source": "CRNet (CVPR 2020), Table 2", "folds": list(FOLDS)},
        **{
            "fold_classes": {},
            "shots": [1],
            "metrics": ["miou", "fbiou"],
            "orientation_only": True,
            "rows": [],
        },
    }
    for name, label, switches, control, iou, paper in rows:
        cells = []
        for fold in FOLDS:
            for seed in (0,) if control else SEEDS:
                path = folder / f"{name}-{fold}-{seed}.csv"
                write_counts(path, fold, iou + 0.01 * fold, seed)
                cells.append({"shots": 1, "fold": fold, "seed": seed, "counts": str(path)})
        row = {"id": name, "label": label, "switches": switches, "control": control, "cells": cells}
        job["rows"].append(row | {"paper": {"1-shot": {"miou": paper}} if paper else {}})
    return job


@pytest.fixture
def job(tmp_path: Path) -> dict:
    return make_job(tmp_path)


def render(job: dict, folder: Path) -> tuple[dict[tuple, dict], str, str]:
    """The CSV's lines by (row, fold, metric, void), the Markdown and the LaTeX."""
    prefix = folder / "out" / "table2"
    render_table(job, prefix, BOOTSTRAP)
    with open(f"{prefix}.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == HEADER
    by_key = {(line["row"], line["fold"], line["metric"], line["void"]): line for line in lines}
    assert len(by_key) == len(lines)
    return by_key, Path(f"{prefix}.md").read_text(), Path(f"{prefix}.tex").read_text()


def markdown_row(text: str, label: str) -> list[str]:
    """Cells of the first line of a grid with that label."""
    line = next(line for line in text.splitlines() if line.startswith("|") and label in line)
    return [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.strip("|").split("|")]


def expected_miou(job: dict, row: int, fold: int, union: int) -> float:
    values = []
    for cell in job["rows"][row]["cells"]:
        if cell["fold"] == fold:
            with open(cell["counts"], newline="") as stream:
                counts = list(csv.DictReader(stream))
            hits = {}
            for line in counts:
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
        assert float(mean["difference"]) == pytest.approx(np.mean(folds) - 49.1, abs=0.006)
        assert (mean["seeds"], mean["episodes"], mean["paper"]) == ("2", "240", "49.10")
    assert lines["all-fg", "mean", "miou", "ignore"]["paper"] == ""
    assert lines["both", "mean", "fbiou", "ignore"]["difference"] == ""
    assert lines["all-fg", "0", "miou", "ignore"]["seeds"] == "1"


def test_markdown_for_readers(job: dict, tmp_path: Path) -> None:
    lines, text, _ = render(job, tmp_path)
    mean = lines["condition", "mean", "miou", "background"]
    low, value, high = (float(mean[key]) for key in ("low", "value", "high"))
    row = markdown_row(text, "Condition only")
    assert row[:3] == ["Condition only", "✓", ""]
    assert row[-3:-1] == [f"**{value:.1f}** [{low:.1f}, {high:.1f}]", "36.3"]
    assert len(row) == 1 + 2 + 4 + 3
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## 1-shot mIoU, void counted as background",
        "## 1-shot mIoU, void ignored",
        "## 1-shot FB-IoU, void counted as background",
        "## 1-shot FB-IoU, void ignored",
    ]
    grid = [line for line in text.split("## ")[1].splitlines() if line.startswith("|")]
    assert len({len(line) for line in grid}) == 1  # aligned in the source
    assert [line.split("|")[1].strip() for line in grid[-2:]] == ["*Controls*", "*All foreground*"]
    assert not re.search(r"\d\.\d{3}", text)


def test_caption_names_estimator_sizes_and_limits(job: dict, tmp_path: Path) -> None:
    _, text, tex = render(job, tmp_path)
    for words in (
        "Generated scenes.",
        "95 % percentile interval of a stratified bootstrap: episodes resampled within class, training seeds "
        "within fold, 200 resamples.",
        "2 training seeds and 60 episodes a fold",
        "the mean is over folds 0, 1, 2 and 3",
        "orientation only",
    ):
        assert words in text
        assert escape_tex(words) in tex
    _, text, _ = render(job | {"orientation_only": False}, tmp_path)
    assert "orientation" not in text


def test_missing_fold_prints_and_takes_the_mean_with_it(job: dict, tmp_path: Path) -> None:
    Path(job["rows"][1]["cells"][5]["counts"]).unlink()  # fold 2, seed 1
    lines, text, tex = render(job, tmp_path)
    for fold in ("2", "mean"):
        cell = lines["both", fold, "miou", "ignore"]
        assert (cell["value"], cell["low"], cell["difference"]) == ("", "", "")
        assert cell["note"] == "missing (fold 2, seed 1)"
    assert lines["both", "1", "miou", "ignore"]["value"] != ""
    row = markdown_row(text, "Both")
    assert row[5] == "missing (fold 2, seed 1)"
    assert row[-3:] == ["— missing (fold 2, seed 1)", "49.1", "—"]
    assert escape_tex("Both: 100 % & more_ (1-shot): missing (fold 2, seed 1)") in tex


def test_shots_without_cells_and_rows_only_reported(job: dict, tmp_path: Path) -> None:
    reported = {"id": "canet", "label": "CANet", "switches": {}, "control": False, "cells": []}
    job["rows"].append(reported | {"paper": {"5-shot": {"miou": 57.1}}})
    job["shots"] = [1, 5]
    render_table(job, tmp_path / "table5", BOOTSTRAP)
    text = (tmp_path / "table5.md").read_text()
    block = text.split("## ")[3]
    assert block.startswith("5-shot mIoU, void counted as background")
    assert markdown_row(block, "Condition only")[-3:] == ["— N/A", "—", "—"]
    assert markdown_row(block, "CANet")[-3:] == ["— not run", "57.1", "—"]
    assert "CANet (5-shot): as reported by its authors, not run here" in text


def test_tex_is_balanced_and_escaped(job: dict, tmp_path: Path) -> None:
    _, _, tex = render(job, tmp_path)
    assert "Both: 100 \\% \\& more\\_" in tex
    bare = re.sub(r"\\[{}%&_#$]", "", tex)
    assert bare.count("{") == bare.count("}")
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", tex)[1])
    lines = [line for line in bare.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count("&") + 1 for line in lines} == {columns}
    assert tex.isascii()


def test_same_bytes_again(job: dict, tmp_path: Path) -> None:
    assert render(job, tmp_path) == render(job, tmp_path)


def test_rows_on_other_episodes_cannot_share_a_table(job: dict, tmp_path: Path) -> None:
    write_counts(Path(job["rows"][2]["cells"][1]["counts"]), 1, 0.2, 0, query="other")
    with pytest.raises(CrnetError, match="different episodes of fold 1"):
        render(job, tmp_path)


def test_subset_and_left_out_classes_are_said_in_the_caption(tmp_path):
    job = make_job(tmp_path)
    report = Path(job["rows"][0]["cells"][0]["counts"]).with_name("evaluation.json")
    report.write_text('{"subset": "a subset: 7 of 9 photos", "left_out": {"bus": 2}}')
    render_table(job, tmp_path / "out")
    text = " ".join((tmp_path / "out.md").read_text().split())
    assert "The data are a subset: 7 of 9 photos." in text
    assert "bus (2) of fold" in text
