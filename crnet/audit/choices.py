"""How finetuning was chosen: again from the trials' counts, all planned ones tried, no class of the fold among them."""

from collections.abc import Mapping
from dataclasses import asdict

from crnet.audit.folder import Folder
from crnet.audit.ledger import UNREADABLE, Check, Ledger, shown
from crnet.config import tuning
from crnet.config.settings import component
from crnet.config.tuning import CHOSEN
from crnet.data.episodes import NOVEL
from crnet.evaluation.choice import best_trial, pooled, tested, verdict
from crnet.runtime.files import read_csv, sha256_file

CHOICES = "finetuning: the best trial was chosen"


def check_choices(folder: Folder, ledger: Ledger) -> None:
    check = ledger[CHOICES]
    kinds = ((folder.trials, _trials, "are not the trials of"), (folder.choices, _choice, "is not the choice of"))
    for reports, examine, problem in kinds:
        for name, report in reports.items():
            where = folder.relative(report["path"])
            try:
                examine(check, folder, where, report)
            except UNREADABLE as error:
                check.differs(where, f"{problem} {name} ({type(error).__name__}: {error})")
    for about in folder.evaluations.values():
        if "finetune" in about["spec"]:
            _used(check, folder, about)


def _rows(report: Mapping) -> list[dict[str, str]]:
    return read_csv(report["path"].with_name("trials.csv"))


def _trials(check: Check, folder: Folder, where: str, report: Mapping) -> None:
    """Every planned trial took the same episodes, of classes that it was to take."""
    path = report["path"].with_name("trials.csv")
    file = folder.relative(path)
    if not path.is_file():
        check.differs(file, "is missing")
        return
    check.same(f"{where}, trials_sha256", report["trials_sha256"], sha256_file(path), "trials.csv is")
    rows, spec = _rows(report), report["spec"]
    settings, train = spec["finetune"], spec["train"]
    episodes = {(row["episode"], row["class"]) for row in rows}
    steps = sorted(set(settings["steps"]))
    tried = [(0.0, 0), *((float(lr), count) for lr in set(settings["lr"]) for count in steps)]
    planned = sorted((lr, count, *episode) for lr, count in tried for episode in episodes)
    there = sorted((float(row["lr"]), int(row["steps"]), row["episode"], row["class"]) for row in rows)
    fits = there == planned and len(episodes) == settings["trial_episodes"]
    check.judge(file, None if fits else f"is not {len(tried)} trials on {settings['trial_episodes']} episodes")
    splits = component("dataset", train["dataset"]["name"], where).splits(train["dataset"])
    names = {splits.classes[int(row["class"]) - 1] for row in rows}
    check.same(f"{where}, classes", sorted(report["classes"]), sorted(names), "trials.csv has")
    own, novel = set(tested(train)), spec["trial_classes"] == NOVEL
    if wrong := sorted(names - own if novel else names & own):
        does = "does not test" if novel else "tests"
        check.differs(file, f"has {wrong[0]}, which fold {train['fold']} {does}")


def _choice(check: Check, folder: Folder, where: str, choice: Mapping) -> None:
    """It is the one that the trials' counts give, and no class that its fold tests took part."""
    spec = choice["spec"]
    names = [tuning.trials_name(each) for each in tuning.trials_specs(spec)]
    if lacking := [name for name in names if name not in folder.trials]:
        check.unknown(f"there is no readable finetune/{lacking[0]}/trials.json")
        return
    reports = [folder.trials[name] for name in names]
    classes = {name for report in reports for name in report["classes"]} | set(choice["classes"])
    both = sorted(classes & set(tested(spec["train"])))
    check.judge(where, f"was chosen on {both[0]}, which fold {spec['train']['fold']} tests" if both else None)
    digests = {name: sha256_file(folder.trials[name]["path"].with_name("trials.csv")) for name in names}
    check.same(f"{where}, trials_sha256", choice["trials_sha256"], digests, "the trials.csv are")
    trials = pooled(row for report in reports for row in _rows(report))
    expected = {
        **verdict(trials, best_trial(trials)),
        "tried_on": reports[0]["tried_on"],
        "folds": [report["spec"]["train"]["fold"] for report in reports],
        "classes": sorted({name for report in reports for name in report["classes"]}),
        "trials": [asdict(trial) for trial in trials],
    }
    for key, value in expected.items():
        check.same(f"{where}, {key}", choice[key], value, "the trials' counts give")


def _used(check: Check, folder: Folder, about: Mapping) -> None:
    """An evaluation used the choice that is stored for it."""
    where = folder.relative(about["path"])
    name = tuning.choice_name(tuning.choice_spec(about["spec"]))
    choice = folder.choices.get(name)
    if choice is None:
        check.unknown(f"there is no readable finetune/{name}/choice.json")
        return
    check.same(f"{where}, choice_sha256", about.get("choice_sha256"), sha256_file(choice["path"]), "choice.json is")
    for key in CHOSEN:
        expected = _text(choice.get(key))
        check.same(f"{where}, choice.{key}", _text(about.get("choice", {}).get(key)), expected, "choice.json has")


def _text(value: object) -> str:
    """A number as text that does not depend on how it was written."""
    try:
        return f"{float(value):.6g}"
    except (TypeError, ValueError):
        return shown(value)
