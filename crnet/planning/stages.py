"""What each job of a study computes, in the stages that ``crnet bench`` measures, and holds; before anything is run.

How many photos an evaluation encodes is an expectation over the draw of its episodes: each photo is encoded once, as
far as the pool of encoded photos reaches.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath

from crnet.config import resolve
from crnet.config.defaults import scaled
from crnet.config.layout import Layout
from crnet.config.probe import swaps
from crnet.config.rates import rates_of
from crnet.config.resolve import Plan, Spec
from crnet.cost import memory
from crnet.cost.memory import Need
from crnet.cost.networks import encoder, networks
from crnet.data import transforms
from crnet.data.episodes import NOVEL
from crnet.planning.disk import DataSet, episodes_of, store_bytes
from crnet.planning.makespan import Job
from crnet.runtime.limits import PAIRS_TOGETHER, Limits

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


def features(spec: dict, data: DataSet) -> Stage | None:
    """Encoding all photos of a split, and all its pairs without background; None if their number is unknown."""
    split = spec.get("split", "train")
    if data.photos_of(split) is None:
        return None
    photos = (data.photos_of(split) + data.pairs_of(split)) * transforms.VIEWS[spec["views"]]
    return Stage(ENCODER, photos, encoder(spec["encoder"]).photo(spec["size"]).multiply_adds)


def training(spec: dict, data: DataSet, limits: Limits) -> Stage | None:
    """One training with its scores of base classes, for each rate; None if the number of training pairs is unknown."""
    settings, network = spec["train"], networks(spec)
    episodes = settings["epoch_episodes"] or data.training_pairs_of(spec)
    if episodes is None:
        return None
    size, photos, live = settings["size"], network.photos, settings["features"] == "live"
    encoding = photos * network.encoder.photo(size).multiply_adds if live else 0
    learning = photos * network.encoder.photo_training(size).multiply_adds if live else 0
    trained = network.pair(size, limits.pairs(settings["batch"]))
    trained += photos * network.embedding_training(size).multiply_adds
    predicted = photos * network.embedding(size).multiply_adds + 2 * _prediction(spec, size, 1)
    epochs = len(rates_of(spec)) * settings["epochs"]
    steps = epochs * -(-episodes // settings["batch"])
    base = epochs * settings["base_episodes"] / settings["batch"]  # batches that are predicted only
    step = settings["batch"] * (trained + learning)
    share = settings["batch"] * (predicted + encoding) / step
    return Stage(ON_PHOTOS if live else ON_FEATURES, steps + share * base, step)


def trials(spec: dict, data: DataSet, limits: Limits, stored: bool) -> Stage:
    """All trials of one model: each rate goes to the most steps, the fewer are stations on the way; and no step at all.

    Args:
        stored: Test photos are not encoded, their features are read.
    """
    settings = spec["finetune"]
    rates, stations, episodes = len(settings["lr"]), len(set(settings["steps"])), settings["trial_episodes"]
    counted = _Episodes(spec, data, limits, stored)
    each = rates * max(settings["steps"]) * counted.step
    # At each station a prediction and the loss on the supports, which is taken before the first step too.
    each += (1 + rates * stations) * (counted.adapted(1) + counted.ring) + rates * counted.ring
    return Stage(FINETUNING, episodes, each + counted.encoding / episodes)


def evaluation(spec: dict, data: DataSet, limits: Limits, stored: bool) -> Stage:
    """Scoring all test episodes; each is finetuned first, or probed, where the specification says so.

    ``stored``: as above.
    """
    episodes, counted = episodes_of(spec), _Episodes(spec, data, limits, stored)
    if "finetune" in spec:
        # The number of steps is chosen by trial: the most are counted.
        each = max(spec["finetune"]["steps"]) * counted.step + 2 * counted.ring + counted.adapted(counted.shots)
        return Stage(FINETUNING, episodes, each + counted.encoding / episodes)
    readings = 1 + len(swaps(spec["train"])) if "probe" in spec else 1
    return Stage(EVALUATION, episodes, readings * counted.predicted + counted.encoding / episodes)


class _Episodes:
    """Multiply-adds of an evaluation's, or of trials', episodes.

    Attributes:
        encoding: Of all episodes together, what the encoder does, and the embedding where the method stays as it is.
        predicted: Of one episode on a method that stays as it is.
    """

    def __init__(self, spec: dict, data: DataSet, limits: Limits, stored: bool):
        self.spec, self.settings, self.limits, self.stored = spec, spec["evaluate"], limits, stored
        fold, tested = spec["train"]["fold"], "episodes" in spec
        novel = tested or spec["trial_classes"] == NOVEL
        self.pools = data.test_pools(fold) if novel else data.selection_pools(fold)
        self.count = episodes_of(spec) if tested else spec["finetune"]["trial_episodes"]
        self.shots, self.network = self.settings["shots"], networks(spec["train"])
        self.sizes = [scaled(self.settings["size"], scale) for scale in self.settings["scales"]]
        self.of_support = self.network.photos - 1  # photos encoded of a support

    @cached_property
    def distinct(self) -> float:
        """Expected photos, and pairs without background, that all episodes name."""
        masked = named(self.pools, self.count, self.shots) if self.of_support == 2 else 0
        return named(self.pools, self.count, self.shots + 1) + masked

    @cached_property
    def encoding(self) -> float:
        each = [] if self.stored else [self.network.encoder.photo(size) for size in self.sizes]
        if "finetune" not in self.spec:
            each += [self.network.embedding(size) for size in self.sizes]
        asked = self.count * (1 + self.shots * self.of_support)
        room = self.limits.pool_bytes / sum(memory.pool_item_bytes(self.spec, s) for s in self.settings["scales"])
        again = max(0.0, asked - self.distinct) * max(0.0, 1 - room / self.distinct)
        return sum(one.multiply_adds for one in each) * (self.distinct + again)

    @cached_property
    def predicted(self) -> float:
        """The query by each support, or by all together, at each scale."""
        together = self.shots if self.network.sees_all_supports else 1
        each = [_prediction(self.spec["train"], size, self.settings["refinements"], together) for size in self.sizes]
        return self.shots // together * sum(each)

    def adapted(self, supports: int) -> float:
        """Of an episode on its own head, predicted by some of its supports: every photo is embedded anew."""
        embedded = sum(self.network.embedding(size).multiply_adds for size in self.sizes)
        return supports / self.shots * self.predicted + (1 + supports * self.of_support) * embedded

    @cached_property
    def step(self) -> float:
        """Of a batch of pairs: it shows each of k supports now and then, and embeds it once."""
        size, batch, k = self.settings["size"], self.spec["finetune"]["batch"], self.shots
        embedded = k * (1 - (1 - 2 / k) ** batch)
        embedded += k * (1 - (1 - 1 / k) ** batch) if self.of_support == 2 else 0
        pair = self.network.pair(size, self.limits.pairs(max(batch, k)), auxiliary=False)
        return batch * pair + embedded * self.network.embedding_training(size).multiply_adds

    @cached_property
    def ring(self) -> float:
        """Of the loss on the supports: each once the support and once the query."""
        size = self.settings["size"]
        embedded = self.of_support * self.network.embedding(size).multiply_adds
        return self.shots * (embedded + 2 * _prediction(self.spec["train"], size, 1))


def _prediction(training: dict, size: int, refinements: int, shots: int = 1) -> float:
    """Multiply-adds of one branch of a query with so many supports whose photos are embedded."""
    queries = max(1, PAIRS_TOGETHER // shots)
    return networks(training).prediction(size, refinements, queries, shots).multiply_adds / queries


def named(pools: Sequence[int] | None, episodes: int, each: int) -> float:
    """Expected distinct photos of ``episodes`` that take ``each`` photos of a class drawn from all with that many.

    Args:
        pools: Photos of each class; None: unknown, and no photo is taken for another's.
    """
    known: Iterable[int] = [size for size in pools or () if size >= each]
    if not known:
        return float(episodes * each)
    return sum(size * (1 - (1 - each / size) ** (episodes / len(known))) for size in known)


class Demand:
    """Of the jobs that use a network: features, train, trials, evaluate, finetune and probe.

    Attributes:
        specs: Job -> its specification.
    """

    def __init__(self, plan: Plan, layout: Layout, data: Sequence[DataSet]):
        self.plan, self.limits = plan, plan.study.limits.values()
        self._data = {resolve.dataset_name(each.spec): each for each in data}
        self.specs: dict[Job, Spec] = {}
        for spec in plan.features.values():
            self.specs["features", PurePath(layout.features_folder(spec)).name] = spec
        self.specs |= {("train", name): spec for name, spec in plan.trainings.items()}
        self.specs |= {("trials", name): spec for name, spec in plan.trials.items()}
        for name, spec in plan.evaluations.items():
            self.specs["finetune" if "finetune" in spec else "evaluate", name] = spec
        self.specs |= {("probe", name): spec for name, spec in plan.probes.items()}

    def _of(self, job: Job) -> tuple[Spec, DataSet]:
        spec = self.specs[job]
        return spec, self._data[resolve.dataset_name(dataset_of(spec))]

    def _stored(self, predicted: Spec) -> list[Spec]:
        """Features of test photos that an evaluation or trials read; none: they encode."""
        return resolve.test_features_specs(predicted) if self.plan.caches_test_photos else []

    def stages(self, job: Job) -> list[Stage] | None:
        """What it computes; None where that is not known before the data are prepared."""
        spec, data = self._of(job)
        if job[0] == "features":
            work = features(spec, data)
        elif job[0] == "train":
            work = training(spec, data, self.limits)
        else:
            count = trials if job[0] == "trials" else evaluation
            work = count(spec, data, self.limits, bool(self._stored(spec)))
        return work and [Stage(START, 1), work]

    def memory(self, job: Job) -> Need:
        """What it holds at most."""
        spec, data = self._of(job)
        if job[0] == "features":
            return memory.features(spec, self.limits, store_bytes(spec, data) or 0)
        if job[0] == "train":
            stored = resolve.features_spec(spec)
            return memory.training(spec, self.limits, store_bytes(stored, data, reader=spec) or 0 if stored else 0)
        stored = self._stored(spec)
        named_photos = _Episodes(spec, data, self.limits, bool(stored)).distinct
        need = memory.evaluation(spec, self.limits, named_photos, bool(stored))
        return replace(need, mapped=sum(store_bytes(each, data) or 0 for each in stored))


def dataset_of(spec: Spec) -> Spec:
    """Of features, a training, trials or an evaluation."""
    return spec["dataset"] if "dataset" in spec else spec["train"]["dataset"]
