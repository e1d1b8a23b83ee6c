"""Pre-training of the small encoder on generated kinds of object that are in no fold; the stand-in for ImageNet.

Task: name the kind of object of every stride-8 cell (or background), by a 1x1 classifier on each map of the encoder.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.data.shapes5i import PRETRAINING_LOOKS, pretraining_batch
from crnet.data.views import VIEWS, recolour
from crnet.encoders import small
from crnet.files import atomic_write, canonical
from crnet.seeding import derive

LOG_EVERY = 100  # steps
SAVE_EVERY = 200  # steps
MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in 0..1
STD = (0.229, 0.224, 0.225)
HEADS = ("layer3", "layer4")  # maps that the loss reaches, each by its own classifier


class Pretraining(nn.Module):
    """The encoder and a 1x1 classifier (kinds + background) on each of its last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = small.SmallEncoder(HEADS)
        self.heads = nn.ModuleList(
            nn.Conv2d(channels, len(PRETRAINING_LOOKS) + 1, 1) for channels in self.encoder.channels
        )

    def loss(self, images: Tensor, cells: Tensor) -> Tensor:
        """Mean cross-entropy over heads and cells; images (N, 3, H, W), cells int64 (N, H/8, W/8)."""
        maps = self.encoder(images)
        losses = [F.cross_entropy(head(x), cells) for head, x in zip(self.heads, maps, strict=True)]
        return torch.stack(losses).mean()


def _cells(masks: np.ndarray) -> np.ndarray:
    """The label at the centre of each 8 x 8 cell, where a stride-8 map with padding has its samples."""
    return masks[:, ::8, ::8].astype(np.int64)


def _batch(images: np.ndarray, masks: np.ndarray, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """``count`` scenes, each turned by a multiple of 90 degrees, mirrored or not, and recoloured."""
    pictures, targets = [], []
    for index in rng.integers(len(images), size=count):
        turn, mirror, view = (int(rng.integers(high)) for high in (4, 2, VIEWS))
        image, mask = np.rot90(images[index], turn), np.rot90(masks[index], turn)
        if mirror:
            image, mask = image[:, ::-1], mask[:, ::-1]
        pictures.append(recolour(image, view))
        targets.append(mask)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(_cells(np.stack(targets)))


def pretrain(settings: dict, out: Path, threads: int, stop_after: int | None = None) -> list[dict[str, Any]]:
    """x"""
    torch.set_num_threads(threads)
    t0 = time.time()
    images, masks = pretraining_batch(
        np.random.default_rng(derive("pretraining scenes", settings["seed"])), settings["images"], settings["size"]
    )
    print("gen", time.time() - t0)
    model = Pretraining()
    small.initialise(model, torch.Generator().manual_seed(derive("pretraining weights", settings["seed"])))
    model = model.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    sched = torch.optim.lr_scheduler.OneCycleLR(
        opt, settings["learning_rate"], total_steps=settings["steps"], pct_start=0.2
    )
    rng = np.random.default_rng(derive("pretraining batches", settings["seed"]))
    total = 0
    for step in range(settings["steps"]):
        x, y = _batch(images, masks, rng, settings["batch"])
        loss = model.loss(x, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(step + 1, round(total / 100, 4), round(time.time() - t0, 1), flush=True)
            total = 0
    state = {name: tensor.contiguous() for name, tensor in model.encoder.state_dict().items()}
    atomic_write(out, save(state, {"settings": canonical(settings)}))
