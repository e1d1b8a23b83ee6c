"""What a result was made by: commit, versions, machine, memory. Never a reason for a run to fail."""

import importlib.metadata
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

UNKNOWN = "unknown"
PACKAGES = ("torch", "torchvision", "numpy")
_TEXT = {"encoding": "utf-8", "errors": "replace"}


def record(device: str, threads: int) -> dict[str, Any]:
    """Facts to store beside a result; call it when a job starts, the checkout may move on while it runs.

    Args:
        device: As given to torch, "cpu", "cuda" or "cuda:1".
        threads: CPU threads that the job may use.

    Returns:
        commit (40 hex digits) and dirty (bool: the package's folder differs from that commit), both "unknown"
        outside a checkout; versions {python, torch, torchvision, numpy}; platform; cpu; gpu ("" on a CPU);
        device; threads; started (UTC, ISO 8601, whole seconds).
    """
    commit, dirty = checkout(Path(__file__).resolve().parents[1])
    torch = _torch_on(device)
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if torch else "",
        "device": device,
        "threads": threads,
        "started": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def checkout(package: Path) -> tuple[str, bool | str]:
    """Commit of the Git checkout that tracks ``package``, and whether files under it differ from that commit.

    Only the package's folder is looked at: a run rewrites files under ``results/`` that may be tracked too,
    and its settings are stored with it, so neither a table nor a study can make the code another one.
    """
    # A package installed into a .venv inside some checkout is not that checkout's code: Git must track it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return UNKNOWN, UNKNOWN
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    status = _git(package, "status", "--porcelain", "--", ".")
    if not commit or status is None:
        return UNKNOWN, UNKNOWN
    return commit, bool(status)


def why_unknown(package: Path) -> str:
    """Why ``checkout`` cannot say the commit, and what to do, without a full stop."""
    if not any((folder / ".git").exists() for folder in package.parents):
        return "this is no Git checkout; clone the project to have it recorded"
    if shutil.which("git") is None:
        return "there is no git on the PATH; install it to have it recorded"
    said = _asked(package, "ls-files", "--error-unmatch", "__init__.py")
    problem = said.stderr.strip().partition("\n")[0] if said else ""
    if "dubious ownership" in problem:
        folder = shlex.quote(str(package.parent))
        return f"Git refuses a checkout of another owner; trust it: git config --global --add safe.directory {folder}"
    return f"Git says: {problem or 'nothing'}; make `git status` work here to have it recorded"


def _git(folder: Path, *arguments: str) -> str | None:
    done = _asked(folder, *arguments)
    return done.stdout.strip() if done and done.returncode == 0 else None


def _asked(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    # Without optional locks, so that jobs side by side never wait for, or leave behind, an index.lock.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    plain = {**os.environ, "LC_ALL": "C"}  # untranslated
    try:
        return subprocess.run(
            command, check=False, capture_output=True, timeout=20, stdin=subprocess.DEVNULL, env=plain, **_TEXT
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str:
    # The module knows its local part ("+cu128") even where its metadata does not.
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded:
        return str(loaded)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


@cache
def cpu_name() -> str:
    """The processor's name as its maker gives it, or the kind of machine where that cannot be had."""
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, check=False, capture_output=True, timeout=20, **_TEXT)
            name = done.stdout.strip()
        else:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except (OSError, subprocess.SubprocessError):
        name = ""
    return name or platform.processor() or platform.machine() or UNKNOWN


def _torch_on(device: str) -> Any:
    """torch if it is loaded and ``device`` is a GPU that it sees; importing it here would cost seconds."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and str(device).startswith("cuda") and torch.cuda.is_available() else None


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, in seconds, user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak_memory_bytes(device: str) -> int:
    """Peak memory of this process so far, in bytes: allocated by torch on a GPU, resident set on a CPU."""
    torch = _torch_on(device)
    if torch:
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes
