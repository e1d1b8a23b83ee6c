"""Preemption: SIGTERM says that the machine is wanted back, so that a job saves its state and leaves."""

import signal
from typing import Self

STATUS = 128 + signal.SIGTERM  # 143, as a shell reports a process that SIGTERM ended


class Preempted(BaseException):
    """SIGTERM arrived and the state is saved: start the same command again to go on. No error that code may handle."""


class Notice:
    """Within it SIGTERM does not end the process, it sets ``given``; for the main thread.

    Args:
        interrupt: Also raise Preempted, once, wherever the main thread stands. For work that may be cut anywhere, of
            which a piece can take longer than the seconds that a notice leaves.
    """

    def __init__(self, interrupt: bool = False):
        self.interrupt, self.given = interrupt, False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _take(self, number: int, frame: object) -> None:
        first, self.given = not self.given, True
        if first and self.interrupt:
            raise Preempted("stopped by SIGTERM; start the same command again to go on.")
