"""``crnet audit``: a published result folder, gone through for somebody who does not trust it.

What can be derived again is derived and compared: tables, claims and page from the stored counts, the index of runs
from the runs' own reports, episodes from the data, data and encoder digests from the files, counts of a few episodes
from the weights. What is only recorded is held against every other record of the same thing.

What it cannot find: results that are wrong in a consistent way, where counts, digests and tables were made up together
and neither weights nor data are at hand. With weights and data the sample finds them, at random.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from crnet.audit import at_hand, choices, counts, episodes, probed, published, rates, runs
from crnet.audit.folder import Folder, commits
from crnet.audit.ledger import Ledger

SAMPLE = "sample: episodes predicted again"
CHECKS = (
    *(*runs.CHECKS, *published.CHECKS, *counts.CHECKS, *episodes.CHECKS),
    *(*at_hand.CHECKS, choices.CHOICES, rates.RATES, *probed.CHECKS, SAMPLE),
)


def audit(
    results: Path,
    files: Sequence[Path] = (),
    works: Sequence[Path] = (),
    sample: int = 8,
    seed: int | None = None,
    device: str = "cpu",
    everything: bool = False,
) -> tuple[str, int]:
    """Check a study's results.

    Args:
        results: Its folder, e.g. ``results/demo``.
        files: The study's YAML files; without any, the one of the folder's name.
        works: Work folders with data, encoders and weights; without any, the study's own.
        sample: How many episodes to predict again; 0 does without torch.
        seed: Of the sample; None draws one, so that nobody can know it beforehand.
        everything: List every difference.

    Returns:
        What to print, and the number of differences.

    Raises:
        CrnetError: The folder or the study cannot be read.
    """
    folder = Folder(results, files, works)
    ledger = Ledger(CHECKS)
    seed = secrets.randbelow(2**31) if seed is None else seed
    runs.check_plan(folder, ledger)
    published.check_published(folder, ledger)
    at_hand.check_datasets(folder, ledger)  # says which data at hand the next ones may use
    tables = episodes.check_episodes(folder, ledger)
    counts.check_counts(folder, ledger, tables)
    at_hand.check_weights(folder, ledger)
    choices.check_choices(folder, ledger)
    rates.check_rates(folder, ledger)
    probed.check_probes(folder, ledger, tables)
    if sample:
        from crnet.audit.sample import check_sample  # imports torch

        check_sample(folder, ledger[SAMPLE], ledger.notes, tables, sample, seed, device)
    else:
        ledger[SAMPLE].unknown("not asked for (--sample 0)")
    study = folder.plan.study
    head = [
        f"study    {study.study}: {study.title}",
        f"results  {results}, made by commit {commits(folder.evaluations.values()) or 'unknown'}",
        f"work     {', '.join(at.work for at in folder.layouts)}",
    ]
    if sample:
        head.append(f"sample   {sample} episodes, --seed {seed}")
    return "\n".join(head) + "\n\n" + ledger.text(everything), ledger.differences
