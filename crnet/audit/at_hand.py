"""Data sets, encoders and trained weights: every report names the same, and it is what lies in the work folder."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, shown
from crnet.config import resolve
from crnet.config.settings import brings_weights, component
from crnet.data.index import SPLITS, Index
from crnet.data.packed import BROKEN_ZIP
from crnet.data.pixels import read_ids
from crnet.data.sets import pascal5i
from crnet.runtime.files import canonical, read_csv, read_json, sha256_file, sha256_text

CHECKS = DATA_RECORDS, DATA_FILES, PAIRS, ENCODER_RECORDS, ENCODER_FILES, WEIGHT_RECORDS, WEIGHT_FILES = (
    "data: reports agree on the digest",
    "data: digest made again from photos",
    "data: pairs are the published lists",
    "encoder: reports agree on the digest",
    "encoder: digest made again from weights",
    "weights: reports agree, one a training",
    "weights: files are the reports'",
)

# How torch names the types that the weights of encoders have.
TORCH_NAMES = {name: f"torch.{name}" for name in ("float64", "float32", "float16", "int64", "int32", "uint8", "bool")}


def check_datasets(folder: Folder, ledger: Ledger) -> None:
    data = _agree(ledger[DATA_RECORDS], _sources(folder, "dataset", resolve.dataset_name))
    encoders = _agree(ledger[ENCODER_RECORDS], _sources(folder, "encoder", resolve.encoder_name))
    for name, spec in folder.plan.datasets.items():
        _data_files(folder, ledger, spec, data.get(name))
    for name, spec in folder.plan.encoders.items():
        _encoder_file(folder, ledger[ENCODER_FILES], spec, encoders.get(name))


Source = tuple[str, Any, str]  # name of the data set or encoder, digest, where it is written


def _sources(folder: Folder, kind: str, name_of: Callable[[dict], str]) -> Iterator[Source]:
    """Each report's digest of its data set or encoder."""
    for reports in (folder.evaluations, folder.choices, folder.trials, folder.trainings, folder.probes):
        for report in reports.values():
            with suppress(*UNREADABLE):  # said by the check of specifications
                training = report["spec"] if reports is folder.trainings else report["spec"]["train"]
                name = name_of(training[kind])
                yield name, report.get(f"{kind}_digest"), f"{folder.relative(report['path'])}, {kind}_digest"
    if kind == "dataset":
        for name, spec in folder.plan.episodes.items():
            path = folder.results / "episodes" / f"{name}.json"
            if path.is_file():
                with suppress(*UNREADABLE):  # said by the check of episodes
                    yield name_of(spec["dataset"]), read_json(path).get("dataset_digest"), f"episodes/{name}.json"


def _agree(check: Check, sources: Iterator[Source]) -> dict[str, tuple[str, str]]:
    first: dict[str, tuple[str, str]] = {}
    for name, digest, where in sources:
        known, source = first.setdefault(name, (digest, where))
        alike = digest and digest == known
        check.judge(where, None if alike else f"is {shown(digest)}, {source} has {shown(known)}")
    return first


def _data_files(folder: Folder, ledger: Ledger, spec: dict, recorded: tuple[str, str] | None) -> None:
    data, name = folder.data(spec), spec["name"]
    if data is None:
        for check in (DATA_FILES, PAIRS) if name == "pascal5i" else (DATA_FILES,):
            ledger[check].unknown(f"the data set {name} is not at hand in a work folder")
        return
    check = ledger[DATA_FILES]
    with check.reading(str(data), "cannot be read", *BROKEN_ZIP):
        index = Index.load(data)
        made = data_digest(data, spec)
        if name == "pascal5i" and spec["pairs"] == "published":
            _published(ledger[PAIRS], data, index)
        whole = check.same(f"{data}/dataset.json, digest", index.digest, made, "its files have")
        if recorded:
            whole &= check.same(recorded[1], recorded[0], made, f"the files in {data} have")
        if whole:
            folder.trusted.add(resolve.dataset_name(spec))


def data_digest(data: Path, spec: dict) -> str:
    """The digest of a prepared data set, made again from photos and masks as ``crnet.data.formats`` makes it.

    Raises:
        CrnetError: A photo or mask cannot be read.
    """
    images, pairs = read_csv(data / "images.csv"), read_csv(data / "pairs.csv")
    if component("dataset", spec["name"], "data").literals.get("OWN"):
        return _own_digest(spec, images, pairs)
    if read_json(data / "dataset.json").get("layout") == "coco":
        return _coco_digest(data, spec, images, pairs)
    photos = []
    for row in tqdm(images, desc=f"reading {spec['name']}", unit="photo", mininterval=1, leave=False, disable=None):
        mask = read_ids(data / row["mask"])
        pixels = hashlib.sha256(canonical(mask.shape).encode() + mask.tobytes()).hexdigest()
        photos.append((row["image"], row["split"], sha256_file(data / row["path"]), pixels))
    rows = [(row["image"], int(row["class"]), int(row["fold"]), row["split"]) for row in pairs]
    return sha256_text(canonical([photos, rows]))


def _own_digest(spec: dict, images: list[dict], pairs: list[dict]) -> str:
    """Your files' content, found anew where the specification says that they lie; the classes; photos and pairs."""
    known = component("dataset", spec["name"], "data")
    content = known.with_content({key: value for key, value in spec.items() if key != "name"} | {"content": ""})
    assigned = sorted((row["image"], row["split"]) for row in images)
    rows = [
        (row["image"], int(row["class"]), row["fold"] and int(row["fold"]), row["split"], int(row["pixels"]))
        for row in pairs
    ]
    return sha256_text(canonical([content["content"], known.splits(spec).digest, assigned, rows]))


def _coco_digest(data: Path, spec: dict, images: list[dict], pairs: list[dict]) -> str:
    """Photos by the checksums in their archive, masks by their line of run lengths, in the order of these lines."""
    classes: dict[str, list[int]] = {}
    for row in pairs:
        classes.setdefault(row["image"], []).append(int(row["class"]))
    archives = {path: zipfile.ZipFile(data / path) for path in {row["path"] for row in images}}
    digest = hashlib.sha256(canonical(component("dataset", spec["name"], "data").splits(spec).digest).encode())
    lines = (data / images[0]["mask"]).read_bytes().splitlines(keepends=True)
    for row, line in zip(sorted(images, key=lambda row: int(row["offset"])), lines, strict=True):
        member = archives[row["path"]].getinfo(row["member"])
        size, shows = (int(row["width"]), int(row["height"])), sorted(classes.get(row["image"], []))
        identity = [row["image"], row["split"], (member.CRC, member.file_size), *size, shows]
        digest.update(canonical(identity).encode() + line)
    return digest.hexdigest()


def _published(check: Check, data: Path, index: Index) -> None:
    """Pairs of the prepared data against the lists that the field shares, as far as their photos are at hand."""
    listed: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for split, image, class_id in pascal5i.published_pairs():
        if image in index.photos:
            fold = next(f for f, ids in enumerate(index.folds) if class_id in ids)
            listed.setdefault((split, fold), set()).add((image, class_id))
    for split in SPLITS:
        for fold, ids in enumerate(index.folds):
            found = {(pair.image, pair.class_id) for pair in index.pairs(split, ids)}
            expected = listed.get((split, fold), set())
            where = f"{data}/pairs.csv, {split} of fold {fold}"
            problem = None
            if found != expected:
                image, class_id = min(found ^ expected)
                numbers = f"{len(found)} pairs, the published list {len(expected)}"
                problem = f"has {numbers}, e.g. {image} of class {class_id} is in one only"
            check.judge(where, problem)


def _encoder_file(folder: Folder, check: Check, spec: dict, recorded: tuple[str, str] | None) -> None:
    path = folder.encoder(spec)
    if path is None:
        own = "brings its own weights" if brings_weights(spec["name"]) else "is not at hand in a work folder"
        check.unknown(f"the encoder {spec['name']} {own}")
    elif recorded is None:
        check.unknown("no report names its digest")
    else:
        with check.reading(str(path), "is no safetensors file", SafetensorError):
            check.same(recorded[1], recorded[0], encoder_digest(path), f"{path} has")


def encoder_digest(path: Path) -> str:
    """As ``crnet.encoders.digest`` of the network with these weights, without torch."""
    state = hashlib.sha256()
    with safe_open(path, "np") as stream:
        for name in sorted(stream.keys()):
            tensor = stream.get_tensor(name)
            state.update(f"{name}{tuple(tensor.shape)}{TORCH_NAMES[str(tensor.dtype)]}".encode() + tensor.tobytes())
    return state.hexdigest()


def check_weights(folder: Folder, ledger: Ledger) -> None:
    recorded, check = _weights_of(folder, ledger[WEIGHT_RECORDS]), ledger[WEIGHT_FILES]
    for name, training in folder.plan.trainings.items():
        path = folder.weights(training)
        if path is None:
            check.unknown("not at hand in a work folder")
            continue
        if name in recorded:
            known, source = recorded[name]
            check.same(str(path), sha256_file(path), known, f"{source} has")
        else:
            check.unknown("no report names its weights")
        with check.reading(str(path), "is no safetensors file", SafetensorError):
            with safe_open(path, "np") as stream:
                spec = (stream.metadata() or {}).get("spec")
            check.same(f"{path}, specification in its head", spec, canonical(training), "in the plan")


def _weights_of(folder: Folder, check: Check) -> dict[str, tuple[str, str]]:
    """Training -> digest of its weights, and the file that says so first."""
    first: dict[str, tuple[str, str]] = {}
    owners: dict[str, str] = {}
    for name, digest, where in _weight_records(folder, check):
        if not digest:
            check.differs(where, "names no weights")
            continue
        known, source = first.setdefault(name, (digest, where))
        problem = None
        if digest != known:
            problem = f"weights_sha256 is {shown(digest)}, {source} has {shown(known)}"
        elif owners.setdefault(digest, name) != name:
            problem = f"has the weights {shown(digest)} of another training, {owners[digest]}"
        check.judge(where, problem)
    return first


def _weight_records(folder: Folder, check: Check) -> Iterator[tuple[str, str, str]]:
    """(training, digest, where) of all reports; a control must have none."""
    for name, report in folder.trainings.items():
        yield name, report.get("weights_sha256", ""), str(report["path"])
    for report in (*folder.trials.values(), *folder.evaluations.values(), *folder.probes.values()):
        where, digest = folder.relative(report["path"]), report.get("weights_sha256")
        try:
            training = report["spec"]["train"]
            name = resolve.training_name(training)
        except UNREADABLE:
            check.unknown(f"{where}: its settings are not those of this version")
            continue
        if "train" in training:
            yield name, digest, where
        else:
            check.same(where, digest, "", "for a method without weights")
    for line, row in enumerate(folder.rows("runs.csv"), 2):
        if row.get("kind") == "train" and row.get("status") != "failed":
            yield str(row.get("run")), row.get("weights_sha256", ""), f"runs.csv, line {line}"
