"""The machine as a job sees it: device, threads, determinism."""

import contextlib
import ctypes

import torch

from crnet.errors import CrnetError

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 1 << 30


def has_bfloat16(device: str) -> bool:
    """Whether convolutions in bfloat16 are quick: any CUDA GPU since Ampere, CPUs with AVX-512 or AMX for it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def configure(device: str, threads: int) -> None:
    """Set threads and determinism of this process; raises CrnetError if the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise CrnetError(
            "device cuda: PyTorch sees no GPU here; run on a machine with one, or set 'device: cpu' in the study."
        )
    torch.set_num_threads(threads)
    _keep_freed_memory()
    # On CUDA, bilinear upsampling has no deterministic gradient: there reruns differ in rounding.
    # This call and not use_deterministic_algorithms, which imports torch's compiler: 1.7 s in each job.
    torch.set_deterministic_debug_mode("error" if device == "cpu" else "default")
    # Filling fresh memory with NaN finds reads before writes, and cost an eighth of the encoder's time.
    torch.utils.deterministic.fill_uninitialized_memory = False


def _keep_freed_memory() -> None:
    """Let the allocator use large blocks again, instead of handing them back and having their pages zeroed anew.

    Maps of 16 photos at 321 px are such blocks: without it ResNet-50 takes 1.4 to 1.9 times as long for them. Other C
    libraries than glibc have no ``mallopt``.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def hand_back_freed_memory() -> None:
    """What ``configure`` keeps goes back to the system, so that a peak measured from here on is that of new work."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
