"""Learning rates of which each training takes its own: a list as ``train.lr``, all tried with the whole budget.

What decides is mIoU over the fold's base classes after the last step, on episodes of training photos: no class that the
fold tests takes part, and every method has the same number of trials.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crnet.config.defaults import TRAIN, TRAIN_LIMITS
from crnet.config.names import Spec
from crnet.config.settings import check
from crnet.config.tuning import edge
from crnet.errors import CrnetError


def train_settings(given: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Spec:
    """Settings of training, whole; ``lr`` is a number, or a sorted list of those that are tried.

    Raises:
        CrnetError: As ``crnet.config.settings.check``; the list has fewer than two rates; nothing would be scored that
            could tell them apart.
    """
    rates = given.get("lr")
    if not isinstance(rates, list):
        return check(given, defaults, TRAIN_LIMITS, where)
    each = sorted({check({"lr": rate}, TRAIN, TRAIN_LIMITS, where)["lr"] for rate in rates})
    if len(each) < 2:
        raise CrnetError(f"{where}.lr: {rates} is a list to choose from and holds fewer than two rates; give a number.")
    settings = check({**given, "lr": each[0]}, defaults, TRAIN_LIMITS, where)
    if not settings["base_episodes"]:
        raise CrnetError(
            f"{where}.lr: a rate is chosen by mIoU of base classes, which base_episodes: 0 does not score; raise it."
        )
    return {**settings, "lr": each}


def rates_of(training: Mapping[str, Any]) -> list[float]:
    """The rates that a training tries, one where there is no choice."""
    rates = training["train"]["lr"]
    return rates if isinstance(rates, list) else [rates]


def with_rate(training: Spec, rate: float) -> Spec:
    """The training as it is with one of its rates."""
    return {**training, "train": {**training["train"], "lr": rate}}


def best(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which rate is chosen: the highest ``base_miou``, among equals the lowest rate; and at which end it lies.

    Args:
        trials: ``lr`` and ``base_miou`` of each rate, in [0, 1], None where it diverged.

    Returns:
        ``lr``, and ``edge_lr``: "lowest" or "highest" where it is that of those tried, else "".

    Raises:
        CrnetError: All diverged.
    """
    finite = [trial for trial in trials if trial["base_miou"] is not None]
    if not finite:
        raise CrnetError("every learning rate diverged; add lower ones to train.lr.")
    rate = max(finite, key=lambda trial: (trial["base_miou"], -trial["lr"]))["lr"]
    return {"lr": rate, "edge_lr": edge(rate, [trial["lr"] for trial in trials], "lowest", "highest")}
