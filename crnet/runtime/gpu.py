"""Whether there is a GPU and which, asked without torch."""

from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver runs on this machine: its control device is there."""
    return Path("/dev/nvidiactl").exists()


def gpu_name() -> str:
    """As the driver calls the first GPU, which is torch's name too; empty without one."""
    for file in sorted(DRIVER.glob("*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                return line.split(":", 1)[1].strip()
    return ""
