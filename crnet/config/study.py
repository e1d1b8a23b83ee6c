"""From YAML files to a checked plan."""

import os
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from crnet.config import probe, resolve
from crnet.config.jobs import check_command, table_job
from crnet.config.layout import DEFAULT_STUDY, ROOT, TABLES, Layout
from crnet.config.resolve import Plan
from crnet.config.schema import Study, parse
from crnet.config.yaml_files import load_yaml
from crnet.errors import CrnetError, one_line

EXTENDS = "extends"  # names the study that a study differs from
SEEN = {"benchmarks": "dataset", "encoders": None}  # what titles and captions speak of: section -> key of its entries


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


def file_of(results: Path, root: Path = ROOT) -> Path | None:
    """The committed study of the name of a folder of results; None if there is none."""
    file = root / DEFAULT_STUDY.with_stem(results.resolve().name)
    return file if file.is_file() else None


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
