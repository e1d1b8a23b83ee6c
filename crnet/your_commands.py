"""Commands for people, second part: own photos, weights to take along, predictions made elsewhere; see ``cli.py``.

Each imports what it needs when it runs.
"""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from crnet.errors import CrnetError
from crnet.jobs import PATH, device_option
from crnet.runtime import capacity


def of_one_study(command: Callable) -> Callable:
    """Options of a command that takes one study's ``files``: `--study NAME`, or its files with `--configfile`."""

    @click.option("--study", help="Name of a study of the checkout, as `crnet list studies` has it. [default: demo]")
    @click.option("--configfile", "given", type=PATH, multiple=True, help="File of a study, and files that change it.")
    @wraps(command)
    def run(study: str | None, given: tuple[Path, ...], **options: Any) -> None:
        from crnet.yours.places import study_files

        if study and given:
            raise CrnetError("--study and --configfile: are two ways to name a study; give one of them.")
        command(files=study_files(study) if study else list(given), **options)

    return run


table_option = click.option("--table", help="A table of the study. [default: table3, or the first that is run]")
shots_option = click.option("--shots", type=click.IntRange(1), help="Supports an episode. [default: the table's first]")
force_option = click.option("--force", is_flag=True, help="Write where something is already.")
cell_options = (
    table_option,
    click.option("--row", help="A row of the table. [default: the last that is run]"),
    shots_option,
    click.option("--fold", type=click.IntRange(0), help="[default: the first]"),
    click.option("--seed", type=click.IntRange(0), help="Of the training. [default: the first]"),
)


def of_one_cell(command: Callable) -> Callable:
    """Options that name one cell of a study's table; a command gets them by their names, beside ``files``."""
    for option in reversed(cell_options):
        command = option(command)
    return of_one_study(command)


@click.command()
@of_one_cell
@click.option("--cores", default="all", show_default=True, help="As Snakemake takes it.")
@click.option("--here", is_flag=True, help="Train and score it here, also where it is published: `segment` needs that.")
def quick(files, cores, here, **named) -> None:
    """One number of a table: runs only what its cell takes, or tells what is there or published.

    \b
    crnet quick --row full --fold 1 --seed 0 --configfile configs/studies/photos.yaml
    crnet quick --row full --fold 0 --here
    """
    from crnet.config import study
    from crnet.yours.places import cell
    from crnet.yours.quick import quick as run

    plan = study.load(files)
    click.echo(run(plan, cell(plan, **named), files, cores, here))


encoder_option = click.option(
    "--encoder", help="The encoder's weights, or module:factory, where an exported folder lacks them."
)


def of_trained_network(command: Callable) -> Callable:
    """Options of a command that takes a trained network, of a run or a cell; it gets ``run`` and ``work``."""

    @click.option("--run", "run", type=PATH, help="out/<study>/evaluate/<run>, or what `crnet export` wrote.")
    @click.option("--work", type=PATH, help="Where weights and encoder lie. [default: work beside results]")
    @of_one_cell
    @wraps(command)
    def found(run: Path | None, work: Path | None, files: list[Path], **options: Any) -> None:
        from crnet.config import study
        from crnet.config.layout import Layout
        from crnet.yours.places import NAMES, cell

        named = {name: options.pop(name) for name in NAMES}
        if run is None:
            plan = study.load(files)
            layout = Layout(plan)
            chosen = cell(plan, **named)
            run = Path(layout.evaluation(chosen.evaluation))
            work = work or Path(layout.work)
            if not run.is_dir():
                place = f"--table {chosen.table} --row {chosen.row} --shots {chosen.shots} --fold {chosen.fold}"
                study_of = f" --configfile {' '.join(map(str, files))}" if files else ""
                raise CrnetError(
                    f"{run}: is not made yet; `crnet quick --here {place}{study_of}` trains and scores it."
                )
        elif files or any(value is not None for value in named.values()):
            raise CrnetError("--run: names the run already; leave out --study, --table, --row, --fold and the like.")
        command(run=run, work=work, **options)

    return found


@click.command()
@of_trained_network
@click.option("--support", "supports", multiple=True, required=True, metavar="PHOTO:MASK", help="May be given again.")
@click.option("--query", "first", type=PATH, multiple=True, required=True, help="Photo; more may follow it.")
@click.argument("more", type=PATH, nargs=-1, metavar="[PHOTOS]...")
@click.option("--out", type=PATH, required=True)
@click.option("--probability", is_flag=True, help="Also a map of probabilities, as 16-bit grey PNG.")
@click.option("--strategy", type=click.Choice(["fusion", "finetune", "finetune-fusion"]), help="[default: the run's]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Of finetuning. [default: what trials chose]")
@click.option("--steps", type=click.IntRange(1), help="Likewise.")
@encoder_option
@click.option("--threads", type=click.IntRange(1), default=capacity.cores(), show_default=True)
@device_option
@force_option
def segment(run, work, supports, first, more, out, probability, force, encoder, threads, device, **how) -> None:
    """Segment photos of your own: what the supports' masks mark is found in each query.

    \b
    crnet segment --run out/demo/evaluate/NAME --support cat.jpg:cat.png --query a.jpg b.jpg --out masks
    crnet segment --table table3 --row full --fold 0 --support cat.jpg:cat.png --query photos/*.jpg --out masks
    """
    from crnet.yours.load import load
    from crnet.yours.segment import check, parse_support, segment_files

    pairs = [parse_support(text) for text in supports]
    check(first + more, out, probability, force)
    model = load(run, work, encoder, device, threads)
    click.echo(segment_files(model, pairs, first + more, out, probability, force, **how))


@click.command("try")
@of_trained_network
@encoder_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Listen here; others than this machine may come.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="[default: the first free one from 7860 on]")
@click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page.")
@click.option("--threads", type=click.IntRange(1), default=capacity.cores(), show_default=True)
@device_option
def try_page(run, work, encoder, host, port, browser, threads, device) -> None:
    """A page in the browser: drop a photo, paint what is meant, drop queries. Needs `pip install 'crnet[try]'`.

    \b
    crnet try --run out/demo/evaluate/NAME
    """
    from crnet.yours.load import load
    from crnet.yours.try_page import require_gradio, serve

    require_gradio()
    serve(load(run, work, encoder, device, threads), run.name, host, port, browser)


@click.command()
@of_trained_network
@click.option("--out", type=PATH, required=True, help="A new folder.")
@click.option("--with-encoder", is_flag=True, help="Bring an encoder's weights whose licence is not crnet's.")
@click.option("--program", is_flag=True, help="Also as a torch.export program, for one support.")
@force_option
def export(run, work, out, with_encoder, program, force) -> None:
    """Write a trained network as one folder that `crnet.load` and `crnet segment --run` take on any machine.

    \b
    crnet export --run out/demo/evaluate/NAME --out model
    """
    from crnet.yours.export import export as run_export

    click.echo(run_export(run, out, work, with_encoder, program, force))


@click.command("episodes-for-others")
@of_one_study
@table_option
@shots_option
@click.option("--fold", "folds", type=click.IntRange(0), multiple=True, help="Only this one; may be given again.")
@click.option("--photos", is_flag=True, help="Also write photos, and masks of the supports, as PNGs.")
@click.option("--out", type=PATH, required=True, help="A new folder.")
@force_option
def episodes_for_others(files, table, shots, folds, photos, out, force) -> None:
    """Write a table's test episodes for another framework, which then writes a mask for each.

    \b
    crnet episodes-for-others --study demo --photos --out episodes
    """
    from crnet.config import study
    from crnet.yours.hand_out import hand_out
    from crnet.yours.places import places

    plan = study.load(files)
    click.echo(hand_out(places(plan, table, shots, folds), plan.study.study, out, photos, force))


@click.command()
@of_one_study
@click.option("--predictions", type=PATH, required=True, help="Folder with a PNG for each episode.")
@click.option("--label", required=True, help="What the row is called.")
@table_option
@shots_option
@click.option("--fold", "folds", type=click.IntRange(0), multiple=True, help="Only this one; may be given again.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of your method's training.")
@click.option("--render/--no-render", default=True, show_default=True, help="Make tables, claims and page again.")
@force_option
def score(files, predictions, label, table, shots, folds, seed, render, force) -> None:
    """Check and count masks that were predicted elsewhere; they get a row in the table. Status 3 if any is wrong.

    \b
    crnet score --study demo --predictions masks --label "My method"
    """
    from crnet.config import study
    from crnet.report.partial import render as run_render
    from crnet.yours.places import places
    from crnet.yours.score import Refused
    from crnet.yours.score import score as run

    plan = study.load(files)
    every = places(plan, table, shots)
    chosen = places(plan, table, shots, folds)
    try:
        stored = run(plan, chosen, every, predictions, label, seed, force)
    except Refused as refused:
        click.echo("\n".join(refused.findings))
        click.echo(f"crnet: {refused}", err=True)
        sys.exit(3)
    for place in stored:
        click.echo(f"{place}")
    if render:
        click.echo(run_render(files))


@click.command()
@of_one_cell
@click.option("--out", type=PATH, required=True, help="A new folder.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@device_option
@force_option
def predictions(files, out, threads, device, force, **named) -> None:
    """Write the masks of one of the study's own runs as PNGs, as `crnet score` takes them.

    \b
    crnet predictions --study demo --table table3 --row full --fold 0 --out masks
    """
    from crnet.config import study
    from crnet.yours.hand_back import write_predictions
    from crnet.yours.places import cell

    plan = study.load(files)
    click.echo(write_predictions(plan, cell(plan, **named), out, device, threads, force))


COMMANDS = (quick, segment, try_page, export, episodes_for_others, score, predictions)
