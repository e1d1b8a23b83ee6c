"""Stages around the network: planning a study, starting a job, rendering a table."""

import contextlib
import io
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from crnet.bench.inputs import Inputs
from crnet.bench.report import Row, Target
from crnet.bench.timing import Measured, measure, timed
from crnet.errors import CrnetError
from crnet.metrics.intervals import REPORTS
from crnet.metrics.iou import PAIRS, QUERY_COLUMNS
from crnet.planning.stages import START
from crnet.runtime.files import canonical, write_csv, write_json

STUDY = Path("configs/studies/paper.yaml")
PLANNED, PARSED, STARTED = 5.0, 3.0, 5.0  # seconds
EPISODES, FOLDS, SEEDS = 5000, 4, 3  # of the paper's study, a fold


def jobs(inputs: Inputs) -> list[Row]:
    """``plan`` and ``snakemake`` run in the project's root; elsewhere they are left out."""
    rows = [_started(inputs), _table(inputs)]
    if not STUDY.is_file():
        return rows
    note, planned = "a process of its own, quicker of 2", []
    plan = [sys.executable, "-m", "crnet", "plan"]
    dry_run = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--nolock", "--cores", "1"]
    commands = {
        "crnet plan, the paper's study": (plan, PLANNED),
        "snakemake --dry-run, the paper's study": (dry_run, PARSED),
    }
    for stage, (command, allowed) in commands.items():
        work = partial(run, [*command, "--configfile", str(STUDY)])
        seconds = min(timed(work, "cpu")[0] for _ in range(2))
        planned.append(_in_time(stage, seconds, allowed, note))
    return planned + rows


def _in_time(stage: str, seconds: float, allowed: float, note: str) -> Row:
    target = Target(f"≤ {allowed:g} s", seconds, allowed, at_most=True)
    return Row(stage, "seconds", Measured(1, seconds), targets=[target], note=note)


def run(command: list[str]) -> str:
    """What a command prints; raises CrnetError with its last line if it fails."""
    done = subprocess.run(command, check=False, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise CrnetError(f"bench: {' '.join(command[1:4])[:60]!r} ended with status {done.returncode}: {last}")
    return done.stdout


# Runs `crnet job train` until its first step is about to begin, and prints the seconds since the process was started,
# with those that importing torch took.
_FIRST_STEP = """
import sys, time
before = time.time()
import torch
torch_seconds = time.time() - before
from crnet.training import loop
started = float(sys.argv.pop())
def stop(self, batch):
    print("first step", time.time() - started, torch_seconds)
    sys.exit(0)
loop.Training.step = stop
from crnet.cli import cli
cli(sys.argv[1:])
"""


def _started(inputs: Inputs) -> Row:
    options, out = inputs.options, inputs.folder / "started"
    spec = inputs.training(features="cached", augment="none")
    arguments = ["job", "train", "--spec", canonical(spec), "--data", inputs.data]
    arguments += ["--features", inputs.write_features(), "--out", out, "--state", out / "state.pt"]
    arguments += ["--device", options.device, "--threads", options.threads]
    arguments += ["--encoder", inputs.encoder] if inputs.encoder else []
    measured = []
    for _ in range(2):
        command = [sys.executable, "-c", _FIRST_STEP, *map(str, arguments), str(time.time())]
        total, importing = map(float, run(command).split("first step")[1].split()[:2])
        measured.append((total - importing, importing))
    seconds, importing = min(measured)
    return _in_time(START, seconds, STARTED, f"beyond importing torch, which took {importing:.1f} s; quicker of 2")


def _table(inputs: Inputs) -> Row:
    """A table of the paper's size from generated counts: every cell, interval, Markdown and LaTeX."""
    from crnet.report.tables.render import render_table

    job = _table_job(inputs.folder / "counts", inputs.options.rows)

    def render() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            render_table(job, inputs.folder / "table")
        return 1

    note = f"{inputs.options.rows} rows, {FOLDS} folds, {SEEDS} seeds, {EPISODES:,} episodes each"
    return Row("a table from counts", "seconds", measure(lambda: render, "cpu", watched=False), note=note)


def _table_job(folder: Path, rows: int) -> dict:
    chance = np.random.default_rng(0)
    header = ("episode_seed", "episode", "class", "query", *QUERY_COLUMNS)
    row_jobs = []
    for number in range(rows):
        cells = []
        for fold, seed in product(range(FOLDS), range(SEEDS)):
            hits = chance.integers(0, 1000, EPISODES).tolist()
            path = folder / f"{number}-{fold}-{seed}/counts.csv"
            write_csv(path, header, (_counts(fold, i, hit) for i, hit in enumerate(hits)))
            write_json(path.with_name(REPORTS[0]), {PAIRS: {5 * fold + i + 1: 60 + 10 * i for i in range(5)}})
            cells.append({"shots": 1, "fold": fold, "seed": seed, "counts": str(path)})
        about = {"id": f"row{number}", "label": f"Row {number}", "switches": {}, "control": False, "paper": {}}
        row_jobs.append({**about, "cells": cells})
    about = {"study": "bench", "caption": "", "table": "table2", "title": "Bench", "source": "bench"}
    what = {
        "folds": list(range(FOLDS)),
        "study_title": "Bench",
        "classes": {},
        "shots": [1],
        "metrics": ["miou", "fbiou_pairs"],
    }
    return {**about, **what, "orientation_only": True, "rows": row_jobs}


def _counts(fold: int, number: int, hit: int) -> tuple:
    counts = (hit, 1000, 8000, 9000 - hit, hit, 1100, 8000, 9100 - hit)
    return number // 1000, number % 1000, 5 * fold + number % 5 + 1, f"q{number}", *counts
