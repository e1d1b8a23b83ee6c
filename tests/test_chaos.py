"""SIGKILL and SIGTERM at random moments of every kind of job: the study finishes, and nothing shows that it happened.

``make chaos`` kills more often; CRNET_CHAOS_SEED draws the same kills again.
"""

import base64
import itertools
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from chaos import KINDS, Chaos, Run, contents, end_tree, run_undisturbed, say_again, tracked
from chaos_study import checkout, make_archives, served

from crnet.runtime.files import canonical, sha256_text

KILLS = int(os.environ.get("CRNET_CHAOS_KILLS", 8))
SEED = int(os.environ.get("CRNET_CHAOS_SEED", int.from_bytes(os.urandom(4))))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The folder of the archives, and the address under which they are served."""
    folder = tmp_path_factory.mktemp("served")
    make_archives(folder)
    with served(folder) as address:
        yield folder, address


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, archives):
    """A folder in which the study ran without a kill, and how many seconds each kind of job took."""
    folder = checkout(tmp_path_factory.mktemp("runs") / "undisturbed", *archives)
    return folder, run_undisturbed(folder)


def compare(disturbed: Path, wanted: dict[str, str], runs: list[tuple]) -> None:
    """The folder holds what an undisturbed one does: no file more or less, and none that differs."""
    found = contents(disturbed)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert tracked(disturbed) == runs
    assert "Nothing to be done" in say_again(disturbed)
    digests = [sha256_text(canonical(files))[:16] for files in (found, wanted)]
    print(f"{disturbed.name}: {len(found)} files, digest {' = '.join(digests)}", flush=True)


def test_killed_at_random_moments_the_study_ends_with_the_same_bytes(undisturbed, archives, tmp_path, capsys):
    folder, seconds = undisturbed
    wanted, runs = contents(folder), tracked(folder)
    every_kind = len(KINDS) * 3 <= KILLS
    with capsys.disabled():
        print(f"\nchaos: {KILLS} kills, seed {SEED}; undisturbed {seconds['study']:.0f} s", flush=True)
        chaos, started = Chaos(SEED, KILLS, seconds), time.monotonic()
        for number in itertools.count(1):
            disturbed = checkout(tmp_path / f"round-{number}", *archives)
            chaos.finish(disturbed)
            compare(disturbed, wanted, runs)
            assert number < 3 * KILLS, "kills meet no jobs"
            if chaos.tally.kills < chaos.kills:
                continue
            if not every_kind or not chaos.tally.missed() or chaos.kills >= 2 * KILLS:
                break
            chaos.kills += 2  # one of them aimed: an extraction takes 0.1 s, and is easily missed
        print(f"{chaos.tally.table()}\n{chaos.tally.kills} kills in {time.monotonic() - started:.0f} s", flush=True)
    if every_kind:
        assert chaos.tally.missed() == []


@pytest.mark.parametrize(
    ("made", "missing", "behind"),
    [
        ("work/data/*/dataset.json", ["work/train", "out/chaos"], {"data", "train", "trials", "evaluate"}),
        ("work/features/*/features.json", ["work/train", "out/chaos"], {"features", "train", "trials", "evaluate"}),
        ("out/chaos/finetune/*/choice.json", ["out/chaos/evaluate", "out/chaos/tables"], {"choice"}),
    ],
)
def test_killed_before_snakemake_recorded_it_a_file_hides_nothing_behind_it(
    undisturbed, tmp_path, made, missing, behind
):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed[0], folder)
    for later in missing:
        shutil.rmtree(folder / later)
    file = next(folder.glob(made)).relative_to(folder)
    # How Snakemake marks a job that it has started.
    (folder / ".snakemake/incomplete" / base64.b64encode(str(file).encode()).decode()).touch()
    planned = re.findall(r"^(?:local)?rule (\w+):", say_again(folder, "--dry-run"), re.MULTILINE)
    assert {*behind, "finetune", "table", "page"} <= set(planned)


def test_a_preemption_notice_while_snakemake_chooses_its_next_jobs(archives, tmp_path):
    folder = checkout(tmp_path / "study", *archives)
    run = Run(folder)
    snakemake = psutil.Process(run.process.pid)

    def chooses() -> bool:
        with suppress(psutil.NoSuchProcess):  # a child that has ended meanwhile
            return any(child.name() == "cbc" for child in snakemake.children())
        return False

    while run.running and not chooses():
        time.sleep(0.001)
    if not run.running:
        pytest.skip("Snakemake chooses without the solver cbc here")
    end_tree(folder, signal.SIGTERM)  # which waits until all have left
    assert run.wait() != 0
