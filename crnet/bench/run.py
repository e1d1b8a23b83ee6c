"""The bench from its first line to its last."""

import tempfile
from pathlib import Path

from crnet.bench import report, stage_jobs, stages
from crnet.bench.inputs import Inputs, Options
from crnet.bench.scaling import describe, scaling
from crnet.bench.timing import measure_ceiling
from crnet.errors import CrnetError
from crnet.runtime import provenance
from crnet.runtime.files import atomic_write, require_writable, write_json
from crnet.runtime.machine import configure

STAGES = ("data", "encoder", "training", "evaluation", "finetuning", "jobs")


def bench(
    options: Options,
    chosen: tuple[str, ...] = (),
    with_scaling: bool = False,
    json: Path | None = None,
    markdown: Path | None = None,
) -> None:
    """Measure and print the table for a terminal.

    Args:
        chosen: Of ``STAGES``; none given: all of them.
        with_scaling: Also how cost grows; minutes more.
        json, markdown: Where to write the same for machines, and for docs/performance.md.

    Raises:
        CrnetError: A stage, the device or the encoder is not there, a file cannot be written, which is found before
            anything is measured, or a fast way's results are not the plain one's.
    """
    if unknown := set(chosen) - set(STAGES):
        raise CrnetError(f"bench: has no stage {min(unknown)!r}; known: {', '.join(STAGES)}.")
    for path in filter(None, (json, markdown)):
        require_writable(path)
    configure(options.device, options.threads)
    origin = provenance.record(options.device, options.threads)
    ceilings = [measure_ceiling(options.device, options.precision, options.seconds)]
    if options.dtype != "float32":
        ceilings.append(measure_ceiling(options.device, "float32", options.seconds))
    with tempfile.TemporaryDirectory(prefix="crnet-bench-") as folder:
        inputs = Inputs(options, Path(folder))
        work = {
            "data": lambda: stages.data(inputs),
            "encoder": lambda: stages.encoder(inputs),
            "training": lambda: stages.training(inputs, ceilings[0]),
            "evaluation": lambda: stages.evaluation(inputs),
            "finetuning": lambda: stages.finetuning(inputs),
            "jobs": lambda: stage_jobs.jobs(inputs),
        }
        rows: list[report.Row] = []
        for name in STAGES:
            if not chosen or name in chosen:
                print(f"measuring {name}", flush=True)
                rows += work[name]()
    grown = scaling(options) if with_scaling else []
    lines = report.about(options, origin, ceilings)
    text = report.terminal(lines, rows, ceilings[0])
    if grown:
        text += "\n\n" + "\n".join(describe(grown))
    print(text, flush=True)  # first, so that nothing measured is lost with a file
    if json:
        write_json(json, report.machine(options, origin, ceilings, rows, grown))
    if markdown:
        table = report.markdown(lines, rows, ceilings[0])
        atomic_write(markdown, table + "".join(f"- {line}\n" for line in describe(grown)))
