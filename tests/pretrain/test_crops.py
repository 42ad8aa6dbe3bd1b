"""Crops of assets: voxels in a cube, nearest points in closed form; and the losses on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from atoken.data.synthetic.procedural import make_asset
from atoken.gaussian_decoder import GAUSSIANS, RESOLUTION, to_gaussians
from atoken.gaussians import Gaussians
from atoken.modalities.views import render_views
from atoken.modalities.voxels import voxelize
from atoken.presets import preset
from atoken.pretrain import crops, losses
from atoken.pretrain.curriculum import NANO_1, NANO_TASKS
from tests.modalities.shapes import AXES, COLOURS, box
from tests.model.sizes import small_model
from tests.pretrain.tiny import all_batches, engine_of
from tests.tolerances import FP32

pytest.importorskip("embreex", reason="the extra 3d is not installed")
pytest.importorskip("scipy", reason="the extra train is not installed")

HALF = 0.25  # of the box


@pytest.fixture(scope="module")
def cube():
    """All of a small box with a colour on each face."""
    mesh = box(HALF)
    views = render_views(mesh)
    return crops.Crop(mesh, views, voxelize(views).tokens, np.array([32, 32, 32]), RESOLUTION)


@pytest.fixture(scope="module")
def surface(cube):
    return crops.surface(cube)


def starting(cube):
    return to_gaussians(torch.zeros(len(cube.tokens.coords), 448), cube.tokens.coords[:, 1:])


@pytest.mark.parametrize("index", [0, 5])
def test_a_crop_is_what_a_cube_holds_of_an_asset(index):
    cut, whole = crops.crop(0, index, 500), crops.crop(0, index, 10**6)
    assert 0 < len(cut.tokens.coords) <= 500 < len(whole.tokens.coords)
    inside = (whole.tokens.coords[:, 1:] - torch.from_numpy(cut.middle)).abs().amax(1) <= cut.reach
    assert torch.equal(cut.tokens.coords, whole.tokens.coords[inside])
    assert torch.equal(cut.tokens.feats, whole.tokens.feats[inside])
    larger = (whole.tokens.coords[:, 1:] - torch.from_numpy(cut.middle)).abs().amax(1) <= cut.reach + 1
    assert larger.sum() > 500
    assert np.abs(whole.mesh.vertices).max() <= 0.5


def test_a_crop_is_a_function_of_its_arguments():
    first, again, other = crops.crop(0, 2, 500), crops.crop(0, 2, 500), crops.crop(0, 3, 500)
    assert torch.equal(first.tokens.feats, again.tokens.feats)
    assert not np.array_equal(first.mesh.vertices, other.mesh.vertices)


def test_assets_are_made_smaller_in_the_stated_range_and_keep_the_grain_of_their_textures():
    ratios = []
    for index in range(6):
        whole, cut = make_asset(0, index).mesh, crops.crop(0, index, 100, views=2).mesh
        ratio = np.ptp(cut.vertices, axis=0).max() / np.ptp(whole.vertices, axis=0).max()
        np.testing.assert_allclose(cut.uv, whole.uv * ratio, rtol=1e-4, atol=FP32)
        ratios.append(ratio)
    assert 0.6 - FP32 <= min(ratios) < 0.8 < max(ratios) <= 1


def test_the_margin_is_as_far_as_the_network_sees():
    assert preset("nano").gaussian_decoder["neighborhood"] == 2 * crops.MARGIN + 1


def test_surface_points_lie_on_the_box_nearest_to_where_gaussians_start(cube, surface):
    points = surface.points.double()
    torch.testing.assert_close(points.abs().amax(1), torch.full((len(points),), HALF).double(), atol=FP32, rtol=0)
    starts = starting(cube).means.double()
    outside = (starts.abs() - HALF).clamp_min(0).norm(dim=1)
    depth = (HALF - starts.abs().amax(1)).clamp_min(0)
    distance = (points - starts).norm(dim=1)
    assert (distance >= outside + depth - FP32).all()
    # Some view has a pixel within half a voxel of every place of the surface; most have one much nearer.
    assert (distance - outside - depth).max() < 0.5 / RESOLUTION
    assert (distance - outside - depth).median() < 0.03 / RESOLUTION


def test_surface_colours_are_those_of_the_faces(surface):
    side = (surface.points @ AXES.T - HALF).abs() < FP32  # (M, 6)
    plain = side.sum(1) == 1  # not on an edge
    assert plain.float().mean() > 0.9
    expected = torch.from_numpy(COLOURS).float()[side[plain].float().argmax(1)] / 255
    assert torch.equal(surface.colors[plain], expected)


def test_voxels_count_that_have_all_their_neighbors_in_the_crop():
    cut, whole = crops.crop(0, 1, 600), crops.crop(0, 1, 10**6)
    missing = {tuple(c) for c in whole.tokens.coords[:, 1:].tolist()} - {
        tuple(c) for c in cut.tokens.coords[:, 1:].tolist()
    }
    outside = torch.tensor(sorted(missing))
    counts = crops.surface(cut).counts.unflatten(0, (-1, GAUSSIANS))
    assert 0.2 < counts.float().mean() < 0.9
    assert crops.surface(whole).counts.all()
    for cell in cut.tokens.coords[counts.all(1), 1:]:
        assert (outside - cell).abs().amax(1).min() > crops.MARGIN


def test_within_is_what_a_gaussian_can_reach(cube, surface):
    centres = (cube.tokens.coords[:, 1:].float() + 0.5) / RESOLUTION - 0.5
    away = (surface.points.unflatten(0, (-1, GAUSSIANS)) - centres[:, None]).abs().amax(-1).flatten()
    assert torch.equal(surface.within, away < 0.75 / RESOLUTION)
    assert surface.within.float().mean() > 0.9


def test_losses_are_zero_at_the_surface(cube, surface):
    start = starting(cube)
    right = Gaussians(
        surface.points,
        torch.full_like(start.scales, losses.GRAIN / RESOLUTION),
        start.quats,
        surface.within.float(),
        surface.colors,
    )
    for term in (losses.position, losses.color, losses.size, losses.opacity):
        assert abs(float(term(losses.GaussianStep(right, surface)))) < FP32
        assert float(term(losses.GaussianStep(start, surface))) > 0.01


def test_position_color_and_opacity_in_closed_form(surface):
    count = len(surface.points)
    wrong = Gaussians(
        surface.points + torch.tensor([1.0, -2.0, 0.5]) / RESOLUTION,
        torch.full((count, 3), (losses.GRAIN + 0.25) / RESOLUTION),
        torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
        torch.full((count,), 0.25),
        surface.colors + 0.125,
    )
    generator = torch.Generator().manual_seed(0)
    counts = torch.rand(count, generator=generator) < 0.7
    for field in ("means", "scales", "opacities", "colors"):  # what does not count may be anything
        getattr(wrong, field)[~counts] = 0.9
    assert (~surface.within & counts).any()
    for field in ("means", "colors"):  # nor does the place and colour of a Gaussian that cannot reach the surface
        getattr(wrong, field)[~surface.within] = 0.8
    step = losses.GaussianStep(wrong, replace(surface, counts=counts))
    share = float(surface.within[counts].float().mean())
    assert float(losses.position(step)) == pytest.approx(3.5, abs=1e-4)
    assert float(losses.color(step)) == pytest.approx(0.125, abs=FP32)
    assert float(losses.size(step)) == pytest.approx(0.25, abs=FP32)
    expected = -share * np.log(0.25) - (1 - share) * np.log(0.75)
    assert float(losses.opacity(step)) == pytest.approx(expected, abs=FP32)


def test_losses_are_finite_where_an_opacity_is_all_wrong_and_0_where_nothing_counts(cube, surface):
    start = starting(cube)
    wrong = replace(start, opacities=1 - surface.within.float())
    assert float(losses.opacity(losses.GaussianStep(wrong, surface))) == pytest.approx(-np.log(1e-6), rel=1e-3)
    nothing = replace(surface, counts=torch.zeros_like(surface.counts))
    means = start.means.clone().requires_grad_()
    step = losses.GaussianStep(replace(start, means=means), nothing)
    assert [term(step).item() for term in (losses.position, losses.color, losses.size, losses.opacity)] == [0.0] * 4
    losses.position(step).backward()
    assert not means.grad.any()


def test_the_grain_just_covers_a_flat_surface():
    """Gaussians at their starts, moved onto a plane through nine voxels: how much of the middle one they hide."""
    layer = torch.tensor([[x, y, 0] for x in range(3) for y in range(3)])
    starts = (to_gaussians(torch.zeros(9, 448), layer).means[:, :2] + 0.5) * RESOLUTION
    places = torch.cartesian_prod(*[torch.linspace(1, 2, 33)] * 2)
    squared = (places[:, None] - starts).square().sum(-1)

    def least_hidden(scale):
        return 1 - (1 - torch.exp(-squared / (2 * scale**2))).prod(1).max()

    assert least_hidden(losses.GRAIN) > 0.95
    assert least_hidden(0.75 * losses.GRAIN) < 0.8
    assert losses.GRAIN == 0.12  # docs/recipe.md


def test_voxel_tokens_are_learned_like_the_others():
    tasks = {"crop": replace(NANO_TASKS["crop"], tokens=100)}
    stage = replace(NANO_1, tasks=tasks, mixture={"crop": 1}, auxiliary=())
    (made,) = next(all_batches(stage))
    assert (made.task, made.tokens.feats.shape[1], made.targets) == ("crop", 768, None)
    assert made.tokens.coords[:, 3].any()
    assert engine_of(stage, small_model()).train([made])["crop/l1"] > 0
