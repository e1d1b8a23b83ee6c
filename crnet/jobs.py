"""``crnet job``: the commands of the workflow, one a rule; what a job reads and writes comes in by its options.

Each imports what it needs when it runs.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from crnet.errors import CrnetError
from crnet.runtime import gpu_lease
from crnet.runtime.limits import Limits
from crnet.runtime.out_of_memory import needs_memory

PATH = click.Path(path_type=Path)


class Described(dict):
    """A job's description; what is not in it is one sentence."""

    def __missing__(self, key: str) -> NoReturn:
        raise CrnetError(
            f"the JSON of this job has no {key!r}; give it whole, as `snakemake --dry-run --printshellcmds` prints it."
        )


class _JsonParameter(click.ParamType):
    name = "json"

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        text = sys.stdin.read() if value == "-" else value
        try:
            described = json.loads(text, object_hook=Described)
        except json.JSONDecodeError as error:
            self.fail(f"is not JSON ({error})", param, ctx)
        if not isinstance(described, Described):
            self.fail(f"is {type(described).__name__}, not names and values", param, ctx)
        return described


def _limits(context: click.Context, option: click.Parameter, given: dict) -> Limits:
    try:
        return Limits(**given)
    except TypeError as error:
        raise click.BadParameter(f"--limits: {error}.") from error


def _one_gpu(context: click.Context, option: click.Parameter, device: str) -> str:
    """Options are read before the command imports torch, which sees one GPU from then on."""
    if device == "cuda" and not context.resilient_parsing:
        gpu_lease.take()
    return device


JSON = _JsonParameter()
spec_option = click.option("--spec", type=JSON, required=True, help="What to do, as JSON; '-' reads it from stdin.")
threads_option = click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
devices = click.Choice(["cpu", "cuda"])
device_option = click.option("--device", type=devices, default="cpu", show_default=True, callback=_one_gpu)
data_option = click.option("--data", type=PATH, required=True, help="Folder of the prepared data set.")
stores_option = click.option("--features", type=PATH, multiple=True, help="Test photos' features at one scale.")
limits_help = "What it may hold at once, as JSON: pairs_at_once, photos_at_once, pool_gib."
limits_option = click.option("--limits", type=JSON, default="{}", callback=_limits, help=limits_help)
encoder_option = click.option("--encoder", type=PATH, help="The encoder's weights; a factory brings its own.")
rows_option = click.option("--state", type=PATH, help="Where a killed run leaves its rows, and goes on from.")
out_option = click.option("--out", type=PATH, required=True)


study_option = click.option("--study", type=JSON, required=True, help="The study as it is run, whole.")


def plan_of(study: dict) -> Any:
    """The plan of a study that is given whole."""
    from crnet.config.schema import Study, parse
    from crnet.config.study import planned

    return planned(parse(Study, dict(study), "--study"))


def runs_network(lower: str) -> Callable:
    """Options of every command that runs a network, and the sentence where its memory runs out: what to ``lower``."""
    shared = (spec_option, data_option, encoder_option, limits_option, device_option, threads_option)

    def decorate(command: Callable) -> Callable:
        command = needs_memory(lower)(command)
        for option in reversed(shared):
            command = option(command)
        return command

    return decorate


@click.group()
def job() -> None:
    """What the workflow's rules call, a command each; `snakemake --dry-run --printshellcmds` shows how."""


@job.command()
@click.argument("name")
@click.option("--folder", type=PATH, required=True)
@click.option("--settings", type=JSON, default="{}", help="Mirror and checksum by file name.")
@click.option("--verified", type=PATH, help="Where to note that it was verified; default: beside it.")
def download(name: str, folder: Path, settings: dict, verified: Path | None) -> None:
    """Fetch one archive, or verify the one that lies in FOLDER already."""
    from crnet.data.archives.archives import fetch, resolve

    click.echo(fetch(resolve(name, settings), folder, verified))


@job.command()
@spec_option
@click.option("--archives", type=PATH, required=True)
@click.option("--extracted", type=PATH, required=True)
@out_option
def prepare(spec: dict, archives: Path, extracted: Path, out: Path) -> None:
    """Make a prepared data set: extract or generate, convert masks, list pairs."""
    from crnet.data.prepare import prepare as run

    run(spec, archives, extracted, out)


@job.command("encoder")
@spec_option
@click.option("--archives", type=PATH, required=True)
@out_option
@threads_option
@needs_memory("lower the encoder's batch, images or size")
def prepare_encoder(spec: dict, archives: Path, out: Path, threads: int) -> None:
    """Make an encoder's weights file: from torchvision's archive, or pre-trained here."""
    from crnet.encoders import prepare as run

    run(spec, archives, out, threads)


@job.command()
@runs_network("lower limits.photos_at_once or train.size")
@out_option
def features(spec: dict, data: Path, encoder: Path | None, out: Path, limits: Limits, device: str, threads: int):
    """Encode all photos of a split once."""
    import torch

    from crnet.cost import memory
    from crnet.encoders.features import write_store
    from crnet.encoders.frozen import FrozenEncoder
    from crnet.runtime.machine import configure

    configure(device, threads)
    memory.check(memory.features(spec, limits), device, out.name)
    network = FrozenEncoder(spec["encoder"], encoder, torch.device(device), spec["precision"], limits.photos_at_once)
    write_store(spec, data, network, out)


@job.command()
@spec_option
@data_option
@out_option
def episodes(spec: dict, data: Path, out: Path) -> None:
    """Draw the test episodes of a fold."""
    from crnet.data.episodes import draw, write
    from crnet.data.index import Index

    settings = {key: value for key, value in spec["episodes"].items() if key != "rev"}
    table = draw(Index.load(data), spec["fold"], **settings)
    digest = write(out, table)
    for name, size in table.left_out.items():
        click.echo(f"fold {spec['fold']}: {name} is left out, it has only {size} test photos")
    click.echo(f"{out}: {len(table.episodes)} episodes, sha256 {digest[:16]}")


@job.command()
@runs_network("lower limits.pairs_at_once, train.batch or train.size")
@click.option("--features", type=PATH, help="Folder of the feature store, if train.features is 'cached'.")
@out_option
@click.option("--state", type=PATH, required=True, help="Where a killed run leaves its state, and goes on from.")
@click.option("--workers", type=click.IntRange(0), default=0, show_default=True, help="Photo loaders.")
@click.option("--checkpoint-seconds", type=click.FloatRange(0), default=60.0, show_default=True)
def train(data: Path, encoder: Path | None, features: Path | None, out: Path, state: Path, **options: Any) -> None:
    """Train one variant on one fold with one seed."""
    from crnet.training.loop import Paths
    from crnet.training.rates import train as run

    run(paths=Paths(data, encoder, features, out, state), **options)


@job.command()
@runs_network("lower limits.pool_gib, limits.pairs_at_once or evaluate.size")
@stores_option
@click.option("--episodes", type=PATH, required=True)
@click.option("--weights", type=PATH, help="model.safetensors of the training; controls have none.")
@click.option("--choice", type=PATH, help="choice.json of `crnet job choice`, if the specification finetunes.")
@rows_option
@out_option
def evaluate(**options: Any) -> None:
    """Score one model on the test episodes of its fold."""
    from crnet.evaluation.evaluate import evaluate as run

    run(**options)


@job.command()
@runs_network("lower limits.pool_gib, limits.pairs_at_once or evaluate.size")
@stores_option
@click.option("--episodes", type=PATH, required=True)
@click.option("--weights", type=PATH, required=True, help="model.safetensors of the training.")
@rows_option
@out_option
def probe(**options: Any) -> None:
    """Predict test episodes with what a module reads of the support swapped for another class's."""
    from crnet.evaluation.probe import probe as run

    run(**options)


@job.command()
@runs_network("lower limits.pool_gib, limits.pairs_at_once or evaluate.size")
@stores_option
@click.option("--weights", type=PATH, required=True, help="model.safetensors of the training.")
@rows_option
@out_option
def trials(**options: Any) -> None:
    """Try every rate and number of steps of finetuning on one model."""
    from crnet.evaluation.trials import run

    run(**options)


@job.command()
@spec_option
@click.option("--trials", type=PATH, multiple=True, required=True, help="Folder of the trials of one model.")
@out_option
def choice(spec: dict, trials: tuple[Path, ...], out: Path) -> None:
    """Choose steps and learning rate of finetuning for one fold, from trials on classes that it does not test."""
    from crnet.evaluation.choice import choose

    choose(spec, trials, out)


@job.command()
@click.option("--job", type=JSON, required=True, help="Specification and files of each fold's model, as JSON.")
@click.option("--out", type=PATH, required=True, help="Path without suffix; .png and .svg are written.")
@limits_option
@device_option
@threads_option
@needs_memory("lower limits.pairs_at_once or evaluate.size")
def sheet(job: dict, out: Path, limits: Limits, device: str, threads: int) -> None:
    """Draw test episodes as the paper's Figure 6: support, query, prediction, truth."""
    from crnet.report.episodes import draw

    draw(job, out, device, threads, limits)


@job.command()
@click.option("--train", "trainings", type=PATH, multiple=True, help="Folder of a training.")
@click.option("--trials", type=PATH, multiple=True, help="Folder of finetuning's trials.")
@click.option("--choice", "choices", type=PATH, multiple=True, help="Folder of a choice among trials.")
@click.option("--evaluation", "evaluations", type=PATH, multiple=True, help="Folder of an evaluation.")
@click.option("--runs", type=PATH, required=True)
@click.option("--training-log", type=PATH, required=True)
def collect(runs: Path, training_log: Path, **folders: tuple[Path, ...]) -> None:
    """Gather all runs of a study as rows with their settings."""
    from crnet.report.runs import collect as run

    def files(kind: str, name: str) -> list[Path]:
        return [folder / name for folder in folders[kind]]

    trained = files("trainings", "train.json"), files("trainings", "log.csv")
    chosen = files("trials", "trials.json"), files("choices", "choice.json")
    run(*trained, *chosen, files("evaluations", "evaluation.json"), runs, training_log)


@job.command()
@study_option
def watch(study: dict) -> None:
    """Say how far the study's run is, now and then, until standard input closes."""
    from crnet.planning.progress import watch as run

    run(plan_of(study))


@job.command()
@study_option
def follow(study: dict) -> None:
    """Show the trainings of the study's run in MLflow while they are under way, until standard input closes."""
    from crnet.report.following import follow as run

    run(plan_of(study))


@job.command()
@study_option
@click.option("--out", type=PATH, required=True, help="JSON that the workflow reads.")
def requests(study: dict, out: Path) -> None:
    """Predict the memory and time that each job will ask a cluster for."""
    from crnet.planning.cluster import write

    write(plan_of(study), out)


@job.command()
@study_option
@click.option("--results", type=PATH, required=True)
def track(study: dict, results: Path) -> None:
    """Show the study's runs in MLflow."""
    from crnet.report.tracking import track as run

    run(results, plan_of(study))


@job.command()
@click.option("--job", type=JSON, required=True)
@click.option("--tables", type=PATH, required=True, help="Folder for the .csv, .md and .tex.")
@click.option("--figures", type=PATH, required=True, help="Folder for the .png and .svg.")
def table(job: dict, tables: Path, figures: Path) -> None:
    """Render one table and its plot from stored counts."""
    from crnet.report.figures import plot_table
    from crnet.report.tables.render import render_table

    render_table(job, tables / job["table"])
    plot_table(job, tables / f"{job['table']}.csv", figures / job["table"])


@job.command()
@click.option("--job", type=JSON, required=True)
@click.option("--out", type=PATH, required=True, help="Path without suffix; .csv and .md are written.")
@click.option("--figures", type=PATH, required=True, help="Path without suffix; .png and .svg are written.")
def claims(job: dict, out: Path, figures: Path) -> None:
    """Judge the paper's claims from stored counts."""
    from crnet.report.claims import render_claims
    from crnet.report.claims_plot import plot_claims

    render_claims(job, out)
    plot_claims(job, Path(f"{out}.csv"), figures)


@job.command("probe-table")
@click.option("--job", type=JSON, required=True)
@click.option("--out", type=PATH, required=True, help="Path without suffix; .csv and .md are written.")
def probe_table(job: dict, out: Path) -> None:
    """Render the probe's table from stored counts."""
    from crnet.report.probe import render_probe

    render_probe(job, out)


@job.command("k-shot")
@click.option("--job", type=JSON, required=True)
@click.option("--table", "table_csv", type=PATH, required=True)
@click.option("--out", type=PATH, required=True, help="Path without suffix; .png and .svg are written.")
def k_shot(job: dict, table_csv: Path, out: Path) -> None:
    """Draw the k-shot curve from Table 4."""
    from crnet.report.k_shot import plot_k_shot

    plot_k_shot(job, table_csv, out)


@job.command()
@click.option("--job", type=JSON, required=True)
@click.option("--results", type=PATH, required=True)
@click.option("--html", type=PATH, help="Folder for page, tables and claims as HTML, for Snakemake's report.")
def page(job: dict, results: Path, html: Path | None) -> None:
    """Write a study's page, RESULTS/README.md, from the files beside it."""
    from crnet.report.page.html import write_html
    from crnet.report.page.page import PAGE, write_page

    write_page(job, results)
    if html:
        files = {"page": PAGE, "claims": "claims.md"}
        files |= {table["name"]: f"tables/{table['name']}.md" for table in job["tables"]}
        for name, file in files.items():
            write_html(results / file, html / f"{name}.html")


@job.command()
@click.option("--job", type=JSON, default='{"title": "", "labels": []}', help="As page_job has it; default: as logged.")
@click.option("--training-log", type=PATH, required=True)
@out_option
def losses(job: dict, training_log: Path, out: Path) -> None:
    """Plot the loss curves of a study."""
    from crnet.report.losses import plot_losses

    plot_losses(job, training_log, out)


@job.command()
@click.option("--job", type=JSON, required=True)
@click.option("--out", type=PATH, required=True, help="Path without suffix; .csv is written.")
@click.option("--figures", type=PATH, required=True, help="Path without suffix; .png and .svg are written.")
def classes(job: dict, out: Path, figures: Path) -> None:
    """Score every test class for itself, for the rows of one table."""
    from crnet.report.classes import plot_classes, write_classes

    write_classes(job, Path(f"{out}.csv"))
    plot_classes(job, Path(f"{out}.csv"), figures)
