"""The rasteriser against a loop over pixels, closed forms, finite differences and its invariances."""

from math import log, pi, sqrt, tan

import numpy as np
import pytest
import torch

from atoken import rasterize as module
from atoken.cameras import Cameras
from atoken.rasterize import backend, gsplat_package, rasterize, tiled
from tests.tolerances import EXACT, FP32, GSPLAT

SIZE = (21, 29)  # not a multiple of a tile


def splats(count, seed=0, dtype=torch.float64, smallest=0.003, largest=0.15):
    """Random Gaussians in the unit ball, from specks to some that fill the image, a few of them round."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scales = smallest * (largest / smallest) ** rand(count, 3)
    scales[: count // 4] = scales[: count // 4, :1]
    quats = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    values = rand(count, 3) - 0.5, scales, quats, rand(count), 1.4 * rand(count, 3) - 0.2
    return tuple(value.to(dtype) for value in values)


def cameras(count=3, dtype=torch.float64):
    """Cameras whose pixels are not square and whose centre is not the image's."""
    views = Cameras.looking_at_centre(Cameras.sphere(count).centres.to(dtype))
    shifted = views.intrinsics + torch.tensor([[0.1, 0, 0.07], [0, -0.2, -0.04], [0, 0, 0]], dtype=dtype)
    return Cameras(views.world_to_camera, shifted)


def rotated(quat, vector):
    """A vector rotated by a quaternion, with cross products."""
    w, axis = quat[0] / np.linalg.norm(quat), quat[1:] / np.linalg.norm(quat)
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)


def ellipse(mean, scale, quat, opacity, pose, intrinsics, size):
    """Centre, inverse covariance and peak of one Gaussian on the image; None if it is behind the near plane."""
    x, y, z = pose[:3, :3] @ mean + pose[:3, 3]
    if z < module.NEAR:
        return None
    (height, width), axes = size, np.stack([pose[:3, :3] @ rotated(quat, axis) for axis in np.diag(scale)])
    fx, cx, fy, cy = (
        intrinsics[0, 0] * width,
        intrinsics[0, 2] * width,
        intrinsics[1, 1] * height,
        intrinsics[1, 2] * height,
    )
    u = np.clip(x / z, -cx / fx - 0.15 * width / fx, (width - cx) / fx + 0.15 * width / fx)
    v = np.clip(y / z, -cy / fy - 0.15 * height / fy, (height - cy) / fy + 0.15 * height / fy)
    jacobian = np.array([[fx / z, 0, -fx * u / z], [0, fy / z, -fy * v / z]])
    sharp = jacobian @ sum(np.outer(axis, axis) for axis in axes) @ jacobian.T
    wide = sharp + 0.1 * np.eye(2)
    peak = opacity * sqrt(max(np.linalg.det(sharp) / np.linalg.det(wide), 0))
    return np.array([fx * x / z + cx, fy * y / z + cy]), np.linalg.inv(wide), peak, z


def pixel_by_pixel(splats, pose, intrinsics, size):
    """(H, W, 4) RGB on black and alpha of one view: for every pixel, all Gaussians from front to back."""
    means, scales, quats, opacities, colors = (tensor.numpy() for tensor in splats)
    found = [ellipse(*row, pose, intrinsics, size) for row in zip(means, scales, quats, opacities, strict=True)]
    order = sorted((index for index, row in enumerate(found) if row), key=lambda index: found[index][3])
    image = np.zeros((*size, 4))
    for row, column in np.ndindex(*size):
        left = 1.0
        for index in order:
            centre, inverse, peak, _ = found[index]
            distance = np.array([column + 0.5, row + 0.5]) - centre
            alpha = min(peak * np.exp(-0.5 * distance @ inverse @ distance), 0.999)
            if alpha < 1 / 255 or left <= 1e-4:
                continue
            through = max(left * (1 - alpha), 1e-4)
            image[row, column, :3] += (left - through) * np.maximum(colors[index], 0)
            left = through
        image[row, column, 3] = 1 - left
    return torch.from_numpy(image)


@pytest.mark.parametrize("seed", range(3))
def test_a_loop_over_pixels_gives_the_same_image(seed):
    some, views = splats(60, seed, largest=0.3), cameras(2)
    some[0][45:] *= 6  # outside the image and behind the camera, some of them reaching in
    some[1][45:] *= 4
    expected = torch.stack(
        [
            pixel_by_pixel(some, pose, intrinsics, SIZE)
            for pose, intrinsics in zip(views.world_to_camera.numpy(), views.intrinsics.numpy(), strict=True)
        ]
    )
    for dtype in (torch.float64, torch.float32):
        rgb, alpha = rasterize(tuple(x.to(dtype) for x in some), views.to(dtype=dtype), SIZE)
        assert rgb.dtype == dtype
        torch.testing.assert_close(rgb.double(), expected[..., :3], atol=FP32, rtol=0)
        torch.testing.assert_close(alpha.double(), expected[..., 3], atol=FP32, rtol=0)
    assert 0.1 < float(expected[..., 3].mean()) < 0.9


def test_one_round_gaussian_has_a_closed_form():
    side, sigma, opacity, color = 33, 0.05, 0.8, torch.tensor([0.2, 1.3, 0.6])
    one = (
        torch.zeros(1, 3),
        torch.full((1, 3), sigma),
        torch.tensor([[1.0, 2, 3, 4]]),
        torch.tensor([opacity]),
        color[None],
    )
    background = torch.tensor([0.9, 0.1, 0.4])
    rgb, alpha = rasterize(one, Cameras.turntable(1), (side, side), background=background)
    variance = (sigma * side / 2 * 0.5 / tan(pi / 9)) ** 2
    offsets = torch.arange(side) - side // 2
    squared = (offsets[:, None] ** 2 + offsets**2).double()
    expected = opacity * variance / (variance + 0.1) * torch.exp(-squared / (2 * (variance + 0.1)))
    expected[expected < 1 / 255] = 0
    torch.testing.assert_close(alpha[0].double(), expected, atol=FP32, rtol=0)
    mixed = expected[..., None] * color + (1 - expected[..., None]) * background
    torch.testing.assert_close(rgb[0].double(), mixed, atol=FP32, rtol=0)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 2)  # so that gradients pass through several layers of blocks
    monkeypatch.setattr(module, "_SLICE", 3)
    means, scales, quats, opacities, colors = splats(4, smallest=0.4, largest=0.7)
    some = means, scales, quats, 0.3 + 0.3 * opacities, colors.abs() + 0.1  # far from every cut
    inputs = [tensor.requires_grad_() for tensor in (*some, torch.rand(3, dtype=torch.float64))]

    def draw(*tensors):
        return tuple(rasterize(tensors[:5], cameras(1), (6, 10), background=tensors[5]))

    assert float(draw(*inputs)[1].detach().min()) > 0.1
    assert torch.autograd.gradcheck(draw, inputs, eps=1e-6, atol=1e-7)


def test_blocks_and_slices_do_not_show(monkeypatch):
    some = [tensor.requires_grad_() for tensor in splats(150, dtype=torch.float32)]

    def draw():
        rgb, alpha = rasterize(some, cameras(2, torch.float32), SIZE)
        loss = (rgb.square().sum(-1) + alpha).mean()
        return rgb, alpha, *torch.autograd.grad(loss, some)

    whole = draw()
    for name, size in {"_BLOCK": 5, "_SLICE": 300, "_CHUNK": 7, "_TILE": 5}.items():
        monkeypatch.setattr(module, name, size)
        for part, expected in zip(draw(), whole, strict=True):
            torch.testing.assert_close(part, expected, atol=FP32, rtol=FP32)


def test_the_order_of_the_gaussians_does_not_matter():
    some = splats(500, dtype=torch.float32)
    shuffled = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    first, second = (rasterize(s, cameras(2), SIZE) for s in (some, tuple(x[shuffled] for x in some)))
    torch.testing.assert_close(first, second, atol=FP32, rtol=0)


def test_views_are_drawn_as_if_alone():
    some, views = splats(100, dtype=torch.float32), cameras(3)
    together = rasterize(some, views, SIZE)
    for view in range(3):
        alone = rasterize(some, views[view : view + 1], SIZE)
        torch.testing.assert_close(together.rgb[view], alone.rgb[0], atol=EXACT, rtol=0)
    assert rasterize(some, views[:0], SIZE).rgb.shape == (0, *SIZE, 3)


def test_rotating_world_and_cameras_together_changes_nothing():
    means, scales, quats, opacities, colors = splats(100)
    views, half = cameras(2), 0.35
    turn = torch.tensor([[np.cos(2 * half), 0, np.sin(2 * half)], [0, 1, 0], [-np.sin(2 * half), 0, np.cos(2 * half)]])
    w, x, y, z = quats.unbind(-1)
    c, s = np.cos(half), np.sin(half)
    moved = torch.stack([c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x], dim=-1)
    poses = views.world_to_camera.clone()
    poses[:, :3, :3] = poses[:, :3, :3] @ turn.T
    before = rasterize((means, scales, quats, opacities, colors), views, SIZE)
    after = rasterize((means @ turn.T, scales, moved, opacities, colors), Cameras(poses, views.intrinsics), SIZE)
    torch.testing.assert_close(before, after, atol=FP32, rtol=0)


def test_what_is_outside_near_and_far_is_not_drawn():
    some, view = splats(200), Cameras.turntable(1).to(dtype=torch.float64)
    depth = some[0] @ view.world_to_camera[0, 2, :3] + 2
    kept = (depth > 1.8) & (depth < 2.2)
    cropped = rasterize(some, view, SIZE, near=1.8, far=2.2)
    torch.testing.assert_close(cropped, rasterize(tuple(x[kept] for x in some), view, SIZE), atol=FP32, rtol=0)
    assert float(cropped.alpha.mean()) > 0.05
    assert float(rasterize(some, view, SIZE, near=9.0).alpha.abs().max()) == 0


def test_nothing_gives_the_background():
    background = torch.rand(2, *SIZE, 3)
    rgb, alpha = rasterize(splats(0, dtype=torch.float32), cameras(2), SIZE, background=background)
    torch.testing.assert_close(rgb, background, atol=EXACT, rtol=0)
    assert not alpha.any()


def test_an_opaque_wall_hides_what_is_behind_it():
    wall = torch.zeros(8, 3), torch.full((8, 3), 3.0), torch.eye(4)[:1].expand(8, 4), torch.ones(8), torch.ones(8, 3)
    behind = tuple(torch.cat([a, b]) for a, b in zip(wall, splats(100, dtype=torch.float32), strict=True))
    view = Cameras.turntable(1, pitch=0.0)
    behind[0][8:, 1] += 1.0  # the camera looks along +y
    rgb, alpha = rasterize(behind, view, SIZE)
    torch.testing.assert_close(rgb, torch.full_like(rgb, 1 - module.OPAQUE), atol=FP32, rtol=0)
    torch.testing.assert_close(alpha, torch.full_like(alpha, 1 - module.OPAQUE), atol=FP32, rtol=0)


@pytest.mark.parametrize(("opacity", "expected"), [(0.9, 0.9), (0.995, 0.995), (0.9985, 0.9985), (1.0, 0.999)])
def test_alpha_is_clamped_just_below_one(opacity, expected):
    """In the middle of a Gaussian so wide that it is flat there; behind it shines what a clamped one lets through."""
    opacities = torch.tensor([opacity, 1.0]).requires_grad_()
    two = (
        torch.tensor([[0.0, 0, 0], [0, 0.5, 0]]),
        torch.full((2, 3), 50.0),
        torch.eye(4)[:1].expand(2, 4),
        opacities,
        torch.tensor([[1.0, 0, 0], [0, 1, 0]]),
    )
    rgb, alpha = rasterize(two, Cameras.turntable(1, pitch=0.0), (9, 9))
    left = max(0.001 * (1 - expected), module.OPAQUE)
    assert rgb[0, 4, 4, :2].tolist() == pytest.approx([expected, 1 - expected - left], abs=FP32)
    assert alpha[0, 4, 4].tolist() == pytest.approx(1 - left, abs=FP32)
    (gradient,) = torch.autograd.grad(rgb[0, 4, 4, 0], opacities)
    assert float(gradient[0]) == pytest.approx(float(opacity < 1), abs=1e-3)


def test_a_speck_covers_what_its_area_says():
    """The filter widens a speck to whole pixels but adds nothing: its alphas sum to the area of the sharp one."""
    sigma, side = 0.0012, 256
    one = torch.zeros(1, 3) + 0.001, torch.full((1, 3), sigma), torch.eye(4)[:1], torch.ones(1), torch.ones(1, 3)
    variance = (sigma * side / 2 * 0.5 / tan(pi / 9)) ** 2
    total = float(rasterize(one, Cameras.turntable(1), (side, side)).alpha.sum())
    assert variance < 0.1
    cut = 1 / 255 * 2 * pi * (variance + 0.1)  # what lies below the alpha cut
    assert abs(total + cut - 2 * pi * variance) < 0.15 * 2 * pi * variance


def test_degenerate_gaussians_leave_gradients_finite():
    some = list(splats(12, dtype=torch.float32))
    some[1][:3], some[3][3:6] = 0, 0
    some[1][6:9, :2] = 1e-12  # needles
    some[0][9] = Cameras.turntable(1).centres[0]
    some[1][10], some[2][11] = 1e6, 0
    some = [tensor.requires_grad_() for tensor in some]
    rgb, alpha = rasterize(some, Cameras.turntable(1), SIZE)
    gradients = torch.autograd.grad(rgb.sum() + alpha.sum(), some)
    assert all(bool(value.isfinite().all()) for value in (rgb, alpha, *gradients))


def test_low_precision_is_drawn_in_fp32():
    rough = tuple(x.bfloat16() for x in splats(50))
    view = Cameras.turntable(1)
    with torch.autocast("cpu", torch.bfloat16):
        rgb, _ = rasterize(rough, view, SIZE)
    assert rgb.dtype == torch.float32
    expected = rasterize(tuple(x.float() for x in rough), view, SIZE).rgb
    torch.testing.assert_close(rgb, expected, atol=EXACT, rtol=0)


def test_memory_of_entries_is_cut_into_slices(monkeypatch):
    """However many entries there are, a slice holds at most _SLICE and those of one Gaussian."""
    seen = []
    blend = module._blend
    monkeypatch.setattr(
        module, "_blend", lambda canvas, part, tile, splat: (seen.append(len(tile)), blend(canvas, part, tile, splat))
    )
    monkeypatch.setattr(module, "_SLICE", 64)
    rasterize(splats(400, dtype=torch.float32), Cameras.turntable(1), SIZE)
    tiles_of_image = 3 * 4
    assert len(seen) > 5
    assert max(seen) < 64 + tiles_of_image


def test_the_cpu_has_the_plain_renderer():
    assert backend("cpu", torch.float32) is tiled
    assert backend("cuda", torch.float64) is tiled
    assert log(module.ALPHA_CUT) < log(module.ALPHA_MAX) < 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="gsplat draws on CUDA only, and there is no CUDA device")
def test_gsplat_gives_the_same_numbers():
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    some = [x.cuda() for x in splats(2000, dtype=torch.float32, largest=0.05)]
    some[2], some[4] = torch.nn.functional.normalize(some[2], dim=-1), some[4].clamp_min(0)
    views = cameras(2, torch.float32).to("cuda")
    results = []
    for draw in (tiled, gsplat_package):
        inputs = [x.clone().requires_grad_() for x in some]
        rgb, alpha = draw(tuple(inputs), views, (128, 160), module.NEAR, float("inf"))
        results.append((rgb, alpha, *torch.autograd.grad(rgb.square().mean() + alpha.mean(), inputs)))
    for plain, gsplat in zip(*results, strict=True):
        difference = (plain - gsplat).abs().mean() / gsplat.abs().amax().clamp(max=1)
        assert float(difference) <= GSPLAT
