"""Test episodes: drawn once per data set and fold, stored as a table, shared by every method and variant."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crnet.data.index import Index
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv, read_json, sha256_file, write_csv, write_json
from crnet.runtime.seeding import derive

TOO_FEW = ("error", "leave out")
NOVEL, SELECTION = "novel", "selection"  # classes of trials: those that the fold tests, or ``Index.selection_classes``
ABOUT = ("fold", "dataset_digest", "count", "seeds", "shots", "left_out")  # what the JSON beside a table says of it


@dataclass(frozen=True)
class Episode:
    """One query and its supports, distinct photos of one class; the supports of k shots are the first k."""

    seed: int
    number: int
    class_id: int
    query: str
    supports: tuple[str, ...]


@dataclass(frozen=True)
class EpisodeTable:
    """The test episodes of one fold."""

    fold: int  # whose test classes are asked for
    dataset_digest: str  # of the prepared data set from which the episodes were drawn
    count: int  # episodes per seed
    seeds: tuple[int, ...]  # in order
    shots: int  # supports of each episode
    left_out: dict[str, int] = field(default_factory=dict)  # class with too few photos -> how many it has
    episodes: tuple[Episode, ...] = ()  # sorted by seed as in ``seeds``, then by number


def draw(
    index: Index, fold: int, count: int, seeds: Sequence[int], shots: int, too_few: str = "error", trials: str = ""
) -> EpisodeTable:
    """Draw ``count`` episodes per seed: first the class (section 3 of the paper), then query and supports.

    The class is uniform among the fold's, the query uniform among the class's test photos, and the supports
    are distinct others (protocol, minimum specification 1). More shots only append supports, as long as the
    same classes have enough photos.

    Args:
        seeds: episode seeds; each is a stream of its own.
        shots: the largest number of shots that the study asks for.
        too_few: what to do with a class of fewer than ``shots + 1`` test photos: "error" or "leave out".
        trials: draw no test episodes but those of trials, of ``NOVEL`` or ``SELECTION`` classes; see ``draw_trials``.

    Raises:
        CrnetError: classes with too few photos, or none left.
    """
    if too_few not in TOO_FEW:
        raise CrnetError(f"unknown too_few {too_few!r}: choose from {', '.join(TOO_FEW)}.")
    if count < 1 or shots < 1 or len(set(seeds)) != len(seeds) or not seeds:
        raise CrnetError(f"episodes need count and shots >= 1 and distinct seeds, not {count}, {shots}, {list(seeds)}.")
    purpose = "trial episodes" if trials else "episodes"
    classes = index.selection_classes(fold) if trials == SELECTION else index.novel_classes(fold)
    pools: dict[int, list[str]] = {class_id: [] for class_id in classes}
    for pair in index.pairs("val", classes):
        pools[pair.class_id].append(pair.image)
    left_out = {index.class_name(c): len(pool) for c, pool in pools.items() if len(pool) < shots + 1}
    eligible = [c for c, pool in pools.items() if len(pool) >= shots + 1]
    if left_out and (too_few == "error" or not eligible):
        named = ", ".join(f"{name} ({size})" for name, size in left_out.items())
        advice = "use fewer shots" if not eligible else 'use fewer shots, or set too_few to "leave out"'
        raise CrnetError(
            f"fold {fold} of {index.name} has too few test photos for {shots}-shot {purpose}, "
            f"which need {shots + 1} a class: {named}; {advice}."
        )
    episodes = []
    for seed in seeds:
        generator = np.random.default_rng(derive(purpose, index.name, fold, seed))
        for number in range(count):
            class_id = eligible[generator.integers(len(eligible))]
            pool = pools[class_id]
            # The whole pool is shuffled whatever the shots, so that the stream does not depend on them.
            query, *supports = (pool[i] for i in generator.permutation(len(pool))[: shots + 1])
            episodes.append(Episode(seed, number, class_id, query, tuple(supports)))
    return EpisodeTable(fold, index.digest, count, tuple(seeds), shots, left_out, tuple(episodes))


def draw_trials(index: Index, fold: int, count: int, shots: int, classes: str = SELECTION) -> EpisodeTable:
    """Episodes of trials, of which settings are chosen; their seed is another than that of test episodes.

    Classes with too few photos are left out and named. Photos are of split val, so that a network is not judged on
    photos that it was trained on.

    Args:
        classes: ``SELECTION``, on which settings for the fold itself may be chosen, or ``NOVEL``, the fold's own test
            classes, on which they may be chosen for other folds only.

    Raises:
        CrnetError: no class has ``shots + 1`` photos; a class of ``SELECTION`` is one that the fold tests.
    """
    if classes not in (NOVEL, SELECTION):
        raise CrnetError(f"unknown classes of trials {classes!r}: choose from {NOVEL}, {SELECTION}.")
    tested = set(index.selection_classes(fold)) & set(index.novel_classes(fold))
    if classes == SELECTION and tested:
        use = f"would serve to choose settings of fold {fold}, which tests it"
        raise CrnetError(f"{index.name}: {index.class_name(min(tested))} {use}.")
    return draw(index, fold, count, [0], shots, "leave out", trials=classes)


@dataclass(frozen=True)
class Other:
    """A support of another class than an episode's."""

    class_id: int
    photo: str


def draw_others(table: EpisodeTable, index: Index, count: int) -> tuple[Other, ...]:
    """For each of the first ``count`` episodes the first support of an episode of another class of the same fold.

    First the class, uniformly, then one of its supports whose photo does not show the class that the episode asks for.
    Each episode has a seed of its own, derived from its table's fold, its seed and its number.

    Raises:
        CrnetError: an episode without any such support.
    """
    supports = sorted({(episode.class_id, episode.supports[0]) for episode in table.episodes})
    pools: dict[int, dict[int, list[str]]] = {}  # class asked for -> other class -> photos
    for asked in {episode.class_id for episode in table.episodes}:
        pools[asked] = {}
        for class_id, photo in supports:
            if class_id != asked and asked not in index.photos[photo].classes:
                pools[asked].setdefault(class_id, []).append(photo)
    others = []
    for episode in table.episodes[:count]:
        pool = pools[episode.class_id]
        if not pool:
            name = index.class_name(episode.class_id)
            raise CrnetError(
                f"fold {table.fold} of {index.name}: no episode of another class has a support without {name}, which a "
                "probe needs; draw more episodes, or leave the probe out."
            )
        generator = np.random.default_rng(derive("probe", index.name, table.fold, episode.seed, episode.number))
        class_id = sorted(pool)[generator.integers(len(pool))]
        others.append(Other(class_id, pool[class_id][generator.integers(len(pool[class_id]))]))
    return tuple(others)


def write(path: Path, table: EpisodeTable) -> str:
    """Write the table as CSV and, beside it as JSON, what it was drawn from; returns the CSV's digest."""
    header = ("episode_seed", "episode", "class", "query", *_supports(table.shots))
    write_csv(path, header, [(e.seed, e.number, e.class_id, e.query, *e.supports) for e in table.episodes])
    digest = sha256_file(path)
    write_json(path.with_suffix(".json"), {"digest": digest, **{name: getattr(table, name) for name in ABOUT}})
    return digest


def _supports(shots: int) -> list[str]:
    return [f"support_{k + 1}" for k in range(shots)]


def read(path: Path, index: Index | None = None) -> EpisodeTable:
    """Read what ``write`` wrote.

    Raises:
        CrnetError: a file is absent, the CSV is not the one of the JSON's digest; or, not checked if ``index`` is None,
            it was drawn from other data, or an episode is none that ``draw`` can give.
    """
    for file in (path, path.with_suffix(".json")):
        if not file.is_file():
            raise CrnetError(f"{file} is absent: draw the episodes first.")
    about = read_json(path.with_suffix(".json"))
    if sha256_file(path) != about["digest"]:
        raise CrnetError(f"{path} was changed after it was drawn (its digest differs): draw the episodes again.")
    if index is not None and index.digest != about["dataset_digest"]:
        raise CrnetError(f"{path} was drawn from other data than this {index.name}: draw the episodes again.")
    episodes = tuple(
        Episode(
            seed=int(row["episode_seed"]),
            number=int(row["episode"]),
            class_id=int(row["class"]),
            query=row["query"],
            supports=tuple(row[column] for column in _supports(about["shots"])),
        )
        for row in read_csv(path)
    )
    if index is not None:
        _check(episodes, index, about["fold"], path)
    facts = {name: about[name] for name in ABOUT} | {"seeds": tuple(about["seeds"])}
    return EpisodeTable(**facts, episodes=episodes)


def _check(episodes: Sequence[Episode], index: Index, fold: int, path: Path) -> None:
    """Guard: distinct photos, all of them test photos of a class that the fold tests."""
    allowed = {(pair.image, pair.class_id) for pair in index.test_pairs(fold)}
    for line, episode in enumerate(episodes, 2):
        photos = (episode.query, *episode.supports)
        if len(set(photos)) < len(photos):
            own = episode.query in episode.supports
            what = f"{episode.query} is among its own supports" if own else "a support is there twice"
            raise CrnetError(f"{path}, line {line}: {what}; draw the episodes again.")
        for photo in photos:
            if (photo, episode.class_id) not in allowed:
                raise CrnetError(
                    f"{path}, line {line}: {photo} is no test photo of class {episode.class_id} in fold {fold}; draw "
                    "the episodes again."
                )
