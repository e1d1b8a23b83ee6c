"""How cost grows: time with episodes and with shots, memory with the size of the data set.

Each measurement is a process of its own, so that its peak memory is its own: ``python -m crnet.bench.scaling JSON``.
"""

import json
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from crnet.bench import stages
from crnet.bench.inputs import Inputs, Options
from crnet.bench.stage_jobs import run
from crnet.bench.timing import Work, memory_of, peak_bytes, reset_peak, timed
from crnet.runtime.files import readable
from crnet.runtime.machine import configure

FACTORS, SHOTS = (1, 2, 4), (2, 5, 10)
# Where memory is measured, embedded photos kept and episodes predicted in one go: few, so that all sizes fill both.
POOL_BYTES, TOGETHER = 16 << 20, 8
PHOTOS = 80  # test photos where shots are many: eleven of a class are needed
LINEAR, FLAT = 1.15, 1.10  # a cost per unit that grows by less is linear; a peak that does, flat


def scaling(options: Options) -> list[dict]:
    """Measurements by kind: name, unit, and for each size its seconds and peak; ``holds`` says what was to be shown."""
    found = []
    for kind, unit, sizes in (
        ("evaluation with episodes", "episodes", [options.episodes // 4 * factor for factor in FACTORS]),
        ("finetuning with shots", "shots", list(SHOTS)),
        ("memory of evaluation with data", "photos", [options.test_photos * factor for factor in FACTORS]),
        ("memory of training with data", "photos", [options.train_photos * factor for factor in FACTORS]),
    ):
        points = [{"size": size, **_apart(kind, size, options)} for size in sizes]
        found.append({"kind": kind, "unit": unit, "points": points, **_verdict(kind, points)})
    return found


def _apart(kind: str, size: int, options: Options) -> dict:
    """Measure in a new process."""
    job = json.dumps({"kind": kind, "size": size, "options": asdict(options)})
    return json.loads(run([sys.executable, "-m", "crnet.bench.scaling", job]).splitlines()[-1])


def _verdict(kind: str, points: list[dict]) -> dict:
    first, last = points[0], points[-1]
    if kind.startswith("memory"):
        growth = max(point["anonymous_bytes"] for point in points) / first["anonymous_bytes"]
        return {"growth": growth, "holds": growth <= FLAT, "of": "in all", "text": "flat"}
    growth = (last["seconds"] / first["seconds"]) / (last["size"] / first["size"])
    return {"growth": growth, "holds": growth <= LINEAR, "of": "times as much as its size", "text": "at most linear"}


def describe(found: list[dict]) -> list[str]:
    """A line a point, then whether the kind of growth is what it should be."""
    lines = []
    for each in found:
        for point in each["points"]:
            memory = f"{readable(point['peak_bytes'])}, {readable(point['anonymous_bytes'])} without mapped files"
            lines.append(f"{each['kind']}, {point['size']} {each['unit']}: {point['seconds']:.1f} s; peak {memory}")
        verdict = "met" if each["holds"] else "missed"
        lines.append(f"{each['kind']}: grew {each['growth']:.2f} {each['of']}; target {each['text']}: {verdict}")
    return lines


def _peak_without_files(over: threading.Event) -> int:
    """The peak, until ``over``, of the memory that is the process's own: pages of files that are mapped may go."""
    peak = 0
    while not over.is_set():
        peak = max(peak, memory_of(Path("/proc/self/status").read_text(encoding="utf-8"), "RssAnon"))
        over.wait(0.02)
    return peak


def measure(kind: str, size: int, options: Options) -> dict:
    """One point, in this process."""
    changes = {
        "evaluation with episodes": {"episodes": size},
        "finetuning with shots": {"test_photos": PHOTOS},
        "memory of evaluation with data": {"test_photos": size, "episodes": size},
        "memory of training with data": {"train_photos": size},
    }
    options, over = replace(options, **changes[kind]), threading.Event()
    with tempfile.TemporaryDirectory(prefix="crnet-bench-") as folder, ThreadPoolExecutor(1) as watcher:
        work = _work(kind, size, Inputs(options, Path(folder)))
        reset_peak(options.device)
        own = watcher.submit(_peak_without_files, over)
        try:
            seconds, units = timed(work, options.device)
        finally:
            over.set()
        found = {"peak_bytes": peak_bytes(options.device), "anonymous_bytes": own.result()}
    return {"seconds": seconds, "units": units, **found}


def _work(kind: str, size: int, inputs: Inputs) -> Work:
    options = inputs.options
    if kind == "finetuning with shots":
        episodes = inputs.episodes(1, max(SHOTS))
        return stages.finetune(stages.finetuner(inputs, size), episodes, options.steps)
    if kind == "memory of training with data":
        return stages.steps(inputs, inputs.training(**stages.ON_STORE))
    changes = {"refinements": 1} if kind.startswith("memory") else {}
    predictor = stages.predictor(inputs, 1, **changes)
    if kind.startswith("memory"):
        predictor.embedded.room, predictor.together = POOL_BYTES, TOGETHER
    return stages.evaluate(predictor, inputs.episodes(options.episodes, 1))


def main() -> None:
    job = json.loads(sys.argv[1])
    options = Options(**{**job["options"], "photo": tuple(job["options"]["photo"])})
    configure(options.device, options.threads)
    print(json.dumps(measure(job["kind"], job["size"], options)))


if __name__ == "__main__":
    main()
