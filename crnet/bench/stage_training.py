"""Stages of training: a step on photos, and a step on cached features beside the head alone."""

from itertools import islice

import torch

from crnet.bench.agreement import ROUNDING, gradient, relative, require
from crnet.bench.ceiling import Ceiling
from crnet.bench.inputs import Inputs
from crnet.bench.plain import Plain
from crnet.bench.rows import Row, Target, at_least
from crnet.bench.timing import Work, measure
from crnet.planning.stages import ON_FEATURES, ON_PHOTOS
from crnet.training import loop
from crnet.training.cache import ProbabilityCache
from crnet.training.episodes import TrainingEpisode
from crnet.training.optimisation import optimiser

OF_CEILING = 0.6
HEAD_ALONE = 0.95  # "no slower", within what two runs of the same differ


def training(inputs: Inputs, ceiling: Ceiling) -> list[Row]:
    return [*on_photos(inputs, ceiling), *on_cached_features(inputs)]


def start(inputs: Inputs, spec: dict) -> loop.Training:
    """A training at its first step, as ``crnet job train`` starts it."""
    options = inputs.options
    features = inputs.write_features() if spec["train"]["features"] == "cached" else None
    out = inputs.folder / "training"
    paths = loop.Paths(inputs.data, inputs.encoder, features, out, out / "state.pt")
    training = loop.Training(spec, paths, torch.device(options.device), options.threads, 0, 60.0)
    training.method.train()
    return training


def drawn(training: loop.Training, steps: int) -> list[TrainingEpisode]:
    return training.episodes.epoch(0, steps * training.settings["batch"])


def on_photos(inputs: Inputs, ceiling: Ceiling) -> list[Row]:
    options, spec = inputs.options, inputs.training(features="live", lr=1e-6)
    fast = measure(lambda: steps(inputs, spec, options.training_steps), options.device)

    training = start(inputs, spec)
    reference = PlainTraining(inputs, training)
    reference.plain.maps(reference.plain.image(next(iter(inputs.index.photos)), options.size))
    batch = drawn(training, 1)
    slow = measure(lambda: lambda: reference.steps([batch]), options.device, watched=False)
    training.step(next(training.source.batches(batch, len(batch))))
    allowed = ROUNDING[options.dtype].gradients
    agreement = require("gradients", relative(gradient(training.method), gradient(reference.plain.method)), allowed)

    note = f"n = {fast.units}, {slow.units} plain; {options.batch} episodes a step; {agreement}"
    row = Row(ON_PHOTOS, "steps", fast, slow, note=note)
    row.targets += [at_least(3, row), Target("≥ 60 % of the ceiling", row.of_ceiling(ceiling) or 0.0, OF_CEILING)]
    return [row]


def steps(inputs: Inputs, spec: dict, count: int) -> Work:
    """That many steps of a training that has just been started."""
    training = start(inputs, spec)
    episodes = drawn(training, count)

    def work() -> int:
        for batch in training.source.batches(episodes, training.settings["batch"]):
            training.step(batch)
        return count

    return work


class PlainTraining:
    """The plain loop on a training's weights and specification."""

    def __init__(self, inputs: Inputs, training: loop.Training):
        spec = {**inputs.evaluation(), "train": training.spec}
        self.plain = Plain(spec, inputs.data, inputs.encoder, None, inputs.options.device)
        self.plain.method.load_state_dict(training.method.state_dict())
        self.plain.method.train().requires_grad_(True)
        self.optimise = optimiser(self.plain.method, training.settings)
        self.cache = ProbabilityCache(training.cache.reset, training.cache.fold, training.cache.seed)

    def steps(self, batches: list[list[TrainingEpisode]]) -> int:
        for step, batch in enumerate(batches):
            self.plain.training_step(batch, self.optimise, self.cache, step)
        return len(batches)


def on_cached_features(inputs: Inputs) -> list[Row]:
    """With the store, and with batches that are in memory already: the difference is what the store costs."""
    options = inputs.options
    spec = inputs.training(features="cached", augment="none", lr=1e-6)
    fast = measure(lambda: steps(inputs, spec, options.training_steps), options.device)
    alone = measure(lambda: _steps_in_memory(inputs, spec, options.training_steps), options.device, watched=False)
    note = f"n = {fast.units}, {alone.units} of the head alone, which stands for plain"
    row = Row(ON_FEATURES, "steps", fast, alone, note=note)
    row.targets.append(at_least(HEAD_ALONE, row, "no slower than the head alone (5 %)"))
    return [row]


def _steps_in_memory(inputs: Inputs, spec: dict, count: int) -> Work:
    training = start(inputs, spec)
    size = training.settings["batch"]
    batches = list(islice(training.source.batches(drawn(training, count), size), count))

    def work() -> int:
        for batch in batches:
            training.step(batch)
        return count

    return work
