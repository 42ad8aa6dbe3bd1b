"""Ray casting: what is seen, where, how far, and in which colour."""

import gc
import sys

import numpy as np
import pytest
import torch

from atoken.cameras import Cameras
from atoken.errors import MediaError, MissingExtraError
from atoken.media.views import Views
from atoken.modalities.views import render_depths, render_views
from tests.modalities.shapes import COLOURS, box, from_axes, joined, mesh, quad, quarter_turned, sphere
from tests.tolerances import EXACT, FP32

FRONT = Cameras.looking_at_centre(torch.tensor([[0.0, -2.0, 0.0]]))  # x to the right, z up in the image
GENERIC = Cameras.sphere(5)


def close(actual, expected, tolerance=FP32):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)


def test_a_ray_and_a_projection_undo_each_other():
    for offset, height, width in ((0.5, 4, 6), (0.0, 3, 3)):
        origin, directions = GENERIC.rays(2, height, width, offset)
        depth = np.linspace(1, 3, height * width)
        places, depths = GENERIC.project(2, origin + depth[:, None] * directions.reshape(-1, 3))
        close(depths, depth)
        close(places[:, 0] * width - offset, np.tile(np.arange(width), height))
        close(places[:, 1] * height - offset, np.repeat(np.arange(height), width))
        some = np.random.default_rng(0).random((height, width)) < 0.5
        np.testing.assert_array_equal(GENERIC.rays(2, height, width, offset, only=some)[1], directions[some])
    close(GENERIC.rays(3, 1, 1)[0], GENERIC.centres[3])


def test_opengl_poses_are_the_same_cameras():
    flip = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    cameras = Cameras.from_opengl(torch.linalg.inv(GENERIC.world_to_camera) @ flip, torch.full((5,), 40.0))
    close(cameras.world_to_camera, GENERIC.world_to_camera)
    close(cameras.intrinsics, GENERIC.intrinsics)


def test_each_side_of_a_cube_is_seen_from_its_axis_in_its_colour():
    views = render_views(box(0.25), from_axes(), size=64)
    for rgb, depth, mask, colour in zip(views.rgb, views.depth, views.mask, COLOURS, strict=True):
        assert (rgb[mask] == colour).all()
        assert (rgb[~mask] == 0).all()
        close(depth[mask], 1.75)
        half = 0.25 * views.cameras.intrinsics[0, 0, 0].item() / 1.75  # of the side, in widths of the image
        inside = np.abs((np.arange(64) + 0.5) / 64 - 0.5) < half
        np.testing.assert_array_equal(mask, inside[:, None] & inside)


def test_depth_of_a_cube_leads_to_its_surface():
    views = render_views(box(0.3), Cameras.sphere(12), size=64)
    points = np.concatenate([views.points(view) for view in range(len(views))])
    assert len(points) == views.mask.sum() > 3000
    close(np.abs(points).max(1), 0.3, 2**-22)


def test_a_sphere_is_where_the_closed_form_has_it():
    radius, rings = 0.4, 64
    views = render_views(sphere(radius, rings), Cameras.sphere(6), size=96)
    sagitta = radius * (1 - np.cos(np.pi / rings / 2) ** 2)  # of the triangles inside of the sphere
    for view in range(len(views)):
        origin, directions = views.cameras.rays(view, 96, 96)
        squared, half = (directions**2).sum(-1), directions @ origin
        reach = half**2 - squared * (origin @ origin - radius**2)
        assert not views.mask[view][reach < 0].any()
        well_inside = reach > 4 * squared * radius * sagitta
        assert views.mask[view][well_inside].all()  # no crack between triangles
        distance = np.linalg.norm(views.points(view), axis=1)
        assert (distance <= radius + FP32).all()
        assert (distance >= radius - 2 * sagitta).all()
        deep = reach > 0.1 * squared * radius**2
        expected = (-half - np.sqrt(np.where(deep, reach, 0))) / squared
        close(views.depth[view][deep], expected[deep], 10 * sagitta)


INSIDE = Cameras.looking_at_centre(torch.tensor([[0.1, 0.2, -0.15], [-0.3, 0.05, 0.1], [0.02, -0.3, 0.2]]), fov=70.0)


@pytest.mark.parametrize("cameras", [GENERIC, INSIDE], ids=["around", "inside"])
def test_colours_and_depths_equal_a_search_over_all_triangles(cameras):
    random = np.random.default_rng(0)
    vertices, faces = random.uniform(-0.4, 0.4, (60, 3)), np.arange(60).reshape(20, 3)
    solid = mesh(vertices, faces, np.dstack([random.integers(0, 256, (20, 3, 3)), np.full((20, 3, 1), 255)]))
    views = render_views(solid, cameras, size=24)
    for view in range(len(views)):
        origin, directions = cameras.rays(view, 24, 24)
        for direction, rgb, depth in zip(
            directions.reshape(-1, 3), views.rgb[view].reshape(-1, 3), views.depth[view].ravel(), strict=True
        ):
            found = [(-1.0, np.zeros(3))]
            for corners, colors in zip(solid.vertices[faces].astype(float), solid.colors, strict=True):
                t, u, v = np.linalg.solve(np.stack([-direction, *(corners[1:] - corners[0])], 1), origin - corners[0])
                if min(t, u, v, 1 - u - v) >= 0:  # some triangles are behind a camera inside
                    found.append((t, np.array([1 - u - v, u, v]) @ colors[:, :3]))
            t, colour = min(found[1:], key=lambda hit: hit[0], default=found[0])
            close(depth, t)
            close(rgb, colour, 0.5 + FP32)


def test_a_triangle_that_reaches_behind_the_camera_is_seen_as_its_part_in_front_of_it():
    eye = np.array([0.0, -0.3, 0.0])
    camera = Cameras.looking_at_centre(torch.tensor(eye[None]).float(), fov=70.0)  # looks along y
    near, behind = np.array([[-0.1, 0.1, -0.1], [0.1, 0.1, -0.1]]), np.array([[0.0, -0.49, 0.02]])
    front = near + (behind - near) * ((-0.29 - 0.1) / (-0.49 - 0.1))  # where its sides are 0.01 in front of the eye
    whole = mesh(np.concatenate([near, behind]), [[0, 1, 2]])
    part = mesh(np.concatenate([near, front]), [[0, 1, 2], [1, 3, 2]])
    found, expected = (render_views(solid, camera, size=48) for solid in (whole, part))
    assert expected.mask.mean() > 0.02
    assert (found.mask | ~expected.mask).all()
    close(found.depth[expected.mask], expected.depth[expected.mask])


def test_both_sides_of_a_face_are_seen():
    behind = Cameras.looking_at_centre(torch.tensor([[0.0, 2.0, 0.0]]))
    for camera in (FRONT, behind):
        assert (render_views(quad(colors=(9, 8, 7, 255)), camera, size=8).rgb[0, 4, 4] == (9, 8, 7)).all()


def test_a_texture_stands_upright_and_repeats():
    texture = np.arange(4, dtype=np.uint8).reshape(2, 2, 1) * np.array([50, 10, 1, 0], np.uint8) + np.uint8(20)
    texture[..., 3] = 255
    half = 1.0 / FRONT.intrinsics[0, 0, 0].item()  # fills the image
    views = render_views(quad(half, textures=[texture]), FRONT, size=2)  # rays meet the centres of the texels
    np.testing.assert_array_equal(views.rgb[0], texture[..., :3])
    twice = render_views(quad(half, textures=[texture], repeat=2.0), FRONT, size=4)
    np.testing.assert_array_equal(twice.rgb[0], np.tile(texture[..., :3], (2, 2, 1)))


def test_between_texels_the_texture_is_bilinear_and_corner_colours_multiply_it():
    texture = np.random.default_rng(1).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    texture[..., 3] = 255
    half = 1.0 / FRONT.intrinsics[0, 0, 0].item()
    rgb = render_views(quad(half, colors=(255, 128, 0, 255), textures=[texture]), FRONT, size=16).rgb[0]
    ends = np.pad(texture[..., :3].astype(float), ((1, 1), (1, 1), (0, 0)), mode="wrap")
    places = (np.arange(16) + 0.5) / 16
    rows = np.stack([[np.interp(places * 5 - 0.5, np.arange(-1, 6), row[:, c]) for c in range(3)] for row in ends])
    expected = np.stack(
        [[np.interp(places * 3 - 0.5, np.arange(-1, 4), rows[:, c, x]) for c in range(3)] for x in range(16)]
    )
    close(rgb, expected.transpose(2, 0, 1) * [1, 128 / 255, 0], 0.5 + 1e-3)


@pytest.mark.parametrize(("alpha", "seen", "depth"), [(127, (0, 0, 200), 2.1), (128, (200, 0, 0), 1.9)])
def test_alpha_below_one_half_is_a_hole(alpha, seen, depth):
    front, back = quad(0.3, -0.1, (200, 0, 0, alpha)), quad(0.3, 0.1, (0, 0, 200, 255))
    views = render_views(joined(front, back), FRONT, size=8)
    assert (views.rgb[0, 4, 4] == seen).all()
    close(views.depth[0, 4, 4], depth)


@pytest.mark.parametrize(("holes", "seen"), [(7, True), (8, False)])
def test_a_ray_passes_a_few_holes_and_then_sees_nothing(holes, seen):
    layers = [quad(0.3, y, (200, 0, 0, 0)) for y in np.linspace(-0.4, 0.3, holes)]
    views = render_views(joined(*layers, quad(0.3, 0.4, (0, 9, 0, 255))), FRONT, size=8)
    assert (views.depth[0, 4, 4] == pytest.approx(2.4)) if seen else not views.mask.any()
    assert (views.rgb[0, 4, 4] == ((0, 9, 0) if seen else 0)).all()


def test_turning_mesh_and_cameras_together_changes_nothing():
    solid, cameras = joined(box(0.2, (0.11, 0.05, -0.13)), sphere(0.17, 12, (90, 160, 30, 255))), Cameras.sphere(6)
    views = render_views(solid, cameras, size=48)
    turned = render_views(quarter_turned(solid), quarter_turned(cameras), size=48)
    same = (views.rgb == turned.rgb).all(-1) & (views.mask == turned.mask)
    assert same.mean() > 0.999  # a ray along an edge may fall to either side
    close(turned.depth[same], views.depth[same])


def test_views_are_the_same_each_time_and_alone():
    solid, cameras = sphere(), Cameras.sphere(4)
    whole, again, part = (render_views(solid, seen, size=32) for seen in (cameras, 4, cameras[2:3]))
    gc.collect()  # the scene outlives the arrays that it was made of
    for one, other in ((whole.rgb, again.rgb), (whole.rgb[2:3], part.rgb), (whole.depth, again.depth)):
        close(one, other, EXACT)


def test_the_rectangle_that_is_searched_leaves_nothing_out():
    solid = joined(box(0.2, (0.11, 0.05, -0.13)), sphere(0.17, 12, (90, 160, 30, 255)))
    cameras = Cameras.looking_at_centre(torch.tensor([[0.0, -2.0, 0.0], [0.9, -0.4, 0.3], [0.1, -5.0, 2.0]]))
    behind = box(0.01, (0, -30, 0))  # with something behind the cameras, all of the image is searched
    part, whole = render_views(solid, cameras, 64), render_views(joined(solid, behind), cameras, 64)
    assert all(0 < mask.mean() < 1 for mask in part.mask)
    close(part.rgb, whole.rgb, EXACT)
    close(part.depth, whole.depth, EXACT)


@pytest.mark.parametrize("alpha", [255, 254, 100])
def test_depths_alone_are_those_of_the_coloured_views(alpha):
    solid = joined(quad(0.3, -0.2, (200, 0, 0, alpha)), sphere(0.17, 12, (90, 160, 30, 255)))
    views, depths = render_views(solid, GENERIC, size=48), render_depths(solid, GENERIC, size=48)
    assert views.rgb.any()
    assert not depths.rgb.any()
    close(depths.depth, views.depth, EXACT)


def test_without_embree_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "embreex.rtcore_scene", None)
    with pytest.raises(MissingExtraError, match=r"atoken\[3d\]"):
        render_views(box())


@pytest.mark.parametrize(("views", "size"), [(0, 8), (-1, 8), (2, 0)])
def test_nothing_to_render_is_refused(views, size):
    with pytest.raises(MediaError, match="at least one"):
        render_views(box(), views, size)


def test_views_that_do_not_fit_are_refused():
    rgb, depth, cameras = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 8, 8), np.float32), Cameras.sphere(2)
    assert Views(rgb, depth, cameras).mask.shape == (2, 8, 8)
    for wrong, message in (
        ((rgb.astype(float), depth, cameras), "rgb must be"),
        ((rgb, depth[0], cameras), "depth must be"),
        ((rgb, depth[:1], cameras), "do not match"),
        ((rgb, depth * np.float32("nan"), cameras), "finite"),
    ):
        with pytest.raises(MediaError, match=message):
            Views(*wrong)
