"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Sequence

import torch
from torch import nn

ONE_CYCLE_WARM_UP = 0.1  # share of all steps in which the rate rises
ONE_CYCLE_START = 0.04  # of the peak


def optimiser(method: nn.Module, settings: dict, encoder: Sequence[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """Of a method's weights that learn and, as a second group, of an encoder's."""
    groups = [[p for p in method.parameters() if p.requires_grad], list(encoder)]
    parameters = [{"params": group} for group in groups if group]
    rate, momentum, decay = settings["lr"], settings["momentum"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=momentum, weight_decay=decay)
    return torch.optim.AdamW(parameters, rate, betas=(momentum, 0.999), weight_decay=decay, fused=True)


def learning_rate(settings: dict, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``steps``: constant; poly, power 0.9; one-cycle, cosine up and down."""
    peak, progress = settings["lr"], step / max(1, steps)
    if settings["schedule"] == "constant":
        return peak
    if settings["schedule"] == "poly":
        return peak * (1 - progress) ** 0.9
    if progress < ONE_CYCLE_WARM_UP:
        return peak * (1 - (1 - ONE_CYCLE_START) * 0.5 * (1 + math.cos(math.pi * progress / ONE_CYCLE_WARM_UP)))
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - ONE_CYCLE_WARM_UP) / (1 - ONE_CYCLE_WARM_UP)))
