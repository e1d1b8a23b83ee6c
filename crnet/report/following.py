"""The trainings of a study that is being run, in MLflow while they run; in a process of its own, as MLflow is slow.

The store is brought to what the trainings' logs say now and then. An interrupted study leaves its trainings there as
KILLED, or as RUNNING if this process was killed too; the next run goes on with them, and at the end
:func:`crnet.report.tracking.sync` completes them.
"""

import math
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from crnet.config.layout import Layout
from crnet.config.resolve import Plan
from crnet.report.tracked import records
from crnet.report.tracking import import_mlflow, in_experiments, make_store, opened, reason, store_uri
from crnet.report.under_way import trainings
from crnet.runtime import work_lock

EVERY, POLL = 30.0, 2.0  # seconds between two looks at the logs, and until it is noticed that the study has ended
AGAIN = 300.0  # seconds from a look that failed: a server that hangs is not asked, and waited for, all the time
BUSY_SECONDS = 2.0  # for an SQLite file that others have locked: the end of a study may wait for this process
NICENESS = 10


def follow(plan: Plan) -> None:
    """Keep the store of this folder or of the environment at the trainings' logs until standard input closes.

    Call it in the folder of the study, when its work folder is claimed. Nothing that is wrong with the store raises or
    stops it: it is said once on stderr, and tried again.
    """
    os.nice(NICENESS)
    following = _Following(plan, store_uri(Path.cwd()))
    due = 0.0
    for now in _ticks():
        if now >= due:
            due = now + (EVERY if following.bring_to_date() else AGAIN)
    following.end()


def _ticks() -> Iterator[float]:
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    while not told and not select.select([sys.stdin], [], [], POLL)[0]:
        yield time.monotonic()


class _Following:
    """What of a study's trainings the store shows."""

    def __init__(self, plan: Plan, uri: str):
        self.plan, self.uri = plan, uri
        layout = Layout(plan)
        self._claim = Path(layout.work, work_lock.NAME)
        self._tracked = Path(layout.work, "tracked", f"{plan.study.study}.txt")
        self._since = self._claim.stat().st_mtime
        self._shown: object = None
        self._warned = False

    def bring_to_date(self) -> bool:
        """Show what there is; returns whether that could be done."""
        return self._show(self._since)

    def end(self) -> None:
        """Leave what is not finished as killed, unless the next run has begun or all was shown by the last job."""
        if self._claim.stat().st_mtime != self._since:
            return
        if self._tracked.is_file() and self._tracked.stat().st_mtime >= self._since:
            return
        self._show(math.inf)

    def _show(self, since: float) -> bool:
        try:
            found = trainings(self.plan, since)
            if found == self._shown:
                return True
            import_mlflow()  # before others have to wait for it
            make_store(self.uri)  # early: whoever wants to watch will open it soon
            study = self.plan.study.study
            by_experiment = in_experiments(records(*found, study, self.plan, "its logs"), study)
            begun = {n: ours for n, ours in by_experiment.items() if any(each.status != "SCHEDULED" for each in ours)}
            if begun:
                with opened(self.uri, BUSY_SECONDS) as experiment_of:
                    for name, ours in begun.items():
                        experiment_of(name).bring_to(ours)
            self._shown = found
        except Exception as error:
            if not self._warned:
                sentence = (
                    f"MLflow does not show the trainings under way ({reason(error)}); they go on, it is tried again"
                )
                print(f"warning: {sentence}.", file=sys.stderr, flush=True)
            self._warned = True
            return False
        return True
