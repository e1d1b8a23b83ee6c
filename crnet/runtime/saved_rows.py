"""Rows of a long job, saved now and then and at SIGTERM for a run that goes on after a kill."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from crnet.runtime.checkpoint import load_json, remove_state, save_json, written_by
from crnet.runtime.files import canonical, sha256_text
from crnet.runtime.ownership import Owner
from crnet.runtime.preemption import Notice, Preempted
from crnet.runtime.provenance import cpu_seconds

SAVE_SECONDS = 60.0  # a killed job repeats at most this much


class SavedRows:
    """The rows so far. Within it they are saved every ``SAVE_SECONDS``, at SIGTERM and at any error.

    Whoever makes the rows appends each when all of it is done: SIGTERM cuts the work anywhere.

    Raises:
        CrnetError: Another copy of the job has begun after this one: at a save, and at its end.
        Preempted: At its end, if SIGTERM arrived; the rows are saved.
    """

    def __init__(
        self,
        state: Path | None,  # where they are kept, as digested JSON; None keeps nothing
        identity: Any,  # all that the rows depend on; those kept under another identity are passed over
        units: str,  # what the rows are of, e.g. "episodes", for messages
        together: int = 1,  # so many rows are made in one go; those of a go that is not whole are made again
        before_save: Callable[[], None] = lambda: None,  # e.g. brings to the disk what the rows speak of
    ):
        self.state, self.units, self._before_save = state, units, before_save
        self.identity = sha256_text(canonical(identity))
        self.rows: list[Any] = []  # in order; what JSON can hold
        before = cpu = 0.0
        self._owner = Owner(state)
        self._owner.take()
        kept = None if state is None else load_json(state)
        if kept is not None and kept["identity"] == self.identity:
            self.rows, before, cpu = kept["rows"], kept["seconds"], kept.get("cpu_seconds", 0.0)
            del self.rows[len(self.rows) // together * together :]
            print(f"going on with {self._done()}", flush=True)
        self._started, self._cpu = time.monotonic() - before, cpu_seconds() - cpu
        self._saved = time.monotonic()
        self._notice = Notice(interrupt=True)

    @property
    def seconds(self) -> float:
        """Spent so far, also before a kill."""
        return time.monotonic() - self._started

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the process and its children, likewise."""
        return cpu_seconds() - self._cpu

    def __enter__(self) -> Self:
        self._notice.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._owner.check()  # results are written next
            elif self.rows:
                self._save()
            else:
                self._owner.leave()
        finally:
            self._notice.__exit__()
        if isinstance(error, Preempted):
            kept = f"they are in {self.state}" if self.state and self.rows else "nothing is kept"
            raise Preempted(f"stopped by SIGTERM with {self._done()}; {kept}.") from None

    def add(self, row: Any) -> None:
        self.rows.append(row)
        if self._notice.given:  # what was raised then met code that may not raise
            raise Preempted
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def remove(self) -> None:
        """Forget the rows: the job's result is written."""
        if self.state is not None:
            remove_state(self.state)

    def _save(self) -> None:
        if self.state is not None:
            self._owner.check()
            self._before_save()
            spent = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
            with written_by(self._owner):
                save_json(self.state, {"identity": self.identity, "rows": self.rows, **spent})
        self._saved = time.monotonic()

    def _done(self) -> str:
        return f"{len(self.rows)} of its {self.units} done"
