"""``crnet plan``: what a study would run and need, before anything is run. Imports no torch."""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crnet.config import resolve, study
from crnet.config.defaults import JOB_BYTES, POOL_BYTES
from crnet.config.resolve import Plan
from crnet.config.study import Layout
from crnet.data import transforms
from crnet.data.archives import Archive, is_verified
from crnet.data.archives import resolve as resolve_archive
from crnet.data.index import Index
from crnet.gpu import has_nvidia_gpu

GIB = 2**30
EXTRACTED_SHARE = 1.05  # bytes on disk after extraction, of a VOC or SBD archive (JPEGs do not shrink)


def describe(files: Sequence[Path]) -> str:
    """The plan of a study as text: counts, downloads, disk, memory, warnings where this machine falls short."""
    plan = study.load(files)
    layout = Layout(plan)
    disk, lines = _disk(plan, layout)
    return "\n".join([*_counts(plan), "", *_data(plan, layout), "", *lines, "", *_warnings(plan, layout, disk)])


def _counts(plan: Plan) -> list[str]:
    asked = len(plan.cells)
    trained = [cell for cell in plan.cells if "train" in plan.evaluations[cell.evaluation]["train"]]
    lines = [
        f"study        {plan.study.study}: {plan.study.title}",
        f"device       {plan.study.device}, {plan.study.threads} thread(s) a job",
        f"trainings    {len(plan.trainings)}, shared by {len(trained)} table cells",
        f"evaluations  {len(plan.evaluations)}, shared by {asked} table cells",
    ]
    for name, table in plan.tables.items():
        cells = [cell for cell in plan.cells if cell.table == name]
        evaluations = {cell.evaluation for cell in cells}
        specs = [plan.evaluations[e]["train"] for e in evaluations]
        trainings = {resolve.training_name(spec) for spec in specs if "train" in spec}
        lines.append(f"  {name:<10} {len(table.rows)} rows: {len(trainings)} trainings, {len(evaluations)} evaluations")
    episodes = sum(len(e["episodes"]["seeds"]) * e["episodes"]["count"] for e in plan.evaluations.values())
    lines.append(f"test         {episodes:,} episode predictions")
    budgets = Counter((t["train"]["epochs"], t["train"]["epoch_episodes"]) for t in plan.trainings.values())
    for (epochs, count), number in budgets.items():
        each = f"{epochs} epochs x {count:,} episodes" if count else f"{epochs} epochs x the fold's training pairs"
        lines.append(f"budget       {number} trainings of {each}")
    if plan.study.device == "cuda":
        lines.append("GPU-hours    not known: no step times of a GPU have been measured yet")
    else:
        lines.append("CPU-hours    not known beforehand; each run's seconds are in runs.csv afterwards")
    return lines


def _data(plan: Plan, layout: Layout) -> list[str]:
    lines = []
    for spec in plan.datasets.values():
        folder = Path(layout.data(spec))
        if (folder / "dataset.json").is_file():
            index = Index.load(folder)
            lines.append(
                f"data         {spec['name']}: prepared, {len(index.photos):,} photos, digest {index.digest[:16]}"
            )
            lines.append(f"             {index.subset or 'the whole data set'}")
        else:
            lines.append(f"data         {spec['name']}: not prepared yet")
    for archive, path in _archives(plan, layout).items():
        if is_verified(archive, Path(layout.archives)):
            state = "verified"
        else:
            state = "to be verified" if path.is_file() else "to be downloaded"
        size = f"{archive.size / GIB:.2f} GiB" if archive.size else "size not known"
        lines.append(f"archive      {archive.name}: {size}, {state}")
    return lines or ["data         no archives: everything is generated"]


def _archives(plan: Plan, layout: Layout) -> dict[Archive, Path]:
    settings = {name: s.model_dump(exclude_none=True) for name, s in plan.study.archives.items()}
    names = [a for spec in plan.datasets.values() for a in layout.archive_names("dataset", spec)]
    names += [a for spec in plan.encoders.values() for a in layout.archive_names("encoder", spec)]
    archives = [resolve_archive(name, settings) for name in dict.fromkeys(names)]
    return {archive: Path(layout.archives) / archive.name for archive in archives}


def _disk(plan: Plan, layout: Layout) -> tuple[int, list[str]]:
    archives = _archives(plan, layout)
    missing = sum(a.size or 0 for a, path in archives.items() if not path.is_file())
    extracted = sum(
        int((a.size or 0) * EXTRACTED_SHARE) for a in archives if a.name.endswith((".tar", ".tgz"))
        and not Path(layout.extracted_root).exists()
    )  # fmt: skip
    features = 0
    for spec in {layout.features(t): t for t in plan.trainings.values() if layout.features(t)}.values():
        if not (Path(layout.features(spec)) / "features.json").is_file():
            features += _feature_bytes(plan, layout, spec)
    need = missing + extracted + features
    lines = [f"download     {missing / GIB:.2f} GiB", f"disk         {need / GIB:.2f} GiB more than now"]
    lines.append(
        f"memory       at most {_memory(plan) / GIB:.1f} GiB, most of it embedded test photos that may be kept"
    )
    if features:
        lines.append(f"             of it cached features {features / GIB:.2f} GiB")
    if features and any("channels" not in _encoder_channels(s["encoder"]) for s in plan.trainings.values()):
        lines.append("             (features of an encoder from outside are assumed to have 1536 channels)")
    return need, lines


def _memory(plan: Plan) -> float:
    """Bytes that the jobs of a study take at most: as many at once as threads and GPUs let Snakemake start."""
    jobs = 1 if plan.study.device == "cuda" else max(1, (os.cpu_count() or 1) // plan.study.threads)
    return jobs * (JOB_BYTES + POOL_BYTES)


def _encoder_channels(spec: dict) -> dict:
    from crnet.config.settings import component

    if ":" in spec["name"]:
        return {}
    layers = component("encoder", spec["name"], "encoder").literals["LAYERS"]
    return {"channels": sum(layers[layer] for layer in spec["layers"])}


def _feature_bytes(plan: Plan, layout: Layout, training: dict) -> int:
    """Bytes of a feature store: photos and pairs, times views, times maps in half precision."""
    data = Path(layout.data(training["dataset"]))
    if (data / "dataset.json").is_file():
        index = Index.load(data)
        items = len({p.image for p in index.pairs("train", range(1, len(index.classes) + 1))})
        items += len(index.pairs("train", range(1, len(index.classes) + 1)))
    else:
        items = int(2.7 * training["dataset"].get("images_train", 10_092))
    cells = (-(-training["train"]["size"] // 8)) ** 2
    channels = _encoder_channels(training["encoder"]).get("channels", 1536)
    return items * transforms.VIEWS[training["train"]["views"]] * cells * channels * 2


def _warnings(plan: Plan, layout: Layout, disk: int) -> list[str]:
    warnings = []
    if plan.study.device == "cuda" and not has_nvidia_gpu():
        warnings.append("this machine has no NVIDIA GPU, and the study needs one (device: cuda)")
    free = shutil.disk_usage(_existing(Path(layout.work))).free
    if free < disk:
        warnings.append(f"{layout.work}: {free / GIB:.1f} GiB free, {disk / GIB:.1f} GiB needed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < _memory(plan):
        warnings.append(
            f"{memory / GIB:.0f} GiB of memory, jobs may take {_memory(plan) / GIB:.0f} GiB; use fewer --cores"
        )
    cores = os.cpu_count() or 1
    if plan.study.threads > cores:
        warnings.append(f"a job wants {plan.study.threads} threads, this machine has {cores} cores")
    return [f"WARNING      {text}" for text in warnings] or ["machine      falls short in nothing that is checked"]


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in [path, *path.parents] if folder.exists())
