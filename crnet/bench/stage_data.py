"""Stages before the network: photos from JPEG files, batches from the feature store, photos through the encoder."""

import torch
from torch import Tensor

from crnet.bench.agreement import ROUNDING, relative, require
from crnet.bench.inputs import Inputs
from crnet.bench.plain import Plain
from crnet.bench.rows import Row, Target, at_least
from crnet.bench.timing import Work, measure
from crnet.data import transforms
from crnet.encoders.features import FeatureStore
from crnet.encoders.frozen import FrozenEncoder, as_images
from crnet.evaluation.predict import load_method
from crnet.methods import Method
from crnet.planning.stages import ENCODER
from crnet.runtime.limits import PHOTOS_TOGETHER
from crnet.training.episodes import EpisodeSource
from crnet.training.sources import CachedSource, LiveSource

FED = 1500  # images a second that a device may take


def data(inputs: Inputs) -> list[Row]:
    """Photos from JPEG files to batches: one after the other, by two workers, and as maps of the feature store."""
    decoded = measure(lambda: lambda: _decode(inputs), "cpu", watched=False)
    loaded = measure(lambda: _loading(inputs), "cpu", watched=False)
    stored = measure(lambda: _reading(inputs), "cpu", watched=False)
    rows = [
        Row("decode and transform, one process", "images", decoded),
        Row("decode and transform, 2 workers", "images", loaded, decoded),
        Row("feature store to batch", "images", stored, decoded),
    ]
    fed = Target(f"2 workers feed {FED:,} images/s", loaded.rate, FED)
    rows[1].targets.append(fed)
    rows[1].note = f"n = {loaded.units}, plain: one process; to feed more, a store of decoded photos would be needed"
    rows[2].targets.append(at_least(5, rows[2], "≥ 5 × decoding JPEG files"))
    rows[2].note = f"n = {stored.units} maps from memory-mapped files, plain: {decoded.units} JPEG files decoded"
    return rows


def _decode(inputs: Inputs) -> int:
    photos = list(inputs.index.photos)
    for photo in photos:
        transforms.squash(inputs.index.read_image(photo), inputs.options.size)
    return len(photos)


class _NoEncoder:
    """Takes a batch of photos and gives empty maps: what is left is loading."""

    def __init__(self, maps: int):
        self.maps = maps

    def __call__(self, images: Tensor, keep: Tensor | None = None) -> list[Tensor]:
        return [images.new_empty(len(images))] * self.maps


def _loading(inputs: Inputs) -> Work:
    """Two photos an episode through the training's loader; workers are started before the clock is."""
    spec = inputs.training(features="live")
    method, source = _method(inputs, spec), _episodes(inputs, spec)
    live = LiveSource(inputs.index, _NoEncoder(len(method.maps)), method, spec["train"], (), workers=2)
    episodes = source.epoch(0, inputs.options.batch + 8 * len(inputs.index.photos) // 2)
    batches = live.batches(episodes, inputs.options.batch)
    next(batches)
    return lambda: 2 * sum(len(batch.episodes) for batch in batches)


def _reading(inputs: Inputs) -> Work:
    """Query, support and support without background of each episode."""
    spec = inputs.training()
    method, folder = _method(inputs, spec), inputs.write_features()
    digest = _encoder(inputs).digest
    cached = CachedSource(FeatureStore(folder, inputs.index, digest), method, ())
    episodes = _episodes(inputs, spec).epoch(0, 10 * inputs.options.batch)
    return lambda: sum(3 * len(batch.episodes) for batch in cached.batches(episodes, inputs.options.batch))


def _episodes(inputs: Inputs, spec: dict) -> EpisodeSource:
    return EpisodeSource(inputs.index, inputs.index.training_pairs(spec["fold"]), spec["fold"], 0, "identity")


def _encoder(inputs: Inputs) -> FrozenEncoder:
    options = inputs.options
    return FrozenEncoder(inputs.training()["encoder"], inputs.encoder, torch.device(options.device), options.precision)


def _method(inputs: Inputs, spec: dict) -> Method:
    return load_method(spec, _encoder(inputs).channels, inputs.weights)


def encoder(inputs: Inputs) -> list[Row]:
    """Decoded photos through the frozen encoder, in batches as everywhere, and one by one in float32."""
    options = inputs.options
    photos = [
        transforms.squash(inputs.index.read_image(p), options.size) for p in list(inputs.index.photos)[:PHOTOS_TOGETHER]
    ]
    ours = _encoder(inputs)
    repeats = 16 if options.device == "cuda" else 1
    fast = measure(lambda: lambda: _encode(ours, photos, repeats), options.device)
    plain = Plain(inputs.evaluation(), inputs.data, inputs.encoder, inputs.weights, options.device)
    few = photos[:4]
    reference = torch.cat(plain.maps(few[0]), 1)
    slow = measure(lambda: lambda: len([plain.maps(photo) for photo in few]), options.device, watched=False)
    distance = relative(torch.cat(ours(as_images(few[:1])), 1), reference)
    agreement = require("maps", distance, ROUNDING[options.dtype].values)
    note = f"n = {fast.units} in batches of {PHOTOS_TOGETHER}, {slow.units} plain; {agreement}"
    return [Row(ENCODER, "images", fast, slow, note=note)]


def _encode(network: FrozenEncoder, photos: list, repeats: int) -> int:
    for _ in range(repeats):
        network(as_images(photos))
    return repeats * len(photos)
