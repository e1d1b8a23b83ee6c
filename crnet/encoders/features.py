"""Features of photos, encoded once: a frozen encoder makes them a pure function of photo and view.

A store is a folder with one array a map, (items, h, w, C), memory-mapped when read, so that its size on disk does not
matter to memory; and ``features.json``, written last. Items are all views of all photos of a split, then all views of
all its pairs with the background removed. Features to train on are float16; those of test photos keep what the encoder
computed, as float16 where that was bfloat16. Masks stay with the data set: a store reads them when asked.
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from crnet.data import transforms
from crnet.data.index import Index
from crnet.encoders.frozen import FrozenEncoder, as_images
from crnet.errors import CrnetError
from crnet.runtime.files import cannot_write, read_json, write_json
from crnet.runtime.limits import PHOTOS_TOGETHER
from crnet.runtime.saved_rows import SavedRows

_Job = tuple[str, int | None, int]  # photo, class whose background is removed (None: whole photo), view
MASK_BYTES = 256 << 20  # of compressed masks in memory: some 100,000 at 321 px


def write_store(spec: dict, data: Path, encoder: FrozenEncoder, out: Path) -> None:
    """Encode all photos of the split (``spec["split"]``, else training), and all its pairs without background.

    Pairs are of all classes: one store serves all folds, each of which trains on its own base classes only.

    A killed run goes on: ``progress.json`` in ``out`` says which batches are in the arrays.

    Raises:
        CrnetError: a feature beyond float16; an encoder that changed meanwhile; or no room, which is found before the
            second batch is encoded.
        Preempted: SIGTERM arrived; what was encoded is kept.
    """
    index, kind, split = Index.load(data), spec["views"], spec.get("split", "train")
    views = transforms.VIEWS[kind]
    pairs = index.pairs(split, range(1, len(index.classes) + 1))
    photos = sorted({pair.image for pair in pairs})
    masks = SquashedMasks(index, spec["size"])
    # All views of a photo follow each other: it is decoded once for them.
    photo = lru_cache(maxsize=1)(lambda name: transforms.squash(index.read_image(name), spec["size"]))
    jobs: list[_Job] = [(photo, None, view) for photo in photos for view in range(views)]
    jobs += [(pair.image, pair.class_id, view) for pair in pairs for view in range(views)]

    out.mkdir(parents=True, exist_ok=True)
    arrays: list[np.memmap] = []

    def flush() -> None:
        encoder.verify()
        try:
            for array in arrays:
                array.flush()
        except OSError as error:
            raise cannot_write(out, sum(array.nbytes for array in arrays), error) from error

    identity = [spec, index.digest, encoder.digest, len(jobs), PHOTOS_TOGETHER]
    done = SavedRows(out / "progress.json", identity, "batches", before_save=flush)
    if done.rows:
        arrays = [_opened(out / f"map{i}.npy", "r+") for i in range(len(encoder.channels))]
    (out / "features.json").unlink(missing_ok=True)  # the sign of completion: written last
    starts = range(0, len(jobs), PHOTOS_TOGETHER)
    bar = tqdm(total=len(starts), initial=len(done.rows), desc="encoding", unit="batch", mininterval=5)
    with bar, done:
        for start in starts[len(done.rows) :]:
            batch = jobs[start : start + PHOTOS_TOGETHER]
            maps = encoder(*_inputs(batch, photo, masks, kind))
            if not arrays:
                exact = split != "train" and maps[0].dtype == torch.float32
                arrays = _create(out, len(jobs), maps, np.float32 if exact else np.float16)
            for array, m in zip(arrays, maps, strict=True):
                rows = m.permute(0, 2, 3, 1).to("cpu", torch.float32 if array.itemsize == 4 else torch.float16)
                if not torch.isfinite(rows).all():
                    raise CrnetError(
                        f"{out}: features exceed float16's range; set train.features to 'live' for this encoder."
                    )
                array[start : start + len(batch)] = rows.numpy()
            done.add(start)  # only now: its place in the arrays is what the row speaks of
            bar.update()
    flush()
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
    done.remove()


def _inputs(
    batch: list[_Job], photo: Callable[[str], np.ndarray], masks: "SquashedMasks", kind: str
) -> tuple[Tensor, Tensor]:
    """Photos uint8 (N, 3, S, S) in their views, and what is kept of them, bool (N, S, S)."""
    images, keeps, size = [], [], masks.size
    for name, class_id, view in batch:
        images.append(transforms.apply_view(kind, view, photo(name)))
        keep = np.ones((size, size), bool) if class_id is None else masks.read(name, class_id) == 1
        keeps.append(transforms.apply_view_to_mask(kind, view, keep))
    return as_images(images), torch.from_numpy(np.stack(keeps))


def _create(out: Path, items: int, examples: list[Tensor], dtype: type) -> list[np.memmap]:
    """An array a map, with all its room on the disk: a mapped file that meets a full disk later kills the process."""
    shapes = [(items, *m.shape[2:], m.shape[1]) for m in examples]
    paths = [out / f"map{i}.npy" for i in range(len(shapes))]
    arrays = []
    try:
        for path, shape in zip(paths, shapes, strict=True):
            path.unlink(missing_ok=True)  # a new file: another copy of the job may still write to the old one
            array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                with open(path, "r+b") as stream:
                    os.posix_fallocate(stream.fileno(), 0, array.offset + array.nbytes)
            arrays.append(array)
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        need = sum(np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64)) for shape in shapes)
        raise cannot_write(out, need, error) from error
    return arrays


def _opened(path: Path, mode: str = "r") -> np.memmap:
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CrnetError(
            f"{path}: is absent or cut short ({error}); delete its folder to have it made again."
        ) from error


class SquashedMasks:
    """Masks of classes at input size, decoded once as long as they fit: compressed, the oldest is given up first."""

    def __init__(self, index: Index, size: int, limit_bytes: int = MASK_BYTES):
        self.index, self.size, self.limit_bytes = index, size, limit_bytes
        self._kept: OrderedDict[tuple, bytes] = OrderedDict()
        self._bytes = 0

    def read(self, photo: str, class_id: int, void_classes: Iterable[int] = (), void: str = "ignored") -> np.ndarray:
        """uint8 (size, size) of {0, 1, 255}, read-only; see ``Index.class_mask``."""
        key = photo, class_id, tuple(void_classes), void
        if key not in self._kept:
            mask = transforms.squash_mask(self.index.class_mask(*key), self.size)
            self._kept[key] = zlib.compress(mask.tobytes(), 1)
            self._bytes += len(self._kept[key])
        packed = self._kept[key]
        while self._bytes > self.limit_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.size, self.size)


class FeatureStore:
    """A store opened for reading.

    Attributes:
        size: Side in pixels of the input that was encoded.

    Raises:
        CrnetError: It is not whole, or of other data, another encoder, split or precision.
    """

    def __init__(
        self, folder: Path, index: Index, encoder_digest: str, split: str = "train", precision: str | None = None
    ):
        if not (folder / "features.json").is_file():
            raise CrnetError(f"{folder}: is not a finished feature store; let the workflow make it again.")
        self.description = read_json(folder / "features.json")
        for key, digest in (("dataset_digest", index.digest), ("encoder_digest", encoder_digest)):
            if self.description[key] != digest:
                raise CrnetError(
                    f"{folder}: was made with another {key.split('_')[0]}; delete it to have it made again."
                )
        spec = self.description["spec"]
        if spec.get("split", "train") != split:
            raise CrnetError(f"{folder}: holds features of the {spec.get('split', 'train')} split, not of {split}.")
        if precision not in (None, spec["precision"]):
            raise CrnetError(f"{folder}: holds features of {spec['precision']}, not of {precision}.")
        self.kind, self.size = spec["views"], spec["size"]
        self.views = transforms.VIEWS[self.kind]
        photos, pairs = self.description["photos"], self.description["pairs"]
        self._photo_row = {photo: i for i, photo in enumerate(photos)}
        self._pair_row = {(image, class_id): len(photos) + i for i, (image, class_id) in enumerate(pairs)}
        self._maps = [_opened(folder / f"map{i}.npy") for i in range(len(self.description["channels"]))]
        self._masks = SquashedMasks(index, self.size)

    def maps(self, keys: list[tuple[str, int | None, int]], wanted: tuple[int, ...]) -> list[Tensor]:
        """Maps [(N, C_i, h, w)], channels last, of (photo, class whose background was removed or None, view)s."""
        rows = []
        for photo, class_id, view in keys:
            item = self._photo_row[photo] if class_id is None else self._pair_row[photo, class_id]
            rows.append(item * self.views + view)
        return [torch.from_numpy(np.stack([self._maps[i][row] for row in rows])).permute(0, 3, 1, 2) for i in wanted]

    def mask(
        self, photo: str, class_id: int, view: int, void_classes: Iterable[int] = (), void: str = "ignored"
    ) -> np.ndarray:
        """The mask of a class in a photo's view, uint8 (size, size); see ``Index.class_mask``."""
        return transforms.apply_view_to_mask(self.kind, view, self._masks.read(photo, class_id, void_classes, void))
