"""Features of the training photos, encoded once: a frozen encoder makes them a pure function of photo and view.

A store is a folder with one array a map, (items, h, w, C) float16, memory-mapped when read, so that its size on disk
does not matter to memory; ``masks.npy`` with the squashed masks; and ``features.json``, written last. Items are all
views of all training photos, then all views of all training pairs with the background removed.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from crnet.data import transforms
from crnet.data.index import Index
from crnet.encoding import FrozenEncoder, as_images
from crnet.errors import CrnetError
from crnet.files import read_json, write_json

BATCH = 16  # photos through the encoder at a time


def training_photos(index: Index) -> list[str]:
    return sorted({pair.image for pair in training_pairs(index)})


def training_pairs(index: Index) -> list:
    """Pairs of all classes: one store serves all folds, each of which reads its own base classes only."""
    return index.pairs("train", range(1, len(index.classes) + 1))


def write_store(spec: dict, data: Path, encoder: FrozenEncoder, out: Path) -> None:
    """Encode all training photos, and all training pairs without background, in all views of ``spec``."""
    index, size, kind = Index.load(data), spec["size"], spec["views"]
    views = transforms.VIEWS[kind]
    photos, pairs = training_photos(index), training_pairs(index)
    masks = np.stack([transforms.squash_mask(index.read_mask(photo), size) for photo in photos])
    row = {photo: i for i, photo in enumerate(photos)}
    jobs = [(photo, None, view) for photo in photos for view in range(views)]
    jobs += [(pair.image, pair.class_id, view) for pair in pairs for view in range(views)]

    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "masks.npy", masks)
    arrays: list[np.memmap] = []
    for start in tqdm(range(0, len(jobs), BATCH), desc="encoding", unit="batch", mininterval=5):
        batch = jobs[start : start + BATCH]
        images, keeps = [], []
        for photo, class_id, view in batch:
            image = transforms.squash(index.read_image(photo), size)
            images.append(transforms.apply_view(kind, view, image))
            mask = transforms.apply_view_to_mask(kind, view, masks[row[photo]])
            keeps.append(np.ones_like(mask, bool) if class_id is None else mask == class_id)
        maps = encoder(as_images(images), torch.from_numpy(np.stack(keeps)))
        if not arrays:
            arrays = [_create(out / f"map{i}.npy", len(jobs), m) for i, m in enumerate(maps)]
        for array, m in zip(arrays, maps, strict=True):
            rows = m.permute(0, 2, 3, 1).to("cpu", torch.float16)
            if not torch.isfinite(rows).all():
                raise CrnetError(
                    f"{out}: features exceed float16's range; set train.features to 'live' for this encoder."
                )
            array[start : start + len(batch)] = rows.numpy()
    for array in arrays:
        array.flush()
    write_json(
        out / "features.json",
        {
            "spec": spec,
            "dataset_digest": index.digest,
            "encoder_digest": encoder.digest,
            "channels": list(encoder.channels),
            "photos": photos,
            "pairs": [[pair.image, pair.class_id] for pair in pairs],
        },
    )


def _create(path: Path, items: int, example: Tensor) -> np.memmap:
    _, channels, height, width = example.shape
    return open_memmap(path, mode="w+", dtype=np.float16, shape=(items, height, width, channels))


class FeatureStore:
    """A store opened for reading; raises CrnetError if it is not whole or belongs to other data or another encoder."""

    def __init__(self, folder: Path, dataset_digest: str, encoder_digest: str):
        if not (folder / "features.json").is_file():
            raise CrnetError(f"{folder}: is not a finished feature store; let the workflow make it again.")
        self.description = read_json(folder / "features.json")
        for key, digest in (("dataset_digest", dataset_digest), ("encoder_digest", encoder_digest)):
            if self.description[key] != digest:
                raise CrnetError(
                    f"{folder}: was made with another {key.split('_')[0]}; delete it to have it made again."
                )
        self.kind = self.description["spec"]["views"]
        self.views = transforms.VIEWS[self.kind]
        photos, pairs = self.description["photos"], self.description["pairs"]
        self._photo_row = {photo: i for i, photo in enumerate(photos)}
        self._pair_row = {(image, class_id): len(photos) + i for i, (image, class_id) in enumerate(pairs)}
        self._maps = [np.load(folder / f"map{i}.npy", mmap_mode="r") for i in range(len(self.description["channels"]))]
        self._masks = np.load(folder / "masks.npy", mmap_mode="r")

    def photos(self, keys: list[tuple[str, int]], maps: tuple[int, ...]) -> list[Tensor]:
        """Maps [(N, C_i, h, w)] float16, channels last, of (photo, view)s."""
        return self._gather([self._photo_row[photo] * self.views + view for photo, view in keys], maps)

    def masked(self, keys: list[tuple[str, int, int]], maps: tuple[int, ...]) -> list[Tensor]:
        """Likewise of (photo, class id, view)s whose background was removed before the encoder."""
        rows = [self._pair_row[photo, class_id] * self.views + view for photo, class_id, view in keys]
        return self._gather(rows, maps)

    def mask(self, photo: str, view: int) -> np.ndarray:
        """Class ids (size, size) uint8 of a photo's view."""
        return transforms.apply_view_to_mask(self.kind, view, self._masks[self._photo_row[photo]])

    def _gather(self, rows: list[int], maps: tuple[int, ...]) -> list[Tensor]:
        return [torch.from_numpy(np.stack([self._maps[i][row] for row in rows])).permute(0, 3, 1, 2) for i in maps]
