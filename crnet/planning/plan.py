"""``crnet plan``: what a study would run and need, before anything is run.

Sizes that are not known before the data are there are estimates; each line says what it rests on.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from crnet.config import encoders, resolve, sources, study, tuning
from crnet.config.defaults import scaled
from crnet.config.labels import encoder_text
from crnet.config.layout import Layout
from crnet.config.names import Spec
from crnet.config.rates import rates_of
from crnet.config.requests import MARGIN
from crnet.config.resolve import Cell, Plan
from crnet.cost.networks import encoder
from crnet.data.archives.archives import is_verified
from crnet.data.grid import CORNERS, TILES
from crnet.data.index import ABOUT, reading
from crnet.errors import CrnetError
from crnet.planning import cluster
from crnet.planning.disk import (
    MIB,
    DataSet,
    Need,
    amount,
    archive_bytes,
    archives_of,
    episodes_of,
    file_systems,
    jobs_at_once,
    needs_of,
    plural,
)
from crnet.planning.hours import KINDS, WORKERS, Hours, time_text
from crnet.planning.rates import FOLDER, load, of_this_machine
from crnet.planning.stages import Demand
from crnet.runtime import capacity
from crnet.runtime.files import canonical, read_json
from crnet.runtime.gpu import has_nvidia_gpu

WIDTH = 110  # of what is printed
FITS = {CORNERS: "8n + 1 px", TILES: "8n px"}


def describe(files: Sequence[Path], rates: Sequence[Path] = ()) -> str:
    """The plan of a study as text: counts, hours, data, disk, memory, warnings where this machine falls short.

    Args:
        rates: Files of measured step times; without any, those of this machine, if there are any.
    """
    plan = study.load(files)
    layout = Layout(plan)
    data = [DataSet(spec, layout) for spec in plan.datasets.values()]
    needs = needs_of(plan, layout, data)
    measured = rates or of_this_machine(plan.study.device, study.ROOT / FOLDER)
    demand = Demand(plan, layout, data)
    hours = Hours(plan, layout, demand, load(measured) if measured else None)
    parts = [_runs(plan), _work(plan, data), _hours_lines(hours), _cluster_lines(hours, demand)]
    parts += [_data_lines(plan, layout, data), _encoder_lines(plan), _disk_lines(needs)]
    parts += [_machine_lines(plan, needs, demand), _source_lines(plan, layout)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _line(name: str, text: str) -> list[str]:
    """``text`` behind ``name``, wrapped to the width."""
    return textwrap.wrap(f"{name:<14}{text}", WIDTH, subsequent_indent=" " * 14, break_on_hyphens=False)


def _aligned(rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Rows of cells in columns: those in ``left`` flush left, others right."""
    rows = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        .rstrip() for row in rows
    ]  # fmt: skip


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _runs(plan: Plan) -> list[str]:
    """The runs of each table, what the tables share, and what the study leaves out."""
    lines = _line("study", f"{plan.study.study}: {plan.study.title}")
    lines += _line("device", f"{plan.study.device}, {plural(plan.study.threads, 'thread')} a job")
    lines += [*_input_lines(plan), ""]
    rows = [("table", "rows run", "reported", "left out", "cells", "trainings", "trials", "evaluations")]
    for name, table in plan.tables.items():
        cells = [cell for cell in plan.cells if cell.table == name]
        run = {row.id for row in table.rows} & {cell.row for cell in cells}
        reported = sum(row.reported for row in table.rows)
        counts = (len(run), reported, len(table.rows) - len(run) - reported, len(cells), *_distinct(plan, cells))
        rows.append((name, *map(_count, counts)))
    alone, shared = _alone(plan), (len(plan.trainings), len(plan.trials), len(plan.evaluations))
    blank = ("", "", "", "")
    rows.append(("if no cell shared", "", "", "", _count(len(plan.cells)), *map(_count, alone)))
    rows.append(("study, all shared", *blank, *map(_count, shared)))
    rows.append(("saved", *blank, *(_count(a - b) for a, b in zip(alone, shared, strict=True))))
    lines += _aligned(rows)
    lines += ["", *_line("cells", "a row at one number of shots, one fold and one seed")]
    if plan.study.controls:
        names = ", ".join(plan.study.controls)
        lines += _line("controls", f"in every table besides, with one seed and nothing to train: {names}")
    return lines + _left_out(plan)


def _input_lines(plan: Plan) -> list[str]:
    """A line an encoder: sides of its input in training and in tests, and why these."""
    sides: dict[str, dict[str, set[int]]] = {}
    for evaluation in plan.evaluations.values():
        training, tested = evaluation["train"], evaluation["evaluate"]
        found = sides.setdefault(canonical(training["encoder"]), {"trained": set(), "tested": set()})
        found["trained"] |= {training["train"]["size"]} if "train" in training else set()
        found["tested"] |= {scaled(tested["size"], scale) for scale in tested["scales"]}
    lines = []
    for described, found in sides.items():
        spec = json.loads(described)
        at = ", ".join(f"{how} at {', '.join(map(str, sorted(each)))} px" for how, each in found.items() if each)
        fit = FITS[encoders.alignment_of(spec)]
        lines += _line("input", f"{encoder_text(spec)}: {at}; its cells fit {fit}")
    return lines


def _distinct(plan: Plan, cells: Iterable[Cell]) -> tuple[int, int, int]:
    """Trainings, trials of a model and evaluations that fill ``cells``."""
    evaluations = {cell.evaluation: plan.evaluations[cell.evaluation] for cell in cells}
    trainings = {resolve.training_name(e["train"]) for e in evaluations.values() if "train" in e["train"]}
    tried = {tuning.trials_name(spec) for e in evaluations.values() for spec in _trials_of(e)}
    return len(trainings), len(tried), len(evaluations)


def _trials_of(evaluation: Spec) -> list[Spec]:
    choice = tuning.choice_spec(evaluation)
    return tuning.trials_specs(choice) if choice else []


def _alone(plan: Plan) -> tuple[int, int, int]:
    """Trainings, trials and evaluations if each cell had its own."""
    specs = [plan.evaluations[cell.evaluation] for cell in plan.cells]
    return sum("train" in spec["train"] for spec in specs), sum("finetune" in spec for spec in specs), len(specs)


def _left_out(plan: Plan) -> list[str]:
    """One line a reason: which tables lose how many rows at which shots."""
    places: dict[str, Counter] = {}
    for (table, row, shots), reason in plan.not_run.items():
        kind = "control" if row in plan.study.controls else "row"
        places.setdefault(reason, Counter())[table, shots, kind] += 1
    lines = []
    for reason, counts in places.items():
        texts: dict[tuple[str, int], list[str]] = {}
        for (table, shots, kind), number in counts.items():
            texts.setdefault((table, shots), []).append(plural(number, kind))
        where = ", ".join(f"{table} {shots}-shot ({', '.join(parts)})" for (table, shots), parts in texts.items())
        lines += _line("left out", f"{where}: {reason}")
    return lines


def _work(plan: Plan, data: Sequence[DataSet]) -> list[str]:
    """How much the runs have to do: episodes, steps, hours as far as known."""
    at_hand = {resolve.dataset_name(d.spec): d for d in data}
    budgets: dict[tuple[str, int, int, int], list[int | None]] = {}
    for training in plan.trainings.values():
        settings, spec = training["train"], training["dataset"]
        count = settings["epoch_episodes"] or at_hand[resolve.dataset_name(spec)].training_pairs_of(training)
        rates = len(rates_of(training))
        key = spec["name"], settings["epochs"], settings["epoch_episodes"], rates
        budgets.setdefault(key, []).append(count and count * settings["epochs"] * rates)
    lines = []
    for (name, epochs, count, rates), episodes in budgets.items():
        each = plural(count, "episode") if count else "the fold's training pairs"
        known = "not known before the data are prepared" if None in episodes else f"{sum(episodes):,} episodes"
        tried = f"{rates} rates x " if rates > 1 else ""
        text = f"{plural(len(episodes), 'run')} on {name} of {tried}{plural(epochs, 'epoch')} x {each}: {known}"
        lines += _line("training", text)
    finetuned = {name: e for name, e in plan.evaluations.items() if "finetune" in e}
    if finetuned:
        fused = len({cell.evaluation for cell in plan.cells if cell.fused})
        episodes = [episodes_of(e) for e in finetuned.values()]
        steps = sum(n * max(e["finetune"]["steps"]) for n, e in zip(episodes, finetuned.values(), strict=True))
        trials = sum(_trial_steps(spec["finetune"]) for spec in plan.trials.values())
        each = next(iter(plan.trials.values()))["finetune"]
        rates, stops = plural(len(set(each["lr"])), "rate"), plural(len(set(each["steps"])), "number")
        tried = f"{rates} x {stops} of steps on {plural(each['trial_episodes'], 'episode')}"
        text = f"{plural(len(plan.trials), 'run')} of {tried}: {trials:,} steps of finetuning"
        lines += _line("trials", text)
        text = f"{plural(len(finetuned), 'evaluation')}, {fused} of them also fused: {sum(episodes):,} episodes, "
        lines += _line("finetuning", f"{text}at most {steps:,} steps")
    predicted = sum(map(episodes_of, plan.evaluations.values()))
    lines += _line("test", f"{predicted:,} episodes, the finetuned ones among them")
    if plan.probes:
        episodes = sum(map(episodes_of, plan.probes.values()))
        text = f"{plural(len(plan.probes), 'run')} on {episodes:,} of these episodes, each with every swap"
        lines += _line("probe", text)
    return lines


def _hours_lines(hours: Hours) -> list[str]:
    """Hours of each table alone and of the study, and until the end on several workers; or shares, without rates."""
    plan, rates = hours.plan, hours.rates
    gpu = plan.study.device == "cuda"
    unit = f"{rates.kind if rates else plan.study.device}-hours".replace("cuda", "GPU").replace("cpu", "CPU")
    if rates:
        names = ", ".join(file.name for file in rates.files)
        lines = _line(unit, f"predicted from the step times of {rates.device} ({names}), scaled by multiply-adds")
    else:
        command = f"crnet bench --device {plan.study.device} --json {FOLDER}/<name>.json"
        where = "a GPU" if gpu else "this machine"
        lines = _line(unit, f"not known: no step times of {where} are on file; `{command}` measures them there")
        lines += _line("", "below are percent of the study's counted multiply-adds, and how often as fast")
    whole = hours.sums(hours.graph)
    kinds = [kind for kind in KINDS if whole[kind]]
    label, total = "hours" if rates else "work", sum(whole.values())

    def row(name: str, sums: Mapping[str, float]) -> tuple[str, ...]:
        values = [*(sums[kind] for kind in kinds), sum(sums.values())]
        return label, name, *(time_text(v) if rates else _percent(v, total) for v in values)

    tables = {name: hours.sums(hours.jobs_of(name)) for name in plan.tables}
    alone = {kind: sum(sums[kind] for sums in tables.values()) for kind in KINDS}
    rows = [(label, "table alone", *(KINDS[kind] for kind in kinds), "whole")]
    rows += [row(*each) for each in tables.items()]
    rows.append(row("sum of tables", alone))
    rows.append(row("saved by shared runs", {kind: alone[kind] - whole[kind] for kind in KINDS}))
    rows.append(row("study, all shared", whole))
    lines += ["", *_aligned(rows, (0, 1)), ""]
    one, here = hours.until_the_end(1), jobs_at_once(plan)
    times = {count: hours.until_the_end(count) for count in sorted({*WORKERS, here})}
    cells = [
        f"{count}{' (here)' if count == here and not gpu else ''}: "
        f"{time_text(time) if rates else f'{one / time:.1f} x'}"
        for count, time in times.items()
    ]
    lines += _line("GPUs" if gpu else "jobs at once", ", ".join(cells) + ", by simulation of the jobs' graph")
    if rates and not gpu:
        lines += _line("", "step times are of a job alone: jobs that share cores, caches and memory are slower")
    chain = hours.longest_chain()
    times = [f" {time_text(hours.seconds[job])}" if rates else "" for job in chain]
    lines += _line("longest chain", " > ".join(f"{job[1]}{time}" for job, time in zip(chain, times, strict=True)))
    if hours.unknown:
        example = hours.unknown[0][1]
        lines += _line("not counted", f"{plural(len(hours.unknown), 'job')} of unknown work, e.g. {example}")
    if hours.missing:
        lines += _line("not counted", f"what was not measured: {'; '.join(sorted(hours.missing))}")
    return lines


def _cluster_lines(hours: Hours, demand: Demand) -> list[str]:
    """What profiles/slurm would ask for."""
    plan, gpu = hours.plan, int(hours.plan.study.device == "cuda")
    rows = [("cluster", "rule", "jobs", "submissions", "asks for", "memory", "GPUs", "CPUs")]
    for rule, jobs, submissions, minutes, memory in cluster.sums(plan, demand, hours.rates):
        asked = time_text(60 * minutes)
        rows.append(
            (
                "cluster",
                rule,
                str(jobs),
                str(submissions),
                asked,
                amount(1e6 * memory),
                str(gpu),
                str(plan.study.threads),
            )
        )
    lines = [*_aligned(rows, (0, 1)), ""]
    whole, unit = cluster.hours(plan, demand, hours.rates), "GPU-hours" if gpu else "hours of jobs"
    known = "not known before the data are prepared" if whole is None else f"about {time_text(3600 * whole)} in all"
    how = (
        "as measured"
        if hours.rates
        else f"at {cluster.ASSUMED[plan.study.device]:.1e} multiply-adds a second, which is assumed"
    )
    lines += _line(unit, f"{known}, {how}; a job asks for {MARGIN} times its time, memory and time at the first try")
    return lines


def _percent(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return "-" if not share else f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


def _trial_steps(settings: dict) -> int:
    """Of the trials of one model: each rate goes to the most steps, the fewer are stations on the way."""
    return len(settings["lr"]) * settings["trial_episodes"] * max(settings["steps"])


def _data_lines(plan: Plan, layout: Layout, data: Sequence[DataSet]) -> list[str]:
    lines = []
    for each in data:
        name = each.spec["name"]
        if each.prepared:
            with reading(each.folder):
                about = read_json(each.folder / ABOUT)
                text = f"{name}: prepared, {about['subset'] or 'the whole data set'}, digest {about['digest'][:16]}"
        else:
            photos = each.photos
            text = f"{name}: not prepared yet" + (f", {photos:,} photos" if photos else "")
        lines += _line("data", text)
    rows = []
    for archive, path in archives_of(plan, layout).items():
        state = "to be verified" if path.is_file() else "to be downloaded"
        if is_verified(archive, path.parent, Path(layout.verified(archive.name))):
            state = "verified"
        rows.append(("archive     ", archive.name, amount(archive_bytes(archive, path)), state))
    none = "everything is generated" if all(each.generated for each in data) else "nothing to download"
    return lines + (_aligned(rows, (0, 1, 3)) if rows else _line("archives", f"none: {none}"))


def _encoder_lines(plan: Plan) -> list[str]:
    """How models of timm, which have any strides and sizes, were made to fit."""
    fitted = {spec["name"]: encoder(spec).about for spec in plan.encoders.values()}
    return [line for name, about in fitted.items() if about for line in _line("encoder", f"{name}: {about}")]


def _source_lines(plan: Plan, layout: Layout) -> list[str]:
    """What is there already and was made by another source than the one that is here: it is not run again by itself."""
    reports = [Path(layout.training(name)) / "train.json" for name in plan.trainings]
    reports += [Path(layout.finetuning(name)) / "trials.json" for name in plan.trials]
    reports += [Path(layout.finetuning(name)) / "choice.json" for name in plan.choices]
    reports += [Path(layout.evaluation(name)) / "evaluation.json" for name in plan.evaluations]
    reports += [Path(layout.probe(name)) / "probe.json" for name in plan.probes]
    runs = []
    for path in filter(Path.is_file, reports):
        try:
            runs.append(sources.used(read_json(path)))
        except (AttributeError, KeyError, TypeError) as error:
            raise CrnetError(
                f"{path}: is not the report of a run ({error!r}); delete it and run its job again."
            ) from error
    return [line for text in sources.changed(runs, sources.present(runs)) for line in _line("WARNING", text)]


def _disk_lines(needs: Sequence[Need]) -> list[str]:
    rows = [("disk", "whole", "to come", "")]
    rows += [(need.name, amount(need.whole), amount(need.to_come), need.basis) for need in needs]
    unknown = [need.name for need in needs if need.whole is None or need.to_come is None]
    whole, to_come = sum(need.whole or 0 for need in needs), sum(need.to_come or 0 for need in needs)
    note = f"without what is not known: {', '.join(unknown)}" if unknown else ""
    rows.append(("total", amount(whole), amount(to_come), note))
    for folder, _, free in file_systems(needs):
        rows.append(("free", "", amount(free), f"on the disk of {folder}"))
    return _aligned(rows, (0, 3))


def _memory_lines(plan: Plan, demand: Demand) -> tuple[list[str], int]:
    """The neediest job of each kind and what takes most of it; and the bytes of all jobs at once."""
    device = plan.study.device
    needs = {job: demand.memory(job) for job in demand.specs}
    neediest = {
        kind: max(each, key=lambda need: need.own + need.mapped)
        for kind in KINDS
        if (each := [need for job, need in needs.items() if job[0] == kind])
    }
    rows = [("memory", "a job", "own", "mapped", "of its own, at most")]
    for kind, need in neediest.items():
        largest = sorted(need.parts.items(), key=lambda part: -part[1])[:3]
        parts = ", ".join(f"{name} {amount(size)}" for name, size in largest if size >= 0.1 * MIB)
        rows.append(("memory", KINDS[kind], amount(need.on(device)), amount(need.mapped), parts))
    together = jobs_at_once(plan) * max((need.on(device) for need in needs.values()), default=0)
    whose = "GPU" if device == "cuda" else "machine"
    lines = [*(_aligned(rows, (0, 1, 4)) if neediest else []), ""]
    lines += _line("own", f"{plural(jobs_at_once(plan), 'job')} at once, {amount(together)} of the {whose}")
    if any(need.mapped for need in neediest.values()):
        text = "cached features, as far as they are read: in a job's peak, but given back when memory is short"
        lines += _line("mapped", text)
    return lines, together


def _machine_lines(plan: Plan, needs: Sequence[Need], demand: Demand) -> list[str]:
    lines, need_memory = _memory_lines(plan, demand)
    warnings, cores = [], capacity.cores()
    if plan.study.device == "cuda" and not has_nvidia_gpu():
        warnings.append("this machine has no NVIDIA GPU, and the study needs one (device: cuda)")
    for folder, to_come, free in file_systems(needs):
        if free < to_come:
            warnings.append(f"too little disk for {folder}: {amount(free)} free, {amount(to_come)} needed")
    memory = capacity.memory_bytes()
    if plan.study.device == "cpu" and memory < need_memory:
        few = "use fewer --cores, or limits as in configs/limits"
        warnings.append(f"{amount(memory)} of memory, jobs may take {amount(need_memory)}; {few}")
    if plan.study.threads > cores:
        warnings.append(f"a job wants {plural(plan.study.threads, 'thread')}, this machine has {cores} cores")
    if not warnings:
        return lines + _line("machine", "falls short in nothing that is checked")
    return lines + [line for text in warnings for line in _line("WARNING", text)]
