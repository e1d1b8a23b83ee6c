"""How finetuning's settings were chosen: the best of the stored trials, all planned ones tried, no test class seen."""

import math
from collections.abc import Mapping

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, shown
from crnet.config import resolve
from crnet.config.settings import component
from crnet.runtime.files import read_csv, sha256_file

CHOICES = "finetuning: the best trial was chosen"


def check_choices(folder: Folder, ledger: Ledger) -> None:
    check = ledger[CHOICES]
    for name, choice in folder.tunings.items():
        where = folder.relative(choice["path"])
        try:
            _trials(check, folder, where, choice)
            _classes(check, where, choice)
        except UNREADABLE as error:
            check.differs(where, f"is not the choice of {name} ({type(error).__name__}: {error})")
    for about in folder.evaluations.values():
        if "finetune" in about["spec"]:
            _used(check, folder, about)


def _trials(check: Check, folder: Folder, where: str, choice: Mapping) -> None:
    path = choice["path"].with_name("trials.csv")
    trials_where = folder.relative(path)
    if not path.is_file():
        check.differs(trials_where, "is missing")
        return
    check.same(f"{where}, trials_sha256", choice["trials_sha256"], sha256_file(path), "trials.csv is")
    rows, settings = read_csv(path), choice["spec"]["finetune"]
    tried = sorted((float(row["lr"]), int(row["steps"])) for row in rows if int(row["steps"]))
    planned = sorted((float(lr), steps) for lr in settings["lr"] for steps in set(settings["steps"]))
    if tried != planned:
        check.differs(trials_where, f"has {len(tried)} trials of rate and steps, the study {len(planned)} others")
        return
    chosen = [row for row in rows if row["chosen"] == "1"]
    if len(chosen) != 1:
        check.differs(trials_where, f"marks {len(chosen)} trials as chosen, not one")
        return
    line = rows.index(chosen[0]) + 2
    for key in ("lr", "steps", "miou"):
        check.same(f"{where}, {key}", _text(choice[key]), _text(chosen[0][key]), f"trials.csv, line {line} has")
    finite = [row for row in rows if int(row["steps"]) and not math.isnan(float(row["miou"]))]
    best = max(finite, key=lambda row: float(row["miou"]))
    # Stored to four decimals, equals may have differed: which of them was chosen is not judged.
    better = float(chosen[0]["miou"]) < float(best["miou"])
    text = f"was chosen with mIoU {chosen[0]['miou']}, line {rows.index(best) + 2} has {best['miou']}"
    check.judge(f"{trials_where}, line {line}", text if better else None)


def _classes(check: Check, where: str, choice: Mapping) -> None:
    train = choice["spec"]["train"]
    tested = component("dataset", train["dataset"]["name"], where).class_names(train["dataset"])[train["fold"]]
    both = sorted(set(choice["classes"]) & set(tested))
    check.judge(where, f"was chosen on {both[0]}, which fold {train['fold']} tests" if both else None)


def _used(check: Check, folder: Folder, about: Mapping) -> None:
    """An evaluation used the choice that is stored for it."""
    where = folder.relative(about["path"])
    name = resolve.tuning_name(resolve.tuning_spec(about["spec"]))
    choice = folder.tunings.get(name)
    if choice is None:
        check.unknown(f"there is no readable finetune/{name}/choice.json")
        return
    check.same(f"{where}, choice_sha256", about.get("choice_sha256"), sha256_file(choice["path"]), "choice.json is")
    for key in ("lr", "steps"):
        expected = _text(choice.get(key))
        check.same(f"{where}, choice.{key}", _text(about.get("choice", {}).get(key)), expected, "choice.json has")


def _text(value: object) -> str:
    """A number as text that does not depend on how it was written."""
    try:
        return f"{float(value):.6g}"
    except (TypeError, ValueError):
        return shown(value)
