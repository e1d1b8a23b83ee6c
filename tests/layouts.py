"""Small data sets in the layouts of VOC and SBD."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Masks = Mapping[str, Mapping[str, np.ndarray]]  # split -> photo -> mask


def save_photo(path: Path, size: tuple[int, int] = (40, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).save(path)


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(mask)
    picture.putpalette([value % 251 for value in range(768)])  # palette PNG, as VOC's are
    assert picture.mode == "P"
    picture.save(path)


def write(voc_root: Path, sbd_root: Path, voc: Masks, sbd: Masks) -> None:
    lists = voc_root / "ImageSets/Segmentation"
    for folder in (lists, sbd_root / "cls"):
        folder.mkdir(parents=True)
    for split, masks in voc.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in masks))
        for name, mask in masks.items():
            save_photo(voc_root / "JPEGImages" / f"{name}.jpg")
            save_mask(voc_root / "SegmentationClass" / f"{name}.png", mask)
    for split, masks in sbd.items():
        (sbd_root / f"{split}.txt").write_text("".join(f"{name}\n" for name in masks))
        for name, mask in masks.items():
            save_photo(sbd_root / "img" / f"{name}.jpg")
            savemat(sbd_root / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": mask}})
