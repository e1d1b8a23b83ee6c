"""Whether there is a GPU, asked without torch."""

from pathlib import Path


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver runs on this machine: its control device is there."""
    return Path("/dev/nvidiactl").exists()
