"""Stages of testing: 1-shot evaluation over a pool of photos, and 5-shot finetuning with fusion."""

import torch

from crnet.bench.agreement import ROUNDING, differing, recorded_logits, relative, require
from crnet.bench.inputs import Inputs
from crnet.bench.plain import Plain, PlainFinetuner
from crnet.bench.rows import Row, Target, at_least
from crnet.bench.timing import Work, measure
from crnet.data.episodes import Episode
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Predictor
from crnet.planning.stages import EVALUATION, FINETUNING

CANET = 0.43  # pairs a second of its public network, re-encoding each pass in float32, on 2 cores at 321 px
LEARNING_RATE = 1e-6  # of finetuning: random weights diverge soon


def predictor(inputs: Inputs, shots: int, **changes) -> Predictor:
    spec, options = inputs.evaluation(shots, **changes), inputs.options
    return Predictor(spec, inputs.data, inputs.encoder, inputs.weights, options.device)


def plain(inputs: Inputs, shots: int) -> Plain:
    """The plain loop, after it has seen one photo."""
    spec, options = inputs.evaluation(shots), inputs.options
    loop = Plain(spec, inputs.data, inputs.encoder, inputs.weights, options.device)
    loop.maps(loop.image(next(iter(inputs.index.photos)), options.size))
    return loop


def evaluation(inputs: Inputs) -> list[Row]:
    options, episodes = inputs.options, inputs.episodes(inputs.options.episodes, 1)
    fast = measure(lambda: evaluate(predictor(inputs, 1), episodes), options.device)
    loop, few, found = plain(inputs, 1), episodes[: options.plain_episodes], []
    slow = measure(lambda: lambda: len([found.append(loop.predict(e)) for e in few]), options.device, watched=False)

    ours = predictor(inputs, 1)
    with recorded_logits(ours.method) as logits:
        masks = [prediction.query for prediction in ours.fused(few)]
    allowed = ROUNDING[options.dtype]
    distance = relative(torch.cat(logits), torch.stack([each.logits for each in found]))
    note = (
        f"{require('logits', distance, allowed.values)}, "
        f"{require('masks', differing(masks, [each.first for each in found]), allowed.pixels)}"
    )
    photos = len({photo for e in episodes for photo in (e.query, *e.supports)})
    note = f"n = {fast.units} over {photos} photos, {slow.units} plain; {note}"
    row = Row(EVALUATION, "episodes", fast, slow, note=note)
    row.targets += [
        at_least(10, row),
        Target(f"≥ 10 × CANet's {CANET} pairs/s", fast.rate, 10 * CANET),
    ]
    return [row]


def evaluate(predictor: Predictor, episodes: list[Episode]) -> Work:
    return lambda: sum(1 for _ in predictor.fused(episodes))


def finetuner(inputs: Inputs, shots: int) -> Finetuner:
    spec = inputs.evaluation(shots)
    return Finetuner(predictor(inputs, shots), spec["train"], spec["finetune"])


def finetuning(inputs: Inputs) -> list[Row]:
    options, shots = inputs.options, inputs.options.shots
    episodes, steps = inputs.episodes(options.finetuned, shots), options.steps
    fast = measure(lambda: finetune(finetuner(inputs, shots), episodes, steps), options.device)
    tuner, found = finetuner(inputs, shots), []
    loop = PlainFinetuner(plain(inputs, shots), tuner)

    def slowly() -> int:
        found.extend(loop.predictions(episodes[:1], LEARNING_RATE, steps))
        return len(found)

    slow = measure(lambda: slowly, options.device, watched=False)
    (ours,), (theirs,) = tuner.predictions(episodes[:1], LEARNING_RATE, steps), found
    allowed = ROUNDING[options.dtype]
    wrong = differing([ours.query, ours.fused], [theirs.first, theirs.fused])
    losses = relative(torch.tensor(ours.support_loss), torch.tensor(theirs.support_loss))
    note = f"{require('losses', losses, allowed.values)}, {require('masks', wrong, allowed.pixels)}"
    note = f"n = {fast.units}, {slow.units} plain; {steps} steps of 5 pairs; {note}"
    row = Row(FINETUNING, "episodes", fast, slow, note=note)
    row.targets.append(at_least(5, row))
    return [row]


def finetune(finetuner: Finetuner, episodes: list[Episode], steps: int) -> Work:
    return lambda: sum(1 for _ in finetuner.predictions(episodes, LEARNING_RATE, steps))
