"""What ``crnet plan`` says: counts by hand, sizes by hand, and where the machine falls short."""

import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from committed import demand

from crnet.config import study
from crnet.config.layout import Layout
from crnet.errors import CrnetError
from crnet.planning import plan as planning
from crnet.planning.disk import DataSet, amount, archives_of, needs_of, weight_bytes
from crnet.planning.plan import WIDTH, describe
from crnet.runtime.files import write_csv

ROOT = Path(__file__).resolve().parents[1]
PAPER, DEMO, PHOTOS = (ROOT / f"configs/studies/{name}.yaml" for name in ("paper", "demo", "photos"))
TINY = ROOT / "tests/tiny.yaml"
GIB = 2**30


pytestmark = pytest.mark.usefixtures("outside_encoder")


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Nothing is downloaded or prepared here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def photos_here(tmp_path_factory) -> Path:
    """The list of photos is named relative to the checkout."""
    subset = {"dataset": {"subset": str(ROOT / "configs/studies/photos-ids.txt")}}
    file = tmp_path_factory.mktemp("photos") / "here.yaml"
    file.write_text(json.dumps({"benchmarks": {"pascal": subset, "k-shot": subset}}))
    return file


@cache
def described(*files: Path) -> str:
    """The plan of a study where nothing is there yet, made once."""
    return describe(files)


def row(text: str, name: str) -> list[str]:
    """What follows ``name`` at the start of a line, cell by cell; cells are two blanks apart."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    assert len(lines) == 1, f"{len(lines)} lines start with {name}"
    return re.split(r"\s{2,}", lines[0])[1:]


def sizes(*files: Path) -> dict[str, tuple[float | None, float | None]]:
    plan = study.load(files)
    layout = Layout(plan)
    data = [DataSet(spec, layout) for spec in plan.datasets.values()]
    return {need.name: (need.whole, need.to_come) for need in needs_of(plan, layout, data)}


def test_counts_of_the_papers_study():
    text = described(PAPER)
    # 4 folds x 3 seeds = 12 runs a row and number of shots; 2 controls x 4 folds = 8 besides; COCO has 1 fold.
    # rows run, reported, left out, cells, trainings, trials, evaluations
    assert row(text, "table2") == ["3", "-", "-", "44", "36", "-", "44"]  # 3 x 12 + 8
    # Multi-scale is the stripped model's training: 3 kinds x 12.
    assert row(text, "table3") == ["4", "-", "-", "56", "36", "-", "56"]  # 4 x 12 + 8
    assert row(text, "refinement-steps") == ["4", "-", "-", "56", "12", "-", "56"]  # one training serves 4 rows
    # Each of 2 models: fusion at 3 shots, finetune at 2, finetune + fusion at 2: 7 x 12 cells, controls 3 x 8; the last
    # two are one evaluation: 5 x 12. Trials are one a training: 2 x 12.
    assert row(text, "table4") == ["6", "-", "-", "192", "24", "24", "144"]
    assert row(text, "table5") == ["10", "-", "-", "128", "120", "-", "128"]  # 10 x 12 + 8
    assert row(text, "table6") == ["10", "-", "-", "128", "120", "24", "128"]
    assert row(text, "table7") == ["4", "-", "-", "28", "12", "-", "28"]  # 4 rows x 2 shots x 3 seeds + 2 controls x 2
    # Alone: 632 cells; less the controls' 8 + 8 + 8 + 24 + 8 + 8 + 4 = 68 they are trained; 4 x 24 + 24 are finetuned.
    assert row(text, "if no cell shared") == ["632", "564", "120", "632"]
    # Trainings: condition, cross-reference, both, refinement, full, full with VGG16, and the 8 other methods of Tables
    # 5 and 6, which share them: 14 x 12, and COCO's 4 x 3.
    # Trials: both, full, full with VGG16: 3 x 12.
    # Evaluations, PASCAL: table 2's 3, table 3's other 3, 4 numbers of refinements, VGG16, 8 others: 19 x 12 + 8 = 236;
    # k-shot: table 4's 144, VGG16's 12 and 8 x 12 = 252; COCO 28.
    assert row(text, "study, all shared") == ["180", "36", "516"]
    assert row(text, "saved") == ["384", "84", "116"]
    assert "left out  " not in text.replace("left out  cells", "")


def test_work_of_the_papers_study():
    text = " ".join(described(PAPER).split())
    # A fold trains on the 13,680 published pairs but its own: 3 x 13,680 over 4 folds; 14 kinds x 3 seeds, 200 epochs.
    assert "168 runs on pascal5i of 200 epochs x the fold's training pairs: 344,736,000 episodes" in text
    assert "12 runs on coco2014 of 200 epochs x 10,260 episodes: 24,624,000 episodes" in text
    # 3 rates x 40 episodes x 300 steps, on which those of 25 and 100 are stations: 36,000 each.
    assert "36 runs of 3 rates x 3 numbers of steps on 40 episodes: 1,296,000 steps" in text
    # Table 4's 2 models x 2 shots x 12, of which all are also fused, and table 6's 12 of VGG16; 1,000 episodes each.
    assert "60 evaluations, 48 of them also fused: 60,000 episodes, at most 18,000,000 steps" in text
    # 236 of PASCAL and 28 of COCO with 5 x 1,000 episodes, 252 of k-shot with 1,000.
    assert "1,572,000 episodes, the finetuned ones among them" in text


def test_counts_of_the_demo():
    text = described(DEMO)
    # As the paper's, with one seed: 4 runs a row and number of shots.
    assert row(text, "table2") == ["3", "-", "-", "20", "12", "-", "20"]
    assert row(text, "table4") == ["6", "-", "-", "80", "8", "8", "64"]  # cells 7 x 2 x 4 + 24, runs 5 x 2 x 4 + 24
    assert row(text, "table6") == ["2", "8", "-", "16", "8", "8", "16"]
    assert row(text, "table7") == ["4", "-", "-", "12", "4", "-", "12"]
    # Evaluations: 11 x 4 + 8 of pascal, (2 x 5 + 1) x 4 + 24 of k-shot, 4 x 2 + 4 of coco.
    assert row(text, "study, all shared") == ["28", "12", "132"]
    assert "archives      none: everything is generated" in text
    assert sizes(DEMO)["archives"] == sizes(DEMO)["extracted"] == (0, 0)


def heads(file: Path) -> tuple[int, int]:
    """Bytes of all heads of a study, counted in the real ones, and of the largest of COCO's."""
    import torch

    from crnet import methods

    channels = {"layer3": 1024, "layer4": 2048, "conv4": 512, "conv5": 512}

    @cache
    def size(method: str, layers: tuple[str, ...], model: str) -> int:
        with torch.device("meta"):
            head = methods.build(method, tuple(channels[layer] for layer in layers), json.loads(model))
        return 4 * sum(weight.numel() for weight in head.parameters())

    trainings = study.load([file]).trainings.items()
    each = {name: size(s["method"], tuple(s["encoder"]["layers"]), json.dumps(s["model"])) for name, s in trainings}
    return sum(each.values()), max(size for name, size in each.items() if "coco" in name)


def test_sides_of_the_input_are_those_that_fit_each_encoder():
    text = " ".join(described(PAPER).split())
    for line in (
        "resnet50 (layer3, layer4): trained at 321 px, tested at 241, 321, 401 px; its cells fit 8n + 1 px",
        "vgg16 (conv4, conv5): trained at 320 px, tested at 240, 320, 400 px; its cells fit 8n px",
    ):
        assert f"input {line}" in text


def test_disk_of_the_papers_study():
    found = sizes(PAPER)
    voc, sbd, coco = 1_999_639_040, 1_419_539_633, 13_510_573_713 + 6_645_013_297 + 252_872_794
    resnet, vgg = 102_530_333, 553_433_881
    weights, largest = heads(PAPER)
    expected = {
        "archives": voc + sbd + coco + resnet + vgg,  # each once, though two tables ask for VGG16's
        "extracted": 1.1 * (voc + sbd),  # COCO's are read in place, weights are not unpacked
        "prepared": 11_473 * 4400 + (82_783 + 40_504) * 2700,
        "encoders": 2 * 100e6,
        "features": 0,  # encoded while training
        "weights": weights,
        # The largest is COCO's with refinement: weights, momentum, 2 x 41 x 41 x 2 bytes a pair and branch; and the one
        # before.
        "states": 2 * (2 * largest + 240_070 * 2 * 6724),
        "results": 100 * (1_572_000 + 60_000 + 36 * 40 * 10),  # of trials: 3 rates x 3 numbers of steps, and none
    }
    assert found == {name: (pytest.approx(size), pytest.approx(size)) for name, size in expected.items()}
    text = described(PAPER)
    assert row(text, "total")[:2] == [f"{sum(expected.values()) / GIB:.2f} GiB"] * 2 == ["40.34 GiB"] * 2
    assert "22.80 GiB  22.80 GiB  7 of 7 archives to download" in text
    assert "1.1 x 2 archives, 3 archives read in place" in text


def test_features_of_photos_are_exact(photos_here):
    # Preparing these photos gave 1,281 training photos and pairs and 581 test ones, whose maps have 512 and 1024 halves
    # a cell: 29 x 29 cells at 225 px, 22 and 36 a side at 0.75 and 1.25 times that.
    cells = 1281 * 29**2 + 581 * (22**2 + 29**2 + 36**2)
    assert sizes(PHOTOS, photos_here)["features"][0] == cells * (512 + 1024) * 2


def test_rows_that_a_study_leaves_out(photos_here):
    text = described(PHOTOS, photos_here)
    assert "left out      table4 10-shot (6 rows, 2 controls): the study leaves out 10 shots\n" in text
    assert "left out      table5 1-shot (1 row), table6 5-shot (1 row): the study has no encoder vgg16\n" in text
    assert row(text, "table4")[:3] == ["6", "-", "-"]  # run at the other shots
    assert row(text, "table5")[:3] == ["1", "8", "1"]


def test_an_absent_list_of_photos_is_one_sentence():
    with pytest.raises(CrnetError, match=r"photos-ids\.txt, setting subset, is absent") as caught:
        describe([PHOTOS])
    assert "\n" not in str(caught.value)


def test_what_is_there_is_not_to_come(tmp_path):
    before = sizes(TINY)
    plan = study.load([TINY])
    layout = Layout(plan)
    spec = next(spec for spec in plan.datasets.values() if spec["name"] == "shapes5i")
    folder = Path(layout.data(spec))
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"subset": None, "digest": "0123456789abcdef" * 4}))
    write_csv(folder / "images.csv", ["image"], [["a"], ["b"], ["c"]])
    pairs = [["a", 1, "train"], ["a", 2, "train"], ["b", 1, "val"]]
    write_csv(folder / "pairs.csv", ["image", "class", "split"], pairs)
    training = next(iter(plan.trainings))
    weights = Path(layout.training(training)) / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    after = sizes(TINY)
    assert after["prepared"][1] == int(280 * (8000 + 0.55 * 64**2))  # shapes80's alone
    assert after["weights"][1] == pytest.approx(before["weights"][1] - weight_bytes(plan.trainings[training]))
    # One photo and its two pairs, 9 x 9 cells of 64 + 96 channels in half precision, in place of an estimate; and a
    # test photo and its pair, at 49, 65 and 81 px in float32.
    data = DataSet(spec, layout)
    assert (data.photos_of("train"), data.pairs_of("train")) == (1, 2)
    train, test = 40 + int(40 * 2.1) - 3, 60 + int(60 * 2.1) - 2
    less = train * 9**2 * (64 + 96) * 2 + test * (7**2 + 9**2 + 11**2) * (64 + 96) * 4
    assert before["features"][0] - after["features"][0] == less
    assert "shapes5i: prepared, the whole data set, digest 0123456789abcdef\n" in describe([TINY])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset.json", "{}"),
        ("dataset.json", "[]"),
        ("dataset.json", "{"),
        ("pairs.csv", "image,class,split\na,1"),
        ("pairs.csv", "image,split\na,train\n"),
        ("images.csv", None),
    ],
)
def test_damaged_prepared_data_are_one_sentence(file, content):
    plan = study.load([TINY])
    folder = Path(Layout(plan).data(next(iter(plan.datasets.values()))))
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text('{"subset": null, "digest": "0123456789abcdef"}')
    write_csv(folder / "images.csv", ["image"], [["a"]])
    write_csv(folder / "pairs.csv", ["image", "class", "split"], [["a", 1, "train"]])
    describe([TINY])
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(CrnetError, match=f"{folder} is no prepared data set any more") as caught:
        describe([TINY])
    assert str(caught.value).endswith(": delete its dataset.json to have it prepared again.")
    assert str(caught.value).count("delete") == 1
    assert "\n" not in str(caught.value)


def test_placed_and_half_downloaded_archives(tmp_path):
    before = sizes(PAPER)["archives"]
    folder = tmp_path / "data/archives"
    folder.mkdir(parents=True)
    (folder / "benchmark.tgz").write_bytes(bytes(10))
    (folder / "val2014.zip.part").write_bytes(bytes(1000))
    after = sizes(PAPER)["archives"]
    assert before[1] - after[1] == 1_419_539_633 + 1000
    text = describe([PAPER])
    assert "6 of 7 archives to download" in text
    assert re.search(r"benchmark\.tgz +0\.1 MiB  to be verified", text)


def test_an_archive_of_unknown_size_is_said_to_be_so(tmp_path):
    changed = {"benchmark.tgz": {"checksum": "sha256:" + "0" * 64}}
    (tmp_path / "mirror.yaml").write_text(json.dumps({"archives": changed}))
    text = describe([PAPER, tmp_path / "mirror.yaml"])
    assert row(text, "archives")[:2] == ["not known", "not known"]
    assert row(text, "total")[-1] == "without what is not known: archives, extracted"


def test_each_archive_is_counted_once():
    plan = study.load([PAPER], {"encoders": {"other": {"name": "resnet50", "layers": ["layer2", "layer3"]}}})
    names = [archive.name for archive in archives_of(plan, Layout(plan))]
    assert len(names) == len(set(names)) == 7


def test_warnings(monkeypatch):
    monkeypatch.setattr(planning, "has_nvidia_gpu", lambda: False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=30 * GIB))
    text = describe([PAPER])
    assert "WARNING       this machine has no NVIDIA GPU, and the study needs one (device: cuda)" in text
    assert re.search(r"WARNING too little disk for .*: 30\.00 GiB free, 40\.34 GiB needed", " ".join(text.split()))
    monkeypatch.setattr(planning, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=44 * GIB))
    monkeypatch.setattr("crnet.runtime.capacity.cores", lambda: 16)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}[name])
    text = describe([PAPER])
    assert "WARNING" not in text
    assert "machine       falls short in nothing that is checked" in text
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 * GIB // 4096}[name])
    monkeypatch.setattr("crnet.runtime.capacity.cores", lambda: 2)
    text = describe([PAPER])
    assert "a job wants 4 threads, this machine has 2 cores" in text
    assert "of memory, jobs may take" not in text  # of the GPU, which is not asked here
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": GIB // 4096}[name])
    assert re.search(r"1\.00 GiB of memory, jobs may take 1\.\d\d GiB; use fewer --cores", describe([DEMO]))


@pytest.mark.parametrize("file", [DEMO, PAPER, PHOTOS, TINY], ids=lambda path: path.stem)
def test_output_is_for_people(file, photos_here):
    text = described(file, photos_here) if file == PHOTOS else described(file)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert not re.search(r"\d\.\d{3}", text)  # no float tails
    assert "None" not in text


def test_readable_sizes():
    assert [amount(n) for n in (None, 0, 1, 5 * 2**20, GIB // 10 + 1, 2000 * GIB)] == [
        "not known", "-", "0.1 MiB", "5.0 MiB", "0.10 GiB", "2,000.00 GiB",
    ]  # fmt: skip


def test_work_and_memory_are_known_of_every_method_and_encoder(tmp_path):
    """A control, an encoder from outside and one of torchvision's, in the paper's study."""
    (tmp_path / "changes.yaml").write_text(json.dumps({"encoders": {"vgg16": {"name": "resnet50v2:build"}}}))
    needed = demand(PAPER, tmp_path / "changes.yaml")
    trains = [spec["train"] for (rule, _), spec in needed.specs.items() if rule == "evaluate"]
    assert {(train["method"], train["encoder"]["name"]) for train in trains} >= {
        ("prototype", "resnet50"), ("crnet", "resnet50"), ("crnet", "resnet50v2:build"),
    }  # fmt: skip
    for job in needed.specs:
        assert sum(stage.units * stage.multiply_adds for stage in needed.stages(job)) > 0, job
        assert needed.memory(job).own > 0


def test_cached_features_are_said_to_be_mapped(photos_here):
    """They are in the peak that a process reports, but not its own: 1,281 training photos and pairs."""
    own, mapped = row(described(PHOTOS, photos_here), "memory  training")[1:3]
    assert mapped == f"{1281 * 29**2 * 1536 * 2 / GIB:.2f} GiB" == "3.08 GiB"
    assert own != mapped
