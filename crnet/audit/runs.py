"""The runs of a plan against the folders that are there: none missing, none published besides, same settings."""

from contextlib import suppress

from crnet.audit.folder import Folder, commits
from crnet.audit.ledger import UNREADABLE, Check, Ledger
from crnet.config import resolve, sources, tuning
from crnet.config.probe import FOLDER, probe_name
from crnet.runtime.files import canonical

CHECKS = PRESENT, STRAY, SPECIFICATION = (
    "runs: those of the plan are there",
    "runs: no other is published",
    "runs: settings are the plan's",
)


def check_plan(folder: Folder, ledger: Ledger) -> None:
    for file, reason in folder.broken.items():
        ledger[PRESENT].differs(file, reason)
    _present(folder, ledger)
    _stray(folder, ledger[STRAY])
    _specifications(folder, ledger[SPECIFICATION])
    _sources(folder, ledger)


def _sources(folder: Folder, ledger: Ledger) -> None:
    """No difference, as results need not be of the present version; but who reads them has to know."""
    runs = []
    for report in folder.reports.values():
        with suppress(*UNREADABLE):  # said by the check of settings
            runs.append(sources.used(report))
    ledger.notes += [f"WARNING: {text}." for text in sources.changed(runs, sources.present(runs))]


def _present(folder: Folder, ledger: Ledger) -> None:
    plan, check = folder.plan, ledger[PRESENT]
    cells: dict[str, str] = {}
    for cell in plan.cells:
        text = f"{cell.table}, {cell.row}, {cell.shots}-shot, fold {cell.fold}, seed {cell.seed}"
        cells.setdefault(cell.evaluation, text)
    for name in plan.evaluations:
        if name in folder.evaluations:
            check.ok()
        elif (training := resolve.training_name(plan.evaluations[name]["train"])) in folder.failed:
            check.unknown(f"the training failed: {folder.failed[training]}")
        elif (file := folder.where(name)) not in folder.broken:
            check.differs(file, f"is missing; the study has it for {cells[name]}")
    for planned, there, last, use in (
        (plan.trials, folder.trials, "finetune/{}/trials.json", "finetunes with it"),
        (plan.choices, folder.choices, "finetune/{}/choice.json", "finetunes with it"),
        (plan.probes, folder.probes, f"{FOLDER}/{{}}/probe.json", "probes that row"),
    ):
        for name, spec in planned.items():
            if name in there:
                check.ok()
            elif planned is plan.probes and (training := resolve.training_name(spec["train"])) in folder.failed:
                check.unknown(f"the training failed: {folder.failed[training]}")
            elif (file := last.format(name)) not in folder.broken:
                check.differs(file, f"is missing; the study {use}")
    if folder.evaluations and not set(plan.evaluations) & set(folder.evaluations):
        planned, there = len(plan.evaluations), len(folder.evaluations)
        ledger.notes += [
            f"None of the {planned} evaluations of the study's plan is here, but {there} others: the results are of "
            "another version of the study or of crnet. To audit them, check out the commit that made them, "
            f"{commits(folder.evaluations.values())}, or give the study's file of that time with --configfile."
        ]


def _stray(folder: Folder, check: Check) -> None:
    """A folder that the plan does not name may lie there, as long as nothing that is published comes from it."""
    results, plan, at = folder.results, folder.plan, folder.layout
    named = {*map(at.evaluation, plan.evaluations), *map(at.finetuning, [*plan.trials, *plan.choices])}
    named |= set(map(at.probe, plan.probes))
    named |= {at.episodes(evaluation) for evaluation in plan.evaluations.values()}
    found = [path for kind in ("evaluate", "finetune", FOLDER) for path in (results / kind).glob("*") if path.is_dir()]
    found += (results / "episodes").glob("*.csv")
    if strays := sorted(folder.relative(path) for path in found if str(path) not in named):
        more = f" and {len(strays) - 2} more" if len(strays) > 2 else ""
        check.unknown(f"not in the plan, and no table is made from it: {', '.join(strays[:2])}{more}", len(strays))
    planned = {*plan.trainings, *plan.trials, *plan.choices, *plan.evaluations}
    for line, row in enumerate(folder.rows("runs.csv"), 2):
        run = str(row.get("run"))
        there = run.removesuffix("+fusion") in planned
        check.judge(f"runs.csv, line {line}", None if there else f"holds the run {run!r}, which the plan has not")
    tables = {f"{name}.{kind}" for name in plan.tables for kind in ("csv", "md", "tex")}
    for path in sorted((results / "tables").glob("*")):
        check.judge(folder.relative(path), None if path.name in tables else "is no table of the study")


def _specifications(folder: Folder, check: Check) -> None:
    kinds = (
        (folder.evaluations, folder.plan.evaluations, resolve.evaluation_name),
        (folder.choices, folder.plan.choices, tuning.choice_name),
        (folder.trials, folder.plan.trials, tuning.trials_name),
        (folder.trainings, folder.plan.trainings, resolve.training_name),
        (folder.probes, folder.plan.probes, probe_name),
    )
    for reports, planned, name_of in kinds:
        for name, report in reports.items():
            where = folder.relative(report["path"])
            if report.get("run") != name:
                check.differs(where, f"calls itself {report.get('run')!r}, its folder {name!r}")
            elif name in planned:
                _compare(check, where, report["spec"], planned[name])
            else:
                try:
                    check.same(where, name_of(report["spec"]), name, "its folder")
                except UNREADABLE as error:
                    check.unknown(f"{where}: its settings are not those of this version ({error!r})")


def _compare(check: Check, where: str, found: dict, planned: dict) -> None:
    if canonical(found) == canonical(planned):
        check.ok()
        return
    one, other = _flat(found), _flat(planned)
    key = next((key for key in sorted({*one, *other}) if one.get(key) != other.get(key)), "")
    check.differs(where, f"{key} is {one.get(key, 'absent')}, in the plan {other.get(key, 'absent')}")


def _flat(nested: object, prefix: str = "") -> dict[str, str]:
    if not isinstance(nested, dict) or not nested:
        return {prefix: canonical(nested)}
    return {k: v for key, value in nested.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}
