"""How learning rates were chosen: again from what the index of runs says each reached, and from the stored logs."""

import json
from math import isclose

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger
from crnet.config.rates import best, rates_of

RATES = "training: the best learning rate was chosen"


def check_rates(folder: Folder, ledger: Ledger) -> None:
    """Of trainings that chose: all planned rates were tried, the best stayed, and the log is that of this one."""
    check, plan = ledger[RATES], folder.plan
    choosing = {name for name, spec in plan.trainings.items() if len(rates_of(spec)) > 1}
    ends = {line["run"]: line for line in folder.rows("training.csv") if line.get("run") in choosing}  # the last stays
    for number, row in enumerate(folder.rows("runs.csv"), 2):
        if row.get("kind") == "train" and row["run"] in choosing and row.get("status") != "failed":
            where = f"runs.csv, line {number}"
            try:
                _one(check, where, row, rates_of(plan.trainings[row["run"]]), ends.get(row["run"]))
            except UNREADABLE as error:
                check.differs(where, f"does not say how its rate was chosen ({type(error).__name__}: {error})")


def _one(check: Check, where: str, row: dict, rates: list[float], end: dict | None) -> None:
    trials = json.loads(row["choice.trials"])
    check.same(f"{where}, choice.trials", [trial["lr"] for trial in trials], rates, "the plan has the rates")
    for key, value in best(trials).items():
        check.same(f"{where}, choice.{key}", row[f"choice.{key}"], f"{value}", "the trials give")
    if end is None:
        check.differs("training.csv", f"has no line of {row['run']}")
        return
    reached = next(trial["base_miou"] for trial in trials if f"{trial['lr']}" == row["choice.lr"])
    fits = isclose(float(end["base_miou"]), reached, abs_tol=1e-9)
    check.judge(f"training.csv, {row['run']}", None if fits else f"ends at {end['base_miou']}, its trial at {reached}")
