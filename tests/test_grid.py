"""Cells lie where an encoder's alignment says, sizes fit it, and what goes from cells to pixels is not shifted."""

from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from crnet.config import resolve, study
from crnet.config.defaults import scaled
from crnet.config.settings import components
from crnet.data.grid import CORNERS, FIRST, STRIDE, TILES, alignment_in, alignment_of, fitted
from crnet.errors import CrnetError
from crnet.model.condition import foreground_share
from crnet.model.grid import at_own_size, enlarged
from crnet.model.refinement import DownsampleBlock

CELLS = 7
SIDES = {CORNERS: STRIDE * (CELLS - 1) + 1, TILES: STRIDE * CELLS}


def at_cells(alignment: str) -> torch.Tensor:
    """The pixel of the input that each cell is centred on."""
    return FIRST[alignment] + STRIDE * torch.arange(CELLS)


def ramp(along: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    """A plane over pixels of the input, (1, 1, rows, columns)."""
    return (2.0 * along[:, None] - 3.0 * across + 5.0)[None, None]


@pytest.mark.parametrize("name", sorted(set(components("encoder")) - {"timm"}))
def test_a_dot_is_seen_by_the_cell_that_the_alignment_says(name):
    """Weights that average keep a dot symmetric around the cell on which it lies; half a cell off it is not."""
    module = import_module(f"crnet.encoders.{name}")
    network = module.network(list(module.LAYERS)).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    side, row, column = fitted(320, module.ALIGNMENT), 17, 22
    pixels = torch.arange(side)
    down, right = (-(((pixels - FIRST[module.ALIGNMENT] - STRIDE * cell) / 8) ** 2) for cell in (row, column))
    dot = (down[:, None] + right).exp()
    with torch.no_grad():
        maps = network(dot.expand(1, 3, side, side))
    for each in maps:
        response = each[0].double().sum(0)
        places = torch.arange(len(response), dtype=torch.float64)
        centroid = [float((response.sum(d) * places).sum() / response.sum()) for d in (1, 0)]
        far = 0.1 if name == "resnet101" else 0.05  # twice as many layers of random weights
        assert centroid == pytest.approx([row, column], abs=far)


@pytest.mark.parametrize("alignment", [CORNERS, TILES])
def test_a_ramp_sampled_at_the_cells_comes_back_exactly(alignment):
    cells, pixels = at_cells(alignment), torch.arange(SIDES[alignment])
    large = enlarged(ramp(cells, cells), (SIDES[alignment],) * 2)
    between = slice(4, -4)  # beyond the outermost cells there is nothing to go by
    torch.testing.assert_close(large[..., between, between], ramp(pixels, pixels)[..., between, between])


@pytest.mark.parametrize("alignment", [CORNERS, TILES])
@pytest.mark.parametrize("own", [(96, 75), (31, 40)])
def test_a_ramp_over_the_photo_comes_back_at_its_own_size(alignment, own):
    """A pixel of the photo lies in the squashed one where squashing took it from: at (i + 1/2) S / H - 1/2."""
    cells, side = at_cells(alignment), SIDES[alignment]
    squashed = [(torch.arange(n) + 0.5) * side / n - 0.5 for n in own]
    large, exact = at_own_size(ramp(cells, cells), (side, side), own), ramp(*squashed)
    inner = tuple(slice(int(4 * n / side) + 1, -int(4 * n / side) - 1) for n in own)
    torch.testing.assert_close(large[0, 0][inner], exact[0, 0][inner], rtol=1e-4, atol=1e-3)
    assert large.shape[-2:] == own
    if alignment == CORNERS:  # up to half a pixel beyond the outermost cells
        assert (large - exact).abs().max() < 5 * 0.5


@pytest.mark.parametrize("cells", [8, 9, 40, 41])
def test_halving_and_enlarging_a_map_does_not_shift_it(cells):
    block = DownsampleBlock(1)
    nn.init.constant_(block.down.weight, 1 / 9)
    nn.init.zeros_(block.down.bias)
    places = torch.arange(cells)
    with torch.no_grad():
        back = block(ramp(places, places) + 3 * cells)
    assert back.shape == (1, 1, cells, cells)
    inner = slice(2, -4)  # what the zeros around a map reach is another matter
    exact = ramp(places, places) + 3 * cells
    torch.testing.assert_close(back[..., inner, inner], exact[..., inner, inner])


@pytest.mark.parametrize("alignment", [CORNERS, TILES])
def test_the_share_of_foreground_is_taken_around_the_cell(alignment):
    """What a half plane covers of the window of each cell, counted by hand."""
    side, edge = SIDES[alignment], 27
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[:, edge:] = 1
    share = foreground_share(mask, (CELLS, CELLS))[0, 0]
    reach = 4 if alignment == CORNERS else 3.5
    for cell, centre in enumerate(at_cells(alignment).tolist()):
        window = np.arange(max(0, int(centre - reach)), min(side, int(centre + reach) + 1))
        torch.testing.assert_close(share[cell], torch.full((CELLS,), float((window >= edge).mean())))


def test_sizes_are_fitted_to_the_nearest():
    assert [fitted(size, CORNERS) for size in (321, 320, 96, 97, 61, 60, 1)] == [321, 321, 97, 97, 65, 57, 9]
    assert [fitted(size, TILES) for size in (321, 320, 225, 324, 323, 1)] == [320, 320, 224, 328, 320, 8]
    assert [alignment_of(size) for size in (321, 320)] == [CORNERS, TILES]
    assert [scaled(321, scale) for scale in (0.75, 1.0, 1.25)] == [241, 321, 401]
    assert [scaled(320, scale) for scale in (0.75, 1.0, 1.25)] == [240, 320, 400]


@pytest.mark.parametrize("size", [322, 319])
def test_a_size_that_fits_no_encoder_is_one_sentence(size):
    with pytest.raises(CrnetError, match=rf"an input of {size} px fits no encoder: use 8n \+ 1 px .* 8n px"):
        scaled(size, 1.0)
    with pytest.raises(CrnetError, match=rf"a map of 41 cells along {size} px fits neither alignment: 321 px would be"):
        enlarged(torch.zeros(1, 2, 41, 41), (size, size))
    with pytest.raises(CrnetError, match="fits corners in height and tiles in width"):
        enlarged(torch.zeros(1, 2, 41, 41), (321, 328))
    assert alignment_in(321, 41) == CORNERS and alignment_in(328, 41) == TILES


def test_specifications_carry_the_size_that_fits_their_encoder():
    plan = study.load(["configs/studies/paper.yaml"])
    for evaluation in plan.evaluations.values():
        training = evaluation["train"]
        side = {"resnet50": 321, "vgg16": 320}[training["encoder"]["name"]]
        assert evaluation["evaluate"]["size"] == side
        assert "train" not in training or training["train"]["size"] == side
    assert {e["train"]["encoder"]["name"] for e in plan.evaluations.values()} == {"resnet50", "vgg16"}


def test_what_is_cached_has_the_size_that_it_is_read_at():
    changes = {
        "train": {"size": 90},
        "evaluate": {"size": 100, "scales": [0.75, 1.0]},
        "tables": ["table2"],
        "sheet": None,
    }
    plan = study.load(overrides=changes)
    assert {spec["size"] for spec in plan.features.values()} == {89, 73, 97}
    for evaluation in plan.evaluations.values():
        assert {spec["size"] for spec in resolve.test_features_specs(evaluation)} == {
            scaled(97, scale) for scale in evaluation["evaluate"]["scales"]
        }


def test_a_factorys_alignment_is_the_studys_to_say():
    def main(**given) -> tuple[dict, int]:
        given = {"encoders": {"main": {"name": "somewhere:build", **given}}, "tables": ["table2"], "sheet": None}
        evaluation = next(iter(study.load(overrides=given).evaluations.values()))
        return evaluation["train"]["encoder"], evaluation["evaluate"]["size"]

    assert main() == ({"name": "somewhere:build", "rev": 1, "alignment": CORNERS}, 97)
    assert main(alignment="tiles")[1] == 96
    with pytest.raises(CrnetError, match=r"encoders\.main\.alignment: 'edges' is not one of 'corners', 'tiles'"):
        main(alignment="edges")
