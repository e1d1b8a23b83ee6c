"""A batch taken part by part, for little memory: the gradients are those of the whole, up to rounding."""

from collections.abc import Callable

import torch
from torch import Tensor

from crnet.methods import PAIRS, SHARE, Share, Step
from crnet.runtime.seeding import derive


def shares(query_masks: Tensor, support_masks: Tensor, at_once: int, mean_over: str) -> list[Share | None]:
    """The parts of a batch of pairs with masks (N, H, W), ``at_once`` each; ``[None]`` where it is one part.

    Args:
        mean_over: What the method's losses are means over, as ``Method.mean_over``.
    """
    count = len(query_masks)
    if at_once >= count:
        return [None]
    query_pixels, support_pixels = ((masks != 255).sum() for masks in (query_masks, support_masks))
    rows = [slice(start, min(start + at_once, count)) for start in range(0, count, at_once)]
    if mean_over == SHARE:
        weights = [None for _ in rows]
    elif mean_over == PAIRS:
        weights = [(each.stop - each.start) / count for each in rows]
    else:
        weights = [(query_masks[each] != 255).sum().item() / max(1, query_pixels.item()) for each in rows]
    return [
        Share(weight, each, count, query_pixels, support_pixels) for weight, each in zip(weights, rows, strict=True)
    ]


def accumulate(losses: Callable[[Share | None], Step], parts: list[Share | None], seed: int) -> Step:
    """Add the gradients of all parts to the weights' and return the batch's losses and probabilities, detached.

    Args:
        losses: Of one part; weighed here, unless the part has no weight.
        seed: Of what is drawn, alike for all parts where methods weigh themselves: they draw for the whole batch.
    """
    steps = []
    for number, part in enumerate(parts):
        own = part is None or part.weight is None
        torch.manual_seed(seed if own else derive("part", seed, number))
        step = weighed(losses(part), part)
        if own or part.weight:
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


def weighed(step: Step, part: Share | None) -> Step:
    """The losses of a part as they add up to the batch's; 0 if it has no weight: a mean over no pixel is no number."""
    if part is None or part.weight is None:
        return step

    def of(loss: Tensor) -> Tensor:
        return loss * part.weight if part.weight else torch.zeros_like(loss)

    parts = {name: of(value) for name, value in step.parts.items()}
    return Step(of(step.loss), parts, step.query_probability, step.support_probability)


def _joined(probabilities: list[Tensor | None]) -> Tensor | None:
    return None if probabilities[0] is None else torch.cat(probabilities)
