"""What the bench works on: generated photos of PASCAL's size as JPEG files, encoder and head with random weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from crnet import encoders, methods
from crnet.config.defaults import EVALUATE, EVALUATE_LIMITS, FINETUNE, TRAIN, TRAIN_LIMITS
from crnet.config.encoders import alignment_of, encoder_spec
from crnet.config.settings import brings_weights, check, component, is_timm
from crnet.data import episodes, transforms
from crnet.data.episodes import Episode
from crnet.data.formats import voc
from crnet.data.formats.palette import voc_palette
from crnet.data.grid import fitted
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
        size: Side of the network's input in pixels, as fitted to the encoder.
        encoder: A built-in encoder, ``timm:MODEL``, or ``package.module:factory``.
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

    def __post_init__(self):
        """Take the nearest size that fits the encoder; raises CrnetError on an encoder that is not known."""
        encoder = encoder_spec({"name": self.encoder}, "encoder")
        object.__setattr__(self, "size", fitted(self.size, alignment_of(encoder)))

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
    """Files below ``folder``, made once, and the specifications that go with them.

    Attributes:
        trained: (data, encoder, weights, device): what predicts takes them behind its specification.
    """

    def __init__(self, options: Options, folder: Path):
        self.options, self.folder, self.data = options, folder, folder / "data"
        write_photos(options, self.data)
        self.index = Index.load(self.data)
        self._encoder = self._describe_encoder()
        self.encoder = self._write_encoder()
        self.weights = folder / "model.safetensors"
        self.trained = self.data, self.encoder, self.weights, options.device
        channels = self.frozen().channels  # first: to build an encoder takes chance
        torch.manual_seed(derive("bench head"))
        save_file(methods.build("crnet", channels, self.training()["model"]).state_dict(), self.weights)

    def _describe_encoder(self) -> dict:
        name = self.options.encoder
        if brings_weights(name):
            return {"name": name}
        if is_timm(name):
            return encoder_spec({"name": name, "weights": "random"}, "--encoder")
        about = component("encoder", name, "--encoder")
        layers = ["layer2", "layer3"] if name == "resnet50" else about.literals["DEFAULT_LAYERS"]
        return {"name": name, "layers": layers, **about.settings({}, name)}

    def _write_encoder(self) -> Path | None:
        """Random weights for a built-in encoder; batch-norm statistics of the photos keep its maps in scale."""
        name = self.options.encoder
        if brings_weights(name):
            return None
        torch.manual_seed(derive("bench encoder"))
        network = encoders.network(self._encoder)
        for name, norm in network.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # the mean over all that is seen
                if name.endswith("bn3"):
                    nn.init.constant_(norm.weight, BLOCK)
        images = as_images([self.image(photo, 96) for photo in list(self.index.photos)[:8]])
        with torch.no_grad():
            network.train()(encoders.normalise(images))
        path = self.folder / "encoder.safetensors"
        save_file(network.state_dict(), path)
        return path

    def frozen(self) -> FrozenEncoder:
        device = torch.device(self.options.device)
        return FrozenEncoder(self._encoder, self.encoder, device, self.options.precision)

    def image(self, photo: str, size: int = 0) -> np.ndarray:
        """A photo uint8 (S, S, 3) of the given side, or that of the network's input."""
        return transforms.squash(self.index.read_image(photo), size or self.options.size)

    def training(self, **changes) -> dict:
        """Specification of a training, the paper's but for ``changes``; without dropout, so that chance is alike."""
        options = self.options
        model = {
            "width": options.width,
            "gate_width": options.width // 2,
            "dropout": 0.0,
            "path_dropout": 0.0,
            "initialisation": "kaiming",
        }
        given = {"size": options.size, "batch": options.batch, "precision": options.precision, "base_episodes": 0}
        return {
            "method": "crnet",
            "model": component("method", "crnet", "bench").settings(model, "bench"),
            "dataset": {"name": self.index.name},
            "encoder": self._encoder,
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
            "finetune": dict(FINETUNE),
        }

    def episodes(self, count: int, shots: int) -> list[Episode]:
        return list(episodes.draw(self.index, FOLD, count, [0], shots, "leave out").episodes)

    def write_features(self) -> Path:
        """The feature store of the training photos."""
        options, out = self.options, self.folder / "features"
        if not out.is_dir():
            spec = {"dataset": {"name": self.index.name}, "encoder": self._encoder, "size": options.size}
            write_store({**spec, "views": "identity", "precision": options.precision}, self.data, self.frozen(), out)
        return out


def write_photos(options: Options, out: Path) -> None:
    """Scenes in the layout of VOC, prepared: training photos led by base classes, test photos by the fold's."""
    base = out / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    tested = shapes5i.FOLDS[FOLD]
    trained = [c for fold in shapes5i.FOLDS for c in fold if c not in tested]
    palette = voc_palette()
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
