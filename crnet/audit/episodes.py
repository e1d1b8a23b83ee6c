"""Episode tables: unchanged, as the study asks for them, and the ones that the seed draws from the data."""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, parting
from crnet.config import resolve
from crnet.config.settings import component
from crnet.data.episodes import Episode, EpisodeTable, draw, read, write
from crnet.data.sets import pascal5i
from crnet.errors import CrnetError
from crnet.runtime.files import read_json, sha256_file, write_json

CHECKS = DIGEST, RULES, DRAWN = (
    "episodes: digests agree",
    "episodes: as the study asks",
    "episodes: drawn again from the data",
)


def check_episodes(folder: Folder, ledger: Ledger) -> dict[str, EpisodeTable]:
    """Check the tables that the plan or an evaluation names; returns those that can be read, by name."""
    specs, digests = dict(folder.plan.episodes), {}
    for evaluation, about in folder.evaluations.items():
        with suppress(*UNREADABLE):  # said by the check of specifications
            spec = resolve.episodes_spec(about["spec"])
            name = resolve.episodes_name(spec)
            specs.setdefault(name, spec)
            digests.setdefault(name, {})[f"{folder.where(evaluation)}, episodes_digest"] = about.get("episodes_digest")
    tables, published, check = {}, _published_pairs(ledger[RULES]), ledger[DIGEST]
    for name, spec in specs.items():
        path = folder.results / "episodes" / f"{name}.csv"
        where = folder.relative(path)
        if not path.is_file() or not path.with_suffix(".json").is_file():
            check.differs(where, "is missing, or the .json beside it")
            continue
        with ledger[RULES].reading(f"{where} or the .json beside it"):
            stated, digest = read_json(path.with_suffix(".json"))["digest"], sha256_file(path)
            check.same(f"episodes/{name}.json, digest", stated, digest, f"{name}.csv is")
            for source, recorded in digests.get(name, {}).items():
                check.same(source, recorded, digest, f"episodes/{name}.csv is")
            tables[name] = _read(path)
            _rules(ledger[RULES], where, tables[name], spec, published)
            _drawn(folder, ledger[DRAWN], where, path, spec)
    return tables


def _read(path: Path) -> EpisodeTable:
    """The table with a digest made to fit: that it does not is said elsewhere, and the rest is checked all the same."""
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        write_json(copy.with_suffix(".json"), read_json(path.with_suffix(".json")) | {"digest": sha256_file(path)})
        return read(copy)


def _published_pairs(check: Check) -> dict[int, set[str]]:
    """Class of PASCAL-5i -> test photos of the lists that the field shares, which are checked by their digests."""
    photos: dict[int, set[str]] = {}
    try:
        for split, image, class_id in pascal5i.published_pairs():
            if split == "val":
                photos.setdefault(class_id, set()).add(image)
    except CrnetError as error:
        check.differs("published pair lists", str(error))
    return photos


def _rules(check: Check, where: str, table: EpisodeTable, spec: dict, published: dict[int, set[str]]) -> None:
    """What can be seen without the data."""
    asked, dataset = spec["episodes"], spec["dataset"]
    facts = {
        "fold": (table.fold, spec["fold"]),
        "count": (table.count, asked["count"]),
        "seeds": (list(table.seeds), asked["seeds"]),
        "shots": (table.shots, asked["shots"]),
    }
    for key, (found, expected) in facts.items():
        check.same(f"{where}, {key}", found, expected, "the study asks for")
    if table.left_out and asked["too_few"] != "leave out":
        check.differs(where, f"leaves out {', '.join(table.left_out)}; the study allows none")
    expected = [(seed, number) for seed in asked["seeds"] for number in range(asked["count"])]
    found = [(episode.seed, episode.number) for episode in table.episodes]
    if other := parting(found, expected):
        line, one, wanted = other
        check.differs(f"{where}, line {line + 2}", f"is seed and number {one}, the study asks for {wanted}")
    splits = component("dataset", dataset["name"], where).splits(dataset)
    tested = {c for c in splits.folds[spec["fold"]] if splits.classes[c - 1] not in table.left_out}
    listed = published if dataset["name"] == "pascal5i" and dataset.get("pairs") == "published" else None
    for line, episode in enumerate(table.episodes, 2):
        check.judge(f"{where}, line {line}", _problem(episode, tested, table.shots, listed))


def _problem(episode: Episode, tested: set[int], shots: int, listed: dict[int, set[str]] | None) -> str | None:
    photos = (episode.query, *episode.supports)
    if episode.class_id not in tested:
        return f"asks for class {episode.class_id}, which the fold does not test"
    if len(episode.supports) != shots or not all(photos):
        return f"has {len([p for p in episode.supports if p])} supports, not {shots}"
    twice = [photo for photo, count in Counter(photos).items() if count > 1]
    if twice:
        return f"has the photo {twice[0]} twice among query and supports"
    foreign = [photo for photo in photos if listed is not None and photo not in listed[episode.class_id]]
    if foreign:
        return f"has {foreign[0]}, which the published test list has not for class {episode.class_id}"
    return None


def _drawn(folder: Folder, check: Check, where: str, path: Path, spec: dict) -> None:
    index = folder.index(spec["dataset"])
    if index is None:
        check.unknown(f"the data set {spec['dataset']['name']} of the runs is not at hand in a work folder")
        return
    settings = {key: value for key, value in spec["episodes"].items() if key != "rev"}
    with TemporaryDirectory() as temporary:
        again = Path(temporary) / path.name
        write(again, draw(index, spec["fold"], **settings))
        for kind in (".csv", ".json"):
            made, stored = again.with_suffix(kind), path.with_suffix(kind)
            check.same_bytes(f"{where.removesuffix('.csv')}{kind}", stored, made)
