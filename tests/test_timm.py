"""Encoders that the library timm builds, with random weights and files made here: timm's own need a network."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from crnet import encoders
from crnet.config import encoders as known_encoders
from crnet.config import sources, study
from crnet.config.encoders import encoder_spec
from crnet.config.known import known
from crnet.config.layout import Layout
from crnet.cost.networks import encoder as counted
from crnet.encoders.frozen import FrozenEncoder
from crnet.errors import CrnetError
from crnet.planning.plan import describe

timm = pytest.importorskip("timm", reason="timm is an extra: pip install 'crnet[timm]'")

CPU = torch.device("cpu")
DINO = "timm:vit_small_patch14_dinov2.lvd142m"


def spec_of(name: str, **given) -> dict:
    return encoder_spec({"name": name, "weights": "random", **given}, "encoders.main")


def prepared(spec: dict, folder: Path) -> FrozenEncoder:
    encoders.prepare(spec, folder, folder / "encoder.safetensors", 1)
    return FrozenEncoder(spec, folder / "encoder.safetensors", CPU, "float32")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("model", "given", "channels"),
    [
        ("resnet18", {"layers": [3, 2]}, (256, 128)),
        ("resnet18", {}, (256, 512)),
        ("test_vit", {"layers": [-1, 0]}, (64, 64)),
        ("test_vit4", {}, None),
        ("test_convnext", {"layers": [1, 3]}, (32, 64)),
        ("test_efficientnet", {"alignment": "corners"}, (48, 64)),
        ("test_maxvit", {}, None),
        ("swin_tiny_patch4_window7_224", {"layers": [2]}, (384,)),
        ("mixer_s32_224", {"layers": [0]}, (512,)),
    ],
)
def test_maps_of_any_model_are_on_the_grid_of_stride_8_in_the_order_asked_for(model, given, channels):
    network = encoders.network(spec_of(f"timm:{model}", **given)).eval()
    assert channels is None or network.channels == channels
    for size in ((225, 225), (64, 113)):
        with torch.no_grad():
            maps = network(torch.randn(2, 3, *size))
        grid = tuple(-(-side // 8) for side in size)
        assert [tuple(m.shape) for m in maps] == [(2, c, *grid) for c in network.channels]
        assert all(m.std() > 0 for m in maps)


def test_a_resnet_is_timms_dilated_one():
    network = encoders.network(spec_of("timm:resnet18", layers=[2, 3])).eval()
    theirs = timm.create_model("resnet18", output_stride=8, features_only=True, out_indices=(2, 3)).eval()
    theirs.load_state_dict(network.body.state_dict())
    images = torch.randn(1, 3, 65, 65)
    with torch.no_grad():
        for ours, other in zip(network(images), theirs(images), strict=True):
            torch.testing.assert_close(ours, other)


def test_patch_tokens_are_a_map_resized_to_the_grid():
    """DINOv2's patches of 14 px: 225 px are brought to 224, its 16 x 16 tokens of a block to 29 x 29."""
    network = encoders.network(spec_of(DINO, layers=[1])).eval()
    images = torch.randn(1, 3, 225, 225)
    with torch.no_grad():
        [found] = network(images)
        fitted = F.interpolate(images, (224, 224), mode="bilinear")
        [tokens] = network.body.model.forward_intermediates(fitted, indices=[1], intermediates_only=True)
    assert tokens.shape == (1, 384, 16, 16)
    torch.testing.assert_close(found, F.interpolate(tokens, (29, 29), mode="bilinear"))


def test_photos_get_the_statistics_that_the_weights_were_trained_with():
    about = timm.models.get_pretrained_cfg("vit_tiny_patch16_224")
    assert about.mean == (0.5, 0.5, 0.5)
    network = encoders.network(spec_of("timm:vit_tiny_patch16_224", layers=[0])).eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        [tokens] = network.body((images / 255 - 0.5) / 0.5)
        [found] = network(encoders.normalise(images))
    torch.testing.assert_close(found, F.interpolate(tokens, (8, 8), mode="bilinear"), rtol=1e-4, atol=1e-5)


def test_random_weights_are_the_same_each_time_and_their_digest_is_on_record(tmp_path):
    spec = spec_of("timm:test_resnet")
    first = prepared(spec, tmp_path)
    maps = first(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert first.digest == prepared(spec, tmp_path).digest
    assert len(maps) == 2
    training = {"method": "crnet", "encoder": spec}
    assert sources.recorded(training)["timm_version"] == timm.__version__
    assert len(sources.recorded(training)["encoder_source"]) == 64


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("classes", [1000, 7, 0])
def test_weights_of_a_file_whatever_its_classifier(tmp_path, suffix, classes):
    torch.manual_seed(1)
    whole = timm.create_model("test_resnet", num_classes=classes)
    file = tmp_path / f"weights{suffix}"
    save_file(whole.state_dict(), file) if suffix == ".safetensors" else torch.save(whole.state_dict(), file)
    spec = spec_of("timm:test_resnet", weights=str(file), sha256=digest_of(file))
    found = prepared(spec, tmp_path)
    held = found.network.body.state_dict()
    assert len(held) > 20
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in held.items())


def test_a_url_is_fetched_and_verified(tmp_path):
    file = tmp_path / "there" / "weights.safetensors"
    file.parent.mkdir()
    save_file(timm.create_model("test_resnet").state_dict(), file)
    spec = spec_of("timm:test_resnet", weights=file.as_uri(), sha256=digest_of(file))
    prepared(spec, tmp_path)
    assert (tmp_path / "weights.safetensors").read_bytes() == file.read_bytes()


class Pickled:
    def __reduce__(self):
        return os.system, ("touch pickle-was-run",)


def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other, pickled, noise = (tmp_path / name for name in ("other.safetensors", "pickled.pth", "noise.safetensors"))
    save_file(timm.create_model("test_vit").state_dict(), other)
    torch.save({"state_dict": Pickled()}, pickled)
    noise.write_bytes(b"no weights")
    cases = [
        (tmp_path / "absent.pth", "0" * 64, "there is no file of weights"),
        (other, "0" * 64, f"has the SHA-256 {digest_of(other)}, not 000"),
        (other, digest_of(other), "does not hold the weights of timm:test_resnet"),
        (pickled, digest_of(pickled), "is no file of weights that is safe to read"),
        (noise, digest_of(noise), "is no file of weights that is safe to read"),
    ]
    for file, checksum, words in cases:
        with pytest.raises(CrnetError, match=words) as refused:
            prepared(spec_of("timm:test_resnet", weights=str(file), sha256=checksum), tmp_path)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "pickle-was-run").exists()


def test_timms_weights_without_a_network_are_one_sentence(tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise FileNotFoundError("An error happened while trying to locate the file.\nPlease check your connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    words = "timm's weights could not be had .*go where there is a network, or give a file"
    with pytest.raises(CrnetError, match=words) as refused:
        prepared(spec_of("timm:test_resnet.r160_in1k", weights="pretrained"), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weights": "my.pth"}, "sha256: '' is not the SHA-256 of my.pth"),
        ({"sha256": "0" * 64}, "goes with a file or URL as weights, not with 'pretrained'"),
        ({"layers": ["layer3"]}, "layers\\[0\\]: 'layer3' is not a int"),
        ({"layers": [2, 2]}, "names a map twice"),
        ({"alignment": "middle"}, "'corners', 'tiles'"),
        ({"stride": 8}, "unknown setting"),
    ],
)
def test_settings_are_checked_when_the_study_is_read(given, words):
    with pytest.raises(CrnetError, match=rf"encoders\.main.*{words}"):
        study.load(overrides={"encoders": {"main": {"name": "timm:resnet18", **given}}})


def test_a_study_is_read_without_timm_or_torch():
    code = (
        "import sys; from crnet.config import study;"
        "plan = study.load(overrides={'encoders': {'main': {'name': 'timm:resnet18'}, 'vgg16': None}});"
        "print([spec['alignment'] for spec in plan.encoders.values()], {'timm', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['corners'] set()\n"


@pytest.mark.parametrize(
    ("model", "alignment"),
    [
        *((name, "corners") for name in ("resnet101", "wide_resnet50_2.tv_in1k", "resnext50_32x4d", "regnety_008")),
        *((name, "corners") for name in ("efficientnet_b0", "tf_efficientnet_lite2", "resnetv2_50")),
        *((name, "tiles") for name in ("resnet50d", "resnetrs50", "convnext_tiny", "vit_tiny_patch16_224", "vgg16")),
    ],
)
def test_where_the_cells_of_a_model_lie(model, alignment):
    assert spec_of(f"timm:{model}")["alignment"] == alignment
    assert spec_of(f"timm:{model}", alignment="tiles")["alignment"] == "tiles"


def test_cells_on_corners_are_centred_on_every_eighth_pixel():
    """With convolutions that average, the gradient's centre of a cell is the pixel that it lies around."""
    network = encoders.network(spec_of("timm:regnetx_002", layers=[3, 4])).eval().double()
    with torch.no_grad():
        for weight in network.body.parameters():
            weight.fill_(1 / weight[0].numel()) if weight.ndim == 4 else weight.abs_()
    images = torch.ones(1, 3, 225, 225, dtype=torch.double, requires_grad=True)
    for each in network(images):
        [gradient] = torch.autograd.grad(each[0, :, 14, 14].sum(), images, retain_graph=True)
        seen = gradient.sum((0, 1, 2))
        assert float((seen * torch.arange(225)).sum() / seen.sum()) == pytest.approx(14 * 8, abs=0.01)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("timm:resnett18", {}, "has no such model; near: resnet18"),
        ("timm:resnet18", {"layers": [1, 7]}, r"gives no maps \[1, 7\]; choose lower numbers"),
        ("timm:resnet18", {"layers": [4, -1]}, "are not distinct ones of its 5"),
        ("timm:test_vit", {"alignment": "corners"}, "try alignment: tiles"),
        ("timm:resnet18.nobody", {}, "gives no maps"),
    ],
)
def test_what_timm_has_not_is_one_sentence(name, given, words):
    with pytest.raises(CrnetError, match=words) as refused:
        encoders.network(spec_of(name, **given))
    assert "\n" not in str(refused.value)


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    assert known_encoders.absent("timm:resnet18") is None
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CrnetError, match=r"needs the library timm .*pip install 'crnet\[timm\]'"):
        encoders.network(spec_of("timm:resnet18"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sentence = "encoder 'timm:resnet18' needs the library timm; `pip install 'crnet[timm]'` brings it."
    assert known_encoders.absent("timm:resnet18") == sentence


def test_its_work_and_memory_are_counted_and_the_plan_says_how_it_was_made_to_fit(tmp_path):
    small, large = (counted(spec_of(f"timm:{name}", layers=[2, 3])) for name in ("resnet18", "resnet50"))
    assert large.weight_bytes > small.weight_bytes > 0
    builtin = counted({"name": "resnet50", "layers": ["layer2", "layer3"]})
    assert large.photo(225).multiply_adds == pytest.approx(builtin.photo(225).multiply_adds, rel=1e-6)
    assert counted(spec_of(DINO)).photo(225).multiply_adds > 5e9  # 12 blocks on 256 tokens
    file = tmp_path / "changes.yaml"
    file.write_text(json.dumps({"encoders": {"main": {"name": DINO, "layers": [8, 11]}}}))
    text = " ".join(describe([study.DEFAULT_STUDY, file]).split())
    assert f"encoder {DINO}: map 8 has 384 channels at stride 14, map 11 has 384" in text
    assert "resized to the grid of stride 8 (bilinear), photos resized to a multiple of 14 px" in text


def test_it_is_listed_and_its_weights_have_a_place():
    assert dict(known("encoders"))["timm"].endswith("named timm:MODEL; its maps are brought to stride 8")
    changes = [{"encoders": {"main": {"name": DINO, "layers": [i]}, "vgg16": None}} for i in (8, 11)]
    plans = [study.load(overrides=each) for each in changes]
    places = {Layout(plan).encoder(spec) for plan in plans for spec in plan.encoders.values()}
    assert len(places) == 2  # other layers are other networks
    assert all(":" not in place and place.endswith(".safetensors") for place in places)
