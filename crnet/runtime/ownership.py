"""Whose a job's state is, where two copies of the job run: the one that began last; the other leaves.

A node that a cluster takes for dead may still be at work when its job is started again elsewhere. No lock tells the
two apart: the dead one's may stay for ever, and on many shared file systems ``flock`` holds within one machine only. So
each copy writes its name beside the state when it starts, which needs no more of a file system than whole renames, and
looks for its own name before it keeps anything.
"""

import json
import os
import uuid
from pathlib import Path

from crnet.errors import CrnetError
from crnet.runtime.files import atomic_write

SUFFIX = ".owner"


class Owner:
    """A copy of a job, and the state that it may be the owner of.

    Args:
        state: The job's state; None keeps nothing, and has no owner.
    """

    def __init__(self, state: Path | None):
        self.state, self._name = state, ""

    @property
    def _path(self) -> Path:
        return self.state.with_name(self.state.name + SUFFIX)

    def take(self) -> None:
        """Make the state this copy's, whoever had it; before it is read.

        Raises:
            CrnetError: it cannot be written.
        """
        if self.state is not None:
            job = os.environ.get("SLURM_JOB_ID")
            where = f"process {os.getpid()} on {os.uname().nodename}" + (f", SLURM job {job}" if job else "")
            self._name = json.dumps({"copy": uuid.uuid4().hex, "where": where})
            atomic_write(self._path, self._name)

    def check(self) -> None:
        """Before anything is kept: a state or a result.

        Raises:
            CrnetError: another copy began after this one; or has finished, so that nobody's name is there.
        """
        if not self._name:
            return
        try:
            found = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            found = ""
        if found != self._name:
            other = f"another copy of this job has begun ({json.loads(found)['where']})" if found else ""
            what = other or "another copy of this job has finished, or its folder was removed"
            raise CrnetError(f"{self.state}: {what}; this one leaves, and has changed nothing since.")

    @property
    def is_over(self) -> bool:
        """Whether another copy has finished meanwhile: a state that this one has just written is nobody's."""
        return bool(self._name) and not self._path.exists()

    def leave(self) -> None:
        """Take this copy's name away, where it has kept nothing; another's stays."""
        if self._name and self._path.is_file() and self._path.read_text(encoding="utf-8") == self._name:
            self._path.unlink(missing_ok=True)
