"""How many cores and how much memory there are for us: the machine's, or a container's share of it (cgroup v2)."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def cores() -> int:
    """Cores that this process may use: of the machine, its CPU set, and its container's quota, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups():
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            allowed = min(allowed, max(1, math.ceil(int(quota) / int(period))))
    return allowed


def memory_bytes() -> int:
    """Memory of the machine, or less where a container is limited to it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(limit for limit, _ in _memory_limits())])


def free_memory_bytes() -> int | None:
    """Memory that processes can still have; None where the system does not say.

    What a container has read from files counts as used by it, but is given back when memory is short.
    """
    if not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024]
    for limit, group in _memory_limits():
        used = _text(group / "memory.current")
        if used.isdigit():
            counts = dict(line.split() for line in _text(group / "memory.stat").splitlines())
            cached = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
            free.append(max(0, limit - int(used) + cached))
    return min(free)


def _memory_limits() -> Iterator[tuple[int, Path]]:
    for group in _groups():
        limit = _text(group / "memory.max")
        if limit.isdigit():  # else "max"
            yield int(limit), group


def _groups() -> Iterator[Path]:
    """Folder of this process's group and of those above it: each of them may set limits."""
    own = next((line[3:] for line in _text(OWN).splitlines() if line.startswith("0::")), None)
    if own is None:  # version 1, or no Linux
        return
    group = ROOT / own.lstrip("/")
    yield from (place for place in (group, *group.parents) if place == ROOT or ROOT in place.parents)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
