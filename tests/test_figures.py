"""Pictures: what a reader must find in them is read back from the SVG or the pixels."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_tables import make_job as make_table_job

from crnet.errors import CrnetError
from crnet.report.classes import plot_classes, render_classes, write_classes
from crnet.report.figures import COLOURS, SHADE, VERMILLION, plot_table
from crnet.report.k_shot import STRATEGIES, plot_k_shot
from crnet.report.losses import plot_losses
from crnet.report.sheet import draw_sheet, overlay
from crnet.report.tables.cells import VOIDS
from crnet.report.tables.render import HEADER, render_table
from crnet.runtime.files import read_csv, write_csv

FOLDS = (0, 1)


def make_table(path: Path, missing: bool = False) -> dict:
    """A job of one trained row and one control, and its long CSV at ``path``."""
    rows = [("full", "Full CRNet", False, 50.0, 55.2), ("all-fg", "All foreground", True, 20.0, None)]
    job = {"table": "table3", "title": "Ablation", "folds": list(FOLDS), "shots": [1], "metrics": ["miou"]}
    job |= {"orientation_only": True, "study_title": "The study", "rows": []}
    lines = []
    for name, label, control, value, paper in rows:
        cells = [{"shots": 1, "fold": fold, "seed": 0, "counts": ""} for fold in FOLDS]
        job["rows"].append({"id": name, "label": label, "control": control, "cells": cells})
        for void, fold in product(VOIDS, (*FOLDS, "mean")):
            gone = missing and not control and fold in (1, "mean")
            numbers = ("", "", "") if gone else (value, value - 2, value + 2)
            note = "missing (fold 1, seed 0)" if gone else ""
            quoted = paper if paper and fold == "mean" else ""  # also where it should not be drawn
            lines.append(("table3", name, label, 1, fold, "miou", void, *numbers, 1, "", 9, 9, 9, quoted, "", note))
    write_csv(path, HEADER, lines)
    return job


def texts(svg: Path) -> str:
    """What the SVG says: matplotlib keeps each text as a comment above its outlines."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"), flags=re.DOTALL))


def width(png: Path) -> int:
    with Image.open(png) as image:
        return image.width


def drawn_twice(plot: Callable[..., None], job: dict, table: Path) -> str:
    """What a plot of a table says; its bytes must be the same again."""
    for name in ("a", "b"):
        plot(job, table, table.with_name(name))
    for suffix in (".png", ".svg"):
        assert table.with_name(f"a{suffix}").read_bytes() == table.with_name(f"b{suffix}").read_bytes()
    return texts(table.with_name("a.svg"))


def test_table_plot_names_its_parts_and_is_reproducible(tmp_path: Path) -> None:
    words = drawn_twice(plot_table, make_table(tmp_path / "table3.csv"), tmp_path / "table3.csv")
    for expected in (
        "Table 3: Ablation",
        "The study",
        "Full CRNet",
        "All foreground",
        "mIoU, void ignored",
        "paper (other data)",
        "control",
        "fold 1",
    ):
        assert expected in words
    assert "missing" not in words
    assert width(tmp_path / "a.png") == 1350


def test_table_plot_says_what_is_missing(tmp_path: Path) -> None:
    job = make_table(tmp_path / "table3.csv", missing=True)
    plot_table(job, tmp_path / "table3.csv", tmp_path / "plot")
    assert texts(tmp_path / "plot.svg").count("missing (fold 1, seed 0)") == len(VOIDS)


def test_table_plot_marks_quoted_rows_and_shots(tmp_path: Path) -> None:
    job = make_table(tmp_path / "table3.csv")
    quoted = {"id": "canet", "label": "CANet", "control": False, "cells": [], "switches": [["Backbone", "VGG16"]]}
    silent = quoted | {"id": "pl", "label": "PL"}
    job["rows"] = [quoted, silent, *job["rows"]]
    job["shots"] = [1, 5]
    finetuned = {"shots": 5, "fold": 0, "seed": 0, "counts": ""}
    job["rows"][2]["cells"].append(finetuned)
    lines = [list(line.values()) for line in read_csv(tmp_path / "table3.csv")]
    reported, absent = "reported, not run here", "N/A: needs two supports"
    empty = [("canet", 1, reported), ("canet", 5, reported), ("pl", 1, reported), ("pl", 5, reported)]
    for void, fold in product(VOIDS, (*FOLDS, "mean")):
        for row, shots, note in (*empty, ("full", 5, absent), ("all-fg", 5, absent)):
            paper = 55.4 if (row, fold) == ("canet", "mean") else ""
            lines.append(("table3", row, row, shots, fold, "miou", void, *[""] * 8, paper, "", note))
    write_csv(tmp_path / "table3.csv", HEADER, lines)
    plot_table(job, tmp_path / "table3.csv", tmp_path / "plot")
    words = texts(tmp_path / "plot.svg").splitlines()
    assert words.count("reported") == words.count("not reported") == 2  # CANet and PL at 1 and 5 shots
    assert words.count("N/A") == 2 * len(VOIDS)  # both rows at 5
    assert "CANet (VGG16)   1-shot" in words and words.count("5-shot") == 4


def drawn_shapes(svg: Path, colour: str) -> list[str]:
    """The outlines that are filled (or, of marks, drawn) in a colour."""
    return re.findall(
        rf"<(?:path|use)[^>]*(?:fill|stroke): {colour.lower()}[^>]*>", svg.read_text(encoding="utf-8").lower()
    )


def test_the_papers_marks_stand_under_one_void_convention(tmp_path: Path) -> None:
    job = make_table(tmp_path / "table3.csv")
    plot_table(job, tmp_path / "table3.csv", tmp_path / "plot")
    marks = [s for s in drawn_shapes(tmp_path / "plot.svg", VERMILLION) if s.startswith("<use")]
    assert len(marks) == 2  # in one panel, and in the legend


def test_the_floor_is_the_best_control_of_as_many_shots(tmp_path: Path) -> None:
    """A control of 20 at 1 shot and of 60 at 5: what is above the first must not be shaded by the second."""
    job = make_table(tmp_path / "table3.csv")
    job["shots"] = [1, 5]
    lines = [list(line.values()) for line in read_csv(tmp_path / "table3.csv")]
    for row in job["rows"]:
        row["cells"] += [cell | {"shots": 5} for cell in row["cells"]]
    for line in list(lines):
        more = 40 if line[1] == "all-fg" else 0
        numbers = [float(line[i]) + more for i in (7, 8, 9)]
        lines.append([*line[:3], 5, *line[4:7], *numbers, *line[10:]])
    write_csv(tmp_path / "table3.csv", HEADER, lines)
    plot_table(job, tmp_path / "table3.csv", tmp_path / "plot")
    svg = (tmp_path / "plot.svg").read_text()
    assert "not above the best control of as many shots" in texts(tmp_path / "plot.svg")
    bands = re.findall(rf'd="([^"]*)"/>\s*</defs>\s*<g [^>]*>\s*<use [^>]*fill: {SHADE.lower()}', svg)
    rights = {round(max(float(x) for x in re.findall(r"[ML] ([\d.]+) ", band))) for band in bands}
    assert len(rights) == 2 * 2  # two floors in each of two panels


def test_classes_are_scored_each_for_itself(tmp_path: Path) -> None:
    job = make_table_job(tmp_path) | {"classes": {str(i): f"class {i}" for i in range(1, 21)}, "dataset_folds": 4}
    write_classes(job, tmp_path / "classes.csv")
    lines = read_csv(tmp_path / "classes.csv")
    assert len(lines) == 3 * 20 * 2  # rows, classes, void conventions
    of_fold = [line for line in lines if (line["row"], line["fold"], line["void"]) == ("both", "1", VOIDS[0])]
    assert [line["name"] for line in of_fold] == [f"class {i}" for i in range(6, 11)]
    render_table(job, tmp_path / "table2")
    whole = next(
        line
        for line in read_csv(tmp_path / "table2.csv")
        if [line[key] for key in ("row", "fold", "metric", "void")] == ["both", "1", "miou", VOIDS[0]]
    )
    assert np.mean([float(line["value"]) for line in of_fold]) == pytest.approx(float(whole["value"]), abs=0.01)
    assert all(float(line["low"]) < float(line["value"]) < float(line["high"]) for line in of_fold)
    assert {line["photos"] for line in of_fold} == {"12"}
    _, grid = render_classes(tmp_path / "classes.csv")
    assert len(grid.splitlines()) == 2 + 20 and "| class 7 " in grid
    words = drawn_twice(plot_classes, job, tmp_path / "classes.csv")
    for expected in (
        "class 20 (12)",
        "fold 3",
        "Both: 100 % & more_, 95 % interval",
        "All foreground (control)",
        "Demo",
    ):
        assert expected.replace("&", "&amp;") in words or expected in words
    with pytest.raises(CrnetError, match="class 1 is none of its test classes"):
        write_classes(job | {"classes": {}}, tmp_path / "classes.csv")


def test_one_photo_tells_nothing_of_its_spread(tmp_path: Path) -> None:
    job = make_table_job(tmp_path) | {"classes": {str(i): f"class {i}" for i in range(1, 21)}}
    for row in job["rows"]:
        row["cells"] = [cell for cell in row["cells"] if cell["seed"] == 0]
        for cell in row["cells"]:
            path = Path(cell["counts"])
            path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[:6]) + "\n", encoding="utf-8")
    write_classes(job, tmp_path / "classes.csv")
    lines = read_csv(tmp_path / "classes.csv")
    assert {(line["photos"], line["low"], line["high"]) for line in lines} == {("1", "", "")}
    assert all(line["value"] for line in lines)
    plot_classes(job, tmp_path / "classes.csv", tmp_path / "classes")


def test_classes_of_which_nothing_is_there(tmp_path: Path) -> None:
    job = make_table_job(tmp_path)
    for row in job["rows"]:
        row["cells"] = []
    write_classes(job, tmp_path / "classes.csv")
    assert render_classes(tmp_path / "classes.csv") == []
    plot_classes(job, tmp_path / "classes.csv", tmp_path / "classes")
    assert "no value" in texts(tmp_path / "classes.svg")


K_SHOT_ROWS = {"stripped-fusion": 40, "stripped-finetune": 45, "full-fusion": 50, "full-finetune-fusion": 55}


def make_k_shot(path: Path) -> dict:
    """Table 4 with one fold: finetuning begins at 5 shots, one row quotes the paper, one row is missing."""
    lines, rows = [], []
    for name, value in {**K_SHOT_ROWS, "prototype": 30}.items():
        rows.append({"id": name, "label": name.capitalize(), "control": name == "prototype", "cells": []})
        for shots in (1, 5, 10):
            known = shots > 1 or "finetune" not in name
            numbers = (value + shots, value + shots - 1, value + shots + 1) if known else ("", "", "")
            paper = 57.5 if name == "stripped-finetune" and known else ""
            numbers = (*numbers, 1, "", 9, 9, 9, paper, "", "")
            lines.append(("table4", name, name, shots, "mean", "miou", VOIDS[0], *numbers))
    write_csv(path, HEADER, lines)
    job = {"table": "table4", "folds": [1], "dataset_folds": 4, "shots": [1, 5, 10], "metrics": ["miou"]}
    return job | {"orientation_only": False, "study_title": "The study", "rows": rows}


def test_k_shot_curve_is_reproducible_and_names_its_lines(tmp_path: Path) -> None:
    words = drawn_twice(plot_k_shot, make_k_shot(tmp_path / "table4.csv"), tmp_path / "table4.csv")
    for expected in ("Fusion", "Finetune + fusion", "1-shot", "10-shot", "Full model", "paper", "fold 1"):
        assert expected in words
    assert "Prototype (control)" in words


def test_k_shot_strategies_differ_in_colour_marker_and_dash() -> None:
    for looks in zip(*STRATEGIES.values(), strict=True):
        assert len(set(looks)) == len(STRATEGIES)


@pytest.mark.parametrize(("plot", "message"), [(plot_k_shot, "stripped-fusion"), (plot_table, "does not hold table2")])
def test_plots_refuse_another_tables_csv(tmp_path: Path, plot, message: str) -> None:
    job = make_table(tmp_path / "table3.csv") | {"table": "table2"}
    with pytest.raises(CrnetError, match=message):
        plot(job, tmp_path / "table3.csv", tmp_path / "plot")


def write_training(path: Path, base_miou: float = 0.6) -> None:
    rows = [
        (f"{label}-{fold}-{seed}", label, "crnet", fold, seed, 50 * e, 1 / (e + 1), base_miou if e % 2 else "")
        for label, fold, seed, e in product(("Condition only", "Full CRNet"), FOLDS, (0, 1), range(4))
    ]
    write_csv(path, ("run", "variant", "method", "fold", "seed", "step", "loss", "base_miou"), rows)


def test_losses_show_every_variant_fold_and_seed(tmp_path: Path) -> None:
    write_training(tmp_path / "training.csv")
    labels = [("Table 3: full", [f"Full CRNet-{fold}-{seed}" for fold, seed in product(FOLDS, (0, 1))])]
    plot_losses({"title": "The study", "labels": labels}, tmp_path / "training.csv", tmp_path / "losses")
    words = texts(tmp_path / "losses.svg")
    assert words.index("Table 3: full") < words.index("Condition only")  # as in the tables; others by their variant
    assert "Full CRNet" not in words
    for expected in ("The study", "Condition only", "base-class mIoU", "fold 0", "fold 1", "seed 1", "Training"):
        assert expected in words
    curves = re.findall(rf"stroke: ({'|'.join(COLOURS[:2])})".lower(), (tmp_path / "losses.svg").read_text().lower())
    assert len(curves) >= 2 * 2 * 2 * 2  # variants x panels x folds x seeds


@pytest.mark.parametrize(
    ("content", "message"), [("run,loss\n", "no line with the column"), (None, r"outside \[0, 1\]")]
)
def test_losses_refuse_other_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "training.csv"
    if content is None:
        write_training(path, base_miou=60.0)
    else:
        path.write_text(content)
    with pytest.raises(CrnetError, match=message):
        plot_losses({"title": "The study", "labels": []}, path, tmp_path / "losses")


def make_episode(height: int = 40, width: int = 60) -> dict:
    mask = np.zeros((height, width), np.uint8)
    mask[10:20, 10:30], mask[20:24, 10:30] = 1, 255
    image = np.full((height, width, 3), 100, np.uint8)
    episode = {"support": image, "support_mask": mask, "query": image, "truth": mask, "prediction": mask == 1}
    return episode | {"class_name": "tv/monitor", "fold": 3, "iou": 0.876}


def test_sheet_shows_class_fold_and_score(tmp_path: Path) -> None:
    empty = make_episode(70, 30) | {"prediction": np.zeros((70, 30), bool), "iou": None}
    draw_sheet([make_episode(), empty], tmp_path / "sheet", "Episodes")
    words = texts(tmp_path / "sheet.svg")
    for expected in ("Episodes", "tv/monitor", "fold 3", "IoU 88 %", "Query", "Prediction", "Truth"):
        assert expected in words
    assert words.count("IoU") == 1
    assert width(tmp_path / "sheet.png") == 600


@pytest.mark.parametrize("count", [0, 9])
def test_sheet_needs_episodes(tmp_path: Path, count: int) -> None:
    with pytest.raises(CrnetError, match="1 to 8 episodes"):
        draw_sheet([make_episode()] * count, tmp_path / "sheet", "Episodes")


def test_overlay_tints_foreground_and_hatches_void_only() -> None:
    episode = make_episode()
    image, mask = episode["query"], episode["truth"]
    changed = (overlay(image, mask, "#FF0000") != image).any(-1)
    assert changed[mask == 1].all() and not changed[mask == 0].any()
    assert 0 < changed[mask == 255].sum() < (mask == 255).sum()
    assert (image == 100).all()  # the input is left alone
    with pytest.raises(CrnetError, match="does not lie on"):
        overlay(image, mask[:5], "#FF0000")
