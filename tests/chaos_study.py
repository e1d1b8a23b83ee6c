"""What tests/chaos.py runs: the tiny study of chaos.yaml, and a server that gives out its archives slowly."""

import contextlib
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from scipy.io import savemat
from snake import ROOT, copy_workflow

from crnet.config.yaml_files import load_yaml
from crnet.data.sets import shapes5i
from crnet.data.sets.pascal5i import ARCHIVES
from crnet.runtime.files import sha256_file

BYTES_PER_SECOND = 1 << 20  # of a download: a few seconds, so that it can be hit in the middle
CHUNK_BYTES = 1 << 14
SCENES = {**shapes5i.SETTINGS, "size": 64, "images_val": 60}
UNUSED_FILES = 1500  # VOC's archive holds more than is read, here so many annotations: extraction takes its time


def make_archives(folder: Path) -> None:
    """Write two archives of generated scenes, packed as the official VOC and SBD are, into ``folder``."""
    voc, sbd, benchmark = folder / "voc", folder / "sbd", folder / "benchmark"
    shapes5i.write_voc(voc, {**SCENES, "images_train": 24})
    for number in range(UNUSED_FILES):
        path = voc / f"VOCdevkit/VOC2012/Annotations/{number:06d}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation>{number}</annotation>\n")
    shapes5i.write_voc(sbd, {**SCENES, "images_train": 40, "images_val": 1, "seed": 1})
    _as_sbd(sbd / "VOCdevkit/VOC2012", benchmark / "dataset")
    packed = (voc / "VOCdevkit", "VOCdevkit"), (benchmark, "benchmark_RELEASE")
    for name, (source, top) in zip(ARCHIVES, packed, strict=True):
        with tarfile.open(folder / name, "w:gz" if name.endswith("tgz") else "w") as archive:
            archive.add(source, top)
    for made in (voc, sbd, benchmark):
        shutil.rmtree(made)


def _as_sbd(voc: Path, dataset: Path) -> None:
    """The training photos of a folder in VOC's layout, in SBD's."""
    for kind in ("img", "cls"):
        (dataset / kind).mkdir(parents=True)
    names = (voc / "ImageSets/Segmentation/train.txt").read_text().split()
    for name in names:
        shutil.copy(voc / f"JPEGImages/{name}.jpg", dataset / f"img/sbd_{name}.jpg")
        with Image.open(voc / f"SegmentationClass/{name}.png") as mask:
            ids = np.array(mask)
        without_void = np.where(ids == 255, 0, ids)  # SBD knows none
        savemat(dataset / f"cls/sbd_{name}.mat", {"GTcls": {"Segmentation": without_void}})
    half = len(names) // 2
    for split, listed in {"train": names[:half], "val": names[half:]}.items():
        (dataset / f"{split}.txt").write_text("".join(f"sbd_{name}\n" for name in listed))


class _Slow(BaseHTTPRequestHandler):
    """Gives out the files of ``folder``, by ranges if asked, no faster than ``BYTES_PER_SECOND``."""

    folder: Path

    def do_GET(self) -> None:
        path = self.folder / Path(self.path).name
        content, asked = path.read_bytes(), self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{path.name}"')
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # who asked was killed
            for first in range(start, len(content), CHUNK_BYTES):
                self.wfile.write(content[first : first + CHUNK_BYTES])
                time.sleep(CHUNK_BYTES / BYTES_PER_SECOND)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which the files of ``folder`` can be downloaded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Slow", (_Slow,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def checkout(folder: Path, archives: Path, address: str) -> Path:
    """A folder to run the study in, with the rows of Table 4 and the claims on them that one training serves."""
    copy_workflow(folder)
    table = load_yaml(folder / "configs/tables/table4.yaml")
    table["rows"] = [row for row in table["rows"] if row["id"].startswith("stripped")]
    rows = {("table4", row["id"]) for row in table["rows"]}
    claims = load_yaml(folder / "configs/claims.yaml")
    claims["claims"] = [
        claim
        for claim in claims["claims"]
        if {(claim[side]["table"], claim[side]["row"]) for side in ("first", "second")} <= rows
    ]
    study = load_yaml(ROOT / "tests/chaos.yaml")
    study["archives"] = {
        name: {"url": address, "checksum": f"sha256:{sha256_file(archives / name)}"} for name in ARCHIVES
    }
    for path, content in {"configs/tables/table4": table, "configs/claims": claims, "study": study}.items():
        (folder / f"{path}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder
