"""A tiny study whose processes are killed at random moments, again and again, and what has to come out of it.

An undisturbed run in one folder; in another the same study, whose jobs or whole process tree are hit by SIGKILL and
SIGTERM and which is then started again, until it is finished. Both folders have to hold the same files.
"""

import contextlib
import hashlib
import json
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from statistics import fmean

import psutil
from snake import command, environment, snakemake

from crnet.runtime.files import canonical, read_csv, read_json, sha256_text

POLL_SECONDS = 0.03
PLAIN_SHARE = 0.15  # of an undisturbed run: a plain random moment is at most so long after the kill before
GRACE_SECONDS = 60.0  # from SIGTERM to the end; a job has 10 s, here on a machine that does much else
LONGEST_RUN_SECONDS = 600.0
KINDS = ("download", "extract", "convert", "pre-train", "features", "train", "trials", "evaluate", "finetune", "tables")
RENDERING = ("collect", "table", "claims", "k-shot", "losses", "page", "sheet")
NAMES = {"encoder": "pre-train", **dict.fromkeys(RENDERING, "tables")}  # of commands whose kind is called otherwise
# What is a time or a size in memory, or the digest of a file that holds one.
TIMES = {"started", "seconds", "cpu_seconds", "peak_memory_bytes", "images_per_second", "episodes_per_second",
         "mtime_ns", "choice_sha256"}  # fmt: skip
# Of a page, as Markdown and as HTML: the section on costs, and days.
PAGE_TIMES = re.compile(r"(## Cost\n|<h2[^>]*>Cost\b).*?(?=## |<h2)|\d{4}-\d\d-\d\d", re.DOTALL)


@dataclass
class Tally:
    """Kills by (kind of job, signal and aim): a kill of the whole tree counts for every job that was running."""

    hits: Counter = field(default_factory=Counter)
    kills: int = 0

    def missed(self) -> list[str]:
        hit = {kind for kind, _ in self.hits}
        return [kind for kind in KINDS if kind not in hit]

    def add(self, kinds: list[str], how: str) -> None:
        self.kills += 1
        self.hits.update((kind, how) for kind in kinds or ["no job"])

    def table(self) -> str:
        ways = sorted({how for _, how in self.hits})
        kinds = [*KINDS, *sorted({kind for kind, _ in self.hits} - set(KINDS))]
        lines = [["kind of job", *ways], *([kind, *(str(self.hits[kind, how]) for how in ways)] for kind in kinds)]
        return "\n".join("  ".join(cell.ljust(14) for cell in line).rstrip() for line in lines)


class Run:
    """One ``snakemake`` in a folder, in a session of its own; what it says is appended to ``<folder>.log``."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command(), cwd=folder, env=environment(), stdout=log, stderr=log, start_new_session=True
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self) -> int:
        return self.process.wait(LONGEST_RUN_SECONDS)

    def last_words(self) -> str:
        return self.log.read_text()[-4000:]


def say_again(folder: Path, *arguments: str) -> str:
    """What one more ``snakemake`` says; it has to succeed."""
    done = snakemake(folder, *arguments)
    assert done.returncode == 0, done.output
    return done.output


def at_work(folder: Path) -> list[psutil.Process]:
    """All processes at work in a folder, whoever their parents are or were."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it ended, or it is another user's
            if Path(process.cwd()) == folder:
                found.append(process)
    return found


def jobs(folder: Path) -> dict[psutil.Process, str]:
    """The running jobs and their kinds."""
    found = {}
    for process in at_work(folder):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if words[1:3] == ["-m", "crnet"] and words[4:5] not in (["watch"], ["follow"]):
                found[process] = _kind(words, folder)
    return found


def _kind(words: list[str], folder: Path) -> str:
    name = words[4] if words[3] == "job" else words[3]
    if name == "evaluate" and any(word.startswith("--choice") for word in words):
        return "finetune"
    if name == "prepare":
        extracted = Path(folder, words[words.index("--extracted") + 1])
        if any(extracted.glob(".*.extracting")):
            return "extract"
        return "convert" if len(list(extracted.glob("*"))) == 2 else "prepare"
    return NAMES.get(name, name)


def run_undisturbed(folder: Path) -> dict[str, float]:
    """Run the study to its end; returns how many seconds a job of each kind takes, and the whole ``study``."""
    started, seen = time.monotonic(), {}
    run = Run(folder)
    while run.running:
        now = time.monotonic()
        for process, kind in jobs(folder).items():
            seen.setdefault((process.pid, kind), [now, now])[1] = now
        time.sleep(POLL_SECONDS)
    assert run.wait() == 0, run.last_words()
    spans: dict[str, list[float]] = {"study": [time.monotonic() - started]}
    for (_, kind), (first, last) in seen.items():
        spans.setdefault(kind, []).append(last - first)
    return {kind: fmean(each) for kind, each in spans.items()}


class Chaos:
    """Kills, drawn from a seed: where the moments fall also depends on the machine."""

    def __init__(self, seed: int, kills: int, seconds: dict[str, float]):
        self.chance, self.kills, self.seconds = random.Random(seed), kills, seconds
        self.tally = Tally()

    def finish(self, folder: Path) -> None:
        """Run the study, killing it as long as kills are left, until it is finished."""
        while True:
            run, before = Run(folder), self.tally.kills
            while run.running and self.tally.kills < self.kills:
                self._strike(run)
            if run.wait() == 0:
                return
            assert self.tally.kills > before, f"it failed although nobody killed it:\n{run.last_words()}"
            if any((folder / ".snakemake/locks").glob("*")):
                say_again(folder, "--unlock")

    def _strike(self, run: Run) -> None:
        """One kill, unless the run ends before its moment."""
        name = self.chance.choice(["SIGKILL", "SIGTERM"])
        of_tree = self.chance.random() < 0.5
        # Every other kill is aimed at a kind of job that was not hit yet.
        if self.tally.kills % 2 == 0:
            aimed = self._wait_for_new(run)
        else:
            aimed = _wait(run, self.chance.uniform(0, PLAIN_SHARE * self.seconds["study"]))
        found = jobs(run.folder)
        if not run.running or not (of_tree or found):
            return
        started = time.monotonic()
        if of_tree:
            kinds = end_tree(run.folder, signal.Signals[name])
        else:
            job = aimed if aimed in found else self.chance.choice(sorted(found, key=attrgetter("pid")))
            kinds = [found[job]]
            # As the kernel does that is out of memory, or a machine that shuts down: Snakemake is left to see to it.
            _send(self.chance.choice(_doing(job, run.folder)), signal.Signals[name])
            job.wait(GRACE_SECONDS)
        how = f"{name} {'tree' if of_tree else 'job'}"
        self.tally.add(kinds, how)
        named, took = ", ".join(kinds) or "no job", time.monotonic() - started
        print(f"kill {self.tally.kills}: {how}: {named}, gone after {took:.1f} s", flush=True)

    def _wait_for_new(self, run: Run) -> psutil.Process | None:
        """Wait for a job of a kind that was not hit yet, if any is left, and then for a random part of its time."""
        wanted = self.tally.missed() or KINDS
        while run.running:
            for process, kind in jobs(run.folder).items():
                if kind in wanted:
                    _wait(run, self.chance.uniform(0, self.seconds.get(kind, 0.0)))
                    return process
            time.sleep(POLL_SECONDS)
        return None


def _wait(run: Run, seconds: float) -> None:
    end = time.monotonic() + seconds
    while run.running and time.monotonic() < end:
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))


def _doing(job: psutil.Process, folder: Path) -> list[psutil.Process]:
    """The processes that do a job, itself first: all that write into its log."""
    log = _log(job)
    return [
        job,
        *(p for p in sorted(at_work(folder), key=attrgetter("pid")) if p != job and log is not None and _log(p) == log),
    ]


def _log(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        return next((file.path for file in process.open_files() if file.fd == 1), None)


def end_tree(folder: Path, number: signal.Signals) -> list[str]:
    """Hit all processes in a folder and wait until none is left; returns the kinds of the jobs that were running."""
    kinds = sorted(jobs(folder).values())
    deadline = time.monotonic() + GRACE_SECONDS
    told: set[psutil.Process] = set()
    while left := at_work(folder):
        assert time.monotonic() < deadline, f"still there {GRACE_SECONDS:.0f} s after {number.name}: {left}"
        for process in left:
            if number == signal.SIGKILL or process not in told:
                told.add(process)
                _send(process, number)
        time.sleep(POLL_SECONDS)
    return kinds


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file in a folder, without the times in it; of logs and of MLflow's store the names alone."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        _named(file): "" if file.parts[0].startswith(("logs", "mlflow.db", "mlruns")) else _digest(folder / file)
        for file in files
        if file.parts[0] != ".snakemake"
    }


def _named(file: Path) -> str:
    """A run's artifacts lie under an id that MLflow draws: it is left out."""
    parts = file.parts
    return "/".join((parts[0], "RUN", *parts[2:]) if parts[0] == "mlruns" else parts)


def _digest(path: Path) -> str:
    if path.suffix in (".json", ".verified"):
        return sha256_text(canonical(_without_times(read_json(path))))
    if path.suffix == ".csv":
        return sha256_text(json.dumps([_without_times(row) for row in read_csv(path)]))
    if path.suffix in (".md", ".html"):
        return sha256_text(PAGE_TIMES.sub("", path.read_text(encoding="utf-8")))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def tracked(folder: Path) -> list[tuple]:
    """What MLflow holds: each run's key and status, and how many parameters and metrics it has."""
    query = """SELECT value, status, (SELECT count(*) FROM params AS p WHERE p.run_uuid = runs.run_uuid),
               (SELECT count(*) FROM metrics AS m WHERE m.run_uuid = runs.run_uuid)
               FROM runs JOIN tags USING (run_uuid) WHERE tags.key = 'crnet.key' AND lifecycle_stage = 'active'"""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store:
        return sorted(store.execute(query))
