"""PASCAL-5i: VOC 2012 and SBD in four folds of five classes (Shaban et al. 2017; Table 1 of the paper)."""

from pathlib import Path

from crnet.data.findings import Finding, Report
from crnet.data.formats import lists, voc
from crnet.data.splits import Splits, plain
from crnet.errors import CrnetError
from crnet.runtime.files import sha256_text

SETTINGS = {
    "pairs": "published",  # the lists that the field shares; "rule" derives them from the masks (protocol H)
    "rule_grid": 32,  # step of the small-object rule in pixels: OSLSM code/ss_datalayer.py@d5312de
    "subset": "",  # ours: a text file of image ids to which the data is restricted; "" takes all
}
LIMITS = {
    "pairs": {"published", "rule"},
    "rule_grid": (1, 128),
}
ARCHIVES = ("VOCtrainval_11-May-2012.tar", "benchmark.tgz")
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle",
    "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
FOLDS = ((1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11, 12, 13, 14, 15), (16, 17, 18, 19, 20))

# Per split and fold: number of pairs, and first 16 digits of the SHA-256 of the sorted lines IMAGE__CLASS.
PUBLISHED = {
    "train": (
        (2286, "59403eff71fd4457"),
        (3425, "6cc5ee4349a68aa6"),
        (5883, "dd87152f9077a031"),
        (2086, "c34b93f107408bed"),
    ),
    "val": (
        (346, "748e2f4732ac502c"),
        (451, "afce1929e4dacbc1"),
        (725, "50b1f5218e8f882c"),
        (346, "c3825d7c52d1608d"),
    ),
}
PAIRS_FILE = Path(__file__).with_name("pascal5i_pairs.csv")


def splits(settings: dict) -> Splits:
    """Classes and folds, the same under all settings."""
    return plain(CLASSES, FOLDS)


def prepare(archives: Path, extracted: Path, out: Path, settings: dict) -> dict:
    """From the two extracted archives; see ``voc.prepare``."""
    return voc.prepare(*_roots(extracted), out, _choice(settings))


def check(archives: Path, extracted: Path, settings: dict, report: Report) -> int:
    return voc.check(*_roots(extracted), _choice(settings), report)


def _roots(extracted: Path) -> list[Path]:
    roots = roots_in(extracted)
    for root, archive in zip(roots, ARCHIVES, strict=True):
        if not root.is_dir():
            raise Finding(root, "is absent", f"extract {archive} into {extracted / archive}")
    return roots


def roots_in(extracted: Path) -> list[Path]:
    """The folders in the layouts of VOC and SBD, as their archives hold them."""
    voc_archive, sbd_archive = ARCHIVES
    return [
        extracted / voc_archive / "VOCdevkit" / "VOC2012",
        extracted / sbd_archive / "benchmark_RELEASE" / "dataset",
    ]


def _choice(settings: dict) -> voc.Choice:
    published, subset = published_pairs(), settings["subset"]
    if subset and not Path(subset).is_file():
        raise CrnetError(f"the list of image ids {subset}, setting subset, is absent.")
    return voc.Choice(
        name="pascal5i",
        splits=splits(settings),
        settings=settings,
        pairs=published if settings["pairs"] == "published" else settings["pairs"],
        published=published,
        subset_ids=lists.words(Path(subset)) if subset else None,
    )


def published_pairs(path: Path = PAIRS_FILE) -> list[tuple[str, str, int]]:
    """The published (split, image, class id), sorted; the file's head names their source.

    Raises:
        CrnetError: the file is not the published lists, by their counts and digests.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    rows = (line.split(",") for line in lines[1:])
    pairs = sorted((split, image, int(c)) for split, image, classes in rows for c in classes.split())
    for split, folds in PUBLISHED.items():
        for fold, (count, digest) in enumerate(folds):
            names = sorted(f"{image}__{c:02d}\n" for s, image, c in pairs if s == split and c in FOLDS[fold])
            if len(names) != count or not sha256_text("".join(names)).startswith(digest):
                what = f"is not the published list of {split} fold {fold}"
                raise CrnetError(f"{path} {what}: restore it from the project.")
    return pairs
