"""Training state that survives a kill: written whole, digested, the one before kept. No code is unpickled."""

import contextlib
import glob
import hashlib
import io
import json
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write, canonical, sha256_text
from crnet.runtime.ownership import SUFFIX, Owner

_DIGEST_BYTES = hashlib.sha256().digest_size
_START_OVER = "move it away to start from the beginning"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain types) to ``path``; what was there becomes ``<path>.previous``.

    The disk has to hold three states for a moment: the new one is whole before either of the others is touched.

    Raises:
        CrnetError: it cannot be written; both states that were there are untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    atomic_write(path, hashlib.sha256(payload).digest() + payload, keep=_previous(path))


def save_json(path: Path, value: dict[str, Any]) -> None:
    """As ``save_state``, for values that JSON can hold: a JSON file with its own digest."""
    atomic_write(path, json.dumps({**value, "digest": sha256_text(canonical(value))}), keep=_previous(path))


def load_state(path: Path) -> dict[str, Any] | None:
    """The newest whole state, or None where there is none; a damaged one is named on stderr and passed over.

    Raises:
        CrnetError: a state that cannot be read, or that holds more than tensors and plain types.
    """
    return _newest(path, _unpacked)


def load_json(path: Path) -> dict[str, Any] | None:
    """As ``load_state``, for what ``save_json`` wrote."""
    return _newest(path, _from_json)


def _newest(path: Path, read: Callable[[Path, bytes], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The first of the state and the one before it that ``read`` makes sense of."""
    damaged = False
    for candidate in (path, _previous(path)):
        try:
            content = candidate.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CrnetError(f"{candidate}: the state cannot be read ({error.strerror}); {_START_OVER}.") from error
        state = read(candidate, content)
        if state is not None:
            return state
        damaged = True
        print(f"{candidate}: damaged (its digest differs), it is passed over", file=sys.stderr, flush=True)
    if damaged:
        print(f"{path}: no whole state is left, the work starts from the beginning", file=sys.stderr, flush=True)
    return None


def _unpacked(path: Path, content: bytes) -> dict[str, Any] | None:
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        what = "holds more than tensors and plain values, which may be code, so that it is not loaded"
        raise CrnetError(f"{path}: {what}; {_START_OVER}.") from error


def _from_json(path: Path, content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
        digest = value.pop("digest")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return value if digest == sha256_text(canonical(value)) else None


def remove_state(path: Path) -> None:
    """Remove the state, the one before it, what a kill in the middle of a write left of them, and its owner's name."""
    owner = path.with_name(path.name + SUFFIX)
    for left in (path, _previous(path), *path.parent.glob(f".{glob.escape(path.name)}.*"), owner):
        left.unlink(missing_ok=True)


@contextlib.contextmanager
def written_by(owner: Owner) -> Iterator[None]:
    """Around a write of the owner's state: where another copy has finished meanwhile, nothing of it is left.

    Raises:
        CrnetError: It has, also where that is why the write failed: half a file was taken away.
    """
    try:
        yield
    except CrnetError:
        owner.check()
        raise
    if owner.is_over:
        remove_state(owner.state)
        owner.check()


def is_finite(value: Any) -> bool:
    """Whether all tensors within nested mappings and lists are finite."""
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, list | tuple) else True


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")
