"""Training state that survives a kill: written whole, digested, the one before kept."""

import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch

from crnet.files import atomic_write

_DIGEST_BYTES = hashlib.sha256().digest_size


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain types) to ``path``; what was there becomes ``<path>.previous``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    if path.exists():
        os.replace(path, _previous(path))
    atomic_write(path, hashlib.sha256(payload).digest() + payload)


def load_state(path: Path) -> dict[str, Any] | None:
    """The newest whole state, or None where there is none; a damaged one is named on stderr and passed over."""
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        content = candidate.read_bytes()
        digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == digest:
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        print(f"{candidate}: damaged (its digest differs), the state before it is used", file=sys.stderr)
    return None


def remove_state(path: Path) -> None:
    for candidate in (path, _previous(path)):
        candidate.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")
