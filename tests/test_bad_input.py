"""Photos, masks and polygons at their worst: handled as documented, or one sentence that names the file."""

import io
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from faults import one_sentence, paths
from PIL import Image
from scipy.io import savemat

from crnet.data.findings import Finding
from crnet.data.formats import annotations, voc
from crnet.data.pixels import MAX_PIXELS, photo_size, read_ids, read_rgb, read_sbd
from crnet.errors import CrnetError
from crnet.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
GRADIENT = np.linspace(0, 255, 40 * 48).astype(np.uint8).reshape(40, 48)


def png_head(width: int, height: int) -> bytes:
    """A PNG that only states its size: nothing that reads it needs memory, unless it believes it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


WARNS = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


class TestPhotos:
    def test_kinds_that_are_handled(self, tmp_path):
        rgb = np.stack([GRADIENT] * 3, axis=2)
        for mode in ("L", "P", "1", "RGBA", "CMYK", "LA"):
            image = Image.fromarray(GRADIENT).convert(mode)
            path = saved(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", image)
            pixels = read_rgb(path)
            assert (pixels.dtype, pixels.shape) == (np.uint8, (40, 48, 3)), mode
            if mode != "1":
                assert np.abs(pixels.astype(int) - rgb).max() < 12, mode
            assert photo_size(path.read_bytes(), path) == (48, 40)

    def test_sixteen_bits_keep_their_upper_eight(self, tmp_path):
        path = saved(tmp_path / "deep.png", GRADIENT.astype(np.uint16) * 256 + 7)
        with Image.open(path) as image:
            assert image.mode == "I;16"
        np.testing.assert_array_equal(read_rgb(path), np.stack([GRADIENT] * 3, axis=2))
        assert photo_size(path.read_bytes(), path) == (48, 40)

    def test_an_orientation_is_not_applied(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees
        path = saved(tmp_path / "turned.jpg", np.stack([GRADIENT] * 3, axis=2), exif=exif)
        assert read_rgb(path).shape == (40, 48, 3)
        assert photo_size(path.read_bytes(), path) == (48, 40)
        source = voc.Source("turned", "train", path, saved(tmp_path / "turned.png", np.zeros((48, 40), np.uint8)))
        with pytest.raises(Finding, match=r"is 40x48 px but .* 48x40 px, turned: an EXIF orientation is not applied"):
            voc.scan(source, None, 4, 4)

    def test_one_pixel(self, tmp_path):
        photo = saved(tmp_path / "one.png", np.full((1, 1, 3), 9, np.uint8))
        mask = saved(tmp_path / "mask.png", np.full((1, 1), 2, np.uint8))
        found = voc.scan(voc.Source("one", "train", photo, mask), None, 4, 32)
        assert (found.width, found.height, found.pixels, found.by_rule) == (1, 1, {2: 1}, frozenset())
        assert read_rgb(photo).shape == (1, 1, 3)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("cut.jpg", None, "is not a readable image"),
            ("text.jpg", b"this is no photo\n", r"is not a readable image \(it holds none\)"),
            ("empty.jpg", b"", "is not a readable image"),
            ("bomb.png", png_head(20_000, 20_000), "too large|above the limit"),
            pytest.param(
                "large.png", png_head(10_000, 10_000), "10000x10000 px, above the limit of 50 million", marks=WARNS
            ),
            ("head.png", png_head(40, 40), "is not a readable image"),
        ],
    )
    def test_what_is_refused(self, tmp_path, name, content, words):
        if content is None:
            content = io.BytesIO()
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(content, "JPEG")
            content = content.getvalue()[:-900]
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.start()
        try:
            for read in (lambda: read_rgb(path), lambda: photo_size(content, path)):
                with pytest.raises(Finding, match=words) as caught:
                    read()
                one_sentence(caught.value, path)
            assert tracemalloc.get_traced_memory()[1] < 10 << 20
        finally:
            tracemalloc.stop()

    def test_a_bomb_takes_no_memory(self, tmp_path):
        """A real one: 20,000 x 20,000 in 400 kB; the process may have 300 MB more, a fourth of what it unpacks to."""
        size = 20_000
        row = zlib.compressobj(9)
        body = b"".join(row.compress(bytes(1 + 3 * size)) for _ in range(size)) + row.flush()
        head = png_head(size, size)
        at = head.index(b"IDAT") - 4
        data = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
        path = tmp_path / "bomb.png"
        path.write_bytes(head[:at] + data + head[at + 12 + len(zlib.compress(b"")) :])
        code = (
            "import resource, sys; from pathlib import Path; from crnet.data.pixels import read_rgb, read_ids\n"
            "from crnet.errors import CrnetError\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)\n"
            "for read in (read_rgb, read_ids):\n"
            "    try: read(Path(sys.argv[1]))\n"
            "    except CrnetError as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=ROOT)
        assert done.stdout.count("bomb.png is far too large") == 2, done.stdout + done.stderr
        assert size * size > MAX_PIXELS

    def test_floating_point_images_are_no_photos(self, tmp_path):
        path = saved(tmp_path / "float.tiff", np.zeros((4, 4), np.float32))
        with pytest.raises(Finding, match="mode F: convert it to JPEG"):
            read_rgb(path)

    def test_a_broken_photo_stops_a_training_with_workers_in_one_sentence(self, tiny, tmp_path):
        data = Path(shutil.copytree(tiny.data, tmp_path / "data"))
        for photo in data.rglob("train_*.jpg"):
            photo.write_bytes(photo.read_bytes()[:400])
        changes = {"features": "live", "views": "flip", "epochs": 1, "epoch_episodes": 4}
        with pytest.raises(CrnetError, match=r"train_\d+\.jpg is not a readable image") as caught:
            train(tiny.training(train=changes), paths(tiny, tmp_path, data=data, features=None), "cpu", 1, workers=1)
        one_sentence(caught.value, data.name)


class TestMasks:
    def scan(self, tmp_path, mask: Path):
        photo = saved(tmp_path / "photo.jpg", np.stack([GRADIENT] * 3, axis=2))
        return voc.scan(voc.Source("photo", "train", photo, mask), None, 4, 4)

    @pytest.mark.parametrize("value", [0, 255])
    def test_empty_and_all_void_are_photos_without_pairs(self, tmp_path, value):
        found = self.scan(tmp_path, saved(tmp_path / "mask.png", np.full((40, 48), value, np.uint8)))
        assert (found.pixels, found.by_rule) == ({}, frozenset())

    def test_palette_and_plain_are_the_same(self, tmp_path):
        mask = np.zeros((40, 48), np.uint8)
        mask[:20, :20] = 3
        plain = saved(tmp_path / "plain.png", mask)
        palette = Image.fromarray(mask)
        palette.putpalette([value % 251 for value in range(768)])
        coloured = saved(tmp_path / "palette.png", palette)
        for path in (plain, coloured):
            np.testing.assert_array_equal(read_ids(path), mask)
            assert self.scan(tmp_path, path).pixels == {3: 400}

    @pytest.mark.parametrize(
        ("pixels", "words"),
        [
            (np.zeros((40, 47), np.uint8), "is 47x40 px but its photo photo.jpg is 48x40 px"),
            (np.full((40, 48), 5, np.uint8), r"holds the id 5: only 0 to 4 and 255 \(void\) are known"),
            (np.zeros((40, 48, 3), np.uint8), "is no mask: .* not mode RGB"),
            (np.zeros((40, 48), np.uint16), "is no mask: .* not mode I;16"),
        ],
    )
    def test_what_is_refused(self, tmp_path, pixels, words):
        path = saved(tmp_path / "mask.png", pixels)
        with pytest.raises(Finding, match=words) as caught:
            self.scan(tmp_path, path)
        one_sentence(caught.value, path)

    def test_a_mask_bomb_is_refused(self, tmp_path):
        path = tmp_path / "mask.png"
        path.write_bytes(png_head(20_000, 20_000))
        with pytest.raises(Finding, match="far too large"):
            read_ids(path)

    @pytest.mark.parametrize(
        "content", [b"", b"no", b"MATLAB 5.0 MAT-file" + bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(600), "of another"]
    )
    def test_broken_mat(self, tmp_path, content):
        path = tmp_path / "s1.mat"
        if content == "of another":
            savemat(path, {"x": 1})
        else:
            path.write_bytes(content)
        words = r"holds no readable GTcls\.Segmentation .*extract its archive again"
        with pytest.raises(Finding, match=words) as caught:
            read_sbd(path)
        one_sentence(caught.value, path)


class TestPolygons:
    def masks(self, *segmentations):
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}],
            "categories": [{"id": 7, "name": "cat"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": s}
                for n, s in enumerate(segmentations)
            ],
        }
        found = annotations.check(content, "x.json")
        return annotations.masks_of(found, found.images[0])[0]

    def test_what_lies_outside_is_cut_off(self):
        inside = [[10.0, 2.0, 20.0, 2.0, 20.0, 8.0, 10.0, 8.0]]
        beyond = [[10.0, 2.0, 500.0, 2.0, 500.0, 8.0, 10.0, 8.0]]
        whole, cut = (self.masks(s).class_mask(10, 20, 1) for s in (inside, beyond))
        np.testing.assert_array_equal(cut, whole)
        assert self.masks([[-50, -50, -10, -50, -10, -10]]).masks == {}

    @pytest.mark.parametrize("nothing", [[], [[]], [[1, 2]], [[1, 2, 3, 4]]])
    def test_an_empty_segmentation_paints_nothing(self, nothing):
        assert self.masks(nothing).masks == {}

    @pytest.mark.parametrize("broken", [[[1e300] * 6], [[1, 2, float("nan"), 4, 5, 6]], [["a", 2, 3, 4, 5, 6]],
                                        ["a" * 8], [7], [[[1, 2]] * 3], {}, {"size": [10, 20]},
                                        {"size": [10, 20], "counts": "\x00\xff?"}, {"size": None, "counts": [200]},
                                        {"size": [10, 20], "counts": [2**40]}])  # fmt: skip
    def test_a_broken_segmentation_is_named(self, broken):
        with pytest.raises(Finding, match=r"x\.json, annotation 0 has a broken segmentation"):
            self.masks(broken)
