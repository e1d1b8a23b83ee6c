"""From YAML files to a checked plan, and where each of its files lies."""

import os
import shlex
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from crnet.config import elsewhere, probe, resolve, sources, tuning
from crnet.config.labels import control_label, encoder_text, run_labels, switches
from crnet.config.names import for_paths
from crnet.config.resolve import Cell, Plan
from crnet.config.schema import Study, parse
from crnet.config.settings import brings_weights, component, k_shot
from crnet.config.yaml_files import load_yaml
from crnet.data.archives import archives
from crnet.errors import CrnetError, one_line
from crnet.runtime.files import canonical, may_write, sha256_text

DEFAULT_STUDY = Path("configs/studies/demo.yaml")
TABLES = Path("configs/tables")
PACKAGED = Path(__file__).resolve().parents[2]
# The checkout: around the package, or where the package is installed without one, the folder one stands in.
ROOT = PACKAGED if (PACKAGED / TABLES).is_dir() else Path()
PUBLISHED = Path("results")  # committed studies; `crnet publish` alone writes there
HEADLINE = "table3"  # whose last row is the full model
EXTENDS = "extends"  # names the study that a study differs from
SEEN = {"benchmarks": "dataset", "encoders": None}  # what titles and captions speak of: section -> key of its entries
LONGEST_ARGUMENT = 120_000  # Linux: 128 KiB with the rest of the command


def load(files: Iterable[Path] = (), overrides: Mapping[str, Any] | None = None, root: Path = ROOT) -> Plan:
    """The plan of a study.

    Args:
        files: YAML files; later ones win, mappings are merged as ``merge`` does. Without any: the demo.
        overrides: Merged last, as ``snakemake --config`` gives them.
        root: The checkout.

    Raises:
        CrnetError: Anything in the files that does not fit; nothing has been run then.
    """
    require_checkout(root)
    files, overrides = [Path(file) for file in files] or [root / DEFAULT_STUDY], dict(overrides or {})
    if EXTENDS in overrides:
        raise CrnetError(f"{files[-1]}: {EXTENDS}: in --config it does nothing; write it into the file.")
    layers = [layer for file in files for layer in with_bases(file)]
    content = reduce(merge, [*(layer for _, layer in layers), overrides])
    where = " + ".join(str(file) for file, _ in layers)
    study = parse(Study, content, where)
    try:
        plan = planned(study, root)
        layout = Layout(plan)
        for name in plan.tables:
            check_command(name, table_job(plan, layout, name))
        return plan
    except CrnetError as error:
        raise CrnetError(f"{where}: {error}") from error


def planned(study: Study, root: Path = ROOT) -> Plan:
    """The plan of a study that is checked already; raises CrnetError where it does not fit the tables."""
    plan = resolve.resolve(study, root / TABLES)
    probe.add_probes(plan, root / TABLES, ROOT / TABLES)
    return plan


def require_checkout(root: Path = ROOT) -> None:
    """Raise CrnetError where the studies and tables are not at hand that a checkout holds beside the package."""
    if not (root / TABLES).is_dir():
        raise CrnetError(
            f"{root.resolve()}: holds no {TABLES}; crnet is installed here without its studies, tables and workflow: "
            "start it in the folder of a checkout (git clone), which has them."
        )


def with_bases(file: Path, above: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """A YAML file and its content, behind the files beside it that it ``extends``, the first of them in front.

    Raises:
        CrnetError: One of them cannot be read, extends what is not the name of another file, or lacks what a study
            has to say of itself: its name, and its title and caption where its data or encoders are others.
    """
    content = load_yaml(file)
    base = content.pop(EXTENDS, None)
    if base is None:
        return [(file, content)]
    if not isinstance(base, str) or Path(base).name != base or not os.path.isfile(path := file.parent / base):
        raise CrnetError(f"{file}: {EXTENDS}: {one_line(repr(base))} is not the name of a file in the same folder.")
    if "study" not in content:
        raise CrnetError(
            f"{file}: study: is missing; without a name of its own it would overwrite the results of {base}."
        )
    if path in (*above, file):
        raise CrnetError(f"{file}: {EXTENDS}: {path} extends this file already; take one of the two out.")
    bases = with_bases(path, (*above, file))
    before = reduce(merge, [layer for _, layer in bases])
    lacking = [key for key in ("title", "caption") if key not in content]
    if lacking and (other := _other_data(before, merge(before, content))):
        raise CrnetError(
            f"{file}: {' and '.join(lacking)}: {'is' if len(lacking) == 1 else 'are'} missing; {other} differs from "
            f"{base}, whose title and caption would speak of other photos or another encoder."
        )
    return [*bases, (file, content)]


def _other_data(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first data set or encoder that is another one or new, by its path; one that is left out is none."""

    def seen(study: Mapping[str, Any], section: str, key: str | None) -> dict[str, Any]:
        entries = study.get(section)
        entries = entries if isinstance(entries, Mapping) else {}  # what does not fit is said by the schema
        values = {name: each.get(key) if key and isinstance(each, Mapping) else each for name, each in entries.items()}
        return {f"{section}.{name}": value for name, value in values.items() if value is not None}

    for section, key in SEEN.items():
        known = seen(before, section, key)
        for place, value in seen(after, section, key).items():
            if value != known.get(place):
                return place
    return None


def check_folders(layout: "Layout") -> None:
    """Raise CrnetError if a file stands where the workflow needs a folder."""
    for place in (layout.archives, layout.extracted_root, layout.work, layout.results):
        for path in (Path(place), *Path(place).parents):
            if path.exists() and not path.is_dir():
                raise CrnetError(f"{path}: a file stands where a folder has to be; move it away.")


def file_of(results: Path, root: Path = ROOT) -> Path | None:
    """The committed study of the name of a folder of results; None if there is none."""
    file = root / DEFAULT_STUDY.with_stem(results.resolve().name)
    return file if file.is_file() else None


def from_published(layout: "Layout") -> Path | None:
    """The published results of a study that has none of its own yet, to make tables of; None if there are none."""
    published = PUBLISHED / layout.plan.study.study
    return published if published.is_dir() and not Path(layout.results).exists() else None


def check_command(name: str, job: Mapping[str, Any]) -> None:
    """Raise CrnetError for a job whose description is longer than a system lets an argument of a command be."""
    length = len(shlex.quote(canonical(job)))
    if length > LONGEST_ARGUMENT:
        raise CrnetError(
            f"{name}: its {sum(len(row['cells']) for row in job.get('rows', []))} cells and its texts make an argument "
            f"of {length:,} bytes, and systems pass {LONGEST_ARGUMENT:,} to a job; use fewer seeds or shorter texts."
        )


def export_package(root: str | os.PathLike) -> None:
    """Let the jobs of a workflow import the checkout's ``crnet``, whether or not it is installed."""
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), others]))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, everything else replaced; so is a mapping whose ``name`` changes.

    Settings belong to the encoder or data set that is named beside them: another one has others.
    """
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        same = both and ("name" not in value or value["name"] == old.get("name", value["name"]))
        result[key] = merge(old, value) if same else value
    return result


class Layout:
    """Paths of a plan's files. ``results`` is small and may be committed, ``work`` is bulky and can be made again."""

    def __init__(self, plan: Plan):
        self.plan, folders = plan, plan.study.folders
        self.archives, self.extracted_root, self.work = folders.archives, folders.extracted, folders.work
        self.results = f"{folders.results}/{plan.study.study}"

    def archive_names(self, kind: str, spec: dict) -> list[str]:
        """Archives that a data set or an encoder is made from."""
        if kind == "encoder":
            return [spec["archive"]] if "archive" in spec else []
        return list(component("dataset", spec["name"], "dataset").literals.get("ARCHIVES", ()))

    def verified(self, archive: str) -> str:
        """Note that an archive was verified: beside it, or in ``work`` where its folder may only be read."""
        return f"{self.archives if may_write(self.archives) else f'{self.work}/verified'}/{archive}.verified"

    def forget_absent_archives(self) -> None:
        """Remove the notes of archives that are gone and needed, so that Snakemake fetches them when it comes to it."""
        for spec in self.plan.datasets.values():
            for name in self.archive_names("dataset", spec):
                extracted = Path(self.extracted(spec)) / name
                archives.forget_absent(Path(self.archives) / name, Path(self.verified(name)), extracted)
        for spec in self.plan.encoders.values():
            for name in self.archive_names("encoder", spec):
                archives.forget_absent(Path(self.archives) / name, Path(self.verified(name)))

    def _checksums(self, spec: dict) -> str:
        """Archives with another checksum hold other photos: they get folders of their own."""
        settings, names = self.plan.study.archives, self.archive_names("dataset", spec)
        other = {name: settings[name].checksum for name in names if name in settings and settings[name].checksum}
        return "-" + sha256_text(canonical(other))[:8] if other else ""

    def extracted(self, spec: dict) -> str:
        return f"{self.extracted_root}/{for_paths(spec['name'])}{self._checksums(spec)}"

    def data(self, spec: dict) -> str:
        return f"{self.work}/data/{resolve.dataset_name(spec)}{self._checksums(spec)}"

    def encoder(self, spec: dict) -> str | None:
        """The encoder's weights; a factory brings its own."""
        own = brings_weights(spec["name"])
        return None if own else f"{self.work}/encoders/{resolve.encoder_name(spec)}.safetensors"

    def features(self, training: dict) -> str | None:
        spec = resolve.features_spec(training)
        return self.features_folder(spec) if spec else None

    def features_folder(self, spec: dict) -> str:
        return f"{self.work}/features/{resolve.features_name(spec)}{self._checksums(spec['dataset'])}"

    def test_features(self, predicted: dict) -> list[str]:
        """Folders of the test photos' features for an evaluation or for trials, one a scale; none if not cached."""
        specs = resolve.test_features_specs(predicted) if self.plan.caches_test_photos else []
        return [self.features_folder(spec) for spec in specs]

    def training(self, name: str) -> str:
        return f"{self.work}/train/{name}"

    def log_so_far(self, name: str) -> str:
        """What a training that is not finished has logged, as ``crnet.training.loop.Paths`` has it."""
        return f"{self.work}/state/{name}.csv"

    def weights(self, evaluation: dict) -> str | None:
        training = evaluation["train"]
        return f"{self.training(resolve.training_name(training))}/model.safetensors" if "train" in training else None

    def job(self, name: str) -> str:
        """What a table, or "claims", is made of, as its command gets it."""
        return f"{self.work}/jobs/{self.plan.study.study}/{name}.json"

    def episodes(self, evaluation: dict) -> str:
        return f"{self.results}/episodes/{resolve.episodes_name(resolve.episodes_spec(evaluation))}.csv"

    def evaluation(self, name: str) -> str:
        return f"{self.results}/evaluate/{name}"

    def counts_of(self, cell: Cell) -> str:
        """The counts that fill a cell: predicted with the first support, or averaged over the supports."""
        return f"{self.evaluation(cell.evaluation)}/{'counts-fusion' if cell.fused else 'counts'}.csv"

    def probe(self, name: str) -> str:
        return f"{self.results}/{probe.FOLDER}/{name}"

    def probe_counts(self, name: str) -> str:
        return f"{self.probe(name)}/counts.csv"

    def finetuning(self, name: str) -> str:
        """Folder of trials, or of a choice."""
        return f"{self.results}/finetune/{name}"

    def choice(self, evaluation: dict) -> str | None:
        """The settings chosen for a finetuned evaluation; None for the others."""
        spec = tuning.choice_spec(evaluation)
        return f"{self.finetuning(tuning.choice_name(spec))}/choice.json" if spec else None


def table_job(plan: Plan, layout: Layout, name: str) -> dict[str, Any]:
    """All that rendering a table needs: labels, the paper's values, and the counts that fill each cell.

    A table's YAML has the paper's word for a backbone; a row that is run names the encoder that stands for it.
    """
    study, table = plan.study, plan.tables[name]
    benchmark = study.benchmarks[table.benchmark]
    splits = component("dataset", benchmark.dataset["name"], name).splits(benchmark.dataset)
    roles = {resolve.role(table, row) for row in table.rows if not row.reported} | {"main"}
    rows = [
        {
            **row.model_dump(include={"id", "label", "reported", "absent", "paper"}),
            "switches": list(switches(row, study.encoders.get(resolve.role(table, row))).items()),
            "control": False,
        }
        for row in table.rows
    ]
    others = elsewhere.rows(plan, layout.results, name, _episodes(plan, name))
    quoted_nowhere = {"switches": [], "control": True, "reported": False, "absent": {}, "paper": {}}
    for control in study.controls:
        rows.append({"id": control, "label": control_label(control), **quoted_nowhere})
    for row in rows:
        places = {f"{shots}-shot": (name, row["id"], shots) for shots in table.shots}
        not_run = {shots: plan.not_run[place] for shots, place in places.items() if place in plan.not_run}
        row["absent"] = row["absent"] | not_run
        row["cells"] = [
            {"shots": cell.shots, "fold": cell.fold, "seed": cell.seed, "counts": layout.counts_of(cell)}
            for cell in plan.cells
            if (cell.table, cell.row) == (name, row["id"])
        ]
    rows[len(table.rows) : len(table.rows)] = others
    return {
        **study.model_dump(include={"study", "caption", "orientation_only"}),
        **table.model_dump(include={"title", "source", "shots", "metrics"}),
        "notes": [*table.notes, *_other_methods(plan, name), *elsewhere.note(others)],
        "table": name,
        "folds": list(benchmark.folds),
        "study_title": study.title,
        "classes": {str(i): splits.classes[i - 1] for fold in benchmark.folds for i in splits.folds[fold]},
        "dataset_folds": len(splits.folds),
        "encoders": {role: encoder_text(spec) for role, spec in study.encoders.items() if spec and role in roles},
        "rows": rows,
    }


def _other_methods(plan: Plan, name: str) -> list[str]:
    """What to know of a table that runs several methods: how they differ from what is quoted, their k-shot rules."""
    rows = {row.id: row for row in plan.tables[name].rows}
    cells = [cell for cell in plan.cells if cell.table == name and cell.row in rows]
    run = {cell.row: plan.evaluations[cell.evaluation]["train"]["method"] for cell in cells}
    if len(set(run.values())) < 2:
        return []
    notes = []
    if any(rows[row].paper for row, method in run.items() if method != resolve.DEFAULT_METHOD):
        notes.append(
            "The other methods too are run on a frozen encoder, at one scale, with one support in training. Most of "
            "their authors trained the encoder, so a distance to the values that the paper quotes is no failed "
            "reproduction. PL and A-MCG are readings of papers without code, PGNet of one with a re-implementation; "
            "R-DFCN's quoted mIoU is of other pairs. crnet/methods says of each what is other here."
        )
    if any(cell.shots > 1 for cell in cells):
        rules = {method: f"{rows[row].label}: {k_shot(method)}" for row, method in run.items()}
        notes.append(f"Several supports, by each method's own rule. {'; '.join(rules.values())}.")
    return notes


def _episodes(plan: Plan, table: str) -> dict[tuple[int, int], str]:
    """(shots, fold) -> name of the test episodes, of all that a table runs."""
    return {
        (cell.shots, cell.fold): resolve.episodes_name(resolve.episodes_spec(plan.evaluations[cell.evaluation]))
        for cell in plan.cells
        if cell.table == table
    }


def headline_table(plan: Plan) -> str:
    """The table that a study's page begins with: the one that ends in the full model, or the first that is run."""
    run = {cell.table for cell in plan.cells}
    wanted = [name for name in (HEADLINE, *plan.tables) if name in plan.tables]
    return next((name for name in wanted if name in run), wanted[0])


def page_job(plan: Plan) -> dict[str, Any]:
    """What a study's page says besides its results: its caption, its tables in order, its runs, how it was made.

    Its sources as they are now go along: the page warns of runs that were made by others.
    """
    runs = plan.evaluations.values()
    study, file = plan.study, DEFAULT_STUDY.with_stem(plan.study.study)
    given = file if (ROOT / file).is_file() else "STUDY.yaml"
    chosen = "" if file == DEFAULT_STUDY else f" --configfile {given}"
    return {
        **study.model_dump(include={"study", "title", "caption", "orientation_only"}),
        "tables": [{"name": name, "title": table.title} for name, table in plan.tables.items()],
        "headline": headline_table(plan),
        "labels": list(run_labels(plan).items()),
        "command": f"snakemake --cores all{chosen}",
        "results": Layout(plan).results,
        "sheet": study.sheet is not None,
        "probe": study.probe.table if plan.probes else None,
        "sources": sources.present({**spec["train"], "encoder": spec["train"]["encoder"]["name"]} for spec in runs),
    }


def probe_job(plan: Plan, layout: Layout) -> dict[str, Any] | None:
    """What the probe's table is made of; None where the study probes nothing."""
    if not plan.probes:
        return None
    table = table_job(plan, layout, plan.study.probe.table)
    job = probe.probe_job(plan, table, layout.probe_counts)
    check_command("probe", job)
    return job


def sheet_job(plan: Plan, layout: Layout) -> dict[str, Any] | None:
    """Files and specifications from which the episode sheet is drawn: one model a fold, the first seed's."""
    wanted = plan.study.sheet
    if wanted is None:
        return None
    shown = (wanted.table, wanted.row, plan.tables[wanted.table].shots[0], plan.study.seeds[0])
    specs = [plan.evaluations[c.evaluation] for c in plan.cells if (c.table, c.row, c.shots, c.seed) == shown]
    models = [
        {
            "spec": spec,
            "data": layout.data(spec["train"]["dataset"]),
            "encoder": layout.encoder(spec["train"]["encoder"]),
            "weights": layout.weights(spec),
            "episodes": layout.episodes(spec),
        }
        for spec in specs
    ]
    return {"title": f"{plan.study.title}: test episodes", "episodes": wanted.episodes, "models": models}
