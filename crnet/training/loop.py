"""The training loop: one fold, one seed, one variant. A killed run goes on and ends with the same bits on CPU."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from crnet import methods
from crnet.config import sources
from crnet.cost import memory
from crnet.data.index import Index
from crnet.data.transforms import Placement
from crnet.encoders.features import FeatureStore
from crnet.encoders.frozen import autocast, compute_dtype
from crnet.encoders.learning import PREFIX, of_training
from crnet.errors import CrnetError
from crnet.methods import Pairs, Share, Step, each
from crnet.metrics.iou import VOID
from crnet.runtime import provenance
from crnet.runtime.checkpoint import is_finite, load_state, remove_state, save_state, written_by
from crnet.runtime.files import atomic_write, canonical, sha256_file, write_json
from crnet.runtime.limits import NONE, Limits
from crnet.runtime.machine import configure
from crnet.runtime.ownership import Owner
from crnet.runtime.preemption import Notice, Preempted
from crnet.runtime.seeding import derive
from crnet.training import base_classes
from crnet.training.accumulation import accumulate, shares
from crnet.training.cache import ProbabilityCache
from crnet.training.episodes import EpisodeSource, TrainingEpisode
from crnet.training.log import constant_loss, write_log
from crnet.training.optimisation import learning_rate, optimiser
from crnet.training.sources import Batch, CachedSource, LiveSource

NOTHING_LEARNT = 0.98  # of the loss of one answer for all pixels: above it the log warns
FAILED = "failed.json"  # marks a training that diverged; gone when it finishes after all


@dataclass(frozen=True)
class Paths:
    """Files of one training. A killed run leaves ``state`` and, beside it, ``log_so_far``, for who watches it."""

    data: Path
    encoder: Path | None
    features: Path | None
    out: Path
    state: Path

    @property
    def log_so_far(self) -> Path:
        return self.state.with_suffix(".csv")


@dataclass
class _Progress:
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch under way
    log: list[dict[str, float]] = field(default_factory=list)


def train(
    spec: dict,
    paths: Paths,
    device: str,
    threads: int,
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
    limits: Limits = NONE,
) -> None:
    """Train one variant and write ``model.safetensors``, ``log.csv`` and ``train.json`` into ``paths.out``.

    Args:
        spec: As ``crnet.config.resolve`` makes it: method, model, dataset, encoder, fold, seed, train.
        workers: Loader processes for live features; any number gives the same result.
        checkpoint_seconds: A kill loses at most this much; the state is also saved after each epoch.
        limits: What it may hold at once; the result is the same up to rounding.

    Raises:
        CrnetError: Data, features or encoder do not fit the specification; there is too little memory; a file cannot
            be written; another copy of the job has begun after this one; or loss or weights are no longer finite, which
            ``failed.json`` in ``paths.out`` then says for tables and index.
        Preempted: SIGTERM arrived; the state is saved.
    """
    configure(device, threads)
    memory.check(memory.training(spec, limits), device, paths.out.name)
    Training(spec, paths, torch.device(device), threads, workers, checkpoint_seconds, limits).run()


class Training:
    """A training under way; see :func:`train`. The bench takes its steps one by one."""

    def __init__(
        self,
        spec: dict,
        paths: Paths,
        device: torch.device,
        threads: int,
        workers: int,
        checkpoint_seconds: float,
        limits: Limits = NONE,
    ):
        self.spec, self.paths, self.device, self.limits = spec, paths, device, limits
        self.settings, self.checkpoint_seconds = spec["train"], checkpoint_seconds
        self.provenance = provenance.record(device.type, threads) | sources.recorded(spec)
        self.index = Index.load(paths.data)
        self.encoder = of_training(spec, paths.encoder, device, limits)
        torch.manual_seed(derive("initial weights", spec["method"], spec["fold"], spec["seed"]))
        self.method = methods.build(spec["method"], self.encoder.channels, spec["model"])
        self.method.to(device, memory_format=torch.channels_last)
        if self.encoder.learns:
            self.encoder.reach(self.method.maps, self.settings["size"])
        fold, seed = spec["fold"], spec["seed"]
        pairs = self.index.training_pairs(fold, self.settings["novel_pixels"])
        self.episodes = EpisodeSource(self.index, pairs, fold, seed, self.settings["views"])
        self.base = {class_id: place for place, class_id in enumerate(self.index.base_classes(fold))}
        self.epoch_episodes = self.settings["epoch_episodes"] or len(pairs)
        self.source = self._open_source(workers)
        self.epoch_steps = math.ceil(self.epoch_episodes / self.settings["batch"])
        self.steps = self.epoch_steps * self.settings["epochs"]
        self.optimiser = optimiser(self.method, self.settings, self.encoder.parameters)
        self.cache = ProbabilityCache(spec["model"].get("cache_reset", 0.0), fold, seed, self.settings["size"])
        self.progress = _Progress()
        self._notice, self._owner = Notice(), Owner(paths.state)

    def _open_source(self, workers: int) -> CachedSource | LiveSource:
        unseen = self.index.unseen_classes(self.spec["fold"])
        void_classes = unseen if self.settings["novel_pixels"] == "void" else ()
        if self.paths.features is None:
            return LiveSource(self.index, self.encoder, self.method, self.settings, void_classes, workers)
        store = FeatureStore(self.paths.features, self.index, self.encoder.digest)
        return CachedSource(store, self.method, void_classes, self.settings["void"])

    def run(self) -> None:
        self._owner.take()
        self._restore()
        write_log(self.paths.log_so_far, self.progress.log)
        with self._notice:
            while len(self.progress.log) < self.settings["epochs"]:
                self._epoch(len(self.progress.log))
        self._finish()

    def _epoch(self, epoch: int) -> None:
        done = (self.progress.step - epoch * self.epoch_steps) * self.settings["batch"]
        episodes = self.episodes.epoch(epoch, self.epoch_episodes)[done:]
        self.method.train()
        started = saved = time.monotonic()
        before = self.progress.seconds
        cpu = self.progress.cpu_seconds - provenance.cpu_seconds()
        for batch in self._batches(episodes):
            self.step(batch)
            self.progress.seconds = before + time.monotonic() - started
            self.progress.cpu_seconds = cpu + provenance.cpu_seconds()
            if time.monotonic() - saved > self.checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self._log_epoch(epoch)
        self.progress.cpu_seconds = cpu + provenance.cpu_seconds()  # of loaders too, which have ended
        self._save()
        # After the state, which a kill in between leaves with a row more.
        write_log(self.paths.log_so_far, self.progress.log)

    def _batches(self, episodes: list[TrainingEpisode], augment: bool = True) -> Iterator[Batch]:
        """Batches of the source. Between two of them the training leaves if it is told to.

        It does not wait for the next one then: the notice may have gone to its loaders too, which ends them.
        """
        size = self.settings["batch"] if augment else self.limits.pairs(self.settings["batch"])
        batches = self.source.batches(episodes, size, augment)
        while True:
            self._notice.interrupt = True
            try:
                batch = None if self._notice.given else next(batches, None)
            except Preempted:
                batch = None
            finally:
                self._notice.interrupt = False
            if self._notice.given:
                self._save()
                done, state = self.progress.step, self.paths.state
                raise Preempted(f"stopped by SIGTERM after step {done}; the state is in {state}.")
            if batch is None:
                return
            yield batch

    def step(self, batch: Batch) -> None:
        """Learn from one batch; raises CrnetError if the loss is not finite."""
        progress, settings = self.progress, self.settings
        # Reseeding each step makes dropout a function of the step: a resumed run needs no random state.
        seed = derive("step", self.spec["fold"], self.spec["seed"], progress.step)
        rate = learning_rate(settings, progress.step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.encoder.learns:
            self.optimiser.param_groups[-1]["lr"] = rate * self.spec["encoder"]["lr_factor"]
        at_once = self.limits.pairs(len(batch.episodes))
        parts = shares(batch.query_mask, batch.support_mask, at_once, self.method.mean_over)
        self.optimiser.zero_grad(set_to_none=True)
        result = accumulate(lambda share: self._losses(batch, share), parts, seed)
        if not torch.isfinite(result.loss):
            raise self._failed(f"the loss is {result.loss.item()} at step {progress.step} (lr {rate:.3g})")
        self.optimiser.step()
        if self.method.stores_cache:
            for branch, placements in _placements(batch).items():
                probability = getattr(result, f"{branch}_probability")
                if probability is not None:
                    self.cache.write(branch, _keys(batch, branch), placements, probability)
        sums, count = progress.sums, len(batch.episodes)
        for name, value in {"loss": result.loss, **result.parts}.items():
            sums[name] = sums.get(name, 0.0) + value.item() * count
        pixels = {"foreground": (batch.query_mask == 1).sum().item(), "seen": (batch.query_mask != VOID).sum().item()}
        for name, value in {"episodes": count, **pixels}.items():
            sums[name] = sums.get(name, 0.0) + value
        progress.step += 1

    def _losses(self, batch: Batch, share: Share | None) -> Step:
        with autocast(self.device, self.settings["precision"]):
            return self.method.losses(self._pairs(batch, share=share))

    def _pairs(self, batch: Batch, cached: bool = True, share: Share | None = None) -> Pairs:
        """Embed all photos of a batch, or of a part of it, at once, then take them apart again."""
        rows = slice(None) if share is None else share.rows
        groups = [batch.query, batch.support, *([batch.masked] if batch.masked else [])]
        dtype = compute_dtype(self.device, self.settings["precision"])
        maps = [torch.cat([m[rows].to(self.device, dtype) for m in level]) for level in zip(*groups, strict=True)]
        if self.encoder.learns:
            maps = self.encoder.maps(maps[0], self.method.maps)
        embedded, count = self.method.embed(maps), len(batch.episodes[rows])
        query, support, *masked = (
            each(embedded, lambda m, first=first: m[first : first + count])
            for first in range(0, count * len(groups), count)
        )
        classes = [self.base[episode.class_id] for episode in batch.episodes[rows]]
        pairs = Pairs(
            query,
            support,
            masked[0] if masked else support,
            batch.support_mask[rows].to(self.device),
            batch.query_mask[rows].to(self.device),
            share=share,
            class_index=torch.tensor(classes, device=self.device),
        )
        if cached and self.method.stores_cache:
            caches = [  # chance is drawn for the whole batch
                self.cache.read(branch, _keys(batch, branch), placements, self.progress.step, query)[rows]
                for branch, placements in _placements(batch).items()
            ]
            pairs.query_cache, pairs.support_cache = caches
        return pairs

    def _log_epoch(self, epoch: int) -> None:
        progress = self.progress
        base, support = self._score_base()
        episodes, foreground, seen = (progress.sums.pop(name, 0.0) for name in ("episodes", "foreground", "seen"))
        images = (epoch + 1) * self.epoch_episodes * (3 if self.method.needs_masked else 2)
        row = {
            "epoch": epoch + 1,
            "step": progress.step,
            "lr": learning_rate(self.settings, progress.step - 1, self.steps),
            **{name: total / episodes for name, total in progress.sums.items()},
            "images_per_second": images / max(progress.seconds, 1e-9),
            "peak_memory_bytes": provenance.peak_memory_bytes(self.device.type),
            "base_miou": base,
            "support_iou": support,
            "seconds": progress.seconds,
        }
        progress.log.append(row)
        measured = "" if math.isnan(base) else f"base mIoU {100 * base:.1f}  "
        progress.sums = {}
        print(
            f"epoch {epoch + 1}/{self.settings['epochs']}  step {progress.step}/{self.steps}  loss {row['loss']:.4f}  "
            f"lr {row['lr']:.2e}  {measured}{row['images_per_second']:.0f} img/s",
            flush=True,
        )
        constant = constant_loss(foreground / seen) if seen else math.inf
        if row.get("query", 0.0) > NOTHING_LEARNT * constant:
            print(
                f"WARNING after {progress.step} steps: the loss on queries, {row['query']:.3f}, is still that of one "
                f"answer for all pixels, {constant:.3f}; if it stays there, try another train.lr or train longer.",
                flush=True,
            )

    @torch.no_grad()
    def _score_base(self) -> tuple[float, float]:
        """As ``base_classes.score``, for the log and a choice of rates; NaN where it is not asked for.

        All steps of the epoch are done: whoever goes on after a notice scores again.
        """
        count = self.settings["base_episodes"]
        if not count:
            return math.nan, math.nan
        self.method.eval()
        batches = self._batches(self.episodes.base(count), augment=False)
        return base_classes.score((batch, *self._predicted(batch)) for batch in batches)

    def _predicted(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        with autocast(self.device, self.settings["precision"]):
            pairs = self._pairs(batch, cached=False)
            return self.method.predict(pairs, refinements=1), self.method.predict_support(pairs, refinements=1)

    def _failed(self, what: str) -> CrnetError:
        """The error that ends a training that diverged, after marking it failed beside where its result would be."""
        saved, good = load_state(self.paths.state), "no state was saved"
        if saved:
            good = f"the last good state, after {saved['progress']['step']} steps, is {self.paths.state}"
        write_json(self.paths.out / FAILED, {"run": self.paths.out.name, "spec": self.spec, "failed": what})
        return CrnetError(
            f"{self.paths.out.name}: {what}; {good}, and the run is marked failed in {self.paths.out / FAILED}. Lower "
            "train.lr or set train.precision to float32."
        )

    def _save(self) -> None:
        """Keep the state, unless it is no good: a finite loss can have gradients that are not."""
        self._owner.check()
        self.encoder.verify()  # or a second start would go on from what a drifting encoder gave
        progress = self.progress
        learnt = self.encoder.learnt()
        parts = {
            "weight": self.method.state_dict(),
            "weight of the encoder": learnt,
            "value of the optimiser": self.optimiser.state_dict(),
        }
        for name, part in parts.items():
            if not is_finite(part):
                rate = learning_rate(self.settings, progress.step - 1, self.steps)
                raise self._failed(f"a {name} is not finite after step {progress.step - 1} (lr {rate:.3g})")
        state = {
            "spec": canonical(self.spec),
            "method": self.method.state_dict(),
            "encoder": learnt,
            "optimiser": self.optimiser.state_dict(),
            "cache": self.cache.state(),
            "progress": vars(progress),
        }
        with written_by(self._owner):
            save_state(self.paths.state, state)

    def _restore(self) -> None:
        state = load_state(self.paths.state)
        if state is None:
            return
        if state.get("spec") != canonical(self.spec):
            raise CrnetError(f"{self.paths.state}: belongs to another training; move it away.")
        self.method.load_state_dict(state["method"])
        self.encoder.restore(state.get("encoder", {}))
        self.optimiser.load_state_dict(state["optimiser"])
        self.cache.restore(state["cache"])
        self.progress = _Progress(**state["progress"])
        print(f"resumed at step {self.progress.step} of {self.steps}", flush=True)

    def _finish(self) -> None:
        self._owner.check()
        self.encoder.verify()
        out = self.paths.out
        learnt = {f"{PREFIX}{name}": weight for name, weight in self.encoder.learnt().items()}
        tensors = {k: t.detach().cpu().contiguous() for k, t in (self.method.state_dict() | learnt).items()}
        weights = out / "model.safetensors"
        atomic_write(weights, save(tensors, metadata={"spec": canonical(self.spec)}))
        write_log(out / "log.csv", self.progress.log)
        write_json(out / "train.json", {
            "run": out.name,
            "spec": self.spec,
            **self.provenance,
            "seconds": round(self.progress.seconds, 2),
            "cpu_seconds": round(self.progress.cpu_seconds, 2),
            "peak_memory_bytes": provenance.peak_memory_bytes(self.device.type),
            "images_per_second": self.progress.log[-1]["images_per_second"],
            "dtype": str(compute_dtype(self.device, self.settings["precision"])).removeprefix("torch."),
            "dataset_digest": self.index.digest,
            "encoder_digest": self.encoder.digest,
            "weights_sha256": sha256_file(weights),
            "parameters": sum(t.numel() for t in tensors.values()),
        })  # fmt: skip
        (out / FAILED).unlink(missing_ok=True)
        for state in (self.paths.log_so_far, self.paths.state):
            remove_state(state)


def _keys(batch: Batch, branch: str) -> list[tuple[str, int]]:
    return [(getattr(episode, branch), episode.class_id) for episode in batch.episodes]


def _placements(batch: Batch) -> dict[str, list[Placement]]:
    return {"query": batch.query_placements, "support": batch.support_placements}
