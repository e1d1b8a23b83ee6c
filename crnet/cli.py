"""The command line: the commands for people; those of the workflow, a rule each, are in ``crnet/jobs.py``.

Each command imports what it needs when it runs, so that ``plan`` needs no torch and ``train`` no workflow.
"""

import os
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from crnet import __version__
from crnet.errors import CrnetError
from crnet.jobs import PATH, device_option, job
from crnet.runtime import capacity, surroundings
from crnet.runtime.files import REMEDIES, require_writable, write_csv
from crnet.runtime.out_of_memory import needs_memory
from crnet.runtime.preemption import STATUS, Preempted
from crnet.your_commands import COMMANDS

# Threads that spin while they wait make jobs side by side several times slower; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def of_study(default: str) -> Callable:
    """Options of a command that takes a study's ``files`` as Snakemake does: `--configfile STUDY OVERRIDES`."""

    def decorate(command: Callable) -> Callable:
        @click.option("--configfile", "first", type=PATH, multiple=True, help=f"Study; default: {default}.")
        @click.argument("more", type=PATH, nargs=-1, metavar="[OVERRIDES]...")
        @wraps(command)
        def run(first: tuple[Path, ...], more: tuple[Path, ...], **given: Any) -> None:
            command(files=first + more, **given)

        return run

    return decorate


class _AsWritten(click.Group):
    """Lists its commands in the order of this file, which is that of a study: before it runs, then its results."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Also the workflow's commands without ``job``, as scripts of earlier versions call them."""
        return super().get_command(context, name) or job.get_command(context, name)


@click.group(cls=_AsWritten, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """CRNet (CVPR 2020) as a reproducible benchmark: see `crnet plan`, then run `snakemake --cores all`."""


def main() -> None:
    """Run the command line; a CrnetError is one sentence and status 2, a preemption status 143 as SIGTERM's own."""
    surroundings.make_up()
    try:
        with needs_memory("close other programs"):
            cli(prog_name="crnet", standalone_mode=False)
    except Preempted as notice:
        click.echo(f"crnet: {notice}", err=True)
        sys.exit(STATUS)
    except CrnetError as error:
        click.echo(f"crnet: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        # No room, no permission: the machine's fault, wherever it shows.
        place = error.filename or "a file"
        click.echo(f"crnet: {place}: {error.strerror}; {REMEDIES[error.errno]}, then start again.", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)


@cli.command()
@of_study("the demo")
@click.option("--rates", type=PATH, multiple=True, help="What `crnet bench --json` wrote; default: of this machine.")
def plan(files: tuple[Path, ...], rates: tuple[Path, ...]) -> None:
    """What a study would run and need: trainings, evaluations, hours, downloads, disk, memory. Runs nothing.

    \b
    crnet plan --configfile configs/studies/paper.yaml configs/limits/8gb-gpu.yaml
    """
    from crnet.planning.plan import describe

    click.echo(describe(files, rates))


@cli.command("list")
@click.argument("kind", type=click.Choice(["studies", "tables", "methods", "encoders", "datasets"]))
def list_known(kind: str) -> None:
    """What a study may name: studies, tables, methods, encoders or datasets, a line each.

    \b
    crnet list studies
    """
    from crnet.config.known import known

    rows = known(kind)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}")


@cli.command()
def reference() -> None:
    """Every key of studies and tables, with default, limits and meaning: docs/reference.md."""
    from crnet.config.reference import reference as written

    click.echo(written(), nl=False)


@cli.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[WORDS]...")
def run_study(words: tuple[str, ...]) -> None:
    """Run a study as `snakemake WORDS` does, on all cores unless they say otherwise, once its files have been read.

    A file that is not there or is no YAML stops Snakemake itself, with a traceback; here it is one sentence.

    \b
    crnet run --configfile configs/studies/photos.yaml my-archives.yaml
    """
    from crnet.config import study

    if not Path("Snakefile").is_file():
        raise CrnetError(f"{Path.cwd()}: holds no Snakefile; start `crnet run` in the folder of the checkout.")
    for file in configfiles(words):
        study.with_bases(Path(file))
    cores = any(word.startswith(("--cores", "-c", "--jobs", "-j", "--profile")) for word in words)
    given = words if cores else ("--cores", "all", *words)
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *given])


def configfiles(words: Iterable[str]) -> list[str]:
    """The files that a call of Snakemake names behind ``--configfile`` or ``--configfiles``."""
    files, taken = [], False
    for word in words:
        if word.startswith("-"):
            name, _, value = word.partition("=")
            taken = name in ("--configfile", "--configfiles")
            files += [value] if taken and value else []
        elif taken:
            files.append(word)
    return files


@cli.command()
@of_study("the demo")
def status(files: tuple[Path, ...]) -> None:
    """How far a study is, stage by stage, and how long the rest will take; also while it runs.

    \b
    crnet status --configfile configs/studies/photos.yaml
    """
    from crnet.config import study
    from crnet.planning.progress import describe

    click.echo(describe(study.load(files)))


@cli.command("check-data")
@of_study("the demo")
@click.option("--out", type=PATH, help="Write the table of findings here too, as CSV.")
def check_data(files: tuple[Path, ...], out: Path | None) -> None:
    """Read every photo and mask of a study and list all that is wrong; status 3 if anything is.

    \b
    crnet check-data --configfile configs/studies/paper.yaml --out findings.csv
    """
    from crnet.config import study
    from crnet.config.layout import Layout
    from crnet.data.check import HEADER, check, describe, rows

    if out is not None:
        require_writable(out)
    plan = study.load(files)
    layout = Layout(plan)
    folders = {layout.data(spec): spec for spec in plan.datasets.values()}
    results = [
        check(spec, Path(folder), Path(layout.archives), Path(layout.extracted(spec)))
        for folder, spec in folders.items()
    ]
    click.echo(describe(results))  # first, so that nothing found is lost with the file
    if out is not None:
        write_csv(out, HEADER, rows(results))
    if any(result.findings for result in results):
        sys.exit(3)


@cli.command()
@click.argument("results", type=PATH)
def show(results: Path) -> None:
    """Say where a study's tables and plots are."""
    if not (results / "runs.csv").is_file():
        raise CrnetError(f"{results}: has no runs.csv; give the results folder of a finished study, e.g. results/demo.")
    click.echo(f"\nruns     {results / 'runs.csv'}")
    patterns = {"page": "README.md", "claims": "claims.md", "table": "tables/*.md", "plot": "figures/*.png"}
    for kind, pattern in patterns.items():
        for path in sorted(results.glob(pattern)):
            click.echo(f"{kind:<8} {path}")


@cli.command()
@of_study("the demo")
def render(files: tuple[Path, ...]) -> None:
    """Render a study that is not whole: tables, claims and runs from what is there, gaps marked missing or failed."""
    from crnet.report.partial import render as run

    click.echo(run(files))


def sampled(command: Callable) -> Callable:
    """Options of a command that audits results."""
    options = (
        of_study("the one of the folder's name"),
        click.option("--work", "works", type=PATH, multiple=True, help="Where weights and data may lie. [the study's]"),
        click.option(
            "--sample", type=click.IntRange(0), default=8, show_default=True, help="Episodes to predict again."
        ),
        click.option("--seed", type=click.IntRange(0), help="Of the sample; drawn and printed if not given."),
        device_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("results", type=PATH)
@sampled
@click.option("--all", "everything", is_flag=True, help="List every difference, not just the first of each kind.")
def audit(**options: Any) -> None:
    """Check published RESULTS against their counts, digests, data and weights; status 3 if anything differs.

    \b
    crnet audit results/demo --sample 20
    """
    from crnet.audit import audit as run

    text, differences = run(**options)
    click.echo(text)
    if differences:
        sys.exit(3)


@cli.command()
@click.argument("results", type=PATH)
@sampled
@click.option("--to", type=PATH, default="results", show_default=True, help="The folder of all published studies.")
@click.option("--force", is_flag=True, help="Also where published numbers would change or go.")
def publish(**options: Any) -> None:
    """Put a run's RESULTS where results are committed, if they pass the audit; status 3 if they do not.

    \b
    crnet publish out/demo
    """
    from crnet.audit.publish import publish as run

    text, differences = run(**options)
    click.echo(text)
    if differences:
        sys.exit(3)


@cli.command()
@click.argument("results", type=PATH)
@of_study("the one of the folder's name")
def track(results: Path, files: tuple[Path, ...]) -> None:
    """Show a study's runs in MLflow: fills or rebuilds the store from the files under RESULTS.

    \b
    crnet track results/demo && mlflow ui
    """
    from crnet.config import study
    from crnet.report.tracking import track as run

    own = study.file_of(results)
    run(results, study.load(files or [own]) if files or own else None)


@cli.command()
@click.option("--quick", is_flag=True, help="Small sizes and few repeats: seconds, and no figures to quote.")
@click.option("--stage", "stages", multiple=True, help="Only this one; may be given again. [default: all]")
@click.option("--scaling", "with_scaling", is_flag=True, help="Also how cost grows with episodes, shots and data.")
@click.option("--size", type=click.IntRange(32, 1024), help="Side of the input in pixels. [default: 321]")
@click.option("--width", type=click.IntRange(1, 4096), help="Channels of the head. [default: 256]")
@click.option("--encoder", help="Built-in, timm:MODEL or package.module:factory. [default: resnet50, random weights]")
@click.option("--threads", type=click.IntRange(1), default=capacity.cores(), show_default=True)
@device_option
@click.option("--json", type=PATH, help="Write all figures here too.")
@click.option("--markdown", type=PATH, help="Write the table here too, as in docs/performance.md.")
def bench(quick: bool, stages: tuple[str, ...], with_scaling: bool, json: Path | None, markdown: Path | None, **given):
    """Measure this machine's ceiling, each stage against it, and plain loops on the same inputs.

    \b
    crnet bench --device cuda --json configs/rates/my-gpu.json
    """
    from crnet.bench.inputs import Options
    from crnet.bench.run import bench as run

    given = {name: value for name, value in given.items() if value is not None}
    options = Options.quick(**given) if quick else Options(**given)
    run(options, stages, with_scaling, json, markdown)


for command in (*COMMANDS, job):
    cli.add_command(command)
