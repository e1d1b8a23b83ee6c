"""What the methods of a study cost beside each other: weights that are learnt, time of a test episode, memory."""

from collections.abc import Mapping, Sequence
from statistics import median

from crnet.report.runs import SECOND_READING, Labels, in_order, label_of
from crnet.report.tables.markdown import grid

FEWEST = 3  # methods with weights; of fewer, the section on cost says enough


def render_methods(lines: Sequence[Mapping[str, str]], labels: Labels) -> list[str]:
    """Paragraphs from the rows of ``runs.csv``, a line for each row that trains; none where few methods do.

    ``labels``: what runs are called, as ``crnet.config.study.page_job`` has it.
    """
    trained = [line for line in lines if line["kind"] == "train" and line["status"] == "finished"]
    if len({line["method"] for line in trained}) < FEWEST:
        return []
    label = label_of(labels)
    fused = [line for line in lines if line["kind"] == "evaluate" and line.get("evaluate.strategy") == "fusion"]
    fused = [line for line in fused if not line["run"].endswith(SECOND_READING)]
    shots = sorted({int(line["shots"]) for line in fused})
    rows = [["Row", "Weights learnt", *(f"ms an episode, {k}-shot" for k in shots), "Peak memory, MiB"]]
    for name in in_order(map(label, trained), labels):
        runs = {line["run"] for line in trained if label(line) == name}
        own = [line for line in fused if line["train_run"] in runs]
        weights = median(int(line["parameters"]) for line in trained if line["run"] in runs)
        peak = max((int(line["peak_memory_bytes"]) for line in own if line["peak_memory_bytes"]), default=0)
        rows.append([name, f"{weights:,.0f}", *(_milliseconds(own, k) for k in shots), f"{peak / 2**20:,.0f}"])
    return [
        grid(rows, ["l", *("r" for _ in rows[0][1:])]),
        "Milliseconds: median over folds and seeds of what a job took for an episode, reading and counting too, "
        "beside whatever else ran; where maps are cached the encoder is left out. Memory: of the process that "
        "predicts, the most of all runs, mapped files among it.",
    ]


def _milliseconds(lines: Sequence[Mapping[str, str]], shots: int) -> str:
    speeds = [float(line["episodes_per_second"]) for line in lines if line["shots"] == str(shots)]
    return f"{1000 / median(speeds):,.0f}" if speeds else ""
