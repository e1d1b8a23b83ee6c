"""What a study needs on disk, before anything is run.

Sizes that are not known before the data are there are estimates: each says what it rests on.
"""

import importlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

from crnet.config import resolve
from crnet.config.layout import Layout
from crnet.config.probe import swaps
from crnet.config.resolve import Plan
from crnet.config.settings import component
from crnet.cost import memory
from crnet.cost.networks import encoder, map_side, networks
from crnet.data import transforms
from crnet.data.archives.archives import Archive
from crnet.data.archives.archives import resolve as resolve_archive
from crnet.data.archives.extract import STAMP
from crnet.data.formats.lists import words
from crnet.data.index import ABOUT, IMAGES, PAIRS, reading
from crnet.data.splits import Splits
from crnet.errors import CrnetError
from crnet.runtime import capacity
from crnet.runtime.files import read_csv

MIB, GIB = 2**20, 2**30
EXTRACTED_SHARE = 1.1  # of an archive: JPEGs do not shrink, but the 74,000 files of VOC and SBD fill their last blocks
# Classes of a training photo that the small-object rule keeps, at most: COCO has 2.9 a photo before the rule; shapes80
# has 2.1 and shapes5i 1.4 after it.
CLASSES_A_PHOTO, CLASSES_A_SCENE = 2.9, 2.1
# Prepared data a photo, tables included. A PNG of SBD's takes a block of 4 KiB (728 photos); run lengths took 2.6 KB
# (228 photos of COCO); scenes of 64 and 160 px with their masks took 9 and 22 KB.
MASK_FILE_BYTES, RUN_LENGTHS_BYTES = 4400, 2700
SCENE_BYTES, SCENE_PIXEL_BYTES = 8000, 0.55
ENCODER_BYTES = 100e6  # at least: ResNet-50 and VGG16 without their classifiers have 94 and 59 MB
COUNT_BYTES = 100  # a row of counts, one a predicted episode; 67 bytes in the demo, photos have more pixels


@dataclass(frozen=True)
class Need:
    """Bytes below ``folder``: of the whole study, and those that are not there yet. None: not known."""

    name: str
    folder: str
    whole: float | None
    to_come: float | None
    basis: str


class DataSet:
    """What is known of a data set: from its prepared folder, else from what its module says of it."""

    def __init__(self, spec: dict, layout: Layout):
        self.spec, self.folder = spec, Path(layout.data(spec))

    @cached_property
    def module(self) -> ModuleType:
        """Its file, which imports no torch; resolving the study has imported it before."""
        return importlib.import_module(component("dataset", self.spec["name"], "dataset").module)

    @cached_property
    def prepared(self) -> bool:
        return (self.folder / ABOUT).is_file()

    @cached_property
    def pairs(self) -> list[tuple[str, str, int]] | None:
        """All (split, image, class id), prepared or published; None if they are not known yet."""
        if self.prepared:
            with reading(self.folder):
                return [(row["split"], row["image"], int(row["class"])) for row in read_csv(self.folder / PAIRS)]
        published = getattr(self.module, "published_pairs", None)
        if published is None:
            return None
        if not (subset := self.spec.get("subset")):
            return published()
        if not Path(subset).is_file():
            raise CrnetError(
                f"the list of image ids {subset}, setting subset, is absent: give the path of a text file."
            )
        wanted = set(words(Path(subset)))
        return [pair for pair in published() if pair[1] in wanted]

    @cached_property
    def generated(self) -> bool:
        return "images_train" in self.spec

    @cached_property
    def in_place(self) -> tuple[str, ...]:
        """Archives that are read where they are; the others are extracted."""
        return tuple(getattr(self.module, "IN_PLACE", ()))

    @cached_property
    def photos(self) -> int | None:
        """Photos of both splits."""
        if self.prepared:
            with reading(self.folder):
                return len(read_csv(self.folder / IMAGES))
        if self.generated:
            return self.spec["images_train"] + self.spec["images_val"]
        if self.pairs is not None:
            return len({image for _, image, _ in self.pairs})
        return self.published and sum(self.published.values())

    @property
    def published(self) -> dict[str, int] | None:
        """Split -> photos, as its module says."""
        return getattr(self.module, "PUBLISHED", None)

    def photos_of(self, split: str) -> int | None:
        """Those of a split that show a class, as far as that is known."""
        if self.pairs is not None:
            return len({image for part, image, _ in self.pairs if part == split})
        if self.generated:
            return self.spec[f"images_{split}"]
        return self.published and self.published[split]

    def pairs_of(self, split: str) -> int | None:
        """(photo, class) of all folds, at most."""
        if self.pairs is not None:
            return self.class_counts(split).total()
        photos = self.photos_of(split)
        return photos and int(photos * (CLASSES_A_SCENE if self.generated else CLASSES_A_PHOTO))

    @cache  # noqa: B019 - as long as the plan
    def class_counts(self, split: str) -> Counter | None:
        """Class id -> its pairs; None if they are not known yet."""
        return None if self.pairs is None else Counter(c for part, _, c in self.pairs if part == split)

    def training_pairs_of(self, training: dict) -> int | None:
        """Pairs on which a training's fold trains; None where that takes more than the list of pairs."""
        counts = self.class_counts("train")
        if counts is None or training["train"]["novel_pixels"] == "drop":
            return None
        unseen = self._unseen(training["fold"])
        return sum(count for class_id, count in counts.items() if class_id not in unseen)

    def _unseen(self, fold: int) -> set[int]:
        return {*self.splits.folds[fold], *self.splits.held_out[fold]}

    @cached_property
    def splits(self) -> Splits:
        return component("dataset", self.spec["name"], "dataset").splits(self.spec)

    def test_pools(self, fold: int) -> list[int] | None:
        """Test photos of each class that the fold tests."""
        return self._pools(self.splits.folds[fold])

    def selection_pools(self, fold: int) -> list[int] | None:
        """Test photos of each class on which a fold's own model is tried, where there are no other folds."""
        base = sorted({*range(1, len(self.splits.classes) + 1)} - self._unseen(fold))
        return self._pools(self.splits.held_out[fold] or base)

    def _pools(self, classes: Sequence[int]) -> list[int] | None:
        if counts := self.class_counts("val"):
            return [counts[class_id] for class_id in classes]
        pairs = self.pairs_of("val")
        return pairs and [pairs // len(self.splits.classes)] * len(classes)

    @property
    def prepared_bytes(self) -> int | None:
        photos = self.photos
        if self.generated:
            return int(photos * (SCENE_BYTES + SCENE_PIXEL_BYTES * self.spec["size"] ** 2))
        return photos and photos * (RUN_LENGTHS_BYTES if self.in_place else MASK_FILE_BYTES)


def needs_of(plan: Plan, layout: Layout, data: Sequence[DataSet]) -> list[Need]:
    """What the study ``plan`` takes on disk, by kind of file; ``data`` are its data sets."""
    at_hand = {resolve.dataset_name(each.spec): each for each in data}
    return [
        _downloads(plan, layout),
        _extracted(plan, layout, data),
        _prepared(layout, data),
        _encoders(plan, layout),
        _features(plan, layout, at_hand),
        _weights(plan, layout),
        _states(plan, layout, at_hand),
        _results(plan, layout),
    ]


def _need(name: str, folder: str, sizes: Mapping[Path, float | None], basis: str) -> Need:
    """Of ``sizes`` by the file that says, when it is there, that these bytes have come."""
    return Need(
        name, folder, _total(sizes.values()), _total(s for file, s in sizes.items() if not file.is_file()), basis
    )


def _downloads(plan: Plan, layout: Layout) -> Need:
    archives = archives_of(plan, layout)
    absent = [path for path in archives.values() if not path.is_file()]
    basis = f"{len(absent)} of {plural(len(archives), 'archive')} to download" if archives else "no archives"
    sizes = {path: archive_bytes(archive, path) for archive, path in archives.items()}
    need = _need("archives", layout.archives, sizes, basis)
    # A download that was cut off goes on where it was.
    parts = [path.with_name(path.name + ".part") for path in absent]
    there = sum(part.stat().st_size for part in parts if part.is_file())
    return replace(need, to_come=need.to_come and need.to_come - there)


def _extracted(plan: Plan, layout: Layout, data: Sequence[DataSet]) -> Need:
    archives = {archive.name: archive_bytes(archive, path) for archive, path in archives_of(plan, layout).items()}
    sizes, in_place = {}, {name for each in data for name in each.in_place}
    for each in data:
        for name in layout.archive_names("dataset", each.spec):
            if name not in each.in_place:
                size = archives[name]
                sizes[Path(layout.extracted(each.spec)) / name / STAMP] = size and size * EXTRACTED_SHARE
    parts = [f"{EXTRACTED_SHARE} x {plural(len(sizes), 'archive')}"] if sizes else []
    parts += [f"{plural(len(in_place), 'archive')} read in place"] if in_place else []
    return _need("extracted", layout.extracted_root, sizes, ", ".join(parts) or "nothing to extract")


def _prepared(layout: Layout, data: Sequence[DataSet]) -> Need:
    each = [f"{d.spec['name']} {d.prepared_bytes / d.photos / 1e3:.1f} KB" for d in data if d.photos]
    sizes = {d.folder / ABOUT: d.prepared_bytes for d in data}
    return _need("prepared", layout.work, sizes, "estimate: " + ", ".join(each) + " a photo")


def _encoders(plan: Plan, layout: Layout) -> Need:
    files = {path: spec for spec in plan.encoders.values() if (path := layout.encoder(spec))}
    sizes = {Path(path): _encoder_bytes(spec) for path, spec in files.items()}
    basis = "the encoder brings its own"
    if sizes:
        basis = f"weights of {plural(len(sizes), 'encoder')}, {amount(max(sizes.values()))} at most"
    return _need("encoders", layout.work, sizes, basis)


def _encoder_bytes(spec: dict) -> float:
    least = ENCODER_BYTES if "archive" in spec else MIB
    return max(least, encoder(spec).weight_bytes / 2)  # which are of two precisions


def _features(plan: Plan, layout: Layout, data: Mapping[str, DataSet]) -> Need:
    stores = {layout.features_folder(spec): spec for spec in plan.features.values()}
    sizes = {
        Path(folder) / "features.json": store_bytes(spec, data[resolve.dataset_name(spec["dataset"])])
        for folder, spec in stores.items()
    }
    basis = f"cached maps of photos and pairs, {plural(len(sizes), 'store')}" if sizes else "none cached"
    return _need("features", layout.work, sizes, basis)


def _weights(plan: Plan, layout: Layout) -> Need:
    sizes = {
        Path(layout.training(name)) / "model.safetensors": weight_bytes(spec) for name, spec in plan.trainings.items()
    }
    largest = max(sizes.values(), default=0)
    basis = f"of {plural(len(sizes), 'training')}" + (f", {amount(largest)} at most" if largest else "")
    return _need("weights", layout.work, sizes, basis)


def _states(plan: Plan, layout: Layout, data: Mapping[str, DataSet]) -> Need:
    """Of trainings under way: weights, moments of the optimiser, cache of predictions; and the state before."""

    def state_bytes(training: dict) -> int:
        settings, cached = training["train"], 0
        if networks(training).stores_cache:  # of each branch two channels in half precision at 1/8
            photos = data[resolve.dataset_name(training["dataset"])]
            pairs = photos.training_pairs_of(training) or photos.pairs_of("train") or 0
            cached = 2 * pairs * 2 * map_side(settings["size"]) ** 2 * 2
        return weight_bytes(training) * (1 + memory.moments(settings)) + cached

    jobs = min(jobs_at_once(plan), len(plan.trainings))
    size = 2 * jobs * max(map(state_bytes, plan.trainings.values()), default=0)
    basis = f"of {plural(jobs, 'training')} at once, and the one before each; removed at the end"
    return Need("states", layout.work, size, size, basis)


def _results(plan: Plan, layout: Layout) -> Need:
    rows = {
        Path(layout.evaluation(name)) / "counts.csv": episodes_of(spec) * (2 if "finetune" in spec else 1)
        for name, spec in plan.evaluations.items()
    }
    for name, spec in plan.trials.items():
        settings = spec["finetune"]
        each = 1 + len(set(settings["lr"])) * len(set(settings["steps"]))  # of an episode, no step at all among them
        rows[Path(layout.finetuning(name)) / "trials.csv"] = settings["trial_episodes"] * each
    for name, spec in plan.probes.items():
        rows[Path(layout.probe_counts(name))] = episodes_of(spec) * (1 + len(swaps(spec["train"])))
    basis = f"{plural(sum(rows.values()), 'row')} of counts, {COUNT_BYTES} bytes each"
    return _need("results", layout.results, {file: COUNT_BYTES * count for file, count in rows.items()}, basis)


def _total(sizes: Iterable[float | None]) -> float | None:
    sizes = list(sizes)
    return None if None in sizes else sum(sizes)


def weight_bytes(training: dict) -> int:
    """Of a method's weights in float32."""
    return 4 * networks(training).parameters


def store_bytes(spec: dict, data: DataSet, reader: dict | None = None) -> int | None:
    """Of cached features: photos, and pairs without background, times views, times maps at 1/8.

    Args:
        spec: As ``crnet.config.resolve`` makes it of a training or of test photos.
        reader: A training that reads it: only what its method takes is counted, of whatever fold.
    """
    split, cells = spec.get("split", "train"), map_side(spec["size"]) ** 2
    photos, pairs = data.photos_of(split), data.pairs_of(split)
    channels = sum(encoder(spec["encoder"]).channels)
    if reader:
        network = networks(reader)
        channels, pairs = network.taken, pairs if network.photos == 3 else 0
    each = 4 if split == "val" and spec["precision"] == "float32" else 2
    return photos and (photos + pairs) * transforms.VIEWS[spec["views"]] * cells * channels * each


def archives_of(plan: Plan, layout: Layout) -> dict[Archive, Path]:
    """Each archive once, whatever asks for it."""
    settings = {name: s.model_dump(exclude_none=True) for name, s in plan.study.archives.items()}
    names = [a for spec in plan.datasets.values() for a in layout.archive_names("dataset", spec)]
    names += [a for spec in plan.encoders.values() for a in layout.archive_names("encoder", spec)]
    archives = [resolve_archive(name, settings) for name in dict.fromkeys(names)]
    return {archive: Path(layout.archives) / archive.name for archive in archives}


def archive_bytes(archive: Archive, path: Path) -> int | None:
    """Of the file at hand, else of the official one; None where a study names another one."""
    return path.stat().st_size if path.is_file() else archive.size


def file_systems(needs: Sequence[Need]) -> list[tuple[str, float, int]]:
    """(its folders, bytes to come, bytes free) of each file system that the study writes to."""
    found: dict[int, list[Need]] = {}
    for need in needs:
        found.setdefault(_existing(Path(need.folder)).stat().st_dev, []).append(need)
    return [
        (
            ", ".join(dict.fromkeys(need.folder for need in group)),
            sum(need.to_come or 0 for need in group),
            shutil.disk_usage(_existing(Path(group[0].folder))).free,
        )
        for group in found.values()
    ]


def episodes_of(evaluation: dict) -> int:
    """Test episodes of an evaluation, those of all episode seeds together; of a probe those that it takes."""
    if "probe" in evaluation:
        return evaluation["probe"]["episodes"]
    return len(evaluation["episodes"]["seeds"]) * evaluation["episodes"]["count"]


def jobs_at_once(plan: Plan) -> int:
    """Jobs that threads and GPUs let Snakemake start at a time."""
    return 1 if plan.study.device == "cuda" else max(1, capacity.cores() // plan.study.threads)


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in [path, *path.parents] if folder.exists())


def plural(number: int, word: str) -> str:
    """E.g. ``1 row``, ``1,381 rows``."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def amount(number: float | None) -> str:
    """Bytes for people, e.g. ``12.58 GiB``, ``97.8 MiB``; ``-`` for none."""
    if number is None:
        return "not known"
    if number <= 0:
        return "-"
    return f"{number / GIB:,.2f} GiB" if number >= 0.1 * GIB else f"{max(number / MIB, 0.1):.1f} MiB"
