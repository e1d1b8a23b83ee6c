"""Stages of the network and of what feeds it: photos, training, testing; each beside the plain loop that does the same.

A function of a stage returns its rows. Random weights diverge soon: all learning rates are small.
"""

from itertools import islice

import torch

from crnet.bench.agreement import ROUNDING, differing, gradient, recorded_logits, relative, require
from crnet.bench.inputs import Inputs
from crnet.bench.plain import Plain, PlainFinetuner, PlainTraining
from crnet.bench.report import Row, Target
from crnet.bench.timing import Ceiling, Work, measure
from crnet.data.episodes import Episode
from crnet.encoders.frozen import as_images
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import Predictor
from crnet.planning.stages import ENCODER, EVALUATION, FINETUNING, ON_FEATURES, ON_PHOTOS
from crnet.runtime.limits import PHOTOS_TOGETHER
from crnet.training import loop

FED = 1500  # images a second that a device may take
OF_CEILING = 0.6
HEAD_ALONE = 0.95  # "no slower", within what two runs of the same differ
CANET = 0.43  # pairs a second of its public network, re-encoding each pass in float32, on 2 cores at 321 px
LEARNING_RATE = 1e-6
ON_STORE = {"features": "cached", "augment": "none", "lr": LEARNING_RATE}

# ---------------------------------------------------------------- photos


def data(inputs: Inputs) -> list[Row]:
    """Photos from JPEG files to batches: one after the other, by two workers, and as maps of the feature store."""
    photos = inputs.index.photos
    decoded = measure(lambda: lambda: len([inputs.image(photo) for photo in photos]), "cpu", watched=False)
    loaded = measure(lambda: _loading(inputs), "cpu", watched=False)
    stored = measure(lambda: _reading(inputs), "cpu", watched=False)
    rows = [
        Row("decode and transform, one process", "images", decoded),
        Row("decode and transform, 2 workers", "images", loaded, decoded),
        Row("feature store to batch", "images", stored, decoded),
    ]
    rows[1].targets.append(Target(f"2 workers feed {FED:,} images/s", loaded.rate, FED))
    rows[1].note = f"n = {loaded.units}, plain: one process; to feed more, a store of decoded photos would be needed"
    rows[2].aim(5, "≥ 5 × decoding JPEG files")
    rows[2].note = f"n = {stored.units} maps from memory-mapped files, plain: {decoded.units} JPEG files decoded"
    return rows


def _plain(inputs: Inputs, spec: dict) -> Plain:
    """The plain loop, after it has seen one photo."""
    plain = Plain(spec, *inputs.trained)
    plain.maps(inputs.image(next(iter(inputs.index.photos))))
    return plain


def _loading(inputs: Inputs) -> Work:
    """Two photos an episode through the training's loader; workers are started before the clock is."""
    training, batch = _start(inputs, inputs.training(features="live"), workers=2), inputs.options.batch
    # Empty maps for a batch of photos: what is left is loading.
    training.source.encoder = lambda images, keep: [images.new_empty(len(images))] * len(training.encoder.channels)
    episodes = training.episodes.epoch(0, batch + 8 * len(inputs.index.photos) // 2)
    batches = training.source.batches(episodes, batch)
    next(batches)
    return lambda: 2 * sum(len(loaded.episodes) for loaded in batches)


def _reading(inputs: Inputs) -> Work:
    """Query, support and support without background of each episode."""
    training, batch = _start(inputs, inputs.training(**ON_STORE)), inputs.options.batch
    episodes = training.episodes.epoch(0, 10 * batch)
    return lambda: sum(3 * len(read.episodes) for read in training.source.batches(episodes, batch))


def encoder(inputs: Inputs) -> list[Row]:
    """Decoded photos through the frozen encoder, in batches as everywhere, and one by one in float32."""
    options, ours = inputs.options, inputs.frozen()
    photos = [inputs.image(photo) for photo in list(inputs.index.photos)[:PHOTOS_TOGETHER]]
    repeats = 16 if options.device == "cuda" else 1

    def encode() -> int:
        for _ in range(repeats):
            ours(as_images(photos))
        return repeats * len(photos)

    fast = measure(lambda: encode, options.device)
    plain, few = _plain(inputs, inputs.evaluation()), photos[:4]
    slow = measure(lambda: lambda: len([plain.maps(photo) for photo in few]), options.device, watched=False)
    distance = relative(torch.cat(ours(as_images(few[:1])), 1), torch.cat(plain.maps(few[0]), 1))
    agreement = require("maps", distance, ROUNDING[options.dtype].values)
    note = f"n = {fast.units} in batches of {PHOTOS_TOGETHER}, {slow.units} plain; {agreement}"
    return [Row(ENCODER, "images", fast, slow, note=note)]


# ---------------------------------------------------------------- training


def training(inputs: Inputs, ceiling: Ceiling) -> list[Row]:
    """A step on photos, and a step on cached features."""
    return [_on_photos(inputs, ceiling), _on_cached_features(inputs)]


def _start(inputs: Inputs, spec: dict, workers: int = 0) -> loop.Training:
    """A training at its first step, as ``crnet job train`` starts it."""
    options, out = inputs.options, inputs.folder / "training"
    features = inputs.write_features() if spec["train"]["features"] == "cached" else None
    paths = loop.Paths(inputs.data, inputs.encoder, features, out, out / "state.pt")
    training = loop.Training(spec, paths, torch.device(options.device), options.threads, workers, 60.0)
    training.method.train()
    return training


def steps(inputs: Inputs, spec: dict, in_memory: bool = False) -> Work:
    """The steps of a training that has just been started; ``in_memory``: on batches that were read before."""
    training, count = _start(inputs, spec), inputs.options.training_steps
    size = training.settings["batch"]
    episodes = training.episodes.epoch(0, count * size)
    ready = list(islice(training.source.batches(episodes, size), count)) if in_memory else None

    def work() -> int:
        for batch in ready or training.source.batches(episodes, size):
            training.step(batch)
        return count

    return work


def _on_photos(inputs: Inputs, ceiling: Ceiling) -> Row:
    options, spec = inputs.options, inputs.training(features="live", lr=LEARNING_RATE)
    fast = measure(lambda: steps(inputs, spec), options.device)

    training = _start(inputs, spec)
    reference = PlainTraining(_plain(inputs, inputs.evaluation() | {"train": spec}), training)
    batch = training.episodes.epoch(0, training.settings["batch"])
    slow = measure(lambda: lambda: reference.step(batch), options.device, watched=False)
    training.step(next(training.source.batches(batch, len(batch))))
    allowed = ROUNDING[options.dtype].gradients
    agreement = require("gradients", relative(gradient(training.method), gradient(reference.plain.method)), allowed)

    note = f"n = {fast.units}, {slow.units} plain; {options.batch} episodes a step; {agreement}"
    row = Row(ON_PHOTOS, "steps", fast, slow, note=note).aim(3)
    row.targets.append(Target("≥ 60 % of the ceiling", row.of_ceiling(ceiling) or 0.0, OF_CEILING))
    return row


def _on_cached_features(inputs: Inputs) -> Row:
    """With the store, and with batches that are in memory already: the difference is what the store costs."""
    spec, device = inputs.training(**ON_STORE), inputs.options.device
    fast = measure(lambda: steps(inputs, spec), device)
    alone = measure(lambda: steps(inputs, spec, in_memory=True), device, watched=False)
    note = f"n = {fast.units}, {alone.units} of the head alone, which stands for plain"
    row = Row(ON_FEATURES, "steps", fast, alone, note=note)
    return row.aim(HEAD_ALONE, "no slower than the head alone (5 %)")


# ---------------------------------------------------------------- testing


def predictor(inputs: Inputs, shots: int, **changes) -> Predictor:
    return Predictor(inputs.evaluation(shots, **changes), *inputs.trained)


def evaluation(inputs: Inputs) -> list[Row]:
    """1-shot episodes over a pool of photos."""
    options, episodes = inputs.options, inputs.episodes(inputs.options.episodes, 1)
    fast = measure(lambda: evaluate(predictor(inputs, 1), episodes), options.device)
    plain, few, found = _plain(inputs, inputs.evaluation()), episodes[: options.plain_episodes], []
    slow = measure(lambda: lambda: len([found.append(plain.predict(e)) for e in few]), options.device, watched=False)

    ours = predictor(inputs, 1)
    with recorded_logits(ours.method) as logits:
        masks = [prediction.query for prediction in ours.fused(few)]
    allowed = ROUNDING[options.dtype]
    distance = relative(torch.cat(logits), torch.stack([each.logits for each in found]))
    agreement = require("logits", distance, allowed.values)
    agreement += f", {require('masks', differing(masks, [each.first for each in found]), allowed.pixels)}"
    photos = len({photo for e in episodes for photo in (e.query, *e.supports)})
    note = f"n = {fast.units} over {photos} photos, {slow.units} plain; {agreement}"
    row = Row(EVALUATION, "episodes", fast, slow, note=note).aim(10)
    row.targets.append(Target(f"≥ 10 × CANet's {CANET} pairs/s", fast.rate, 10 * CANET))
    return [row]


def evaluate(predictor: Predictor, episodes: list[Episode]) -> Work:
    return lambda: sum(1 for _ in predictor.fused(episodes))


def finetuner(inputs: Inputs, shots: int) -> Finetuner:
    spec = inputs.evaluation(shots)
    return Finetuner(predictor(inputs, shots), spec["train"], spec["finetune"])


def finetuning(inputs: Inputs) -> list[Row]:
    """Episodes of many shots, finetuned and fused."""
    options, shots = inputs.options, inputs.options.shots
    episodes, steps = inputs.episodes(options.finetuned, shots), options.steps
    fast = measure(lambda: finetune(finetuner(inputs, shots), episodes, steps), options.device)
    tuner, found = finetuner(inputs, shots), []
    plain = PlainFinetuner(_plain(inputs, inputs.evaluation(shots)), tuner)

    def slowly() -> int:
        found.extend(plain.predictions(episodes[:1], LEARNING_RATE, steps))
        return len(found)

    slow = measure(lambda: slowly, options.device, watched=False)
    (ours,), (theirs,) = tuner.predictions(episodes[:1], LEARNING_RATE, steps), found
    allowed = ROUNDING[options.dtype]
    wrong = differing([ours.query, ours.fused], [theirs.first, theirs.fused])
    losses = relative(torch.tensor(ours.support_loss), torch.tensor(theirs.support_loss))
    agreement = f"{require('losses', losses, allowed.values)}, {require('masks', wrong, allowed.pixels)}"
    note = f"n = {fast.units}, {slow.units} plain; {steps} steps of 5 pairs; {agreement}"
    return [Row(FINETUNING, "episodes", fast, slow, note=note).aim(5)]


def finetune(finetuner: Finetuner, episodes: list[Episode], steps: int) -> Work:
    return lambda: sum(1 for _ in finetuner.predictions(episodes, LEARNING_RATE, steps))
