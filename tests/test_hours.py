"""Predicted hours: work counted by hand, scaled from toy rates; what is shared; what a plan says without rates."""

import json
import re
from pathlib import Path

import pytest
from committed import demand, demand_of_runs

from crnet.config.layout import Layout
from crnet.cost.networks import networks
from crnet.errors import CrnetError
from crnet.planning import rates
from crnet.planning.hours import Hours
from crnet.planning.plan import describe
from crnet.planning.rates import load, of_this_machine
from crnet.planning.stages import EVALUATION, FINETUNING, ON_FEATURES, ON_PHOTOS, START, Stage, named

ROOT = Path(__file__).resolve().parents[1]
PAPER, DEMO = ROOT / "configs/studies/paper.yaml", ROOT / "configs/studies/demo.yaml"
TOY = {ON_PHOTOS: 8e12, ON_FEATURES: 4e12, EVALUATION: 1e12, FINETUNING: 2e12, "encoder": 1e12}  # operations a unit
EACH = 0.5  # seconds of any unit


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def bench(path: Path, device: str = "cuda", operations: dict | None = None, threads: int = 4, **origin) -> Path:
    """A file as ``crnet bench --json`` writes it, as far as it is read."""
    units = {name: (EACH, each) for name, each in (operations or TOY).items()} | {START: (10.0, None)}
    stages = [{"stage": name, "crnet": {"seconds": s, "operations": n}} for name, (s, n) in units.items()]
    origin = {"device": device, "gpu": "toy" if device == "cuda" else "", "cpu": "toy cpu", "threads": threads} | origin
    path.write_text(json.dumps({"provenance": origin, "stages": stages}), encoding="utf-8")
    return path


def hours_of(file: Path, measured: rates.Rates | None) -> Hours:
    needed = demand(file)
    return Hours(needed.plan, Layout(needed.plan), needed, measured)


def test_a_training_by_hand(tmp_path):
    """COCO's full model of the paper's study: 200 epochs of 10,260 episodes, 4 a step, and 100 scored ones."""
    hours = hours_of(PAPER, load([bench(tmp_path / "toy.json")]))
    job = max((job for job in hours.seconds if job[0] == "train" and "coco" in job[1]), key=hours.seconds.__getitem__)
    network = networks(hours.plan.trainings[job[1]])
    encoding = 3 * network.encoder.photo(321).multiply_adds
    pair = network.pair(321, 4) + 3 * network.embedding_training(321).multiply_adds + encoding
    scored = 3 * network.embedding(321).multiply_adds + 2 * network.prediction(321, 1, 1).multiply_adds + encoding
    multiply_adds = 200 * (10_260 * pair + 100 * scored)
    assert hours.seconds[job] == pytest.approx(10 + EACH * multiply_adds / (TOY[ON_PHOTOS] / 2))


def test_rates_scale_by_multiply_adds_and_threads(tmp_path):
    one = load([bench(tmp_path / "cpu.json", "cpu", threads=2)])
    stages = [Stage(START, 1), Stage(EVALUATION, 100, 5e11), Stage(FINETUNING, 10, 3e12)]
    assert one.seconds(stages, threads=2) == pytest.approx(10 + 100 * EACH + 10 * 3 * EACH)
    assert one.seconds(stages, threads=1) == pytest.approx(10 + 2 * (100 * EACH + 30 * EACH))
    gpu = load([bench(tmp_path / "gpu.json")])
    assert gpu.seconds(stages, threads=1) == gpu.seconds(stages, threads=8)
    assert gpu.missing([*stages, Stage("tables", 1)]) == {"tables"}


def test_of_several_sizes_the_nearest_is_scaled(tmp_path):
    small = bench(tmp_path / "small.json", operations={EVALUATION: 2e6})
    both = load([bench(tmp_path / "large.json"), small])
    assert both.seconds([Stage(EVALUATION, 1, 2e6)], 1) == pytest.approx(2 * EACH)  # of 1e6, not of 5e11
    assert both.seconds([Stage(EVALUATION, 1, 1e11)], 1) == pytest.approx(EACH / 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": {}}, "is not what"),
        ({"stages": [{"stage": EVALUATION, "crnet": {"seconds": 0.0, "operations": 1.0}}]}, "must be above 0"),
        ({"stages": [{"stage": EVALUATION}]}, "is not what"),
        ({"stages": None}, "is not what"),
    ],
)
def test_a_file_that_is_no_rates_file_is_one_sentence(change, message, tmp_path):
    path = bench(tmp_path / "toy.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CrnetError, match=message) as caught:
        load([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"# A README\n", b"", b"\xff\xfe"])
def test_a_file_of_ones_own_that_is_no_json_is_not_to_be_deleted(content, tmp_path):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.raises(CrnetError, match=r"README\.md: is not what `crnet bench --json` writes \(") as caught:
        describe([PAPER], [tmp_path / "README.md"])
    assert "delete" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_and_mixed_files_are_one_sentence(tmp_path):
    with pytest.raises(CrnetError, match="absent; `crnet bench --json"):
        describe([PAPER], [tmp_path / "none.json"])
    with pytest.raises(CrnetError, match="of another device"):
        load([bench(tmp_path / "a.json"), bench(tmp_path / "b.json", gpu="other")])


def test_the_machines_own_files_are_found(tmp_path, monkeypatch):
    a, b = bench(tmp_path / "a.json"), bench(tmp_path / "b.json", "cpu")
    bench(tmp_path / "c.json", gpu="other")
    monkeypatch.setattr(rates, "gpu_name", lambda: "toy")
    monkeypatch.setattr(rates, "cpu_name", lambda: "toy cpu")
    assert of_this_machine("cuda", tmp_path) == [a]
    assert of_this_machine("cpu", tmp_path) == [b]
    assert of_this_machine("cpu", tmp_path / "none") == []


def test_hours_of_tables_and_what_sharing_saves(tmp_path):
    measured = load([bench(tmp_path / "toy.json")])
    hours = hours_of(PAPER, measured)
    assert not hours.unknown
    tables = {name: sum(hours.sums(hours.jobs_of(name)).values()) for name in hours.plan.tables}
    whole = sum(hours.sums(hours.graph).values())
    assert max(tables.values()) < whole < sum(tables.values())
    assert whole == pytest.approx(sum(hours.seconds.values())) == pytest.approx(hours.until_the_end(1))
    # One training of each kind, fold and seed serves all rows of Table 3 and the refinement steps.
    assert hours.sums(hours.jobs_of("refinement-steps"))["train"] < hours.sums(hours.jobs_of("table3"))["train"]
    text = describe([PAPER], [tmp_path / "toy.json"])
    assert "GPU-hours     predicted from the step times of toy (toy.json), scaled by multiply-adds" in text
    last = re.search(r"^hours  study, all shared .* ([\d,]+) h$", text, re.MULTILINE)[1]
    assert float(last.replace(",", "")) == pytest.approx(whole / 3600, rel=0.01)
    assert re.search(r"^GPUs +1: [\d,]+ h, 4: [\d,]+ h, 8: [\d,]+ h, 64: [\d,]+ h", text, re.MULTILINE)


def test_without_rates_the_plan_says_how_to_get_them(monkeypatch):
    monkeypatch.setattr("crnet.planning.plan.of_this_machine", lambda kind, folder: [])
    lines = describe([PAPER]).splitlines()
    text = " ".join(" ".join(lines).split())
    assert (
        "GPU-hours not known: no step times of a GPU are on file; `crnet bench --device cuda --json "
        "configs/rates/<name>.json` measures them there" in text
    )
    assert "GPUs 1: 1.0 x, 4: 4.0 x" in text
    monkeypatch.setattr("crnet.runtime.capacity.cores", lambda: 6)
    assert "jobs at once 1: 1.0 x, 4: 4.0 x, 6 (here): 5." in " ".join(describe([DEMO]).split())
    # What a cluster is asked for follows from a speed that is assumed, and says so.
    assert "multiply-adds a second, which is assumed" in text
    known = [line for line in lines if not line.startswith("cluster") and "assumed" not in line]
    assert not re.search(r"\d h\b", " ".join(known))
    assert "CPU-hours not known: no step times of this machine are on file" in " ".join(describe([DEMO]).split())


def test_cpu_rates_for_a_gpu_study_give_cpu_hours(tmp_path):
    assert "\nCPU-hours     predicted from the step times of toy cpu" in describe(
        [PAPER], [bench(tmp_path / "c.json", "cpu")]
    )


def test_distinct_photos_of_episodes():
    assert named([10], 1, 3) == pytest.approx(3)
    assert named([10, 20], 10_000, 3) == pytest.approx(30)
    assert named([2, 10], 1, 3) == pytest.approx(3)  # a class with too few photos is left out
    assert named(None, 7, 3) == 21


@pytest.mark.usefixtures("outside_encoder")
@pytest.mark.parametrize("name", ["demo", "photos"])
def test_committed_studies_took_what_is_predicted_within_a_factor(name, monkeypatch):
    """All runs together, in seconds of the CPU: the machine did other work too. The start of a job is not in them."""
    monkeypatch.chdir(ROOT)
    needed, rows = demand_of_runs(name, ROOT)
    cpu = next(iter(rows.values()))["cpu"]
    monkeypatch.setattr(rates, "cpu_name", lambda: cpu)
    files = of_this_machine("cpu", ROOT / rates.FOLDER)
    if not files:
        pytest.skip(f"there are no step times of the runs' device, {cpu}, in {rates.FOLDER}")
    work = [stage for job in rows for stage in needed.stages(job) if stage.name != START]
    predicted = load(files).seconds(work, needed.plan.study.threads)
    assert 1 / 2.5 <= predicted / sum(float(row["cpu_seconds"] or row["seconds"]) for row in rows.values()) <= 2.5
