"""Out of memory, on a GPU or a CPU: one sentence with what was needed, what there is and what to lower."""

import errno
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from crnet.errors import CrnetError
from crnet.runtime import capacity, provenance
from crnet.runtime.files import readable

# How torch, its libraries and the system say it where they have no exception of their own for it.
SIGNS = ("out of memory", "not enough memory", "allocate memory", "std::bad_alloc", "STATUS_ALLOC_FAILED")


@contextmanager
def needs_memory(lower: str) -> Iterator[None]:
    """Around work or a command: running out of memory becomes a CrnetError that says what to ``lower``.

    It marks nothing as failed: the same command goes on from what was saved where there is more memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not ran_out(error):
            raise
        on_gpu = "cuda" in str(error).lower() or "cublas" in str(error).lower()
        told = _gpu(str(error)) if on_gpu else _cpu(str(error))
        raise CrnetError(
            f"{told}; {lower}{' or use a larger GPU' if on_gpu else ' or run fewer jobs at once'}, then start again: "
            "what was saved is kept, and nothing is marked as failed."
        ) from error


def ran_out(error: Exception) -> bool:
    """Whether it says that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


def _gpu(message: str) -> str:
    torch = sys.modules["torch"]
    found = re.search(r"Tried to allocate ([\d.]+ \w+)", message)
    asked = f"and {found[1]} more was asked for" if found else "and more was asked for"
    if not torch.cuda.is_initialized():
        return f"the GPU's memory ran out before this job held any, {asked}"
    about, peak = torch.cuda.get_device_properties(torch.cuda.current_device()), torch.cuda.max_memory_allocated()
    free = re.search(r"of which ([\d.]+ \w+) is free", message)
    rest = f", of which {free[1]} was free" if free else ""
    return (
        f"the GPU's memory ran out: this job held up to {readable(peak)} {asked}, and {about.name} has "
        f"{readable(about.total_memory)}{rest}"
    )


def _cpu(message: str) -> str:
    found = re.search(r"tried to allocate (\d+) bytes", message)
    asked = f"{readable(int(found[1]))} more" if found else "more"
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    there = f"the machine has {readable(capacity.memory_bytes())} for it"
    if limit != resource.RLIM_INFINITY:
        there += f" and this job's limit is {readable(limit)} (ulimit -v)"
    held = readable(provenance.peak_memory_bytes("cpu"))
    return f"memory ran out: this job held up to {held} and {asked} was asked for, and {there}"
