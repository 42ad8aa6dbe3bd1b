"""Voxels: which cells are filled, from which view their patches come, and what happens over the limit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.cameras import Cameras
from atoken.data.synthetic.labelled import labelled_asset
from atoken.errors import AtokenWarning, MediaError
from atoken.media.views import Views
from atoken.modalities.views import render_views
from atoken.modalities.voxels import occupied, unvoxelize, voxelize, voxelize_mesh
from atoken.tokens import SparseTokens
from tests.modalities.shapes import box, from_axes, joined, mesh, quarter_turned, sphere
from tests.tolerances import EXACT, FP32

RANDOM = np.random.default_rng(0)
GREEN = (40, 200, 90, 255)


def close(actual, expected, tolerance=FP32):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def pack(views, resolution=64, **options):
    """The tokens alone, where nothing is coarsened."""
    voxels = voxelize(views, resolution, **options)
    assert voxels.resolution == resolution or "over" in options
    return voxels.tokens


def noise(cameras, size=32, offset=0.5):
    """Views of random colours and depths, a tenth of them empty."""
    rgb = RANDOM.integers(0, 256, (len(cameras), size, size, 3), dtype=np.uint8)
    depth = RANDOM.uniform(1.3, 2.7, (len(cameras), size, size)).astype(np.float32)
    depth[RANDOM.random(depth.shape) < 0.1] = -1
    return Views(rgb, depth, cameras, offset)


def clutter():
    """Triangles anywhere in the box."""
    return mesh(RANDOM.uniform(-0.5, 0.5, (60, 3)), np.arange(60).reshape(20, 3), RANDOM.integers(128, 256, (20, 3, 4)))


def test_a_sphere_of_one_colour_gives_a_shell_of_that_colour():
    tokens = pack(render_views(sphere(0.4, 48, GREEN), 16, 128), 32)
    low, high = tokens.coords[:, 1:] / 32 - 0.5, (tokens.coords[:, 1:] + 1) / 32 - 0.5
    nearest, farthest = torch.maximum(low, -high).clamp_min(0), torch.maximum(low.abs(), high.abs())
    assert (nearest.norm(dim=1) <= 0.4).all()
    assert (farthest.norm(dim=1) >= 0.4 - 0.001).all()  # the triangles are inside of the sphere
    patches = unvoxelize(tokens).reshape(-1, 3)
    colour = (patches == GREEN[:3]).all(1)
    assert (colour | (patches == 0).all(1)).all()
    assert colour.mean() > 0.9
    cut = 1.5 * 4 * np.pi * (0.4 * 32) ** 2  # cells that a sphere cuts: 1.5 for each unit of its area
    assert 0.85 * cut < len(tokens.feats) < 1.02 * cut  # cells that it only grazes may lie between the rays


def test_the_form_of_the_tokens():
    tokens = pack(render_views(clutter(), 4, 64), 16)
    count = len(tokens.feats)
    assert tokens.lengths == (count,)
    assert tokens.feats.shape == (count, 3072)
    assert (tokens.feats.dtype, tokens.coords.dtype) == (torch.float32, torch.int32)
    assert tokens.feats[:, :768].abs().max() <= 1
    assert not tokens.feats[:, 768:].any()
    assert not tokens.coords[:, 0].any()
    order = tokens.coords.long() @ torch.tensor([0, 256, 16, 1])
    assert (order.diff() > 0).all()


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_filled_cells_are_those_of_a_search_over_all_points_and_cells(offset):
    views, resolution = noise(Cameras.sphere(3), offset=offset), 16
    points = np.concatenate([views.points(view) for view in range(3)])
    centres = (np.arange(resolution) + 0.5) / resolution - 0.5
    in_cell = np.abs(points[:, :, None] - centres) <= 0.5 / resolution + 2**-22  # points, axes, cells
    grid = np.einsum("px,py,pz->xyz", *in_cell.transpose(1, 0, 2).astype(np.float32)) > 0
    np.testing.assert_array_equal(occupied(views, resolution), np.argwhere(grid))


@pytest.mark.parametrize("rgb_size", [(256, 256), (64, 64), (64, 96)])
def test_patches_are_those_of_the_published_look_up(rgb_size):
    near = Cameras.looking_at_centre(torch.tensor([[1.2, 0.3, 0.4]]), fov=20.0)  # nearest for many, sees few
    wide = Cameras.sphere(7)
    both = Cameras(*(torch.cat([getattr(c, name) for c in (wide, near)]) for name in ("world_to_camera", "intrinsics")))
    rgb = RANDOM.integers(0, 256, (len(both), *rgb_size, 3), dtype=np.uint8)
    views = replace(noise(both, 64), rgb=rgb)
    tokens = pack(views, 16, max_tokens=4096)
    centres = (tokens.coords[:, 1:].double() + 0.5) / 16 - 0.5
    images = F.pixel_unshuffle(torch.from_numpy(views.rgb).permute(0, 3, 1, 2).double(), 16)
    found, depths = [], []
    for view in range(len(both)):
        place, depth = (torch.from_numpy(array) for array in both.project(view, centres.numpy()))
        options = {"mode": "nearest", "padding_mode": "zeros", "align_corners": True}
        looked_up = F.grid_sample(images[view : view + 1], place[None, None] * 2 - 1, **options)[0, :, 0].T
        found.append(looked_up.unflatten(1, (3, 256)).mT.flatten(1))  # channels last
        depths.append(depth)
    nearest = torch.stack(depths).argmin(0)
    expected = torch.stack(found)[nearest, torch.arange(len(nearest))]
    outside = (expected == 0).all(1)
    assert 0.05 < outside.double().mean() < 0.95
    close(tokens.feats[:, :768], (expected / 127.5 - 1).float())
    np.testing.assert_array_equal(unvoxelize(tokens).reshape(-1, 768), expected.numpy())


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_what_a_view_shows_is_told_by_its_depth_that_was_measured_nearest(offset):
    """Against a search over the places of all depths; patches of one colour a view tell which was taken."""
    eyes = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1) * 2  # no symmetry, no ties
    views, resolution = noise(Cameras.looking_at_centre(eyes), offset=offset), 16
    views.rgb[:] = np.arange(1, 6, dtype=np.uint8)[:, None, None, None]
    tokens = pack(views, resolution, occlusion=True, max_tokens=4096)
    centres = (tokens.coords[:, 1:].double().numpy() + 0.5) / resolution - 0.5
    places, best = (np.arange(32) + offset) / 32, []
    for view in range(5):
        position, depth = views.cameras.project(view, centres)
        column, row = (np.abs(position[:, axis, None] - places).argmin(1) for axis in (0, 1))
        inside = (np.abs(position - np.stack([places[column], places[row]], 1)) <= 0.5 / 32).all(1)
        shown = inside & (views.depth[view][row, column] >= depth - 3**0.5 / resolution)
        best.append(np.where(shown, depth, depth + 1e6))
    assert (np.min(best, 0) < 10).mean() > 0.5  # most cells are shown by some view
    taken = unvoxelize(tokens).max((1, 2, 3))
    np.testing.assert_array_equal(taken[taken > 0], np.argmin(best, 0)[taken > 0] + 1)
    assert (taken > 0).mean() > 0.9  # the others lie outside of all images


def test_unvoxelize_takes_any_width_and_any_batch():
    tokens = pack(render_views(box(), 4, 64), 8)
    batch = SparseTokens.pack([tokens, tokens])
    narrow = batch.with_feats(batch.feats[:, :768])
    assert unvoxelize(narrow).shape == (2 * len(tokens.feats), 16, 16, 3)
    np.testing.assert_array_equal(unvoxelize(narrow), np.concatenate([unvoxelize(tokens)] * 2))


def test_a_face_between_two_layers_of_cells_is_in_both():
    views = render_views(box(0.25), Cameras.sphere(20), 128)  # from the border of cells 1 and 2 to that of 5 and 6
    cells = set(map(tuple, occupied(views, 8).tolist()))
    sides = set()
    for axis in range(3):
        for layer in (1, 2, 5, 6):
            sides |= {tuple(np.insert(place, axis, layer).tolist()) for place in np.argwhere(np.ones((4, 4))) + 2}
    assert sides <= cells
    corners = {tuple(cell) for cell in (np.argwhere(np.ones((6, 6, 6))) + 1).tolist()} - sides
    assert cells - sides <= corners  # cells that touch an edge or a corner, where a point may fall on it
    assert not any(all(2 < place < 5 for place in cell) for cell in cells)


def test_an_asset_that_fills_the_box_fills_the_outer_layer():
    cells = occupied(render_views(box(0.5), Cameras.sphere(20), 128), 8)
    np.testing.assert_array_equal(cells, np.argwhere(~np.pad(np.ones((6, 6, 6), bool), 1)))


def test_turning_mesh_and_cameras_together_turns_the_voxels():
    cameras = Cameras.sphere(6)
    views = render_views(clutter(), cameras, 64)
    turned = replace(views, cameras=quarter_turned(cameras))
    actual, expected = pack(views, 32), pack(turned, 32)
    t, x, y, z = actual.coords.unbind(1)
    coords = torch.stack([t, 31 - y, x, z], 1)
    order = (coords.long() @ torch.tensor([0, 1024, 32, 1])).argsort()
    close(expected.coords, coords[order], EXACT)
    close(expected.feats, actual.feats[order], EXACT)


def test_every_surface_that_a_view_shows_is_in_a_cell():
    solid, cameras = clutter(), Cameras.sphere(6)
    cells = set(map(tuple, occupied(render_views(solid, cameras, 64), 32).tolist()))
    weights = RANDOM.dirichlet(np.ones(3), (20, 200))
    on_surface = np.einsum("fpc,fcx->fpx", weights, solid.vertices[solid.faces]).reshape(-1, 3)
    mine = set(map(tuple, ((on_surface + 0.5) * 32).astype(int).tolist()))
    assert len(mine & cells) > 0.6 * len(mine)  # the others are hidden
    points = np.concatenate([render_views(solid, cameras, 64).points(view) for view in range(6)])
    assert set(map(tuple, ((points + 0.5) * 32).astype(int).tolist())) <= cells


def test_a_hidden_cell_takes_its_patch_from_a_view_that_shows_it():
    screen, hidden = box(0.1, (0.3, 0, 0)), box(0.05, (0.1, 0, 0))  # a red side and a green side along x
    cameras = from_axes()[:2]  # at x = 2 and x = -2: the first is nearer to both
    views = render_views(joined(screen, hidden), cameras, 256)
    for occlusion, colour in ((False, (255, 0, 0)), (True, (0, 255, 0))):
        tokens = pack(views, occlusion=occlusion)
        index = tokens.coords[:, 1:].tolist().index([35, 32, 32])  # x from 0.047 to 0.063: its far side is at 0.05
        assert (unvoxelize(tokens)[index] == colour).all()


def test_a_camera_does_not_colour_what_is_behind_it():
    inner = Cameras.looking_at_centre(torch.tensor([[0.1, 0.01, 0.02]]), fov=90.0)  # in the box, looking at its -x side
    outer = from_axes()
    both = Cameras(
        *(torch.cat([getattr(c, name) for c in (outer, inner)]) for name in ("world_to_camera", "intrinsics"))
    )
    tokens = pack(render_views(box(0.4), both), 16)
    index = tokens.coords[:, 1:].tolist().index([14, 8, 8])
    assert (unvoxelize(tokens)[index] == (255, 0, 0)).all()


def test_a_cell_outside_of_a_image_is_not_shown_by_it():
    narrow, wide = (
        Cameras.looking_at_centre(torch.tensor([[x, 0.0, 0.0]]), fov) for x, fov in ((1.5, 5.0), (2.0, 40.0))
    )
    both = Cameras(
        *(torch.cat([getattr(c, name) for c in (narrow, wide)]) for name in ("world_to_camera", "intrinsics"))
    )
    views = render_views(box(0.4), both, 256)
    for occlusion, colour in ((False, (0, 0, 0)), (True, (255, 0, 0))):
        tokens = pack(views, 16, occlusion=occlusion)
        index = tokens.coords[:, 1:].tolist().index([14, 4, 11])
        assert (unvoxelize(tokens)[index] == colour).all()


RED_VIEW, GREEN_VIEW, BLUE_VIEW = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


@pytest.mark.parametrize(("near", "far", "plain", "occluded"), [
    (1.5, 2.0, RED_VIEW, RED_VIEW),  # both show it: the nearer camera
    (-1.0, 2.0, RED_VIEW, GREEN_VIEW),  # the nearer one shows nothing there
    (1.0, 2.0, RED_VIEW, GREEN_VIEW),  # something hides it from the nearer one
    (1.0, 1.0, RED_VIEW, BLUE_VIEW),  # it is hidden from both, or they show nothing
    (1.0, -1.0, RED_VIEW, BLUE_VIEW), (-1.0, -1.0, RED_VIEW, BLUE_VIEW),
    (1.47, 2.0, RED_VIEW, RED_VIEW), (1.46, 2.0, RED_VIEW, GREEN_VIEW),  # a cell's diagonal in front of 1.492: 1.465
    (9.0, 2.0, RED_VIEW, RED_VIEW),  # a surface behind it does not hide it
])  # fmt: skip
def test_which_view_gives_a_cell_its_patch(near, far, plain, occluded):
    """A red and a green camera on the x axis, whose depth maps are constant, and one far away that shows the cell."""
    cameras = Cameras.looking_at_centre(torch.tensor([[1.5, 0, 0], [2.0, 0, 0], [0, -4.0, 0]]))
    rgb = np.broadcast_to(np.array([RED_VIEW, GREEN_VIEW, BLUE_VIEW], np.uint8)[:, None, None], (3, 32, 32, 3))
    depth = np.broadcast_to(np.float32([near, far, 4.0])[:, None, None], (3, 33, 33))
    for occlusion, colour in ((False, plain), (True, occluded)):
        tokens = pack(Views(rgb, depth, cameras), occlusion=occlusion)
        assert (unvoxelize(tokens)[tokens.coords[:, 1:].tolist().index([32, 32, 32])] == colour).all()


def test_a_cell_that_no_view_shows_takes_its_patch_from_the_nearest():
    """The only surface is one pixel on the border of cells, whose centres are in pixels that show nothing."""
    cameras = Cameras.looking_at_centre(torch.tensor([[0, -4.0, 0], [0, -3.0, 0]]))
    rgb = np.zeros((2, 32, 32, 3), np.uint8)
    rgb[0], rgb[1] = RED_VIEW, GREEN_VIEW
    depth = np.full((2, 33, 33), -1, np.float32)
    depth[0, 16, 16] = 4
    tokens = pack(Views(rgb, depth, cameras), 8, occlusion=True)
    assert len(tokens.feats) == 8
    assert (unvoxelize(tokens) == GREEN_VIEW).all()


@pytest.mark.parametrize(("depth", "occlusion"), [(2.0, False), (2.0, True), (1.0, False), (-1.0, False)])
def test_of_views_at_the_same_depth_the_first_gives_the_patch(depth, occlusion):
    cameras = Cameras.looking_at_centre(torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, -4.0, 0]]))
    rgb = np.zeros((3, 32, 32, 3), np.uint8)
    rgb[0], rgb[1] = RED_VIEW, GREEN_VIEW
    depths = np.broadcast_to(np.float32([depth, depth, 4.0])[:, None, None], (3, 33, 33))
    tokens = pack(Views(rgb, depths, cameras), occlusion=occlusion)
    assert (unvoxelize(tokens)[tokens.coords[:, 1:].tolist().index([32, 32, 32])] == RED_VIEW).all()


def test_over_the_limit_an_asset_is_refused_or_coarsened_with_a_warning():
    views = render_views(sphere(), 8, 128)
    count = len(occupied(views, 16))
    assert len(pack(views, 16, max_tokens=count).feats) == count
    with pytest.raises(MediaError, match=f"fills {count:,} voxels at resolution 16"):
        pack(views, 16, max_tokens=count - 1)
    with pytest.warns(AtokenWarning, match="resolution 8, not 16"):
        coarse = voxelize(views, 16, max_tokens=count - 1, over="coarsen")
    assert coarse.resolution == 8
    close(coarse.tokens.feats, pack(views, 8).feats, EXACT)
    with pytest.raises(MediaError, match="over the limit of 0"):
        pack(views, 16, max_tokens=0, over="coarsen")


@pytest.mark.parametrize("resolution", [32, 20, 9])  # 20, 10, 5, 2: an odd one leaves cells over
def test_coarsened_voxels_are_those_of_the_coarser_grid(resolution):
    views = noise(Cameras.sphere(3))
    for most in (1, 40, 300):
        with pytest.warns(AtokenWarning, match="is packed at resolution"):
            coarse = voxelize(views, resolution, max_tokens=most, over="coarsen")
        np.testing.assert_array_equal(coarse.tokens.coords[:, 1:], occupied(views, coarse.resolution))


@pytest.mark.filterwarnings("ignore:The asset is packed at resolution")
@pytest.mark.parametrize("most", [60, 512, 4096])
def test_few_rays_give_the_patches_of_many_and_nearly_all_of_the_cells(most):
    for one in (sphere(), clutter(), labelled_asset(3, 16).mesh):
        few, many = voxelize_mesh(one, most), voxelize(render_views(one), max_tokens=most, over="coarsen")
        assert few.resolution == many.resolution
        expected, actual = (
            {tuple(cell): patch for cell, patch in zip(tokens.coords.tolist(), tokens.feats, strict=True)}
            for tokens in (many.tokens, few.tokens)
        )
        shared = expected.keys() & actual.keys()
        assert len(shared) >= 0.9 * max(len(expected), len(actual))
        assert all(torch.equal(actual[cell], expected[cell]) for cell in shared)


def test_what_cannot_be_packed_is_refused():
    views = render_views(box(0.2, (3.0, 0, 0)), Cameras.sphere(2), 32)
    with pytest.raises(MediaError, match="no surface"):
        pack(views)
    for wrong, message in (({"resolution": 0}, "resolution"), ({"resolution": 513}, "512"), ({"over": "?"}, "over")):
        with pytest.raises(MediaError, match=message):
            pack(views, **wrong)
    with pytest.raises(MediaError, match="not a multiple"):
        pack(replace(views, rgb=views.rgb[:, :20]))
