"""Time, operations, waiting and peak memory of a piece of work, on a CPU or a GPU."""

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from crnet.runtime.machine import hand_back_freed_memory

# On a CPU the device is torch: it works in these, and waits in whatever Python does between them.
CPU_WORK = ("aten::", "mkldnn::", "autograd::", "Optimizer.step")

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


def timed(work: Work, device: str) -> tuple[float, int]:
    """(seconds, units)"""
    synchronise(device)
    started = time.perf_counter()
    units = work()
    synchronise(device)
    return time.perf_counter() - started, units


def best(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the quickest of the runs that fit into ``seconds``, two at least, after one to warm up."""
    work()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 2:
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - started)
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
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return memory_of(status.read_text(), "VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(status: str, field: str) -> int:
    """Bytes of a field of ``/proc/<process>/status``."""
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
