"""What MLflow stores hold, and index files to fill them from; the fixture ``store`` is an empty one."""

import sqlite3
from pathlib import Path

from crnet.report import tracking
from crnet.runtime.files import write_csv

RUNS = ("run", "kind", "status", "failed", "train_run", "method", "variant", "dataset.name", "fold", "seed",
        "shots", "miou_background", "fbiou_pairs_background", "miou_ignore", "evaluate.scales", "model.condition",
        "train.lr", "started", "seconds", "commit", "dirty", "dataset_digest")  # fmt: skip
LINES = ("run", "method", "variant", "fold", "seed", "epoch", "step", "loss", "lr", "base_miou",
         "support_iou", "seconds")  # fmt: skip
ORIGIN = ("2026-01-02T03:04:05Z", "60.0", "c0ffee", "false", "ab" * 32)
ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "demo · shapes5i"


def write_index(root: Path, study="demo", folds=2, variant="crnet", failed="", loss=1.0) -> Path:
    """Index files of a study: a training and an evaluation for each fold."""
    results, runs, lines = root / "results" / study, [], []
    for fold in range(folds):
        train, place = f"crnet-f{fold}", ("crnet", variant, "shapes5i", fold, 0)
        status = ("failed", failed) if failed and fold == 0 else ("finished", "")
        scores = (1, 50 + fold, 60, 48, "[1.0]")
        runs.append([train, "train", *status, "", *place, "", "", "", "", "", "true", "0.1", *ORIGIN])
        runs.append([f"{train}-1shot", "evaluate", "finished", "", train, *place, *scores, "true", "0.1", *ORIGIN])
        lines += [
            [train, "crnet", variant, fold, 0, e, 10 * e, loss / (e + 1), 0.1, 0.3 + e / 10, "", 20 * e + 5]
            for e in range(3)
        ]
    write_csv(results / "runs.csv", RUNS, runs)
    write_csv(results / "training.csv", LINES, lines)
    return results


def client(uri: str):
    return tracking.import_mlflow().MlflowClient(tracking_uri=uri)


def runs_of(uri: str, name: str = EXPERIMENT) -> dict:
    found = client(uri).search_runs([client(uri).get_experiment_by_name(name).experiment_id], max_results=1000)
    assert len({run.data.tags["crnet.key"] for run in found}) == len(found)
    return {run.data.tags["crnet.key"]: run for run in found}


def parents_of(uri: str) -> dict:
    return {run.info.run_name: run for run in runs_of(uri).values() if run.data.tags["kind"] == "variant"}


def dump(uri: str) -> list[str]:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        return list(connection.iterdump())
