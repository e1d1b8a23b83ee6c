"""One GPU a job where a machine has several, chosen before torch is loaded: CUDA reads what is visible once.

A job takes the device that fewest jobs hold. What it holds are locks on files in the machine's own temporary folder,
which end with the process in whatever way it ends. Where a scheduler gave one device there is nothing to choose.
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from crnet.runtime.files import cannot_write, sha256_text

VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_JOBS = 64  # on one device: far more than fit its memory
_LISTED = re.compile(r"^(\s*)(?:GPU|MIG) .*\(UUID: (\S+)\)$")
_held: list[IO] = []


def take() -> str | None:
    """Make one GPU visible to this process, the one that fewest jobs of this user hold; and hold it until the end.

    Entries of ``CUDA_VISIBLE_DEVICES`` are taken as they stand: numbers, UUIDs, MIG devices. A second call keeps what
    the first one took.

    Returns:
        The device's entry; None where there are less than two to choose from, or the temporary folder has no locks,
        and nothing was changed.

    Raises:
        CrnetError: the temporary folder cannot be written to.
    """
    devices = visible()
    if len(devices) < 2:
        return None
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Round by round, so that no device has two jobs while another has none.
        for place in range(MOST_JOBS):
            for device in devices:
                if _lock(folder / f"{sha256_text(device)[:16]}.{place}"):
                    os.environ[VISIBLE] = device
                    return device
    except OSError as error:
        raise cannot_write(folder, 0, error) from error
    return None


def visible() -> list[str]:
    """Entries of all devices that this process may use; those of ``CUDA_VISIBLE_DEVICES`` if it is set.

    CUDA takes a list up to its first entry that is no device, such as -1. Without the variable they are listed by
    ``nvidia-smi``, by UUID, as CUDA counts devices in another order; of a card that is split, its MIG devices.
    """
    preset = os.environ.get(VISIBLE)
    if preset is None:
        return _listed()
    devices: list[str] = []
    for entry in (each.strip() for each in preset.split(",")):
        if not entry or entry.startswith("-"):
            break
        devices.append(entry)
    return list(dict.fromkeys(devices))


def _listed() -> list[str]:
    if not (program := shutil.which("nvidia-smi")):
        return []
    done = subprocess.run([program, "-L"], capture_output=True, encoding="utf-8", errors="replace", check=False)
    devices: list[str] = []
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        if found := _LISTED.match(line):
            part = bool(found[1])
            if part and devices and devices[-1].startswith("GPU-"):
                devices.pop()  # the card whose parts follow
            devices.append(found[2])
    return devices


def _folder() -> Path:
    """Of this user on this machine, and of one job of its scheduler: each has numbers of its own for its devices."""
    name = f"crnet-gpus-{os.getuid()}-{os.uname().nodename}"
    if job := os.environ.get("SLURM_JOB_ID"):
        name += f"-{job}"
    return Path(tempfile.gettempdir()) / name


def _lock(path: Path) -> bool:
    stream = open(path, "ab")  # noqa: SIM115, open until the process ends
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        return False
    _held.append(stream)
    return True
