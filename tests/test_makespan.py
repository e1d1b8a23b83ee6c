"""Simulated makespans by hand, and the simulated graph against Snakemake's own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crnet.config import study
from crnet.config.layout import Layout
from crnet.planning.makespan import ancestors, critical_path, graph_of, makespan

ROOT = Path(__file__).resolve().parents[1]
REPORT = {"runs", "job", "table", "classes", "claims", "k_shot", "losses", "page", "sheet", "track", "tables", "all"}
REPORT |= {"probe_table"}
A, B, C, D, E = (("train", name) for name in "abcde")


def test_independent_jobs():
    graph, seconds = {A: [], B: [], C: []}, {A: 3.0, B: 2.0, C: 2.0}
    assert [makespan(graph, seconds, workers) for workers in (1, 2, 3, 64)] == [7, 4, 3, 3]


def test_a_diamond():
    graph = {A: [], B: [A], C: [A], D: [B, C]}
    seconds = {A: 1.0, B: 2.0, C: 3.0, D: 1.0}
    assert [makespan(graph, seconds, workers) for workers in (1, 2)] == [7, 5]
    assert critical_path(graph, seconds) == [A, C, D]


def test_the_longest_chain_goes_first():
    graph = {A: [], B: [], C: [], D: [C]}  # alphabetical order would start A and B, and end at 7
    assert makespan(graph, {A: 2.0, B: 2.0, C: 1.0, D: 4.0}, 2) == 5


def test_jobs_that_take_no_worker():
    graph = {("data", "a"): [], A: [("data", "a")], B: []}
    seconds = {("data", "a"): 5.0, A: 2.0, B: 6.0}
    assert makespan(graph, seconds, 1) == 13
    assert makespan(graph, seconds, 1, occupies=lambda job: job[0] == "train") == 8


def test_a_makespan_is_never_below_its_bounds():
    plan = study.load([ROOT / "configs/studies/demo.yaml"])
    graph = graph_of(plan, Layout(plan))
    seconds = {job: 1.0 + len(job[1]) % 7 for job in graph}
    longest = sum(seconds[job] for job in critical_path(graph, seconds))
    whole, times = sum(seconds.values()), [makespan(graph, seconds, n) for n in (1, 4, 8, 64)]
    assert times[0] == pytest.approx(whole)
    assert times == sorted(times, reverse=True)
    for workers, time in zip((1, 4, 8, 64), times, strict=True):
        assert max(longest, whole / workers) <= time + 1e-9 <= longest + whole / workers + 1e-6


def dry_run(folder: Path, content: dict) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Job -> the jobs whose files it reads, from what a dry run of Snakemake prints of inputs and outputs."""
    for name in ("Snakefile", "workflow", "configs", "profiles"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    shutil.copy(ROOT / "environment.yml", folder)
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--dry-run", "--configfile", "study.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    inputs, makers = {}, {}
    for block in re.split(r"\n(?=(?:local)?rule \w+:\n)", done.stdout + done.stderr)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", block)[1]
        lines = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
        job = rule, lines["wildcards"].split("=", 1)[1] if "wildcards" in lines else content["study"]
        inputs[job] = [file for file in lines.get("input", "").split(", ") if file]
        makers.update(dict.fromkeys(lines.get("output", "").split(", "), job))
    return {
        job: {makers[file] for file in files if file in makers} for job, files in inputs.items() if job[0] not in REPORT
    }


@pytest.mark.parametrize("file", ["tests/tiny.yaml", "configs/studies/coco-photos.yaml", "configs/studies/paper.yaml"])
def test_the_graph_is_snakemakes(file, tmp_path):
    content = yaml.safe_load((ROOT / file).read_text())
    if ":" in content["encoders"]["main"]["name"]:  # an encoder that is not shipped
        content["encoders"] = {"main": {"name": "small"}}
    plan = study.load([ROOT / file], {"encoders": content["encoders"]})
    graph = graph_of(plan, Layout(plan))
    assert {job: set(before) for job, before in graph.items()} == dry_run(tmp_path, content)


def test_ancestors_and_order():
    plan = study.load([ROOT / "tests/tiny.yaml"])
    graph = graph_of(plan, Layout(plan))
    seen = set()
    for job, before in graph.items():
        assert set(before) <= seen, f"{job} stands before what it waits for"
        seen.add(job)
    finetuned = next(job for job in graph if job[0] == "finetune")
    assert {rule for rule, _ in ancestors(graph, [finetuned])} == {
        "data", "encoder", "episodes", "feasible", "features", "train", "trials", "choice", "finetune",
    }  # fmt: skip
