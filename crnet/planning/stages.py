"""What each job of a study computes, in the stages that ``crnet bench`` measures, with counted multiply-adds.

Imports no torch. How many photos an evaluation encodes is an expectation over the draw of its episodes: each photo is
encoded once, as far as the pool of encoded photos reaches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from crnet.config.defaults import scaled
from crnet.cost import memory, work
from crnet.cost.work import Head
from crnet.data import transforms
from crnet.planning.disk import DataSet, episodes_of
from crnet.runtime.limits import Limits

# As the bench calls them. A step is of a batch of pairs, an episode with the encoding of photos that are new.
START = "job start to first step"
ENCODER = "encoder"
ON_PHOTOS = "training step, on-the-fly encoder"
ON_FEATURES = "training step, cached features"
EVALUATION = "evaluation, 1-shot, 5 refinements"
FINETUNING = "finetuning and fusion, 5-shot"


@dataclass(frozen=True)
class Stage:
    """Work of one kind: ``units`` images, steps, episodes or jobs, of so many multiply-adds each."""

    name: str
    units: float
    multiply_adds: float = 0.0


def features(spec: dict, data: DataSet) -> list[Stage] | None:
    """Of encoding all photos of a split, and all its pairs without background; None if their number is unknown."""
    split = spec.get("split", "train")
    if data.photos_of(split) is None:
        return None
    photos = (data.photos_of(split) + data.pairs_of(split)) * transforms.VIEWS[spec["views"]]
    return [Stage(START, 1), Stage(ENCODER, photos, work.forward(work.encoder(spec["encoder"], spec["size"])))]


def training(spec: dict, data: DataSet) -> list[Stage] | None:
    """Of one training with its scores of base classes; None if the training pairs or the method's work are unknown."""
    settings = spec["train"]
    episodes = settings["epoch_episodes"] or data.training_pairs_of(spec)
    if episodes is None or spec["method"] != "crnet":
        return None
    head, live = _head(spec, settings["size"]), settings["features"] == "live"
    encoding = head.photos * work.forward(work.encoder(spec["encoder"], settings["size"])) if live else 0
    predicted = head.photos * work.forward(head.embed) + 2 * head.prediction(1)
    steps = settings["epochs"] * -(-episodes // settings["batch"])
    base = settings["epochs"] * settings["base_episodes"] / settings["batch"]  # batches that are predicted only
    name = ON_PHOTOS if live else ON_FEATURES
    step = settings["batch"] * (head.pair_training() + encoding)
    share = settings["batch"] * (predicted + encoding) / step
    return [Stage(START, 1), Stage(name, steps + share * base, step)]


def tuning(spec: dict, data: DataSet, limits: Limits, stored: bool) -> list[Stage]:
    """Of all trials: each rate goes to the most steps, the fewer are stations on the way; and no step at all.

    Args:
        stored: Test photos are not encoded, their features are read.
    """
    settings = spec["finetune"]
    rates, stations, episodes = len(settings["lr"]), len(set(settings["steps"])), settings["trial_episodes"]
    counted = _Episodes(spec, data, limits, stored)
    each = rates * max(settings["steps"]) * counted.step
    # At each station a prediction and the loss on the supports, which is taken before the first step too.
    each += (1 + rates * stations) * (counted.adapted(1) + counted.ring) + rates * counted.ring
    return [Stage(START, 1), Stage(FINETUNING, episodes, each + counted.encoding / episodes)]


def evaluation(spec: dict, data: DataSet, limits: Limits, stored: bool) -> list[Stage]:
    """Of scoring all test episodes; each is finetuned first where the specification says so. ``stored``: as above."""
    episodes, counted = episodes_of(spec), _Episodes(spec, data, limits, stored)
    if "finetune" in spec:
        # The number of steps is chosen by trial: the most are counted.
        each = max(spec["finetune"]["steps"]) * counted.step + 2 * counted.ring + counted.adapted(counted.shots)
        return [Stage(START, 1), Stage(FINETUNING, episodes, each + counted.encoding / episodes)]
    return [Stage(START, 1), Stage(EVALUATION, episodes, counted.predicted + counted.encoding / episodes)]


def named_photos(spec: dict, data: DataSet) -> float:
    """Expected photos, and pairs without background, that the episodes of an evaluation or of trials name."""
    return _Episodes(spec, data, Limits(), False).distinct


class _Episodes:
    """Multiply-adds of an evaluation's, or of trials', episodes.

    Attributes:
        encoding: Of all episodes together, what the encoder does, and the head's first layer where it stays as it is.
        predicted: Of one episode on a head that stays as it is.
    """

    def __init__(self, spec: dict, data: DataSet, limits: Limits, stored: bool):
        self.spec, self.settings, self.limits, self.stored = spec, spec["evaluate"], limits, stored
        fold, tested = spec["train"]["fold"], "episodes" in spec
        self.pools = data.test_pools(fold) if tested else data.trial_pools(fold)
        self.count = episodes_of(spec) if tested else spec["finetune"]["trial_episodes"]
        self.shots, self.crnet = self.settings["shots"], spec["train"]["method"] == "crnet"
        self.heads = [self._at(scale) for scale in self.settings["scales"]] if self.crnet else []
        self.masked = self.crnet and self.heads[0].photos == 3

    def _at(self, scale: float) -> Head:
        return _head(self.spec["train"], scaled(self.settings["size"], scale))

    @cached_property
    def distinct(self) -> float:
        drawn = named(self.pools, self.count, self.shots + 1)
        return drawn + (named(self.pools, self.count, self.shots) if self.masked else 0)

    @cached_property
    def encoding(self) -> float:
        encoder, scales = self.spec["train"]["encoder"], self.settings["scales"]
        each = [] if self.stored else [work.encoder(encoder, scaled(self.settings["size"], scale)) for scale in scales]
        each = [work.forward(convs) for convs in each]
        if self.crnet and "finetune" not in self.spec:
            each += [work.forward(head.embed) for head in self.heads]
        asked = self.count * (1 + self.shots * (2 if self.masked else 1))
        room = self.limits.pool_bytes / sum(memory.pool_item_bytes(self.spec, scale) for scale in scales)
        again = max(0.0, asked - self.distinct) * max(0.0, 1 - room / self.distinct)
        return sum(each) * (self.distinct + again)

    @cached_property
    def predicted(self) -> int:
        """The query by each support at each scale."""
        return self.shots * sum(head.prediction(self.settings["refinements"]) for head in self.heads)

    def adapted(self, supports: int) -> int:
        """Of an episode on its own head: every photo is embedded anew."""
        photos = 1 + supports * (2 if self.masked else 1)
        each = [head.prediction(self.settings["refinements"]) for head in self.heads]
        return supports * sum(each) + photos * sum(work.forward(head.embed) for head in self.heads)

    @cached_property
    def step(self) -> int:
        """Of a batch of pairs: it shows each of k supports now and then, and embeds it once."""
        head, batch, k = self._at(1.0), self.spec["finetune"]["batch"], self.shots
        embedded = k * (1 - (1 - 2 / k) ** batch)
        embedded += k * (1 - (1 - 1 / k) ** batch) if self.masked else 0
        return batch * head.pair_training(embedded / batch, auxiliary=False)

    @cached_property
    def ring(self) -> int:
        """Of the loss on the supports: each once the support and once the query."""
        head = self._at(1.0)
        return self.shots * ((2 if self.masked else 1) * work.forward(head.embed) + 2 * head.prediction(1))


def _head(training: dict, size: int) -> Head:
    return Head(work.encoder_channels(training["encoder"]), training["model"], size)


def named(pools: Sequence[int] | None, episodes: int, each: int) -> float:
    """Expected distinct photos of ``episodes`` that take ``each`` photos of a class drawn from all with that many.

    Args:
        pools: Photos of each class; None: unknown, and no photo is taken for another's.
    """
    known: Iterable[int] = [size for size in pools or () if size >= each]
    if not known:
        return float(episodes * each)
    return sum(size * (1 - (1 - each / size) ** (episodes / len(known))) for size in known)
