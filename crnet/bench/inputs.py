"""What the bench works on: generated photos of PASCAL's size as JPEG files, encoder and head with random weights."""

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from crnet import encoders, methods
from crnet.config.defaults import EVALUATE, EVALUATE_LIMITS, FINETUNE, FINETUNE_LIMITS, TRAIN, TRAIN_LIMITS
from crnet.config.settings import check, component
from crnet.data import episodes, transforms
from crnet.data.episodes import Episode
from crnet.data.formats import voc
from crnet.data.index import Index
from crnet.data.sets import shapes5i
from crnet.data.sets.scenes import void_border
from crnet.encoders.features import write_store
from crnet.encoders.frozen import FrozenEncoder, as_images, compute_dtype
from crnet.runtime.files import atomic_write
from crnet.runtime.seeding import derive

FOLD = 0  # its test classes are the first five
BLOCK = 0.1  # strength of a random ResNet-50 block beside its shortcut: at 1, rounding grows twentyfold through them
QUALITY = 92  # of JPEG: some 90 KB a photo, as PASCAL's


@dataclass(frozen=True)
class Options:
    """What is measured, and how much of it.

    Attributes:
        size: Side of the network's input in pixels.
        encoder: A built-in encoder, or ``package.module:factory``.
        width: Channels of the head.
        photo: (height, width) of the photos.
        train_photos, test_photos: How many there are.
        episodes: 1-shot test episodes; two a photo; 1,000 in a fold of PASCAL-5i are three.
        plain_episodes: Those of them that the plain loop predicts too.
        finetuned: Episodes of ``shots`` that are finetuned; the plain loop does the first.
        steps: Of finetuning.
        training_steps: Steps timed; the plain loop does one.
        rows: Rows of the table that is rendered.
        seconds: Least time that a ceiling is measured.
    """

    device: str = "cpu"
    threads: int = 2
    size: int = 321
    encoder: str = "resnet50"
    width: int = 256
    precision: str = "bfloat16"
    photo: tuple[int, int] = (375, 500)
    train_photos: int = 20
    test_photos: int = 30
    episodes: int = 60
    plain_episodes: int = 2
    finetuned: int = 2
    shots: int = 5
    steps: int = 5
    training_steps: int = 4
    batch: int = 4
    rows: int = 8
    seconds: float = 2.0

    @classmethod
    def quick(cls, **changes) -> "Options":
        """Seconds instead of minutes: for tests of the bench, not for figures."""
        small = {"size": 64, "encoder": "small", "width": 32, "photo": (72, 96), "episodes": 12, "plain_episodes": 2}
        amounts = {"finetuned": 2, "steps": 2, "training_steps": 2, "rows": 2, "seconds": 0.05}
        return cls(**{**small, **amounts, **changes})

    @property
    def dtype(self) -> str:
        """Of the network's arithmetic on this machine: float32 where bfloat16 is not to be had."""
        return str(compute_dtype(torch.device(self.device), self.precision)).removeprefix("torch.")


class Inputs:
    """Files below ``folder``, made once, and the specifications that go with them."""

    def __init__(self, options: Options, folder: Path):
        self.options, self.folder, self.data = options, folder, folder / "data"
        write_photos(options, self.data)
        self.index = Index.load(self.data)
        device = torch.device(options.device)
        self.encoder = self._write_encoder()
        channels = FrozenEncoder(self._encoder(), self.encoder, device, options.precision).channels
        torch.manual_seed(derive("bench head"))
        self.weights = folder / "model.safetensors"
        save_file(methods.build("crnet", channels, self.training()["model"]).state_dict(), self.weights)

    def _encoder(self) -> dict:
        name = self.options.encoder
        if encoders.is_factory(name):
            return {"name": name}
        about = component("encoder", name, "--encoder")
        layers = ["layer2", "layer3"] if name == "resnet50" else about.literals["DEFAULT_LAYERS"]
        return {"name": name, "layers": layers, **about.settings({}, name)}

    def _write_encoder(self) -> Path | None:
        """Random weights for a built-in encoder; batch-norm statistics of the photos keep its maps in scale."""
        spec = self._encoder()
        if encoders.is_factory(spec["name"]):
            return None
        torch.manual_seed(derive("bench encoder"))
        network = _born(spec)
        for name, norm in network.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # the mean over all that is seen
                if name.endswith("bn3"):
                    nn.init.constant_(norm.weight, BLOCK)
        photos = list(self.index.photos)[:8]
        images = as_images([transforms.squash(self.index.read_image(photo), 96) for photo in photos])
        with torch.no_grad():
            network.train()(encoders.normalise(images))
        path = self.folder / "encoder.safetensors"
        save_file(network.state_dict(), path)
        return path

    def training(self, **changes) -> dict:
        """Specification of a training, the paper's but for ``changes``; without dropout, so that chance is alike."""
        options = self.options
        model = {"width": options.width, "gate_width": options.width // 2, "dropout": 0.0, "initialisation": "kaiming"}
        given = {"size": options.size, "batch": options.batch, "precision": options.precision, "base_episodes": 0}
        return {
            "method": "crnet",
            "model": component("method", "crnet", "bench").settings(model, "bench"),
            "dataset": {"name": self.index.name},
            "encoder": self._encoder(),
            "fold": FOLD,
            "seed": 0,
            "train": check({**given, **changes}, TRAIN, TRAIN_LIMITS, "bench"),
        }

    def evaluation(self, shots: int = 1, **changes) -> dict:
        """Specification of an evaluation; ``finetune`` is in it for those that finetune."""
        given = {"size": self.options.size, "shots": shots, "precision": self.options.precision, **changes}
        return {
            "train": self.training(),
            "evaluate": check(given, EVALUATE, EVALUATE_LIMITS, "bench"),
            "finetune": check({}, FINETUNE, FINETUNE_LIMITS, "bench"),
        }

    def episodes(self, count: int, shots: int) -> list[Episode]:
        table = episodes.draw(self.index, FOLD, count, [0], shots, "leave out")
        return list(table.episodes)

    def write_features(self) -> Path:
        """The feature store of the training photos."""
        options, out = self.options, self.folder / "features"
        if not out.is_dir():
            encoder = FrozenEncoder(self._encoder(), self.encoder, torch.device(options.device), options.precision)
            spec = {"dataset": {"name": self.index.name}, "encoder": self._encoder(), "size": options.size}
            write_store({**spec, "views": "identity", "precision": options.precision}, self.data, encoder, out)
        return out


def _born(spec: dict) -> nn.Module:
    """A built-in encoder with the random weights that torch gives it."""
    return importlib.import_module(component("encoder", spec["name"], "bench").module).network(spec["layers"])


def write_photos(options: Options, out: Path) -> None:
    """Scenes in the layout of VOC, prepared: training photos led by base classes, test photos by the fold's."""
    base = out / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    tested = shapes5i.FOLDS[FOLD]
    trained = [c for fold in shapes5i.FOLDS for c in fold if c not in tested]
    palette = shapes5i.voc_palette()
    for split, leaders, count in (("train", trained, options.train_photos), ("val", tested, options.test_photos)):
        names = []
        for number in range(count):
            chance = np.random.default_rng(derive("bench photos", split, number))
            scene = shapes5i.scene(chance, leaders[number % len(leaders)], *options.photo)
            names.append(f"{split}_{number:06d}")
            Image.fromarray(scene.image).save(base / "JPEGImages" / f"{names[-1]}.jpg", quality=QUALITY)
            mask = Image.fromarray(void_border(scene))
            mask.putpalette(palette)
            mask.save(base / "SegmentationClass" / f"{names[-1]}.png")
        atomic_write(base / "ImageSets/Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    settings = {"rule_grid": 32 if min(options.photo) > 200 else 8}
    voc.prepare(base, None, out, voc.Choice("bench-photos", shapes5i.splits({}), settings))
