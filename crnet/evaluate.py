"""Scoring one model on stored test episodes: counts per episode, from which every table and interval is made."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from crnet import methods, provenance
from crnet.config.defaults import POOL_BYTES
from crnet.data import transforms
from crnet.data.episodes import Episode
from crnet.data.episodes import read as read_episodes
from crnet.data.index import Index, binary_mask
from crnet.encoding import FrozenEncoder, as_images, autocast, compute_dtype
from crnet.errors import CrnetError
from crnet.files import sha256_file, write_csv, write_json
from crnet.machine import configure
from crnet.methods import Method, Pairs
from crnet.metrics import COUNT_COLUMNS, episode_counts, fg_counts

CHUNK = 32  # episodes predicted together; their photos are encoded in batches
ENCODE = 16
PREDICT = 8

Key = tuple[str, int | None, float]  # photo, class whose background is removed (None: whole photo), scale


class Evaluator:
    """A frozen encoder and a method, asked for masks of test episodes. Deterministic: no augmentation, no dropout.

    Args:
        spec: As ``crnet.config.resolve`` makes it: train, evaluate, episodes.
        weights: ``model.safetensors`` of the training; None for methods that have none.
    """

    def __init__(self, spec: dict, data: Path, encoder: Path | None, weights: Path | None, device: str):
        self.settings, train = spec["evaluate"], spec["train"]
        self.device = torch.device(device)
        self.index = Index.load(data)
        self.encoder = FrozenEncoder(train["encoder"], encoder, self.device, self.settings["precision"])
        self.method = load_method(train, self.encoder.channels, weights).to(
            self.device, memory_format=torch.channels_last
        )
        self.pool = _EmbeddingPool(self)

    @torch.no_grad()
    def predict(self, episodes: list[Episode]) -> Iterator[tuple[Episode, np.ndarray, np.ndarray | None]]:
        """For each episode the query's foreground, bool (H, W) at the photo's own size, and its first support's.

        Several scales and supports: softmax probabilities averaged at the photo's own size (paper 6, Table 3 and 4).
        """
        for start in range(0, len(episodes), CHUNK):
            chunk = episodes[start : start + CHUNK]
            logits: list[list[Tensor]] = [[] for _ in chunk]
            support_logits: list[Tensor | None] = [None for _ in chunk]
            for scale in self.settings["scales"]:
                self.pool.fill(_keys(chunk, scale, self.settings["shots"], self.method.needs_masked))
                for shot in range(self.settings["shots"]):
                    with_support = shot == 0 and scale == self.settings["scales"][0]
                    for position, query, support in self._logits(chunk, scale, shot, with_support):
                        logits[position].append(query)
                        if with_support:
                            support_logits[position] = support
            for episode, queries, support in zip(chunk, logits, support_logits, strict=True):
                probability = torch.stack([self._at_own_size(q, episode.query).softmax(0) for q in queries]).mean(0)
                supported = None
                if support is not None:
                    supported = _foreground(self._at_own_size(support, episode.supports[0]))
                yield episode, _foreground(probability), supported

    def _logits(self, chunk: list[Episode], scale: float, shot: int, with_support: bool):
        """(position in the chunk, query logits (2, h, w), support logits or None), predicted in batches."""
        for start in range(0, len(chunk), PREDICT):
            part = chunk[start : start + PREDICT]
            pairs = self._pairs(part, scale, shot)
            with autocast(self.device, self.settings["precision"]):
                query = self.method.predict(pairs, self.settings["refinements"])
                support = self.method.predict_support(pairs, self.settings["refinements"]) if with_support else None
            for i in range(len(part)):
                yield start + i, query[i].float(), None if support is None else support[i].float()

    def _pairs(self, episodes: list[Episode], scale: float, shot: int) -> Pairs:
        size = scaled(self.settings["size"], scale)
        masks = [self._support_mask(e.supports[shot], e.class_id, size) for e in episodes]
        support = self.pool.take([(e.supports[shot], None, scale) for e in episodes])
        masked = support
        if self.method.needs_masked:
            masked = self.pool.take([(e.supports[shot], e.class_id, scale) for e in episodes])
        query = self.pool.take([(e.query, None, scale) for e in episodes])
        return Pairs(query, support, masked, torch.from_numpy(np.stack(masks)).to(self.device))

    def _support_mask(self, photo: str, class_id: int, size: int) -> np.ndarray:
        return transforms.squash_mask(binary_mask(self.index.read_mask(photo), class_id), size)

    def _at_own_size(self, logits: Tensor, photo: str) -> Tensor:
        """Logits (2, h, w) -> (2, H, W), straight to the photo's own size, without padding in between."""
        return F.interpolate(logits[None], size=self.index.size(photo), mode="bilinear", align_corners=False)[0]

    @torch.no_grad()
    def embed(self, keys: list[Key]) -> Tensor:
        """Photos of one scale through encoder and ``Method.embed``: (N, D, h, w)."""
        size = scaled(self.settings["size"], keys[0][2])
        images, keeps = [], []
        for photo, class_id, _ in keys:
            images.append(transforms.squash(self.index.read_image(photo), size))
            keep = np.ones((size, size), bool)
            keeps.append(keep if class_id is None else self._support_mask(photo, class_id, size) == 1)
        maps = self.encoder(as_images(images), torch.from_numpy(np.stack(keeps)))
        with autocast(self.device, self.settings["precision"]):
            return self.method.embed([maps[i] for i in self.method.maps])


class _EmbeddingPool:
    """Embedded photos by key: each is encoded once and reused by all episodes, as far as ``POOL_BYTES`` reach."""

    def __init__(self, evaluator: Evaluator):
        self.evaluator = evaluator
        self._kept: OrderedDict[Key, Tensor] = OrderedDict()
        self._bytes = 0

    def fill(self, keys: list[Key]) -> None:
        """Embed the keys, all of one scale, that are not here yet; the longest unused ones make room."""
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        for start in range(0, len(missing), ENCODE):
            batch = missing[start : start + ENCODE]
            for key, embedded in zip(batch, self.evaluator.embed(batch), strict=True):
                self._kept[key] = embedded.clone()
                self._bytes += embedded.nbytes
        while self._bytes > POOL_BYTES and next(iter(self._kept)) not in set(keys):
            self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def take(self, keys: list[Key]) -> Tensor:
        return torch.stack([self._kept[key] for key in keys])


def evaluate(
    spec: dict,
    data: Path,
    episodes: Path,
    encoder: Path | None,
    weights: Path | None,
    out: Path,
    device: str,
    threads: int,
) -> None:
    """Score all test episodes and write ``counts.csv`` and ``evaluation.json`` into ``out``.

    Raises:
        CrnetError: Data, episodes, encoder or weights do not belong to the specification.
    """
    configure(device, threads)
    origin = provenance.record(device, threads)
    evaluator = Evaluator(spec, data, encoder, weights, device)
    index, table = evaluator.index, read_episodes(episodes, evaluator.index)
    if table.fold != spec["train"]["fold"]:
        raise CrnetError(f"{episodes}: holds episodes of fold {table.fold}, not {spec['train']['fold']}.")
    if table.left_out:
        named = ", ".join(f"{name} ({size})" for name, size in table.left_out.items())
        print(f"classes left out for want of test photos: {named}", flush=True)
    if index.subset:
        print(f"data: {index.subset}", flush=True)
    started = time.monotonic()
    rows = []
    progress = tqdm(evaluator.predict(list(table.episodes)), total=len(table.episodes), unit="episode", mininterval=5)
    for episode, prediction, support in progress:
        query_counts = episode_counts(prediction, binary_mask(index.read_mask(episode.query), episode.class_id))
        support_counts = ("", "")
        if support is not None:
            mask = binary_mask(index.read_mask(episode.supports[0]), episode.class_id)
            support_counts = fg_counts(support, mask)
        rows.append([episode.seed, episode.number, episode.class_id, episode.query, *query_counts, *support_counts])
    evaluator.encoder.verify()
    seconds = time.monotonic() - started
    header = ("episode_seed", "episode", "class", "query", *COUNT_COLUMNS)
    write_csv(out / "counts.csv", header, rows)
    write_json(out / "evaluation.json", {
        "run": out.name,
        "spec": spec,
        **origin,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": provenance.peak_memory_bytes(device),
        "episodes_per_second": len(rows) / seconds,
        "dtype": str(compute_dtype(evaluator.device, spec["evaluate"]["precision"])).removeprefix("torch."),
        "dataset_digest": index.digest,
        "encoder_digest": evaluator.encoder.digest,
        "weights_sha256": sha256_file(weights) if weights else "",
        "episodes_digest": sha256_file(episodes),
        "left_out": table.left_out,
        "subset": index.subset or "",
    })  # fmt: skip


def load_method(train: dict, channels: tuple[int, ...], weights: Path | None) -> Method:
    """A method in eval mode with its trained weights; raises CrnetError if they are of another training."""
    method = methods.build(train["method"], channels, train["model"])
    if weights is not None:
        try:
            method.load_state_dict(load_file(weights), strict=True)
        except RuntimeError as error:
            raise CrnetError(f"{weights}: are not weights of this {train['method']} ({error}).") from error
    return method.eval().requires_grad_(False)


def scaled(size: int, scale: float) -> int:
    """Side in pixels of the input at a scale, a whole number of 1/8 cells."""
    return max(8, 8 * round(size * scale / 8)) if scale != 1 else size


def _keys(episodes: list[Episode], scale: float, shots: int, masked: bool) -> list[Key]:
    keys: list[Key] = []
    for episode in episodes:
        keys.append((episode.query, None, scale))
        for support in episode.supports[:shots]:
            keys.append((support, None, scale))
            if masked:
                keys.append((support, episode.class_id, scale))
    return keys


def _foreground(scores: Tensor) -> np.ndarray:
    return (scores[1] > scores[0]).cpu().numpy()
