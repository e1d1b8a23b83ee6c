"""Studies, tables and claims mutated at random: each mutant is valid or refused in one sentence, never a traceback.

The suite spends about 20 seconds here. A longer search, with its number of mutants printed at the end:

    CRNET_FUZZ_SECONDS=600 pytest -s tests/test_fuzz_config.py

Each of the three kinds of file then gets a third of the time. A failure is printed by hypothesis as the smallest list
of edits that still fails, and can be replayed from it.
"""

import copy
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from crnet.config import claims as paper_claims
from crnet.config import study
from crnet.config.jobs import page_job, sheet_job, table_job
from crnet.config.layout import Layout
from crnet.errors import CrnetError, one_line
from crnet.runtime.files import canonical

ROOT = Path(__file__).resolve().parents[1]
SECONDS = float(os.environ.get("CRNET_FUZZ_SECONDS", "15"))
LONG = "CRNET_FUZZ_SECONDS" in os.environ

NASTY = ["", " ", "'", '"', "`id`", "$(touch PWNED)", "; touch PWNED #", "{params.spec}", "{", "}", "{{x}}", "a\nb",
         "\t", "\\", "é", "日本", "\U0001f600", "\x00", "\ud800", "-x", "--out", "..", "../..", "/", "~", "*", "%s",
         "null", "x" * 300, "nan", "1e999", "os:system", "__main__:x", "a.b:c", ":", "table2", "crnet", "main", "small",
         "layer3", "pascal5i", "shapes80", "cached", "5-shot", "extends"]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 5, 20, 21, 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e308, float("nan"), float("inf")]
SCALARS = st.one_of(
    st.sampled_from([None, True, False, *NUMBERS, *NASTY]),
    st.integers(),
    st.floats(),
    st.text(st.characters(codec=None), max_size=20),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NASTY) | st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip
KEYS = st.one_of(st.sampled_from(NASTY), st.text(max_size=8), st.integers())
# Where in a file, as a number that is taken modulo what is there; what is done; with what.
ACTIONS = ["like", "like", "like", "replace", "delete", "insert", "rename", "copy", "wrap"]
EDITS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(ACTIONS), VALUES, KEYS, st.integers(0, 10_000)),
    min_size=1,
    max_size=3,
)


def places(content, path=()):
    """Paths of all values below ``content``."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def at(content, path):
    for key in path:
        content = content[key]
    return content


def like(value, other: int):
    """Another value of the same kind, so that more than the first check is reached."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return [value + 1, value - 1, value * 2, value / 2, -value, 10**20, float(value), 1e-9][other % 8]
    if isinstance(value, str):
        return [*NASTY, value + "é", value.upper(), value * 2, value[:-1]][other % (len(NASTY) + 4)]
    if isinstance(value, list):
        return [value[::-1], value + value, value[:1], []][other % 4]
    return {}


def mutated(content, edits):
    """A copy with the edits, and for each the words of its place, of which a refusal has to name one."""
    content, touched = copy.deepcopy(content), []
    for where, what, value, key, other in edits:
        known = list(places(content))
        if not known:
            break
        path = known[where % len(known)]
        parent, last = at(content, path[:-1]), path[-1]
        keys = [part for part in path if isinstance(part, str)]
        touched.append([*keys, key] if what in ("insert", "rename") else keys)
        if what == "delete":
            del parent[last]
        elif what == "insert" and isinstance(parent, dict):
            parent[key] = value
        elif what == "insert":
            parent.insert(last, value)
        elif what == "rename" and isinstance(parent, dict):
            parent[key] = parent.pop(last)
        elif what == "copy":
            parent[last] = copy.deepcopy(at(content, known[other % len(known)]))
        elif what == "wrap":
            parent[last] = [parent[last]]
        elif what == "like":
            parent[last] = like(parent[last], other)
        else:
            parent[last] = value
    return content, touched


def check_refusal(message: str, touched) -> None:
    """It is one sentence that names the file and the place."""
    assert message.isprintable(), "not one line"
    assert message.endswith("."), "no sentence"
    assert ".yaml: " in message, "no file"
    words = {one_line(str(word)) for path in touched for word in path}
    assert any(word in message for word in words) or re.search(r": line \d+: ", message), "no key"


def fuzz(kind: str, content, load, check) -> None:
    """Edit ``content`` at random for a third of the time; hypothesis makes a failing list of edits small.

    Args:
        load: What reads a mutant, or refuses it; it may raise ``Unwritable``.
        check: Of what it returns.
    """
    total = refusals = 0

    def attempt(edits) -> None:
        nonlocal total, refusals
        mutant, touched = mutated(content, edits)
        try:
            loaded = load(mutant)
        except Unwritable:
            return
        except CrnetError as error:
            check_refusal(str(error), touched)
            refusals += 1
        else:
            check(loaded)
        total += 1

    deadline = time.monotonic() + SECONDS / 3
    number = first = int.from_bytes(os.urandom(4)) if LONG else 0
    while time.monotonic() < deadline:
        quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
        rounds = settings(max_examples=50, phases=[Phase.generate, Phase.shrink], **quiet)
        seed(number)(rounds(given(EDITS)(attempt)))()
        number += 1
    print(f"\n{kind}: {total:,} mutants, {refusals:,} refused, {total - refusals:,} valid; seeds from {first}")
    assert total > 20
    assert 0 < refusals < total, "mutants of one outcome only find nothing"


TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
TABLE = yaml.safe_load((ROOT / "configs/tables/table4.yaml").read_text())
CLAIMS = yaml.safe_load((ROOT / "configs/claims.yaml").read_text())


def jobs(plan) -> None:
    """Everything that Snakemake passes to jobs can be made, is plain JSON, and comes back as it was."""
    layout = Layout(plan)
    for spec in [*plan.evaluations.values(), *plan.trainings.values(), *plan.trials.values(), *plan.choices.values()]:
        assert json.loads(canonical(spec)) == spec
    for value in [*(table_job(plan, layout, name) for name in plan.tables), page_job(plan)]:
        text = canonical(value)
        assert "NaN" not in text
        assert text.isascii()
        assert text.isprintable()
        assert json.loads(text) == json.loads(json.dumps(value))
    sheet_job(plan, layout)
    for path in [layout.data(spec) for spec in plan.datasets.values()] + [layout.counts_of(c) for c in plan.cells]:
        assert re.fullmatch(r"[\w./+@~-]+", path, re.ASCII), path
        assert all(len(part) < 250 for part in path.split("/")), path


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("study") / "empty.yaml"
    file.write_text("{}")
    return file


class Unwritable(Exception):
    """YAML cannot say it, as half a surrogate pair."""


def write(file: Path, content) -> None:
    try:
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except (UnicodeEncodeError, yaml.YAMLError) as error:
        raise Unwritable from error


def test_mutants_of_studies(empty):
    fuzz("studies", TINY, lambda mutant: study.load([empty], mutant), jobs)


def test_mutants_of_tables(tmp_path):
    table, file = tmp_path / "configs/tables/table4.yaml", tmp_path / "study.yaml"
    table.parent.mkdir(parents=True)
    write(file, TINY | {"tables": ["table4"], "sheet": None, "probe": None})

    def load(mutant):
        write(table, mutant)
        return study.load([file], root=tmp_path)

    fuzz("tables", TABLE, load, jobs)


def test_mutants_of_claims(tmp_path):
    file, plan = tmp_path / "claims.yaml", study.load([ROOT / "tests/tiny.yaml"])
    (tmp_path / "tables").symlink_to(ROOT / "configs/tables")

    def load(mutant):
        write(file, mutant)
        return paper_claims.claims_job(plan, Layout(plan), file)

    def check(job):
        text = canonical(job)
        assert "NaN" not in text
        assert "Infinity" not in text
        assert json.loads(text) == job

    fuzz("claims", CLAIMS | {"claims": CLAIMS["claims"][:4]}, load, check)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "an alias stands inside"),
        ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(f"{x}: &{x} [{', '.join([f'*{y}'] * 8)}]\n" for y, x in zip(
            "abcdefgh", "bcdefghi", strict=True)), "more than 100,000 values"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: 2020-13-45", "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("__use_yte__: true\n?print(1): 2", "__use_yte__ makes Snakemake run the file as code"),
        ("? [a]\n: 1", "a key must be a word"),
        ("seeds: [0]\nseeds: [1]\n", "line 2: key 'seeds' is given twice"),
        ("a: [\n", "not valid YAML"),
        (b"study: \xff\xfe", "not valid YAML"),
        ("- a\n", "holds list where"),
        ("", "holds NoneType where"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_one_sentence(tmp_path, text, words):
    file = tmp_path / "study.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CrnetError, match=words) as caught:
        study.load([file])
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


WORDS = ["it's", '"quoted"', "$HOME `id` $(touch PWNED)", "; touch PWNED #", "{params.job} {{x}} {", "a\nb\tc",
         "\\ back", "naïve 日本語 \U0001f600", "--out", "-h", "%s %(x)s", "*.py ?", "trailing "]  # fmt: skip


def test_any_text_reaches_a_job_unchanged(tmp_path):
    """Title, caption, labels and notes go by Snakemake's own formatting and quoting, a shell and click to the job."""
    from snakemake.utils import format as snakemake_format

    received = tmp_path / "received.json"
    script = tmp_path / "receive.py"
    script.write_text(
        "import click, json, pathlib\nfrom crnet import cli, jobs\n"
        "@cli.cli.command('receive')\n@click.option('--job', type=jobs.JSON)\n"
        f"def receive(job): pathlib.Path({str(received)!r}).write_text(json.dumps(job))\ncli.main()\n"
    )

    class Params:
        job = canonical({word: [word] for word in WORDS})
        several = WORDS[:1]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = snakemake_format("{python} {script} receive --job {params.job:q}", params=Params, python=sys.executable,
                               script=script)  # fmt: skip
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path, env=environment)
    assert json.loads(received.read_text()) == {word: [word] for word in WORDS}
    assert not (tmp_path / "PWNED").exists()


def test_every_word_in_a_study_is_refused_or_kept(empty):
    for word in WORDS:
        plan = study.load([empty], TINY | {"title": word, "caption": word})
        assert json.loads(canonical(page_job(plan)))["title"] == word
        for key in ("study", "device"):
            with pytest.raises(CrnetError, match=key):
                study.load([empty], TINY | {key: word})
        with pytest.raises(CrnetError, match=r"folders\.work"):
            study.load([empty], TINY | {"folders": {"work": word}})


def test_what_rules_put_into_shell_commands_is_quoted_or_cannot_be_chosen():
    """Only numbers and words of a fixed list go unquoted; everything else is ``:q``."""
    harmless = {"{threads}", "{params.workers}", "{params.device}"}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for command in re.findall(r"shell:\n((?: +\".*\"\n)+)", file.read_text()):
            for place in re.findall(r"\{[^}]*\}", command):
                assert place.endswith(":q}") or place in harmless, f"{file.name}: {place}"
    fields = study.Study.model_fields
    assert fields["threads"].annotation is int or "int" in str(fields["threads"].annotation)
    assert str(fields["device"].annotation) == "typing.Literal['cpu', 'cuda']"
