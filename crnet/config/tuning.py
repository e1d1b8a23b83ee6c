"""How finetuning is chosen, as jobs: trials of every training that a choice needs, and a choice for every fold.

Fold f's choice is made of the trials of the other folds' models, of the same settings and seed, on the classes that
those folds test: as new to their networks as f's classes are to f's, and never f's own. Where a study runs one fold of
a benchmark there are no others: the fold's own model is tried on the validation classes of its split, or else on its
base classes, which it knows already.
"""

from collections.abc import Collection, Iterable

from crnet.config.defaults import EVALUATE
from crnet.config.names import Spec, name_of, slug
from crnet.data.episodes import NOVEL, SELECTION

CHOSEN = ("lr", "steps", "edge_lr", "edge_steps", "tried_on")  # of choice.json, kept beside whatever was made with it


def with_folds(settings: Spec, fold: int, folds: Iterable[int]) -> Spec:
    """Settings of finetuning for ``fold``, with the other folds of its benchmark, whose trials choose; [] if none."""
    return {**settings, "folds": sorted(set(folds) - {fold})}


def choice_spec(evaluation: Spec) -> Spec | None:
    """What chooses how an evaluation finetunes; None for others. At one scale: evaluations of a training share it."""
    if "finetune" not in evaluation:
        return None
    kept = {key: evaluation["evaluate"][key] for key in ("rev", "size", "refinements", "precision")}
    evaluate = {**EVALUATE, **kept, "strategy": "finetune", "shots": evaluation["finetune"]["trial_shots"]}
    return {"train": evaluation["train"], "evaluate": evaluate, "finetune": evaluation["finetune"]}


def choice_name(spec: Spec) -> str:
    return name_of(f"{slug(spec['train'])}-choice", spec)


def trials_specs(choice: Spec) -> list[Spec]:
    """The trials of which a choice is made, one for each model, in the order of their folds."""
    own = own_trials(choice)
    others = [{**own, "train": {**choice["train"], "fold": fold}} for fold in choice["finetune"]["folds"]]
    return others or [own]


def own_trials(choice: Spec) -> Spec:
    """The trials of the choice's own model: for other folds, or for itself where there are none."""
    settings = {key: value for key, value in choice["finetune"].items() if key != "folds"}
    classes = NOVEL if choice["finetune"]["folds"] else SELECTION
    return {"train": choice["train"], "evaluate": choice["evaluate"], "finetune": settings, "trial_classes": classes}


def trials_name(spec: Spec) -> str:
    return name_of(f"{slug(spec['train'])}-trials", spec)


def edge(value: float, tried: Collection[float], low: str, high: str) -> str:
    """``low`` or ``high`` where a chosen value is the least or most of those tried; "" between, and of one alone."""
    if len(set(tried)) < 2:
        return ""
    return low if value == min(tried) else high if value == max(tried) else ""
