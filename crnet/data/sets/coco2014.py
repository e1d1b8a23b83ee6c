"""COCO 2014 (Lin et al. 2014): 80 classes, trained on train2014 and tested on val2014 (Table 7 of the paper)."""

from pathlib import Path

from crnet.data.findings import Report
from crnet.data.formats import coco
from crnet.data.splits import Splits, of_eighty

SETTINGS = {
    "split": "40-20-20",  # sizes of the paper 4.1, classes ours; or COCO-20i: interleaved, contiguous (protocol C)
    "rule_grid": 32,  # step of the small-object rule in pixels: OSLSM code/ss_datalayer.py@d5312de
}
LIMITS = {
    "split": {"40-20-20", "interleaved", "contiguous"},
    "rule_grid": (1, 128),
}
ARCHIVES = ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip")
IN_PLACE = ARCHIVES  # nothing is unpacked: photos and annotations are read out of the archives
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
PUBLISHED = {"train": 82_783, "val": 40_504}  # photos in the official archives


def splits(settings: dict) -> Splits:
    """Classes and folds under ``settings["split"]``."""
    return of_eighty(CLASSES, settings["split"])


def prepare(archives: Path, extracted: Path, out: Path, settings: dict) -> dict:
    """The archives have to stay where they are, photos are read out of them; see ``coco.prepare``."""
    return coco.prepare(archives, out, name="coco2014", splits=splits(settings), published=PUBLISHED, settings=settings)


def check(archives: Path, extracted: Path, settings: dict, report: Report) -> int:
    return coco.check(archives, report, splits=splits(settings), settings=settings)
