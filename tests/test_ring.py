"""The methods that CRNet is compared with: their size, what is particular to each, and that each can learn."""

from pathlib import Path

import pytest
import torch
import yaml
from faults import trained
from torch import Tensor
from torch.nn import functional as F

from crnet import methods
from crnet.config import study
from crnet.config.encoders import before_training
from crnet.config.jobs import table_job
from crnet.config.layout import Layout
from crnet.config.settings import components
from crnet.errors import CrnetError
from crnet.methods import Method, Pairs, each
from crnet.methods.pfenet import prior
from crnet.metrics.iou import fg_counts
from crnet.model.correlation import CentrePivot, _strided
from crnet.runtime.files import read_csv
from crnet.training import log
from crnet.training.accumulation import accumulate

ROOT = Path(__file__).resolve().parents[1]
RING = ("oslsm", "co-fcn", "sg-one", "amp", "pl", "a-mcg", "canet", "pgnet", "panet", "pfenet", "hsnet")
LAYERS_2_3, LAYERS_3_4, CONV_4_5 = (512, 1024), (1024, 2048), (512, 512)
BLOCKS = (512,) * 4 + (1024,) * 6 + (2048,) * 3  # of ResNet-50 from its second stage on
SMALL = {"width": 16, "side_width": 16, "hashed": 16, "dropout": 0.0, "classify_dropout": 0.0, "base_classes": 2,
         "initialisation": "kaiming"}  # fmt: skip
CHANNELS, MAP, SIZE = (12, 16), 12, 96
NO_SLOPE = {"pl": {"score.bias"}}  # it adds the same to both classes: zero, or what rounding leaves on some machines


def build(name: str, channels: tuple[int, ...] = CHANNELS, settings: dict | None = None) -> Method:
    return methods.build(name, channels, components("method")[name].settings(settings or {}, "test"))


def small(name: str) -> Method:
    declared = components("method")[name].literals["SETTINGS"]
    torch.manual_seed(0)
    return build(name, CHANNELS, {key: value for key, value in SMALL.items() if key in declared})


def photos(count: int = 8, seed: int = 0, noise: float = 0.5) -> tuple[list[Tensor], Tensor, Tensor]:
    """Maps of queries and supports [(2 N, C_i, h, w)] in noise; a rectangle of one of two classes in each; masks
    (2 N, H, W); and each pair's class (N,)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 2
    maps = [noise * torch.randn(2 * count, c, MAP, MAP, generator=generator) for c in CHANNELS]
    masks = torch.zeros(2 * count, SIZE, SIZE, dtype=torch.uint8)
    for photo in range(2 * count):
        top, left = torch.randint(0, MAP - 5, (2,), generator=generator).tolist()
        inside = slice(top, top + 5), slice(left, left + 5)
        cell = SIZE // MAP
        masks[photo, top * cell : (top + 5) * cell, left * cell : (left + 5) * cell] = 1
        for level in maps:
            level[photo, :2] += 2  # what background shows
            level[photo, :2, *inside] -= 2
            level[photo, 2 + classes[photo % count], *inside] += 4
    return maps, masks, classes


def pairs(method: Method, count: int = 8, seed: int = 0) -> Pairs:
    maps, masks, classes = photos(count, seed)
    chosen = [maps[i] for i in method.maps]
    embedded = method.embed(chosen)
    query, support = (each(embedded, lambda m, part=part: m[part]) for part in (slice(count), slice(count, None)))
    masked = support
    if method.needs_masked:
        kept = F.adaptive_avg_pool2d(masks[count:, None].float(), MAP)
        masked = method.embed([m[count:] * kept for m in chosen])
    empty = torch.zeros(count, 2, MAP, MAP) if method.stores_cache else None
    return Pairs(query, support, masked, masks[count:], masks[:count], empty, empty, class_index=classes)


@pytest.mark.parametrize(
    ("name", "channels", "settings", "count"),
    [
        ("oslsm", LAYERS_2_3, {}, 16_743_400),
        ("oslsm", LAYERS_3_4, {}, 32_435_176),
        ("oslsm", CONV_4_5, {}, 11_512_808),
        ("co-fcn", LAYERS_2_3, {}, 4_131_330),
        ("co-fcn", LAYERS_3_4, {}, 7_670_274),
        ("co-fcn", CONV_4_5, {}, 2_951_682),
        ("sg-one", LAYERS_2_3, {}, 8_995_842),
        ("sg-one", LAYERS_3_4, {}, 17_843_202),
        ("sg-one", CONV_4_5, {}, 6_046_722),
        ("amp", (256, 512, 512), {}, 147_712),
        ("pl", LAYERS_2_3, {}, 7_078_657),
        ("pl", LAYERS_3_4, {}, 14_156_545),
        ("a-mcg", (512, 1024, 2048), {}, 3_017_221),
        ("canet", LAYERS_2_3, {}, 10_494_466),
        ("canet", LAYERS_3_4, {}, 14_033_410),
        ("pgnet", LAYERS_2_3, {}, 10_295_810),
        ("panet", LAYERS_2_3, {}, 3_539_200),
        ("panet", CONV_4_5, {}, 2_359_552),
        ("pfenet", (512, 1024, 2048), {}, 10_817_034),
        ("hsnet", BLOCKS, {}, 2_573_794),
        ("hsnet", (512,) * 7, {"levels": [3, 3, 1]}, 2_570_018),
    ],
)
def test_weights_are_as_many_as_the_layer_list_has(name, channels, settings, count):
    with torch.device("meta"):
        method = build(name, channels, settings)
    assert sum(weight.numel() for weight in method.parameters()) == count


@pytest.mark.parametrize("name", RING)
def test_each_learns_eight_pairs_and_every_weight_takes_part(name):
    method = small(name).train()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2, weight_decay=0.0)
    moved: set[str] = set()
    iou = 0.0
    for step in range(120):
        optimiser.zero_grad()
        accumulate(lambda _: method.losses(pairs(method)), [None], seed=step)
        moved |= {key for key, weight in method.named_parameters() if weight.grad is not None and weight.grad.any()}
        optimiser.step()
        if step % 5 == 4:
            iou = _iou(method.eval())
            method.train()
            if iou > 0.9:
                break
    assert iou > 0.9, f"{name} reaches {iou:.2f}"
    assert moved | NO_SLOPE.get(name, set()) == {key for key, _ in method.named_parameters()}


@torch.no_grad()
def _iou(method: Method) -> float:
    """Of the maps' cells, which the rectangles fill; enlarging, which moves boundaries, is left aside."""
    given = pairs(method)
    logits = method.predict(given, 2)
    assert logits.shape == (8, 2, MAP, MAP)
    found, sought = logits[:, 1] > logits[:, 0], given.query_mask[:, :: SIZE // MAP, :: SIZE // MAP]
    hit, union = fg_counts(found.flatten(0, 1).numpy(), sought.flatten(0, 1).numpy())
    return hit / union


def test_oslsm_writes_its_classifier_from_the_support_without_background_alone():
    method = small("oslsm").eval()
    given, other = pairs(method), pairs(method, seed=1)
    assert torch.equal(method.source, small("oslsm").source)  # drawn once, for all trainings
    predicted = method.predict(given, 1)
    given.support, given.support_mask = other.support, other.support_mask
    assert torch.equal(method.predict(given, 1), predicted)
    given.masked = other.masked
    assert not torch.equal(method.predict(given, 1), predicted)


def test_amp_imprints_and_learns_nothing_at_test():
    method = small("amp").eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    given = pairs(method)
    with torch.no_grad():  # nothing may ask for a gradient
        given.class_index = None
        method.predict(given, 1)
        rows = method.imprinted(given)
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    assert [len(r[0]) for r in rows] == [4, 4]  # background, two base classes, the new one
    torch.testing.assert_close(rows[-1][:, -1].norm(dim=1), torch.ones(8))
    torch.testing.assert_close(rows[-1][:, 1:3], F.normalize(method.rows[-1], dim=1)[1:].expand(8, -1, -1))


def test_amp_asks_nothing_of_other_base_classes_where_an_episode_calls_them_background():
    """A pixel that the row of another base class claims is no mistake: its label says only what it is not."""
    method = small("amp")
    given = pairs(method)
    with torch.no_grad():
        for rows, level in zip(method.rows, given.query, strict=True):
            inside = F.adaptive_avg_pool2d(given.query_mask[:1, None].float(), MAP) > 0
            rows[1] = level[0, :, ~inside[0, 0]].mean(1)  # class 0 looks like what is background in class 1's episodes
    given.class_index[:] = 1
    background = (given.query_mask == 1).byte() * 254 + (given.query_mask == 1).byte()  # 255: only background counts
    given.query_mask = background
    assert method.losses(given).loss < 0.1


def test_pls_own_prototype_outweighs_a_strangers():
    method = small("pl").eval()
    vectors = torch.randn(3, 2, 16)
    closeness = method.closeness(vectors, vectors)
    assert torch.equal(closeness.diagonal(dim1=1, dim2=2), torch.zeros(3, 2))
    assert (closeness[:, 0, 1] < 0).all()
    assert torch.equal(closeness[:, 0, 1], -(vectors[:, 0] - vectors[:, 1]).square().mean(1))


def test_a_mcg_takes_the_guide_from_the_supports_foreground():
    method = small("a-mcg").eval()
    given = pairs(method)
    predicted = method.predict(given, 1)
    outside = F.adaptive_avg_pool2d(given.support_mask[:, None].float(), MAP) == 0
    given.support = tuple(torch.where(outside, m + 1, m) for m in given.support)
    assert torch.equal(method.predict(given, 1), predicted)


def test_canet_refines_what_it_predicted_before():
    method = small("canet").eval()
    given = pairs(method)
    assert not torch.equal(method.predict(given, 1), method.predict(given, 2))
    step = method.losses(given)
    assert step.query_probability.shape == (8, 2, MAP, MAP)
    assert step.support_probability is None
    torch.testing.assert_close(step.query_probability, method.predict(given, 1).softmax(1))


def test_pgnets_attention_sums_to_one_over_the_supports_foreground():
    method = small("pgnet").eval()
    given = pairs(method)
    given.support_mask[0] = 0
    nodes, share = method.nodes(given.support, given.support_mask, 1)
    attention = method.units[0].attention(given.query, nodes, share)
    assert attention.shape == (8, MAP * MAP, MAP * MAP)
    torch.testing.assert_close(attention.sum(2), torch.ones(8, MAP * MAP))
    assert (attention[1:].permute(0, 2, 1)[share[1:] == 0] == 0).all()
    assert torch.isfinite(attention[0]).all()  # an empty mask


def test_sg_ones_similarity_is_a_cosine():
    method = small("sg-one").eval()
    given = pairs(method)
    similarity = method.similarity(given)
    assert similarity.shape == (8, 1, MAP, MAP)
    assert similarity.abs().max() <= 1
    assert similarity.min() < 0 < similarity.max()
    given.support = tuple(3 * m for m in given.support)
    torch.testing.assert_close(method.similarity(given), similarity)


def test_panets_alignment_is_the_supports_loss_under_the_querys_own_prediction():
    method = small("panet").eval()
    given = pairs(method)
    truth = F.adaptive_avg_pool2d(given.query_mask[:, None].float(), MAP)
    right = torch.cat([0.5 - truth, truth - 0.5], 1)
    swapped = Pairs(given.support, given.query, None, given.query_mask, given.support_mask)
    expected = method.losses(swapped, auxiliary=False).loss  # the roles exchanged
    torch.testing.assert_close(method.aligned(given, right), expected, rtol=1e-3, atol=1e-4)
    assert method.aligned(given, torch.cat([truth + 1, truth], 1)) == 0  # nothing called the object: no loss
    assert "alignment" in method.losses(given).parts
    assert "alignment" not in method.losses(given, auxiliary=False).parts


def test_pfenets_prior_lies_in_0_to_1_and_takes_no_gradient():
    maps, masks, _ = photos()
    query, support = maps[-1][:8].requires_grad_(), maps[-1][8:].requires_grad_()
    found = prior(query, support, masks[8:])
    assert found.shape == (8, 1, MAP, MAP)
    assert not found.requires_grad
    torch.testing.assert_close(found.amin((1, 2, 3)), torch.zeros(8))
    torch.testing.assert_close(found.amax((1, 2, 3)), torch.ones(8))
    sought = F.adaptive_avg_pool2d(masks[:8, None].float(), MAP) == 1
    assert found[sought].mean() > found[~sought].mean() + 0.3
    assert torch.isfinite(prior(query, support, torch.zeros_like(masks[8:]))).all()


def test_hsnets_correlations_are_not_negative_and_see_the_foreground_alone():
    method = small("hsnet").eval()
    given = pairs(method)
    correlations = method.correlations(given)
    assert [each.shape for each in correlations] == [(8, 1, 12, 12, 12, 12), (8, 1, 6, 6, 6, 6)]
    assert all(each.min() >= 0 and each.max() <= 1 + 1e-5 for each in correlations)
    outside = F.adaptive_avg_pool2d(given.support_mask[:, None].float(), MAP) == 0
    assert (correlations[0][:, 0].movedim((1, 2), (3, 4))[outside[:, 0]] == 0).all()


def test_a_centre_pivot_convolution_is_the_4d_sum_over_two_planes():
    torch.manual_seed(0)
    layer = CentrePivot(2, 3, 3, 2).double()
    x = torch.randn(1, 2, 4, 5, 6, 7, dtype=torch.float64)
    found, padded = layer.convolve(x), F.pad(x, [1] * 8)
    bias = layer.over_query.bias + layer.over_support.bias
    for a, b, c, d in [(0, 0, 0, 0), (2, 4, 1, 3), (3, 1, 2, 2)]:
        query = padded[0, :, a : a + 3, b : b + 3, 2 * c + 1, 2 * d + 1]
        support = padded[0, :, a + 1, b + 1, 2 * c : 2 * c + 3, 2 * d : 2 * d + 3]
        expected = bias + (layer.over_query.weight * query).sum((1, 2, 3))
        expected = expected + (layer.over_support.weight * support).sum((1, 2, 3))
        torch.testing.assert_close(found[0, :, a, b, c, d], expected)


@pytest.mark.parametrize(("channels", "levels"), [((4, 6, 8, 9), [0]), ((4, 6), [1, 2]), ((4, 6), [2, 0, 1])])
def test_levels_that_do_not_fit_hsnet_are_one_sentence(channels, levels):
    with pytest.raises(CrnetError, match=r"model\.levels .* must be up to 3 numbers with the sum"):
        build("hsnet", channels, {"levels": levels})


def resolved(tmp_path: Path, rows: list[dict], **changes) -> study.Plan:
    """The demo with one table of these rows."""
    (tmp_path / "configs/tables").mkdir(parents=True, exist_ok=True)
    rows = [{"label": row["id"], **row} for row in rows]
    table = {"title": "t", "source": "s", "benchmark": "k-shot", "shots": [1, 5], "rows": rows}
    (tmp_path / "configs/tables/mine.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    return study.load(
        [ROOT / "configs/studies/demo.yaml"], {"tables": ["mine"], "sheet": None, "leave_out": [], **changes}, tmp_path
    )


def test_a_methods_own_training_yields_to_what_study_and_row_say(tmp_path):
    rows = [{"id": "a", "set": {"method": "hsnet"}}, {"id": "b", "set": {"method": "hsnet", "train": {"lr": 0.5}}}]
    demo = yaml.safe_load((ROOT / "configs/studies/demo.yaml").read_text(encoding="utf-8"))
    silent = {key: value for key, value in demo["train"].items() if key not in ("lr", "optimizer", "weight_decay")}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump({**demo, "train": silent}), encoding="utf-8")
    resolved(tmp_path, rows)
    plan = study.load([tmp_path / "demo.yaml"], {"tables": ["mine"], "sheet": None}, tmp_path)
    found = {spec["train"]["lr"]: spec["train"] for spec in plan.trainings.values()}
    assert set(found) == {1e-3, 0.5}  # the method's, and the row's
    assert {(train["optimizer"], train["weight_decay"]) for train in found.values()} == {("adamw", 0.0)}
    spoken = resolved(tmp_path, rows, train={"lr": 0.25})
    assert {spec["train"]["lr"] for spec in spoken.trainings.values()} == {0.25, 0.5}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"method": "amp", "model": {"base_classes": 14}},
            "weights for 14, and fold 0 of shapes5i has 15 base",
        ),
        ({"method": "amp", "evaluate": {"strategy": "finetune"}}, "amp cannot learn from supports alone"),
        ({"method": "panet", "model": {"widht": 3}}, "did you mean 'width'"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_anything_runs(tmp_path, row, words):
    with pytest.raises(CrnetError, match=words) as caught:
        resolved(tmp_path, [{"id": "a", "shots": [5], "set": row}])
    assert "\n" not in str(caught.value)


def test_a_table_says_what_each_method_makes_of_several_supports(tmp_path):
    plan = resolved(tmp_path, [{"id": "a", "label": "One", "set": {"method": "pl"}}, {"id": "b", "label": "Two"}])
    [note] = table_job(plan, Layout(plan), "mine")["notes"]
    assert note.endswith("One: mean of the prototypes; Two: mean of probabilities.")
    quoted = [{"id": "a", "set": {"method": "pl"}, "paper": {"1-shot": {"miou": 40.0}}}, {"id": "b"}]
    plan = resolved(tmp_path, quoted)
    assert "no failed reproduction" in table_job(plan, Layout(plan), "mine")["notes"][0]
    alone = resolved(tmp_path, [{"id": "a", "set": {"method": "pl"}}])
    assert table_job(alone, Layout(alone), "mine")["notes"] == []


def test_a_study_leaves_a_methods_rows_to_the_papers_values(tmp_path):
    rows = [{"id": "a", "set": {"method": "pl"}, "paper": {"1-shot": {"miou": 40.0}}}, {"id": "b"}]
    plan = resolved(tmp_path, rows, leave_out=["pl"])
    assert {cell.row for cell in plan.cells} - set(plan.study.controls) == {"b"}
    first, second, *_ = table_job(plan, Layout(plan), "mine")["rows"]
    assert (first["reported"], first["cells"], first["paper"]) == (True, [], {"1-shot": {"miou": 40.0}})
    assert not second["reported"]
    with pytest.raises(CrnetError, match="leave_out: unknown method 'plx'"):
        resolved(tmp_path, rows, leave_out=["plx"])


@pytest.mark.parametrize(("name", "own"), [("panet", "alignment"), ("pfenet", "grids"), ("canet", None)])
def test_a_training_logs_the_parts_of_a_methods_own_loss(tiny, tmp_path, name, own):
    spec = tiny.training(train={"epochs": 1, "epoch_episodes": 24})
    component = components("method")[name]
    spec |= {"method": name, "model": component.settings({"width": 16}, "test")}
    [row] = read_csv(trained(tiny, tmp_path, spec) / "log.csv")
    assert 0 < float(row["query"]) <= float(row["loss"])
    assert list(row)[:6] == ["epoch", "step", "loss", "query", "support", "cooccurrence"]
    assert row["support"] == row["cooccurrence"] == ""
    assert set(row) - {*log.LOG_FIRST, *log.LOG_PARTS, *log.LOG_LAST} == ({own} if own else set())
    assert own is None or float(row[own]) > 0


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 7), (5, 4)])
def test_taps_that_meet_no_cell_have_no_gradient_and_others_theirs(kernel, stride, size):
    convolution = torch.nn.Conv2d(16, 32, kernel, stride=stride, padding=kernel // 2)
    maps = torch.randn(400, 16, *size)
    assert torch.allclose(_strided(convolution, maps), convolution(maps), atol=1e-5)
    convolution(maps).square().mean().backward()
    expected = convolution.weight.grad.clone()
    convolution.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        scores = _strided(convolution, maps)
    scores.float().square().mean().backward()
    assert not convolution.weight.grad[expected == 0].any()
    assert torch.allclose(convolution.weight.grad, expected, atol=0.05 * expected.abs().max())


def test_the_second_block_differs_by_the_encoder_alone():
    """Its rows are those of the ring but for what learns: or a difference would be that of two budgets."""
    plan = study.load([ROOT / "configs/studies/ring-demo.yaml"])
    found: dict[str, dict[str, list[dict]]] = {"ring": {}, "ring-trained": {}}
    for cell in plan.cells:
        if cell.table in found:
            spec = plan.evaluations[cell.evaluation]
            found[cell.table].setdefault(cell.row.removesuffix("-trained"), []).append(spec)
    rows = {row for row in found["ring-trained"] if "train" in found["ring-trained"][row][0]["train"]}
    assert rows == {"oslsm", "co-fcn", "sg-one", "amp", "panet", "crnet"}
    for row in rows:
        for frozen, learning in zip(found["ring"][row], found["ring-trained"][row], strict=True):
            encoder, budget = learning["train"]["encoder"], learning["train"]["train"]
            assert encoder["lr_factor"] > 0 and budget["features"] == "live"
            own = {"encoder": before_training(encoder), "train": budget | {"features": "cached"}}
            assert learning | {"train": learning["train"] | own} == frozen


def test_published_recipes_are_a_table_of_their_own():
    """They are ranked with nothing: none of them stands in a table under one budget, and each says so by its label."""
    plan = study.load([ROOT / "configs/studies/paper-ring.yaml"])
    rows = plan.tables["ring-published"].rows
    assert all(row.label.endswith("recipe") and row.paper for row in rows)
    published = {cell.evaluation for cell in plan.cells if cell.table == "ring-published" and "published" in cell.row}
    assert published.isdisjoint(cell.evaluation for cell in plan.cells if cell.table != "ring-published")
    assert not any(isinstance(plan.evaluations[name]["train"]["train"]["lr"], list) for name in published)
