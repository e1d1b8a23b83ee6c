"""Pre-training of an encoder, ``small``, on generated kinds of object that are in no fold: the stand-in for ImageNet.

Task: at every stride-8 cell of a generated scene name the kind of object, or the background, by a 1x1 classifier on
layer3 and another on layer4. Scenes are turned and mirrored but not recoloured: a kind is a shape, a texture *and*
colours. An encoder taught to overlook colour gave 0.41 instead of 0.51 novel mIoU to the same head after 600 steps
(one fold, one seed), and naming whole images instead of cells 0.33 instead of 0.63.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from crnet.data.sets.shapes5i import PRETRAINING_LOOKS, pretraining_batch
from crnet.encoders import normalise
from crnet.encoders.frozen import autocast
from crnet.errors import CrnetError
from crnet.runtime.checkpoint import is_finite, load_state, remove_state, save_state
from crnet.runtime.files import atomic_write, canonical
from crnet.runtime.ownership import Owner
from crnet.runtime.preemption import Notice, Preempted
from crnet.runtime.seeding import derive

LOG_EVERY = 100  # steps
SAVE_SECONDS = 60.0  # a kill costs at most this much
_RISE = 0.2  # share of the steps in which the learning rate climbs to its peak
_START, _END = 1 / 25, 1e-4  # of the peak: learning rate at the first and at the last step


class Pretraining(nn.Module):
    """The encoder with a 1x1 classifier, of background and every kind of object, on each of its maps."""

    def __init__(self, encoder: nn.Module, generator: torch.Generator, precision: str):
        super().__init__()
        self.precision, self.encoder = precision, encoder
        kinds = len(PRETRAINING_LOOKS) + 1
        self.classifiers = nn.ModuleList(nn.Conv2d(channels, kinds, 1) for channels in self.encoder.channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def loss(self, images: Tensor, cells: Tensor) -> Tensor:
        """Cross-entropy, mean over classifiers and cells.

        Args:
            images: (N, 3, H, W), normalised.
            cells: int64 (N, ceil(H/8), ceil(W/8)), kind of object at each cell, 0 for background.
        """
        with autocast(images.device, self.precision):
            logits = [head(x) for head, x in zip(self.classifiers, self.encoder(images), strict=True)]
        return torch.stack([F.cross_entropy(each.float(), cells) for each in logits]).mean()


def pretrain(encoder: nn.Module, settings: dict, out: Path, threads: int) -> list[dict[str, Any]]:
    """Train an encoder and write its weights and batch-norm statistics to ``out`` (safetensors).

    Bit-identical for equal settings and threads on one machine, also when it was killed and called again: the state
    is kept in ``out`` with the suffix ``.state`` and removed at the end.

    Args:
        encoder: Gives the maps that the loss reaches, at stride 8; its weights are drawn anew.
        settings: All those of ``crnet.encoders.small.SETTINGS``.
        out: Weights file; its metadata hold the settings.
        threads: Of torch.

    Returns:
        One row per ``LOG_EVERY`` steps: ``step``, ``loss`` (mean since the row before), ``lr``.

    Raises:
        CrnetError: The state beside ``out`` is of other settings, loss or weights are no longer finite, or another copy
            of the job has begun after this one.
        Preempted: SIGTERM arrived; the state is saved.
    """
    state_path = out.with_suffix(".state")
    owner = Owner(state_path)
    owner.take()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(derive("pretraining weights", settings["seed"]))
    model = Pretraining(encoder, generator, settings["precision"]).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=settings["weight_decay"], fused=True)
    done, total, log = _restore(state_path, settings, model, optimiser)
    if done:
        print(f"going on at step {done} of {settings['steps']}", flush=True)

    scene_generator = np.random.default_rng(derive("pretraining scenes", settings["seed"]))
    images, masks = pretraining_batch(scene_generator, settings["images"], settings["size"])
    start = saved = time.monotonic()
    with Notice() as notice:
        for step in range(done, settings["steps"]):
            lr = learning_rate(step, settings["steps"], settings["lr"])
            generator = np.random.default_rng(derive("pretraining batch", settings["seed"], step))
            loss = _step(model, optimiser, lr, *_draw(images, masks, generator, settings["batch"]))
            if not math.isfinite(loss):
                raise _diverged(f"the loss is {loss}", step, lr, state_path)
            total += loss
            done = step + 1
            if done % LOG_EVERY == 0:
                log.append({"step": done, "loss": total / LOG_EVERY, "lr": lr})
                print(f"step {done}: loss {total / LOG_EVERY:.3f}, {time.monotonic() - start:.0f} s", flush=True)
                total = 0.0
            if notice.given or time.monotonic() - saved > SAVE_SECONDS:
                owner.check()
                learnt = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                _require_finite(learnt, done, settings, state_path)
                progress = {"settings": canonical(settings), "step": done, "total": total, "log": log}
                save_state(state_path, progress | learnt)
                saved = time.monotonic()
            if notice.given:
                raise Preempted(f"stopped by SIGTERM after step {done} of pre-training; the state is in {state_path}.")

    owner.check()
    _require_finite(model.state_dict(), settings["steps"], settings, state_path)
    tensors = {name: tensor.contiguous() for name, tensor in model.encoder.state_dict().items()}
    atomic_write(out, save(tensors, {"settings": canonical(settings)}))
    remove_state(state_path)
    return log


def _require_finite(learnt: dict[str, Any], done: int, settings: dict, state: Path) -> None:
    """Raise before what is no good is kept: a finite loss can have gradients that are not."""
    if not is_finite(learnt):
        lr = learning_rate(done - 1, settings["steps"], settings["lr"])
        raise _diverged("a weight is not finite", done - 1, lr, state)


def _diverged(what: str, step: int, lr: float, state: Path) -> CrnetError:
    kept = load_state(state)
    good = f"the last good state, after {kept['step']} steps, is {state}" if kept else "no state was saved"
    return CrnetError(f"pre-training: {what} at step {step} (lr {lr:.3g}); {good}. Lower the encoder's lr.")


def _restore(
    path: Path, settings: dict, model: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, float, list[dict[str, Any]]]:
    """Steps done, loss since the last row and the rows so far; model and optimiser are set to that point."""
    state = load_state(path)
    if state is None:
        return 0, 0.0, []
    if state["settings"] != canonical(settings):
        raise CrnetError(f"{path}: is the state of a pre-training with other settings; remove it to start anew.")
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["total"], state["log"]


def _step(model: Pretraining, optimiser: torch.optim.Optimizer, lr: float, images: Tensor, cells: Tensor) -> float:
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad()
    loss = model.loss(images, cells)
    loss.backward()
    optimiser.step()
    return loss.item()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One cycle: half a cosine up to ``peak`` over the first fifth of the steps, half a cosine down over the rest."""
    rise = max(1.0, _RISE * steps)
    low, along = (_START, step / rise) if step < rise else (_END, 1 - (step - rise) / max(1.0, steps - 1 - rise))
    return peak * (low + (1 - low) * (1 - float(np.cos(np.pi * along))) / 2)


def _draw(images: np.ndarray, masks: np.ndarray, generator: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """``count`` scenes with replacement, each turned by a multiple of 90 degrees and mirrored or not.

    Args:
        images: uint8 (M, S, S, 3).
        masks: uint8 (M, S, S).

    Returns:
        Normalised images (count, 3, S, S) and cells int64 (count, ceil(S/8), ceil(S/8)).
    """
    pictures, targets = [], []
    for index in generator.integers(len(images), size=count):
        turn, side = int(generator.integers(4)), 1 - 2 * int(generator.integers(2))
        pictures.append(np.rot90(images[index], turn)[:, ::side])
        targets.append(np.rot90(masks[index], turn)[:, ::side])
    x = normalise(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    # With padding, cell (i, j) of a stride-8 map is centred on pixel (8i, 8j).
    cells = torch.from_numpy(np.stack(targets)[:, ::8, ::8].astype(np.int64))
    return x.contiguous(memory_format=torch.channels_last), cells
