"""Time, operations, waiting and peak memory of a piece of work on a CPU or a GPU, and what the machine does at best."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from crnet.encoders.frozen import compute_dtype
from crnet.runtime import provenance
from crnet.runtime.machine import hand_back_freed_memory

# On a CPU the device is torch: it works in these, and waits in whatever Python does between them.
CPU_WORK = ("aten::", "mkldnn::", "autograd::", "Optimizer.step")

# Of the ceiling. The convolution is like those of the heads, on a larger map.
CHANNELS, SIDE, KERNEL = 256, 96, 3
PRODUCT = 4096  # side of the matrices
COPY_BYTES = 1 << 28

Work = Callable[[], int]  # does it and returns how many units (images, steps, episodes) it did


@dataclass
class Measured:
    """What was measured of a piece of work.

    Attributes:
        units: Images, steps or episodes done in the timed run.
        seconds: A unit.
        operations: A unit, additions and multiplications of convolutions and matrix products; None if not counted.
        waits: Share of the time in which the device did nothing; None if not measured.
        peak_bytes: Of the process (CPU) or of what torch allocated (GPU) during the timed run.
    """

    units: int
    seconds: float
    operations: float | None = None
    waits: float | None = None
    peak_bytes: int = 0

    @property
    def rate(self) -> float:
        return 1 / self.seconds


def measure(make: Callable[[], Work], device: str, watched: bool = True) -> Measured:
    """Time the work that ``make`` sets up; each run starts from a new one.

    Args:
        watched: Also run it twice more outside the timed part: to count operations first, which warms up too, and to
            see after it where the device waits.
    """
    operations = waits = None
    if watched:
        work = make()
        with FlopCounterMode(display=False) as counter:
            units = work()
        operations = counter.get_total_flops() / units
    work = make()
    gc.collect()
    reset_peak(device)
    seconds, units = timed(work, device)
    peak = peak_bytes(device)
    if watched:
        waits = waiting_share(make(), device)
    return Measured(units, seconds / units, operations, waits, peak)


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """(seconds, what it returned)"""
    synchronise(device)
    started = time.perf_counter()
    returned = work()
    synchronise(device)
    return time.perf_counter() - started, returned


def best(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the quickest of the runs that fit into ``seconds``, two at least, after one to warm up."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        times.append(timed(work, device)[0])
    return min(times)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def waiting_share(work: Work, device: str) -> float:
    """Share of the time in which no kernel runs (GPU) or no torch operation (CPU)."""
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, acc_events=True) as profiler:
        seconds, _ = timed(work, device)
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == kind and (cuda or event.name.startswith(CPU_WORK))
    ]
    return max(0.0, 1 - union(spans) / 1e6 / seconds)


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def reset_peak(device: str) -> None:
    """Start to measure anew; where the system cannot, the peak stays that of the whole process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        hand_back_freed_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_bytes(device: str) -> int:
    status = Path("/proc/self/status")
    if device == "cpu" and status.exists():
        # Which reset_peak resets, unlike what getrusage tells.
        return memory_of(status.read_text(encoding="utf-8"), "VmHWM")
    return provenance.peak_memory_bytes(device)


def memory_of(status: str, field: str) -> int:
    """Bytes of a field of ``/proc/<process>/status``."""
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True)
class Ceiling:
    """What the machine can do at best, in this run: a large convolution, a large matrix product, a large copy.

    Operations and bytes a second, an operation being an addition or a multiplication.

    Attributes:
        dtype: Of convolution and product, e.g. "bfloat16".
        copied: Read and written.
    """

    dtype: str
    convolution: float
    product: float
    copied: float


@torch.no_grad()
def measure_ceiling(device: str, precision: str, seconds: float) -> Ceiling:
    """The best of the runs that fit into ``seconds`` each; ``precision`` as in ``train.precision``."""
    large = device == "cuda"
    dtype = compute_dtype(torch.device(device), precision)
    channels, batch = (512, 64) if large else (CHANNELS, 4)
    images = torch.randn(batch, channels, SIDE, SIDE, device=device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, KERNEL, KERNEL, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    convolution = best(lambda: F.conv2d(images, weight, padding=1), device, seconds)
    side = 2 * PRODUCT if large else PRODUCT // 2
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = best(lambda: left @ right, device, seconds)
    source = torch.zeros((4 if large else 1) * COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = best(lambda: target.copy_(source), device, seconds)
    return Ceiling(
        str(dtype).removeprefix("torch."),
        2 * batch * SIDE**2 * channels**2 * KERNEL**2 / convolution,
        2 * side**3 / product,
        2 * source.nbytes / copied,
    )
