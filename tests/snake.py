"""Snakemake as tests start it: in a folder that holds a copy of the workflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_workflow(folder: Path) -> Path:
    for name in ("workflow", "configs", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder)
    return folder


def command(*arguments: str, study: str = "study.yaml") -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments, "--configfile", study]


def environment() -> dict[str, str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "no_proxy": "*"}
    variables.pop("MLFLOW_TRACKING_URI", None)
    return variables


def snakemake(folder: Path, *arguments: str, study: str = "study.yaml") -> subprocess.CompletedProcess:
    """A finished ``snakemake``; ``output`` is all that it said."""
    asked = command(*arguments, study=study)
    done = subprocess.run(asked, check=False, cwd=folder, env=environment(), capture_output=True, text=True)
    done.output = done.stdout + done.stderr
    return done
