"""Which learning rates were tried for each row, what they reached on base classes, and how often each was chosen."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean

from crnet.report.runs import Labels, in_order, label_of
from crnet.report.tables.markdown import grid


def render_rates(lines: Sequence[Mapping[str, str]], labels: Labels) -> list[str]:
    """Paragraphs from the rows of ``runs.csv``; none where no training had a rate to choose.

    ``labels``: what runs are called, as ``crnet.config.study.page_job`` has it.
    """
    chosen = [line for line in lines if line["kind"] == "train" and line.get("choice.trials")]
    if not chosen:
        return []
    label = label_of(labels)
    trials = [(label(line), float(line["choice.lr"]), json.loads(line["choice.trials"])) for line in chosen]
    rates = sorted({trial["lr"] for _, _, tried in trials for trial in tried})
    rows = [["Row", *(f"{rate:g}" for rate in rates)]]
    for name in in_order((name for name, _, _ in trials), labels):
        own = [(rate, tried) for row, rate, tried in trials if row == name]
        times = Counter(rate for rate, _ in own)
        rows.append([name, *(_cell(rate, [tried for _, tried in own], times[rate]) for rate in rates)])
    ends = Counter(line["choice.edge_lr"] for line in chosen if line["choice.edge_lr"])
    said = [f"the {end} {number} times" if number > 1 else f"the {end} once" for end, number in ends.items()]
    ended = (
        f" In {sum(ends.values())} of {len(chosen)} trainings that is an end of what was tried ({', '.join(said)}), "
    )
    return [
        "Each training tried every rate with its whole budget, from the same weights and on the same episodes, and the "
        "one stayed that was best at the fold's base classes after its last step, in training photos: no class that "
        "the fold tests took part." + (f"{ended}and there may be better beyond." if said else ""),
        grid(rows, ["l", *("r" for _ in rates)]),
        "Base-class mIoU in percent, mean over folds and seeds; behind it how many trainings chose the rate. "
        "“diverged”: at least one did.",
    ]


def _cell(rate: float, tried: Sequence[Sequence[Mapping]], times: int) -> str:
    reached = [trial["base_miou"] for trials in tried for trial in trials if trial["lr"] == rate]
    if not reached:
        return ""
    value = "diverged" if None in reached else f"{100 * mean(reached):.1f}"
    return f"{value} ({times} of {len(tried)})" if times else value
