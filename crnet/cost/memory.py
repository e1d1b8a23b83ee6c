"""Memory that a job takes at most, predicted from its specification and checked before it starts. Imports no torch.

The figures are held against the peaks of committed runs in ``tests/test_memory.py``; those of GPUs are the same counts
with an allowance for CUDA that has not been measured.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from crnet.config.defaults import scaled
from crnet.cost import work
from crnet.cost.work import Conv, Head
from crnet.errors import CrnetError
from crnet.runtime.limits import EPISODES_TOGETHER, GIB, PAIRS_TOGETHER, PHOTOS_TOGETHER, Limits

MIB = 2**20
PROCESS = 700 * MIB  # torch and all else that is imported, on a CPU
CUDA = GIB  # context, kernels and workspaces of convolutions, on a GPU
# Inputs and outputs of the largest layer, as many times, that a pass without gradients holds: of an encoder as measured
# on resnet50v2 and ResNet-50, 16 photos at 225 to 321 px on a CPU; of the head an estimate.
LIVE_ENCODER, LIVE_HEAD = 4, 4
# Allocators keep blocks of sizes that do not come again. On a CPU as measured on photos of all sizes, and a tenth more
# since freed memory stays with the process; on a GPU an estimate.
SLACK_CPU, SLACK_CUDA = 1.65, 1.2
COPIES = 6  # of a batch's maps: as read, converted, joined by photo and by level, laid out anew, and one in float32
LOSS_BYTES = 40  # a pixel and loss: two logits, their softmax, both gradients, the target
ADVICE = {
    "train": "limits.pairs_at_once and limits.photos_at_once",
    "evaluate": "limits.pool_gib and limits.photos_at_once",
}


@dataclass(frozen=True)
class Need:
    """Bytes of a job.

    Attributes:
        parts: What takes how many.
        mapped: Of files that are mapped: counted in a process's peak, but given back whenever memory is short.
    """

    kind: str
    parts: dict[str, int] = field(default_factory=dict)
    mapped: int = 0

    @property
    def own(self) -> int:
        return sum(self.parts.values())

    def on(self, device: str) -> int:
        """Bytes of the device's memory."""
        if device.startswith("cuda"):
            return CUDA + int(SLACK_CUDA * self.own)
        return PROCESS + int(SLACK_CPU * self.own)


def training(spec: dict, limits: Limits, store_bytes: int = 0) -> Need:
    """Of one training.

    Args:
        store_bytes: Of cached features, as far as it reads them.
    """
    settings = spec["train"]
    parts = {"encoder": _encoder_weights(spec["encoder"])}
    if settings["features"] == "live":
        parts["encoding"] = _encoding(spec["encoder"], settings["size"], limits.photos(3 * settings["batch"]), settings)
    if spec["method"] == "crnet":
        head, pairs = _head(spec, settings["size"]), limits.pairs(settings["batch"])
        parts["maps"] = COPIES * 3 * pairs * head.taken * head.cells * _width(settings)
        if pairs < settings["batch"]:  # the whole batch waits as read
            parts["maps"] += 3 * settings["batch"] * head.taken * head.cells * _width(settings)
        parts["weights"] = _trained(head, settings)
        parts["activations"] = _activations(head, pairs, settings["size"], _width(settings), auxiliary=True)
    return Need("train", parts, store_bytes)


def features(spec: dict, limits: Limits, store_bytes: int = 0) -> Need:
    """Of writing a feature store of ``store_bytes``."""
    encoding = _encoding(spec["encoder"], spec["size"], limits.photos(PHOTOS_TOGETHER), spec)
    return Need("train", {"encoder": _encoder_weights(spec["encoder"]), "encoding": encoding}, store_bytes)


def evaluation(spec: dict, limits: Limits, named: float, stored: bool) -> Need:
    """Of an evaluation, or of the trials of finetuning.

    Args:
        named: Photos, and pairs without background, that its episodes name.
        stored: It reads features instead of encoding photos.
    """
    train, settings = spec["train"], spec["evaluate"]
    scales, shots, finetunes = settings["scales"], settings["shots"], "finetune" in spec
    sizes = [scaled(settings["size"], scale) for scale in scales]
    head = _head(train, max(sizes)) if train["method"] == "crnet" else None
    kept = int(named * sum(pool_item_bytes(spec, scale) for scale in scales))
    together = 1 if finetunes else limits.pairs(EPISODES_TOGETHER)
    photos = 1 + shots * (2 if head and head.photos == 3 else 1)  # of an episode
    least = int(min(named, together * photos) * pool_item_bytes(spec, max(scales)))
    encoding = [_encoding(train["encoder"], size, limits.photos(PHOTOS_TOGETHER), settings) for size in sizes]
    parts = {
        "encoder": _encoder_weights(train["encoder"]),
        "encoding": 0 if stored else sum(encoding),
        "pool": max(least, min(limits.pool_bytes, kept)),
    }
    if train["method"] == "prototype":  # maps of both photos in float32
        maps = sum(work.encoder_channels(train["encoder"])) * work.map_side(max(sizes)) ** 2
        parts["predictions"] = LIVE_HEAD * limits.pairs(PAIRS_TOGETHER) * maps * 4
    if head:
        pairs = limits.pairs(shots if finetunes else PAIRS_TOGETHER)
        embedded = limits.photos(photos if finetunes else PHOTOS_TOGETHER) * _largest(head.embed)
        predicted = pairs * _largest([*head.branch, *head.recur])
        parts["weights"] = 4 * head.parameters
        parts["predictions"] = LIVE_HEAD * max(embedded, predicted) * _width(settings)
    if finetunes:
        head, pairs = _head(train, settings["size"]), limits.pairs(max(spec["finetune"]["batch"], shots))
        photos = min(2 * shots, 3 * pairs)
        parts["maps"] = COPIES * photos * head.taken * head.cells * _width(settings)
        parts["weights"] += _trained(head, spec["finetune"])  # the trained ones are kept beside those that change
        parts["activations"] = _activations(head, pairs, settings["size"], _width(settings), auxiliary=False)
    return Need("evaluate", parts)


def pool_item_bytes(spec: dict, scale: float) -> int:
    """Of one photo in the pool: embedded, or the encoder's maps where the head changes from episode to episode."""
    train, size = spec["train"], scaled(spec["evaluate"]["size"], scale)
    channels = 1 if train["method"] == "all-foreground" else sum(work.encoder_channels(train["encoder"]))
    if train["method"] == "crnet":
        channels = _head(train, size).taken if "finetune" in spec else train["model"]["width"]
    return work.map_side(size) ** 2 * channels * _width(spec["evaluate"])


def check(need: Need, device: str, job: str) -> None:
    """Raise CrnetError if the device, "cpu" or a CUDA device, has less memory free than a job needs."""
    free = free_bytes(device)
    if free is not None and free < need.on(device):
        where = "the GPU" if device.startswith("cuda") else "this machine"
        raise CrnetError(
            f"{job}: needs about {need.on(device) / GIB:.1f} GiB of memory and {where} has {free / GIB:.1f} GiB free; "
            f"lower {ADVICE[need.kind]} in the study, or let fewer jobs run at once."
        )


def free_bytes(device: str) -> int | None:
    """Free memory of a device; None where the system does not say."""
    if device.startswith("cuda"):
        return sys.modules["torch"].cuda.mem_get_info(device)[0]  # loaded by whoever uses a GPU
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 + _own_bytes()
    return None


def _own_bytes() -> int:
    """What this process holds already, which its need counts too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _head(training: dict, size: int) -> Head:
    return Head(work.encoder_channels(training["encoder"]), training["model"], size)


def _width(settings: dict) -> int:
    return 2 if settings["precision"] == "bfloat16" else 4


def _encoder_weights(spec: dict) -> int:
    """Of what is loaded, all layers, in float32 and once more in the precision used."""
    spec = spec if ":" in spec["name"] else {**spec, "layers": list(work.ALL_LAYERS[spec["name"]])}
    return 8 * sum(conv.weights for conv in work.encoder(spec, 8))


def _encoding(spec: dict, size: int, photos: int, settings: dict) -> int:
    """Pixels as bytes and in float32, normalised and masked; then the largest layers."""
    maps = sum(work.encoder_channels(spec)) * work.map_side(size) ** 2
    layers = LIVE_ENCODER * _largest(work.encoder(spec, size)) + 2 * maps
    return photos * (size**2 * 3 * 13 + layers * _width(settings))


def _largest(convs: list[Conv]) -> int:
    return max((conv.inputs + conv.outputs) * conv.cells for conv in convs)


def _trained(head: Head, settings: dict) -> int:
    """Weights, gradients, moments of the optimiser, and weights in the precision used."""
    moments = 2 if settings["optimizer"] == "adamw" else 1
    return 4 * head.parameters * (3 + moments)


def _activations(head: Head, pairs: int, size: int, width: int, auxiliary: bool) -> int:
    """What the backward pass needs of both branches: inputs and outputs of each layer, and the losses."""
    convs = [*head.embed, *head.branch, *(head.passes * head.recur), *(head.cooccurrence if auxiliary else [])]
    layers = sum((conv.inputs + conv.outputs) * conv.cells for conv in convs)
    losses = (2 + 2 * auxiliary) * size**2 * LOSS_BYTES
    return pairs * (2 * layers * width + losses)
