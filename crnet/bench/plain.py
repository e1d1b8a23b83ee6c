"""Plain loops, as public scripts of the field run: what the suite's ways through the same work are compared with.

One photo at a time, decoded and encoded again whenever it is needed, at each refinement pass and each step of
finetuning; float32, default memory layout, one episode after the other. Same model, same inputs, same chance.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from crnet import encoders
from crnet.bench import plain_network as network
from crnet.config.defaults import scaled
from crnet.data import transforms
from crnet.data.episodes import Episode
from crnet.data.index import Index
from crnet.data.transforms import WHOLE, Placement
from crnet.evaluation import finetune
from crnet.evaluation.finetune import Finetuner
from crnet.evaluation.predict import load_method
from crnet.methods.crnet import CRNet
from crnet.model.grid import at_own_size
from crnet.training.cache import ProbabilityCache
from crnet.training.episodes import TrainingEpisode
from crnet.training.loop import Training
from crnet.training.optimisation import optimiser


@dataclass
class PlainPrediction:
    """Of one episode: foreground bool (H, W) of the query by the first support and by all, last logits (2, h, w)."""

    first: np.ndarray
    fused: np.ndarray
    logits: Tensor
    support_loss: tuple[float, float] | None = None


class Plain:
    """A trained CRNet on an encoder.

    Args:
        spec: As ``crnet.evaluation.predict.Predictor`` takes it.
    """

    def __init__(self, spec: dict, data: Path, encoder: Path | None, weights: Path | None, device: str):
        self.settings, self.train = spec["evaluate"], spec["train"]
        self.device = torch.device(device)
        self.index = Index.load(data)
        self.encoder = encoders.build(self.train["encoder"], encoder).to(self.device)
        self.method: CRNet = load_method(self.train, tuple(self.encoder.channels), weights).to(self.device)

    def image(self, photo: str, size: int, place: Placement = WHOLE) -> np.ndarray:
        return transforms.squash(self.index.read_image(photo), size, place)

    def mask(self, photo: str, class_id: int, size: int, place: Placement = WHOLE) -> np.ndarray:
        return transforms.squash_mask(self.index.class_mask(photo, class_id), size, place)

    def embed(self, image: np.ndarray, mask: np.ndarray | None = None) -> Tensor:
        """A photo uint8 (S, S, 3), without its background if its mask (S, S) is given -> (1, W, h, w)."""
        return network.embed(self.method, self.maps(image, mask))

    @torch.no_grad()
    def maps(self, image: np.ndarray, mask: np.ndarray | None = None) -> list[Tensor]:
        """The encoder's maps [(1, C_i, h, w)] of a photo."""
        pixels = encoders.normalise(torch.from_numpy(image).permute(2, 0, 1)[None].to(self.device))
        if mask is not None:
            pixels = pixels * self.tensor(mask == 1)
        return self.encoder(pixels.contiguous())

    def tensor(self, mask: np.ndarray) -> Tensor:
        return torch.from_numpy(mask)[None].to(self.device)

    @torch.no_grad()
    def predict(self, episode: Episode) -> PlainPrediction:
        """Each scale, support and refinement pass by itself, from the files on; then probabilities are averaged."""
        first, every = [], []
        for scale in self.settings["scales"]:
            size = scaled(self.settings["size"], scale)
            for number, support in enumerate(episode.supports[: self.settings["shots"]]):
                logits = self._refine(episode, support, size)
                large = at_own_size(logits, (size, size), self.index.size(episode.query))
                every.append(large[0].softmax(0))
                if number == 0:
                    first.append(every[-1])
        masks = [(p[1] > p[0]).cpu().numpy() for p in (torch.stack(first).mean(0), torch.stack(every).mean(0))]
        return PlainPrediction(*masks, logits[0])

    def _refine(self, episode: Episode, support: str, size: int) -> Tensor:
        method, cache = self.method, None
        for _ in range(self.settings["refinements"] if method.settings["refinement"] else 1):
            mask = self.mask(support, episode.class_id, size)
            f_query = self.embed(self.image(episode.query, size))
            f_support = self.embed(self.image(support, size))
            f_masked = self.embed(self.image(support, size), mask) if method.needs_masked else f_support
            _, query = network.reinforce(method, f_support, f_query)
            category = network.category(method, f_masked, self.tensor(mask))
            logits = network.logits(method, query, category, cache)
            cache = logits.softmax(1)
        return logits

    def step(self, pairs, keys, placements, optimise, cache, step: int, auxiliary: bool) -> float:
        """``pairs``: (query, support, masked, query mask, support mask) of each."""
        branches = list(zip(("query", "support"), keys, placements, strict=True))
        caches = None
        if self.method.stores_cache:
            like = torch.cat([pair[0] for pair in pairs])
            caches = [cache.read(*branch, step, like) for branch in branches]
        loss, probabilities = self.loss(pairs, caches, auxiliary)
        optimise.zero_grad(set_to_none=True)
        loss.backward()
        optimise.step()
        if self.method.stores_cache:
            for branch, probability in zip(branches, probabilities, strict=True):
                cache.write(*branch, probability)
        return loss.item()

    def loss(self, pairs: list, caches: list[Tensor] | None, auxiliary: bool) -> tuple[Tensor, list[Tensor]]:
        """Loss of a batch, and the probabilities (N, 2, h, w) of its queries and supports, a pair at a time."""
        method, settings = self.method, self.method.settings
        passes = settings["unroll"] if settings["refinement"] and settings["cache"] == "unrolled" else 1
        by_pass: list[list[list[Tensor]]] = [[[], []] for _ in range(passes)]
        common: list[list[Tensor]] = [[], []]
        for number, (f_query, f_support, f_masked, _, support_mask) in enumerate(pairs):
            support, query = network.reinforce(method, f_support, f_query)
            category = network.category(method, f_masked, support_mask)
            for branch, reinforced in enumerate((query, support)):
                cache = None if caches is None else caches[branch][number : number + 1]
                for each in by_pass:
                    logits = network.logits(method, reinforced, category, cache)
                    each[branch].append(logits)
                    cache = logits.detach().softmax(1)
                if auxiliary and settings["cross_reference"]:
                    common[branch].append(network.cooccurrence(method.cooccurrence, reinforced))
        masks = [pair[3] for pair in pairs], [pair[4] for pair in pairs]
        of_branch = [sum(network.cross_entropy(p[b], masks[b]) for p in by_pass) / passes for b in (0, 1)]
        loss = of_branch[0] + settings["support_weight"] * of_branch[1]
        if common[0]:
            auxiliary_loss = network.cross_entropy(common[0] + common[1], masks[0] + masks[1])
            loss = loss + settings["cooccurrence_weight"] * auxiliary_loss
        return loss, [torch.cat(branch).detach().softmax(1) for branch in by_pass[-1]]


class PlainTraining:
    """The steps of a training as a script would do them, from the weights that it begins with.

    Args:
        plain: Made with the training's specification.
    """

    def __init__(self, plain: Plain, training: Training):
        self.plain, self.number = plain, 0
        plain.method.load_state_dict(training.method.state_dict())
        plain.method.train().requires_grad_(True)
        self.optimise = optimiser(plain.method, training.settings)
        self.cache = ProbabilityCache(
            training.cache.reset, training.cache.fold, training.cache.seed, training.cache.size
        )

    def step(self, episodes: list[TrainingEpisode]) -> int:
        """One step on a batch, its gradients stay in the parameters; returns 1. Support augmented if so set."""
        plain, settings = self.plain, self.plain.train["train"]
        size, how = settings["size"], settings["augment"]
        pairs, placements = [], ([], [])
        for episode in episodes:
            chance, places = np.random.default_rng(episode.seed), [WHOLE, WHOLE]
            photos = [episode.query, episode.support]
            for i in [1] * (how != "none") + [0] * (how == "both"):
                mask = plain.index.class_mask(photos[i], episode.class_id)
                places[i] = transforms.draw_placement(mask, size, 1, chance)
            images = [plain.image(photo, size, place) for photo, place in zip(photos, places, strict=True)]
            masks = [plain.mask(photos[i], episode.class_id, size, places[i]) for i in (0, 1)]
            for each, place in zip(placements, places, strict=True):
                each.append(place)
            query, support = plain.embed(images[0]), plain.embed(images[1])
            masked = plain.embed(images[1], masks[1]) if plain.method.needs_masked else support
            pairs.append((query, support, masked, *map(plain.tensor, masks)))
        keys = [[(getattr(e, branch), e.class_id) for e in episodes] for branch in ("query", "support")]
        plain.step(pairs, keys, placements, self.optimise, self.cache, self.number, auxiliary=True)
        self.number += 1
        return 1


class PlainFinetuner:
    """Finetuning as a script would: the supports are decoded and encoded again at every step.

    Args:
        finetuner: Says which pairs come in which step, so that the chance is the same.
    """

    def __init__(self, plain: Plain, finetuner: Finetuner):
        self.plain, self.finetuner = plain, finetuner

    def predictions(self, episodes: list[Episode], lr: float, steps: int) -> Iterator[PlainPrediction]:
        plain, trained = self.plain, self.plain.method
        for episode in episodes:
            photos = episode.supports[: plain.settings["shots"]]
            plain.method = copy.deepcopy(trained)
            before = self._support_loss(photos, episode.class_id)
            seed, settings = self.finetuner.seed_of(episode), self.finetuner.settings
            pairs_of_supports = finetune.ordered_pairs(len(photos), settings["pairs"])
            draws = finetune.batches_of_pairs(pairs_of_supports, settings["batch"], seed)
            reset, size = plain.train["model"].get("cache_reset", 0.0), plain.settings["size"]
            cache = ProbabilityCache(reset, plain.train["fold"], seed, size)
            plain.method.train().requires_grad_(True)
            optimise = optimiser(plain.method, settings | {"lr": lr})
            for step, chosen in enumerate(islice(draws, steps)):
                pairs = self._pairs(photos, episode.class_id, chosen)
                keys = [[(photos[pair[branch]], episode.class_id) for pair in chosen] for branch in (1, 0)]
                whole = [[WHOLE] * len(chosen)] * 2
                plain.step(pairs, keys, whole, optimise, cache, step, auxiliary=False)
            plain.method.eval().requires_grad_(False)
            prediction = plain.predict(episode)
            prediction.support_loss = before, self._support_loss(photos, episode.class_id)
            plain.method = trained
            yield prediction

    def _pairs(self, photos: tuple[str, ...], class_id: int, chosen: list[tuple[int, int]]) -> list[tuple]:
        """(query, support, masked, query mask, support mask) of pairs (support, query) of photos."""
        plain, size = self.plain, self.plain.settings["size"]
        images = {i: plain.image(photos[i], size) for pair in chosen for i in pair}
        masks = {i: plain.mask(photos[i], class_id, size) for i in images}
        whole = {i: plain.embed(image) for i, image in images.items()}
        masked = whole
        if plain.method.needs_masked:
            masked = {support: plain.embed(images[support], masks[support]) for support, _ in chosen}
        return [(whole[q], whole[s], masked[s], plain.tensor(masks[q]), plain.tensor(masks[s])) for s, q in chosen]

    @torch.no_grad()
    def _support_loss(self, photos: tuple[str, ...], class_id: int) -> float:
        ring = [(i, (i + 1) % len(photos)) for i in range(len(photos))]
        return self.plain.loss(self._pairs(photos, class_id, ring), None, auxiliary=False)[0].item()
