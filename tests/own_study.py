"""A study of a few generated scenes with an untrained network: what is predicted and scored without the workflow."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from crnet import methods
from crnet.config import study, tuning
from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.data import episodes
from crnet.data.index import Index
from crnet.data.prepare import prepare
from crnet.encoders.small import network
from crnet.evaluation.evaluate import evaluate
from crnet.runtime.files import write_json
from crnet.yours.places import cell

DATA = {"name": "shapes5i", "images_train": 40, "images_val": 60, "size": 64, "rule_grid": 8}
STUDY = {
    "study": "own",
    "title": "A few scenes",
    "caption": "A test on a handful of generated scenes.",
    "orientation_only": True,
    "tables": ["table3", "table4"],
    "shots": [1, 5],
    "benchmarks": {
        "pascal": {"dataset": DATA, "folds": [0, 1], "episodes": {"count": 6, "seeds": [0], "shots": 1}},
        "k-shot": {
            "dataset": DATA,
            "folds": [0],
            "episodes": {"count": 3, "seeds": [0], "shots": 5, "too_few": "leave out"},
        },
    },
    "encoders": {"main": {"name": "small"}},
    "seeds": [0],
    "controls": ["all-foreground"],
    "methods": {"crnet": {"width": 8, "gate_width": 4, "initialisation": "kaiming", "path_dropout": 0.0}},
    "train": {"size": 64, "batch": 4, "epochs": 1, "epoch_episodes": 8, "augment": "none", "precision": "float32"},
    "evaluate": {"size": 64, "precision": "float32", "refinements": 2},
    "finetune": {"lr": [1.0e-3], "steps": [2], "batch": 2, "trial_episodes": 2, "trial_shots": 2},
}
CHOSEN = {"lr": 1e-3, "steps": 2, "edge_lr": "", "edge_steps": "", "tried_on": "base"}


def build(folder: Path) -> Plan:
    """Write ``study.yaml``, data, encoder, weights and episodes into the current folder, ``folder``."""
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    plan = study.load([folder / "study.yaml"])
    layout = Layout(plan)
    for spec in plan.datasets.values():
        prepare(spec, folder, folder, Path(layout.data(spec)))
    for spec in plan.encoders.values():
        torch.manual_seed(0)
        Path(layout.encoder(spec)).parent.mkdir(parents=True, exist_ok=True)
        save_file(network(spec["layers"]).state_dict(), layout.encoder(spec))
    for spec in plan.evaluations.values():
        if not Path(layout.episodes(spec)).is_file():
            index = Index.load(layout.data(spec["train"]["dataset"]))
            how = {key: value for key, value in spec["episodes"].items() if key != "rev"}
            episodes.write(Path(layout.episodes(spec)), episodes.draw(index, spec["train"]["fold"], **how))
        if (weights := layout.weights(spec)) and not Path(weights).is_file():
            torch.manual_seed(3)
            Path(weights).parent.mkdir(parents=True)
            save_file(methods.build("crnet", (64, 96), spec["train"]["model"]).state_dict(), weights)
    return plan


def run(plan: Plan, table: str, row: str, shots: int, fold: int) -> Path:
    """Evaluate one cell; returns the folder of its results."""
    layout, chosen = Layout(plan), cell(plan, table, row, shots, fold, None)
    spec, out = plan.evaluations[chosen.evaluation], Path(layout.evaluation(chosen.evaluation))
    data, encoder = Path(layout.data(spec["train"]["dataset"])), Path(layout.encoder(spec["train"]["encoder"]))
    weights = Path(layout.weights(spec)) if layout.weights(spec) else None
    choice = Path("choice.json") if layout.choice(spec) else None  # of no trials that were run
    if choice:
        write_json(choice, {"spec": tuning.choice_spec(spec), **CHOSEN, "classes": []})
    evaluate(spec, data, Path(layout.episodes(spec)), encoder, weights, choice, None, out, "cpu", 1)
    return out
