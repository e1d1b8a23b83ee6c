"""``crnet check-data``: every finding of a data set in one table, and an end that says whether there were any."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import layouts
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from layouts import save_mask
from PIL import Image

from crnet.cli import cli
from crnet.config import study
from crnet.config.layout import Layout
from crnet.data import check
from crnet.data.findings import EXTRACT_AGAIN, Finding
from crnet.data.formats import coco
from crnet.data.prepare import prepare
from crnet.data.sets import pascal5i, shapes80
from crnet.errors import CrnetError
from crnet.runtime.files import read_csv

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"images_train": 8, "images_val": 6, "size": 64, "rule_grid": 8}


@pytest.fixture
def extracted(tmp_path) -> Path:
    """VOC and SBD as extracted, seven photos: cats (8) in t0 to t3 and v0, and s0, s1 that SBD alone has."""
    mask = np.zeros((40, 48), np.uint8)
    mask[:20, :20] = 8
    voc = {"train": dict.fromkeys(("t0", "t1", "t2", "t3"), mask), "val": {"v0": mask}}
    layouts.write(*pascal5i.roots_in(tmp_path), voc, {"train": {"s0": mask}, "val": {"s1": mask}})
    return tmp_path


def check_pascal(extracted: Path) -> check.Checked:
    spec = {"name": "pascal5i", **pascal5i.SETTINGS, "pairs": "rule", "rule_grid": 4}
    return check.check(spec, extracted / "none", extracted / "archives", extracted)


def test_all_findings_of_extracted_data_at_once(extracted):
    result = check_pascal(extracted)
    assert (result.photos, result.findings, result.where) == (7, [], extracted)
    assert not list(extracted.rglob("masks")), "checking writes nothing"
    voc_root, sbd_root = pascal5i.roots_in(extracted)
    cut = voc_root / "JPEGImages/t0.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    save_mask(voc_root / "SegmentationClass/t1.png", np.full((40, 48), 99, np.uint8))
    save_mask(voc_root / "SegmentationClass/t2.png", np.zeros((40, 40), np.uint8))
    (voc_root / "JPEGImages/v0.jpg").unlink()
    (sbd_root / "cls/s0.mat").write_bytes(b"no")
    result = check_pascal(extracted)
    assert result.photos == 2
    parts = {Path(finding.file).name: (finding.what, finding.remedy) for finding in result.findings}
    assert set(parts) == {"t0.jpg", "t1.png", "t2.png", "v0.jpg", "s0.mat"}
    assert parts["t1.png"] == ("holds the id 99", "only 0 to 20 and 255 (void) are known")
    assert parts["v0.jpg"] == ("is absent, but the photo v0 is listed", f"add it, mend the list, or {EXTRACT_AGAIN}")
    # What stops a preparation is one of these.
    with pytest.raises(Finding) as first:
        pascal5i.prepare(extracted, extracted, extracted / "out", {**pascal5i.SETTINGS, "pairs": "rule"})
    assert str(first.value) in {str(finding) for finding in result.findings}


def test_what_is_not_there_is_a_finding(tmp_path):
    result = check_pascal(tmp_path)
    assert result.photos is None
    assert [finding.what for finding in result.findings] == ["is absent"]


@pytest.fixture
def archives(tmp_path) -> Path:
    """Archives in the layout of COCO, eight and six photos."""
    shapes80.write_coco(tmp_path, {**shapes80.SETTINGS, **SMALL})
    return tmp_path


def check_coco(archives: Path) -> tuple[int | None, list[CrnetError]]:
    findings: list[CrnetError] = []
    return coco.check(archives, findings.append, splits=shapes80.splits({}), settings=SMALL), findings


def rewritten(archive: Path, change) -> None:
    """A zip again, with what ``change`` makes of each member's name and content; None leaves it out."""
    with zipfile.ZipFile(archive) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(archive, "w") as target:
        for number, (name, content) in enumerate(sorted(members.items())):
            content = change(number, name, content)
            if content is not None:
                target.writestr(name, content)


def test_all_findings_of_archives_at_once(archives):
    assert check_coco(archives) == (14, [])

    def photos(number, name, content):
        small = io.BytesIO()
        Image.new("RGB", (9, 9)).save(small, "JPEG")
        return {0: content[:300], 1: None, 2: b"text", 3: small.getvalue()}.get(number, content)

    def entries(number, name, content):
        if "train" not in name:
            return content
        found = json.loads(content)
        found["images"][5].pop("width")
        found["annotations"] += [
            found["annotations"][0],
            {"id": -1, "image_id": -5, "category_id": 1, "iscrowd": 0, "segmentation": []},
            {**found["annotations"][-1], "id": -2, "category_id": 999},
            {**found["annotations"][-1], "id": -3, "segmentation": [[1, 2, 3]]},
            {**found["annotations"][-1], "id": -4, "segmentation": ["x"]},
        ]
        return json.dumps(found).encode()

    rewritten(archives / "train2014.zip", photos)
    rewritten(archives / coco.ANNOTATIONS, entries)
    count, findings = check_coco(archives)
    texts = "\n".join(map(str, findings))
    for words in ("without a proper 'width'", "two entries of annotations with the id", "is of image -5, which",
                  "has the category id 999", "annotation -3 has a broken segmentation", "annotation -4 has a broken",
                  "lacks 1 photos that", "is not a readable image (it holds none)", "is 9x9 px but"):  # fmt: skip
        assert words in texts, words
    assert sum("is not a readable image" in str(finding) for finding in findings) == 2, "cut short, and text"
    assert count < 14


def test_a_json_that_is_none_is_one_finding_and_the_end(archives):
    rewritten(archives / coco.ANNOTATIONS, lambda number, name, content: b"[" * 100_000)
    with pytest.raises(Finding, match="is no JSON"):
        check_coco(archives)


def run(folder: Path, *arguments: str):
    return CliRunner().invoke(cli, ["check-data", "--configfile", str(folder / "study.yaml"), *arguments])


@pytest.fixture
def chain(tmp_path, monkeypatch) -> tuple[Path, Path, Path]:
    """A study of both kinds of data set, prepared: its folder and those of the two."""
    content = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    content |= {"tables": ["table3", "table7"], "shots": [1]}
    del content["benchmarks"]["k-shot"]
    content["benchmarks"]["pascal"]["dataset"] |= SMALL
    content["benchmarks"]["coco"]["dataset"] |= SMALL
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    plan = study.load([tmp_path / "study.yaml"])
    layout, folders = Layout(plan), []
    for spec in plan.datasets.values():
        folders.append(Path(layout.data(spec)))
        prepare(spec, tmp_path, tmp_path, folders[-1])
    return tmp_path, *folders


def test_a_prepared_study(chain):
    folder, shapes5i, shapes80 = chain
    done = run(folder)
    assert done.exit_code == 0, done.output
    assert f"{shapes5i.name}: 14 photos with masks are whole, no findings" in done.output
    photo, mask = sorted(shapes5i.rglob("*.jpg"))[3], sorted(shapes5i.rglob("*.png"))[5]
    photo.write_bytes(photo.read_bytes()[:500])
    save_mask(mask, np.full(np.array(Image.open(mask)).shape, 200, np.uint8))
    lines = (shapes80 / coco.MASKS).read_bytes()
    (shapes80 / coco.MASKS).write_bytes(lines[:40] + b"\x00\x00" + lines[42:])
    done = run(folder, "--out", str(folder / "findings.csv"))
    assert done.exit_code == 3, done.output
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert tuple(cell.strip() for cell in table[0].split("|")[1:-1]) == check.HEADER
    assert len(table) == 2 + 3
    for words in (photo.name, "was changed after shapes5i was prepared", "holds no masks at byte 0"):
        assert any(words in line for line in table), words
    assert "12 photos with masks are whole, 2 findings" in done.output
    written = read_csv(folder / "findings.csv")
    assert len(written) == 3
    assert any(row["file"].endswith(photo.name) for row in written)


def test_an_out_that_cannot_be_written_is_refused_before_the_reading(chain, monkeypatch):
    monkeypatch.setattr(check, "check", lambda *_: pytest.fail("read"))
    done = run(chain[0], "--out", str(chain[0]))
    assert isinstance(done.exception, CrnetError) and "cannot be written (Is a directory)" in str(done.exception)


def test_findings_are_shown_though_their_file_fails(chain, monkeypatch):
    def fail(*_):
        raise CrnetError("the disk is full.")

    folder, shapes5i, _ = chain
    monkeypatch.setattr("crnet.cli.write_csv", fail)
    photo = min(shapes5i.rglob("*.jpg"))
    photo.write_bytes(photo.read_bytes()[:500])
    done = run(folder, "--out", str(folder / "findings.csv"))
    assert str(done.exception) == "the disk is full."
    assert photo.name in done.output and "1 finding (" in done.output


def test_a_study_whose_data_are_not_made_yet(chain):
    folder, shapes5i, shapes80 = chain
    shutil.rmtree(shapes5i)
    (shapes80 / "images.csv").write_text("image,split\nx,train\n")
    done = run(folder)
    assert done.exit_code == 3
    assert f"{shapes5i.name}: is generated when it is needed, nothing to check yet" in done.output
    assert "one of its files was changed" in done.output


def test_a_finding_travels_between_processes():
    finding = Finding(Path("a|b.jpg"), "is\nbroken", "mend it")
    again = pickle.loads(pickle.dumps(finding))
    assert (str(again), again.file, again.what, again.remedy) == (str(finding), "a|b.jpg", "is\\nbroken", "mend it")
    table = check._markdown(check.rows([check.Checked("d", Path("."), 0, [finding])]))
    assert "a\\|b.jpg" in table[2]
