"""Folders of rendered views: the published layout comes back as it was, everything else is one sentence."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch

from atoken.cameras import Cameras
from atoken.errors import MediaError
from atoken.media.limits import Limits
from atoken.media.views import Views, read_views
from tests.tolerances import EXACT, FP32

pytestmark = pytest.mark.filterwarnings("error")

COUNT, SIZE = 3, 24
CAMERAS = Cameras.sphere(COUNT)
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(1, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
DEPTH = np.where(RANDOM.random((COUNT, 32, 32)) < 0.3, -1, RANDOM.uniform(1.2, 2.8, (COUNT, 32, 32))).astype(np.float32)
FLIP = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
POSES = (torch.linalg.inv(CAMERAS.world_to_camera.double()) @ FLIP).tolist()


def frame(number):
    angle = {"camera_angle_x": math.radians(40)}
    return {"file_path": f"{number:03d}.png", "transform_matrix": POSES[number], **angle}


@pytest.fixture
def folder(tmp_path):
    """The published layout, with depth as arrays."""
    root = tmp_path / "asset"
    root.mkdir()
    for number in range(COUNT):
        PIL.Image.fromarray(RGB[number]).save(root / f"{number:03d}.png")
        np.save(root / f"{number:03d}_depth.npy", DEPTH[number])
    write(root, {"aabb": [[-0.5] * 3, [0.5] * 3], "frames": [frame(number) for number in range(COUNT)]})
    return root


def write(root, data):
    (root / "transforms.json").write_text(data if isinstance(data, str) else json.dumps(data))


def change(root, number=1, /, **entries):
    frames = [frame(number) for number in range(COUNT)]
    frames[number].update(entries)
    write(root, {"frames": frames})


def close(actual, expected, tolerance=EXACT):
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)


def refused(root, match, **options):
    with pytest.raises(MediaError, match=match) as caught:
        read_views(root, **options)
    assert "\n" not in str(caught.value)


def test_the_published_layout_comes_back(folder):
    views = read_views(folder, SIZE)
    assert isinstance(views, Views)
    assert views.pixel_offset == 0.0
    close(views.rgb, RGB)
    close(views.depth, DEPTH)
    close(views.cameras.world_to_camera, CAMERAS.world_to_camera, FP32)
    close(views.cameras.intrinsics, CAMERAS.intrinsics, FP32)


def test_images_are_resized_and_depth_maps_are_not(folder):
    views = read_views(str(folder), 16)
    close(views.rgb[1], np.asarray(PIL.Image.fromarray(RGB[1]).resize((16, 16), PIL.Image.Resampling.LANCZOS)))
    close(views.depth, DEPTH)


def test_one_angle_for_all_and_names_without_suffix_as_nerf_has_them(folder):
    frames = [{"file_path": f"./{number:03d}", "transform_matrix": POSES[number]} for number in range(COUNT)]
    write(folder, {"camera_angle_x": math.radians(40), "frames": frames})
    views = read_views(folder, SIZE)
    close(views.rgb, RGB)
    close(views.cameras.intrinsics, CAMERAS.intrinsics, FP32)


def test_16_bit_depth_within_its_range(folder):
    low, high = 2 - 3**0.5 / 2, 2 + 3**0.5 / 2
    values = np.where(DEPTH[1] < 0, 65535, np.rint((DEPTH[1] - low) / (high - low) * 65535)).astype(np.uint16)
    (folder / "001_depth.npy").unlink()
    PIL.Image.fromarray(values).save(folder / "001_depth.png")
    change(folder, depth={"min": low, "max": high})
    views = read_views(folder, SIZE)
    np.testing.assert_array_equal(views.mask, DEPTH >= 0)
    close(views.depth[1], DEPTH[1], 0.5 * (high - low) / 65535 + 1e-6)
    for wrong in (
        None,
        {"min": 1},
        {"min": 2, "max": 1},
        {"min": float("nan"), "max": 1},
        {"min": "a", "max": "b"},
        [1],
    ):
        change(folder, depth=wrong)
        refused(folder, r"range of its depth map|frames\[1\]\.depth")


def test_background_in_any_notation_is_no_surface(folder):
    depth = np.full((32, 32), 2.0)
    depth[:4] = np.array([np.inf, np.nan, 1e10, -np.inf])[:, None]
    for dtype in ("<f2", ">f4", "<f8"):
        with np.errstate(over="ignore"):
            np.save(folder / "001_depth.npy", depth.astype(dtype))
        assert (read_views(folder, SIZE).depth[1] == np.where(np.arange(32) < 4, -1, 2)[:, None]).all()


def test_transparent_pixels_are_black_and_others_keep_their_colour(folder):
    alpha = RANDOM.integers(0, 3, (SIZE, SIZE), dtype=np.uint8)
    PIL.Image.fromarray(np.dstack([RGB[1], alpha])).save(folder / "001.png")
    close(read_views(folder, SIZE).rgb[1], np.where(alpha[..., None] > 0, RGB[1], 0))


def test_paths_out_of_the_folder_are_refused(folder, tmp_path):
    outside = tmp_path / "outside.png"
    PIL.Image.fromarray(RGB[0]).save(outside)
    np.save(tmp_path / "outside_depth.npy", DEPTH[0])
    (folder / "link.png").symlink_to(outside)
    for path in ("../outside.png", str(outside), "link.png", "x/../../outside.png"):
        change(folder, file_path=path)
        refused(folder, "outside of")
    change(folder)
    (folder / "001_depth.npy").unlink()
    (folder / "001_depth.npy").symlink_to(tmp_path / "outside_depth.npy")
    refused(folder, "outside of")


def test_a_folder_may_be_named_in_any_way(folder, monkeypatch):
    monkeypatch.chdir(folder)
    close(read_views(".", SIZE).rgb, RGB)
    close(read_views("../asset", SIZE).rgb, RGB)


@pytest.mark.parametrize(
    "path", [None, 3, "", "a\0b", "absent.png", "n" * 300, "n" * 251 + ".png", "transforms.json", "."]
)
def test_bad_names_are_refused(folder, path):
    change(folder, file_path=path)
    refused(folder, "file_path|Cannot read")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"frames": 3}', '{"frames": []}', '{"frames": [3]}', "[" * 100_000, "\0\1\xff",
     '{"frames": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_malformed_json_is_refused(folder, text):
    write(folder, text)
    refused(folder, "Cannot read")


def test_absurd_sizes_are_refused(folder):
    write(folder, {"frames": [{}] * 5000})
    refused(folder, r"length <= 4096 - at `\$\.frames`")
    write(folder, " " * (17 << 20))
    refused(folder, "over 16 MB")
    change(folder)
    refused(folder, "depth map .* over the limit", size=16, limits=Limits(max_side=30))
    refused(folder, "over the limit of 0 MB", limits=Limits(max_memory=10_000))
    for size in (0, 20_000):
        refused(folder, "size must be", size=size)


@pytest.mark.parametrize("angle", [None, 0, -1, 3.2, "40", True, float("nan"), 1e400, [0.7]])
def test_bad_angles_are_refused(folder, angle):
    change(folder, camera_angle_x=angle)
    refused(folder, r"camera_angle_x of frame 1|frames\[1\]\.camera_angle_x")


SCALED = (2 * np.eye(4)).tolist()
MIRRORED = np.diag([-1.0, 1, 1, 1]).tolist()
PERSPECTIVE = [*np.eye(4)[:3].tolist(), [0, 0, 1, 1]]


@pytest.mark.parametrize(
    "pose",
    [None, [], [[1, 0], [0, 1]], [[1, 0, 0, float("nan")], *np.eye(4)[1:].tolist()], [["1", 0, 0, 0]] * 4,
     [[True] * 4] * 4, [[10**400, 0, 0, 0], *np.eye(4)[1:].tolist()], SCALED, MIRRORED, PERSPECTIVE, {"0": 1}],
)  # fmt: skip
def test_bad_poses_are_refused(folder, pose):
    change(folder, transform_matrix=pose)
    refused(folder, r"transform_matrix.*frames\[1\]|frames\[1\]\.transform_matrix")


def test_bad_images_are_refused(folder):
    PIL.Image.fromarray(RGB[1, :10]).save(folder / "001.png")
    refused(folder, "must be square")
    (folder / "001.png").write_bytes(b"no image at all, only text")
    refused(folder, "Cannot read")


def test_bad_depth_maps_are_refused(folder):
    path = folder / "001_depth.npy"
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    huge = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4000000, 4000000), }".ljust(117) + b"\n"
    pickled = np.array([[{}]], dtype=object)
    wrong = {
        "floats": [np.zeros((2, 2, 2), np.float32), np.zeros((4, 4), np.int32), np.zeros((4, 4), np.complex64)],
        "malformed": [pickled],
        "differ in size": [np.zeros((8, 8), np.float32)],
    }
    for message, arrays in wrong.items():
        for array in arrays:
            np.save(path, array)
            refused(folder, message)
    for content in (b"", b"abc", header + huge + bytes(64), b"PK\3\4" + bytes(40), b"PK\5\6" + bytes(18)):
        path.write_bytes(content)
        refused(folder, "Cannot read")
    path.unlink()
    refused(folder, "no depth map; put 001_depth.npy")
    change(folder, depth={"min": 1, "max": 2})
    for mode in ("L", "RGB"):
        PIL.Image.fromarray(RGB[0]).convert(mode).save(folder / "001_depth.png")
        refused(folder, "16-bit grey PNG")
    (folder / "001_depth.png").write_bytes((folder / "002.png").read_bytes()[:60])
    refused(folder, "Cannot read")


def test_a_folder_that_is_none_is_refused(tmp_path):
    for root in (tmp_path, tmp_path / "absent", "a\0b"):
        refused(root, "Cannot read")
