"""A batch taken part by part, for little memory: the gradients are those of the whole, up to rounding."""

from collections.abc import Callable

import torch
from torch import Tensor

from crnet.methods import Share, Step


def shares(query_masks: Tensor, support_masks: Tensor, at_once: int) -> list[Share | None]:
    """The parts of a batch of pairs with masks (N, H, W), ``at_once`` each; ``[None]`` where it is one part."""
    count = len(query_masks)
    if at_once >= count:
        return [None]
    query_pixels, support_pixels = ((masks != 255).sum() for masks in (query_masks, support_masks))
    rows = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    return [Share(each, count, query_pixels, support_pixels) for each in rows]


def accumulate(losses: Callable[[Share | None], Step], parts: list[Share | None], seed: int) -> Step:
    """Add the gradients of all parts to the weights' and return the batch's losses and probabilities, detached.

    Args:
        losses: Of one part.
        seed: Of what is drawn, alike for all parts: those who draw do so for the whole batch.
    """
    steps = []
    for part in parts:
        torch.manual_seed(seed)
        step = losses(part)
        step.loss.backward()
        detached = {name: value.detach() for name, value in step.parts.items()}
        steps.append(Step(step.loss.detach(), detached, step.query_probability, step.support_probability))
    if len(steps) == 1:
        return steps[0]
    return Step(
        torch.stack([step.loss for step in steps]).sum(),
        {name: torch.stack([step.parts[name] for step in steps]).sum() for name in steps[0].parts},
        _joined([step.query_probability for step in steps]),
        _joined([step.support_probability for step in steps]),
    )


def _joined(probabilities: list[Tensor | None]) -> Tensor | None:
    return None if probabilities[0] is None else torch.cat(probabilities)
