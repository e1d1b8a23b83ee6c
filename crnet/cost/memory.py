"""Memory that a job takes at most, predicted from its specification and checked before it starts.

The figures are held against the peaks of committed runs in ``tests/test_memory.py``; those of GPUs are the same counts
with an allowance for CUDA that has not been measured.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from crnet.config.defaults import scaled
from crnet.cost.networks import Encoder, encoder, map_side, networks
from crnet.errors import CrnetError
from crnet.runtime import capacity
from crnet.runtime.limits import EPISODES_TOGETHER, GIB, PAIRS_TOGETHER, PHOTOS_TOGETHER, Limits

MIB = 2**20
PROCESS = 700 * MIB  # torch and all else that is imported, on a CPU
CUDA = GIB  # context, kernels and workspaces of convolutions, on a GPU
# What a pass without gradients holds, as many times its counted maps: libraries lay them out anew.
ENCODED, PREDICTED = 2, 2
# Allocators keep blocks of sizes that do not come again. On a CPU as measured on photos of all sizes, and a tenth more
# since freed memory stays with the process; on a GPU an estimate.
SLACK_CPU, SLACK_CUDA = 1.65, 1.2
COPIES = 6  # of a batch's maps: as read, converted, joined by photo and by level, laid out anew, and one in float32
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
    settings, network = spec["train"], networks(spec)
    size, pairs, width = settings["size"], limits.pairs(settings["batch"]), _width(settings)
    parts = {"encoder": network.encoder.weight_bytes}
    if network.encoder.learns:
        kept = network.encoder.photo_training(size).peak_bytes * width // 4
        parts["encoding"] = network.photos * (settings["batch"] * size**2 * 3 * 13 + pairs * kept)
    elif settings["features"] == "live":
        parts["encoding"] = _encoding(network.encoder, size, limits.photos(3 * settings["batch"]), width)
    maps = 3 * network.taken * map_side(size) ** 2 * width  # of a pair
    parts["maps"] = COPIES * pairs * maps
    if pairs < settings["batch"]:  # the whole batch waits as read
        parts["maps"] += settings["batch"] * maps
    parts["weights"] = _trained(network.parameters + network.encoder.parameters, settings)
    parts["activations"] = network.step(size, pairs, auxiliary=True).peak_bytes * width // 4
    return Need("train", parts, store_bytes)


def features(spec: dict, limits: Limits, store_bytes: int = 0) -> Need:
    """Of writing a feature store of ``store_bytes``."""
    network = encoder(spec["encoder"])
    encoding = _encoding(network, spec["size"], limits.photos(PHOTOS_TOGETHER), _width(spec))
    return Need("train", {"encoder": network.weight_bytes, "encoding": encoding}, store_bytes)


def evaluation(spec: dict, limits: Limits, named: float, stored: bool) -> Need:
    """Of an evaluation, or of the trials of finetuning.

    Args:
        named: Photos, and pairs without background, that its episodes name.
        stored: It reads features instead of encoding photos.
    """
    settings, network = spec["evaluate"], networks(spec["train"])
    shots, finetunes, width = settings["shots"], "finetune" in spec, _width(settings)
    sizes = [scaled(settings["size"], scale) for scale in settings["scales"]]
    together = 1 if finetunes else limits.pairs(EPISODES_TOGETHER)
    photos = 1 + shots * (network.photos - 1)  # of an episode
    items = [pool_item_bytes(spec, scale) for scale in settings["scales"]]
    encoding = [_encoding(network.encoder, size, limits.photos(PHOTOS_TOGETHER), width) for size in sizes]
    embedded = limits.photos(photos if finetunes else PHOTOS_TOGETHER) * network.embedding(max(sizes)).peak_bytes
    pairs, seen = limits.pairs(shots if finetunes else PAIRS_TOGETHER), 1
    if network.sees_all_supports:
        pairs, seen = max(1, pairs // shots), shots
    predicted = network.prediction(max(sizes), settings["refinements"], pairs, seen).peak_bytes
    parts = {
        "encoder": network.encoder.weight_bytes,
        "encoding": 0 if stored else sum(encoding),
        "pool": max(int(min(named, together * photos) * max(items)), min(limits.pool_bytes, int(named * sum(items)))),
        "weights": 4 * network.parameters,
        "predictions": PREDICTED * max(embedded, predicted) * width // 4,
    }
    if finetunes:
        size, pairs = settings["size"], limits.pairs(max(spec["finetune"]["batch"], shots))
        photos = min(2 * shots, 3 * pairs)
        parts["maps"] = COPIES * photos * network.taken * map_side(size) ** 2 * width
        # The trained ones are kept beside those that change.
        parts["weights"] += _trained(network.parameters, spec["finetune"])
        parts["activations"] = network.step(size, pairs, auxiliary=False).peak_bytes * width // 4
    return Need("evaluate", parts)


def pool_item_bytes(spec: dict, scale: float) -> int:
    """Of one photo in the pool: embedded, or the encoder's maps where the head changes from episode to episode."""
    network, size = networks(spec["train"]), scaled(spec["evaluate"]["size"], scale)
    channels = network.taken if "finetune" in spec else network.embedded_channels
    return map_side(size) ** 2 * channels * _width(spec["evaluate"])


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
    free = capacity.free_memory_bytes()
    if free is None:
        return None
    # What this process holds already is counted by its need too.
    return free + int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _width(settings: dict) -> int:
    return 2 if settings["precision"] == "bfloat16" else 4


def _encoding(network: Encoder, size: int, photos: int, width: int) -> int:
    """Pixels as bytes and in float32, normalised and masked; and the maps of the network."""
    return photos * (size**2 * 3 * 13 + ENCODED * network.photo(size).peak_bytes * width // 4)


def _trained(parameters: int, settings: dict) -> int:
    """Weights, gradients, moments of the optimiser, and weights in the precision used."""
    return 4 * parameters * (3 + moments(settings))


def moments(settings: dict) -> int:
    """Values that the optimiser keeps of each weight."""
    return 2 if settings["optimizer"] == "adamw" else 1
