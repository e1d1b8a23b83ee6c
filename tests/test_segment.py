"""Photos of one's own: read in whatever form they come, segmented as the evaluation would, written without loss."""

import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import own_study
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import crnet
from crnet.cli import cli
from crnet.config import resolve, study
from crnet.config.layout import Layout
from crnet.errors import CrnetError
from crnet.evaluation.predict import Predictor
from crnet.runtime.files import read_json
from crnet.yours import photos
from crnet.yours.photos import read_mask, read_photo
from crnet.yours.places import cell, places
from crnet.yours.segment import check, parse_support, segment_files

SEED = np.random.default_rng(5)
RGB = SEED.integers(0, 256, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of two runs: one that fuses, one that finetunes."""
    folder = tmp_path_factory.mktemp("photos of mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = own_study.build(folder)
        found = {row: own_study.run(plan, table, row, shots, 0).resolve()
                 for table, row, shots in (("table3", "full", 1), ("table4", "full-finetune", 5))}  # fmt: skip
    return {"folder": folder, "fusion": found["full"], "finetune": found["full-finetune"]}


@pytest.fixture(scope="module")
def episode(runs) -> dict:
    """An episode of the study as files, and the prediction of the study's own evaluation for it."""
    folder = runs["folder"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = study.load([folder / "study.yaml"])
        place = places(plan, "table3", 1, [0])[0]
        index, table = place.read()
        layout, spec = Layout(plan), plan.evaluations[cell(plan, "table3", "full", 1, 0, 0).evaluation]
        files = Path(layout.encoder(spec["train"]["encoder"])), Path(layout.weights(spec))
        first = table.episodes[0]
        [prediction] = Predictor(spec, Path(layout.data(spec["train"]["dataset"])), *files, "cpu").fused([first])
        photo, query = folder / "a photo: mine.png", folder / "größe.png"
        Image.fromarray(index.read_image(first.supports[0])).save(photo)
        Image.fromarray(index.read_image(first.query)).save(query)
        mask = index.class_mask(first.supports[0], first.class_id)
        Image.fromarray((mask == 1).astype(np.uint8) * 255).save(folder / "mask.png")
    return {"photo": photo, "mask": folder / "mask.png", "query": query, "truth": prediction.query}


def test_three_lines_segment_as_the_evaluation_does(runs, episode):
    model = crnet.load(runs["fusion"])
    masks = model.segment([(episode["photo"], episode["mask"])], [episode["query"], str(episode["query"])])
    assert [mask.dtype for mask in masks] == [bool, bool]
    assert masks[0].shape == episode["truth"].shape
    assert (masks[0] != episode["truth"]).mean() < 2e-3  # batches of other sizes differ in rounding
    assert (masks[0] == masks[1]).all()


def test_the_lines_of_the_readme_work_as_pasted(runs, tmp_path, monkeypatch):
    section = (study.ROOT / "README.md").read_text(encoding="utf-8").partition("## Yours")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) == 3
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "a.jpg", "b.jpg"):
        Image.fromarray(RGB).save(name)
    Image.fromarray(INSIDE * 255).save("cat.png")
    names: dict = {}
    exec(code.replace("out/demo/evaluate/NAME", str(runs["fusion"])), names)
    assert [mask.shape for mask in names["masks"]] == [(40, 60)] * 2


def test_paths_pictures_and_arrays_are_the_same(runs, episode):
    model = crnet.load(runs["fusion"])
    with Image.open(episode["photo"]) as photo, Image.open(episode["mask"]) as mask, Image.open(episode["query"]) as q:
        pictures = model.segment([(photo, mask)], [q])[0]
        arrays = model.segment([(np.array(photo), np.array(mask) > 0)], [np.array(q)])[0]
    paths = model.segment([(episode["photo"], episode["mask"])], [episode["query"]])[0]
    assert (pictures == paths).all() and (arrays == paths).all()


def test_several_supports_fuse_and_finetuning_leaves_no_trace(runs, episode):
    supports = [(episode["photo"], episode["mask"])] * 2
    model = crnet.load(runs["finetune"])
    before = model.segment(supports, [episode["query"]], strategy="fusion")[0]
    first, second = model.segment(supports, [episode["query"]] * 2, lr=0.05, steps=5)  # adapted once for both
    assert (first == second).all() and first.shape == before.shape
    found = next(model.each(supports, [episode["query"]], strategy="finetune-fusion"))
    assert found.probability.dtype == np.float32 and 0 <= found.probability.min() <= found.probability.max() <= 1
    assert (model.segment(supports, [episode["query"]], strategy="fusion")[0] == before).all()
    with pytest.raises(CrnetError, match="no trials chose its lr and steps; give them"):
        crnet.load(runs["fusion"]).segment(supports, [episode["query"]], strategy="finetune")
    with pytest.raises(CrnetError, match="lr, steps: are of finetuning"):
        model.segment(supports, [episode["query"]], strategy="fusion", lr=0.05)
    with pytest.raises(CrnetError, match="finetuning needs at least 2 supports"):
        model.segment(supports[:1], [episode["query"]], strategy="finetune")


def saved(folder: Path, name: str, picture: Image.Image, **how) -> Path:
    picture.save(folder / name, **how)
    return folder / name


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1"])
def test_photos_of_every_usual_mode_become_rgb(mode, tmp_path):
    path = saved(tmp_path, "p.tif" if mode == "CMYK" else "p.png", Image.fromarray(RGB).convert(mode))
    with Image.open(path) as stored:
        wanted = np.array(stored.convert("RGB"))
    assert (read_photo(path).pixels == wanted).all()


def test_sixteen_bits_keep_the_upper_eight_and_floats_are_refused(tmp_path):
    deep = SEED.integers(0, 65536, (20, 30), np.uint16)
    assert (read_photo(saved(tmp_path, "d.png", Image.fromarray(deep))).pixels[..., 0] == deep >> 8).all()
    path = saved(tmp_path, "f.tif", Image.fromarray(deep.astype(np.float32)))
    with pytest.raises(CrnetError, match=r"f\.tif is no photo of 8 or 16 bits .* mode F: convert it to 8 bits"):
        read_photo(path)


def test_an_orientation_is_applied_to_photo_and_result(tmp_path, runs, episode):
    exif = Image.Exif()
    exif[photos.EXIF_ORIENTATION] = 6
    path = saved(tmp_path, "turned.jpg", Image.fromarray(RGB), exif=exif, quality=100)
    photo = read_photo(path)
    assert photo.size == (60, 40) and photo.pixels.shape == (60, 40, 3)
    with Image.open(path) as stored:
        assert (photo.pixels == np.rot90(np.array(stored), -1)).all()
    model = crnet.load(runs["fusion"])
    assert model.segment([(episode["photo"], episode["mask"])], [path])[0].shape == (60, 40)
    with pytest.raises(CrnetError, match="is 60x40 px but its photo is 40x60 px, turned: draw it on the photo"):
        read_mask(np.ones((40, 60), np.uint8), photo)


INSIDE = np.zeros((40, 60), np.uint8)
INSIDE[5:20, 10:30] = 1


def _palette() -> Image.Image:
    picture = Image.fromarray(INSIDE * 7)
    picture.putpalette([value % 251 for value in range(768)])
    return picture


FORMS = {
    "0/255": Image.fromarray(INSIDE * 255),
    "0/1": Image.fromarray(INSIDE),
    "palette": _palette(),
    "one bit": Image.fromarray(INSIDE * 255).convert("1"),
    "colour": Image.fromarray(INSIDE[..., None] * np.array([200, 0, 30], np.uint8)),
    "grey as colour": Image.fromarray(INSIDE * 255).convert("RGBA"),
    "16 bits": Image.fromarray(INSIDE.astype(np.uint16) * 65535),
    "booleans": INSIDE > 0,
    "integers": INSIDE.astype(np.int64),
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_in_any_usual_form_are_the_same(form, tmp_path):
    mask, photo = FORMS[form], read_photo(RGB)
    assert (read_mask(mask, photo) == INSIDE).all()
    if isinstance(mask, Image.Image):
        assert (read_mask(saved(tmp_path, "m.png", mask), photo) == INSIDE).all()


def test_void_beside_a_class_is_void():
    values = INSIDE * 3
    values[0] = 255
    assert set(np.unique(read_mask(values, read_photo(RGB))).tolist()) == {0, 1, 255}


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (INSIDE[:10], "is 60x10 px but its photo is 60x40 px: they have to be of one size"),
        (INSIDE * 0, "has no foreground: mark the object in it"),
        (INSIDE + 2 * np.eye(40, 60, dtype=np.uint8), "holds several classes .1, 2, 3.: give the mask of one"),
        (RGB[..., 0], "holds .* different values: give a mask of two values"),
        (INSIDE * 0.5, "is an array of float64 and shape"),
    ],
)
def test_a_mask_that_cannot_be_used_is_one_sentence(mask, sentence):
    with pytest.raises(CrnetError, match=sentence):
        read_mask(mask, read_photo(RGB))


def test_what_is_no_photo_is_one_sentence(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(CrnetError, match=r"broken.jpg is not a readable picture .*: give another file\."):
        read_photo(tmp_path / "broken.jpg")
    with pytest.raises(CrnetError, match=r"absent.jpg: there is no such file"):
        read_photo(tmp_path / "absent.jpg")
    huge = saved(tmp_path, "huge.png", Image.new("1", (10_000, 6_000)))
    with pytest.raises(CrnetError, match=r"huge.png is 10000x6000 px, .* make it smaller, at most 50 million"):
        read_photo(huge)
    with pytest.raises(CrnetError, match="give a path, a PIL image or a NumPy array"):
        read_photo(3)


def test_a_photo_of_48_million_pixels_is_segmented_in_bounded_memory(tmp_path, runs, episode):
    small = Image.fromarray(RGB)
    path = saved(tmp_path, "large.jpg", small.resize((8000, 6000)))
    model = crnet.load(runs["fusion"])
    tracemalloc.start()
    found = next(model.each([(episode["photo"], episode["mask"])], [path]))
    mask = found.mask
    peak = tracemalloc.get_traced_memory()[1]  # of NumPy's arrays, PIL's pictures are small by then
    tracemalloc.stop()
    assert mask.shape == (6000, 8000)
    assert found.picture.pixels.size <= 3.1 * photos.WORKING_PIXELS
    assert peak < 700e6


def test_the_command_writes_masks_overlays_and_probabilities_and_overwrites_nothing(runs, episode, monkeypatch):
    monkeypatch.chdir(runs["folder"])
    support = f"{episode['photo']}:{episode['mask']}"
    words = ["segment", "--run", runs["fusion"], "--support", support, "--query", episode["query"], "--out", "out ü"]
    other = read_photo(episode["query"]).pixels
    Image.fromarray(other).save("second.jpg")

    def run(*more):
        return CliRunner().invoke(cli, [str(w) for w in (*words, *more)], catch_exceptions=False)

    done = run("second.jpg", "--probability")
    assert done.exit_code == 0 and "2 masks" in done.output
    names = {f"{stem}-{kind}" for stem in ("größe", "second") for kind in
             ("mask.png", "overlay.jpg", "probability.png")}  # fmt: skip
    assert {path.name for path in Path("out ü").iterdir()} == names
    with Image.open("out ü/größe-mask.png") as mask, Image.open("out ü/größe-probability.png") as probability:
        values = np.array(mask)
        assert set(np.unique(values).tolist()) <= {0, 255}
        sure = np.abs(np.array(probability) / 65535 - 0.5) > 1e-3
        assert ((values > 0) == (np.array(probability) > 32767))[sure].all()
    with pytest.raises(CrnetError, match="is there already; give another folder, or --force"):
        run()
    assert run("--force").exit_code == 0
    cell_words = ["segment", "--configfile", "study.yaml", "--table", "table3", "--row", "full", "--support", support]
    again = CliRunner().invoke(cli, [*cell_words, "--query", str(episode["query"]), "--out", "other"])
    assert again.exit_code == 0, again.output
    assert Path("other/größe-mask.png").read_bytes() == Path("out ü/größe-mask.png").read_bytes()


def test_what_is_wrong_with_a_call_is_said_before_the_network_is_loaded(runs, episode, tmp_path, monkeypatch):
    monkeypatch.setattr("crnet.yours.load.load", lambda *given: pytest.fail("was loaded"))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("a.png")
    Image.fromarray(RGB).save("a.jpg")
    support = f"{episode['photo']}:{episode['mask']}"

    def run(support, *queries):
        words = ["segment", "--run", runs["fusion"], "--support", support, "--out", "out", "--query", *queries]
        CliRunner().invoke(cli, [str(w) for w in words], catch_exceptions=False)

    for given, sentence in [
        ((support, "a.png", "a.jpg"), "a.png and a.jpg: would both be written as a-mask.png"),
        ((support, "nosuch.jpg"), "nosuch.jpg: there is no such file"),
        (("a.png", "a.jpg"), "has no colon; give PHOTO:MASK"),
        (("a.png:b.png", "a.jpg"), "there is no file 'b.png'"),
    ]:
        with pytest.raises(CrnetError, match=sentence):
            run(*given)


def test_a_photo_that_is_cut_off_stops_before_the_first_is_written(runs, episode, tmp_path):
    cut, out = tmp_path / "cut.jpg", tmp_path / "out"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    with pytest.raises(CrnetError, match=r"cut\.jpg is not a readable picture"):
        check([Path(episode["query"]), cut], out, False, False)
    with pytest.raises(CrnetError, match="the folder cannot be made"):
        segment_files(crnet.load(runs["fusion"]), [], [Path(episode["query"])], Path("/proc/none/out"), False, False)


def test_a_colon_in_a_name_is_no_border(episode):
    assert parse_support(f"{episode['photo']}:{episode['mask']}") == (episode["photo"], episode["mask"])


def test_weights_of_another_run_are_refused(runs, tmp_path):
    with pytest.raises(CrnetError, match=r"holds no evaluation\.json and no model\.json"):
        crnet.load(tmp_path)
    with pytest.raises(CrnetError, match=r"the encoder of .* is not here; bring it"):
        crnet.load(runs["fusion"], work=tmp_path)
    spec = read_json(runs["fusion"] / "evaluation.json")["spec"]
    name = resolve.training_name(spec["train"])
    shutil.copytree(runs["folder"] / "work", tmp_path / "work", ignore=shutil.ignore_patterns("data"))
    weights = tmp_path / f"work/train/{name}/model.safetensors"
    state = load_file(weights)
    save_file({key: value + 1 for key, value in state.items()}, weights)
    with pytest.raises(CrnetError, match=r"are not the weights that .* was scored with; bring those"):
        crnet.load(runs["fusion"], work=tmp_path / "work")
