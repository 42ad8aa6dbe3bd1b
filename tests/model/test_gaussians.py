"""Gaussians: files that come back and that other tools read, images and videos of them, and hostile files."""

import io
import struct
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tqdm import tqdm

from atoken import gaussians as module
from atoken.cameras import Cameras
from atoken.errors import AtokenWarning, MediaError
from atoken.gaussians import Gaussians
from atoken.io import Image, Limits, Video, load_media
from tests.tolerances import EXACT, FP32

STORED = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
STORED += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def some(count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    quats = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=-1)
    scales = 0.001 * 300 ** torch.rand(count, 3, generator=generator)
    colors = 1.4 * torch.rand(count, 3, generator=generator) - 0.2
    means = torch.rand(count, 3, generator=generator) - 0.5
    return Gaussians(means, scales, quats, torch.rand(count, generator=generator), colors)


def ply(properties=None, rows=1, data=None, count=None, form="binary_little_endian", more=""):
    """A .ply of ``rows`` rows of the given (name, type), all values 1/4."""
    properties = [(name, "float") for name in STORED] if properties is None else properties
    lines = [f"property {kind} {name}" for name, kind in properties]
    count = rows if count is None else count
    header = "\n".join(["ply", f"format {form} 1.0", f"element vertex {count}", *lines, f"{more}end_header", ""])
    row = b"".join(
        struct.pack({"float": "<f", "double": "<d", "uchar": "<B"}[kind], 1 / 4 if kind != "uchar" else 1)
        for _, kind in properties
    )
    return header.encode() + (row * rows if data is None else data)


def covariances(gaussians):
    from atoken.rasterize import _rotations

    axes = _rotations(gaussians.quats) * gaussians.scales[:, None]
    return axes @ axes.mT


@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, up):
    before = some()
    before.save(tmp_path / "a.ply", up=up)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = Gaussians.load(tmp_path / "a.ply", up=up)
    torch.testing.assert_close(after.means, before.means, atol=EXACT, rtol=0)
    for name in ("scales", "quats", "opacities", "colors"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), atol=FP32, rtol=FP32)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_the_file_is_that_of_3d_gaussian_splatting(tmp_path: Path):
    gaussians = some(7)
    gaussians.save(tmp_path / "a.ply")
    header, body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")
    properties = [f"property float {name}" for name in STORED]
    expected = ["ply", "format binary_little_endian 1.0", "element vertex 7", *properties]
    assert header.decode().splitlines() == expected
    rows = dict(zip(STORED, np.array(list(struct.iter_unpack("<17f", body))).T, strict=True))
    stored = {
        **dict(zip(("x", "y", "z"), gaussians.means.T, strict=True)), "nx": torch.zeros(7),
        "f_dc_1": (gaussians.colors[:, 1] - 0.5) / 0.28209479177387814,
        "opacity": -(1 / gaussians.opacities - 1).log(), "scale_2": gaussians.scales[:, 2].log(),
        **dict(zip(("rot_0", "rot_1", "rot_2", "rot_3"), gaussians.quats.T, strict=True)),
    }  # fmt: skip
    for name, values in stored.items():
        np.testing.assert_allclose(rows[name], values.numpy(), atol=FP32, rtol=FP32, err_msg=name)


@pytest.mark.parametrize(
    ("up", "turn"),
    [("y", [[1, 0, 0], [0, 0, 1], [0, -1, 0]]), ("-y", [[1, 0, 0], [0, 0, -1], [0, 1, 0]])],
)
def test_export_rotates_positions_and_axes(tmp_path: Path, up, turn):
    before = some()
    before.save(tmp_path / "a.ply", up=up)
    after, turn = Gaussians.load(tmp_path / "a.ply"), torch.tensor(turn, dtype=torch.float32)
    torch.testing.assert_close(turn[:, 2], torch.tensor({"y": [0.0, 1, 0], "-y": [0.0, -1, 0]}[up]))
    torch.testing.assert_close(after.means, before.means @ turn.T, atol=EXACT, rtol=0)
    torch.testing.assert_close(covariances(after), turn @ covariances(before) @ turn.T, atol=FP32, rtol=0)


def test_limits_of_opacity_and_scale_stay_finite(tmp_path: Path):
    edge = some(3)
    edge.opacities[:2], edge.scales[0] = torch.tensor([0.0, 1.0]), 0
    edge.save(tmp_path / "a.ply")
    after = Gaussians.load(tmp_path / "a.ply")
    torch.testing.assert_close(after.opacities, edge.opacities, atol=FP32, rtol=0)
    torch.testing.assert_close(after.scales, edge.scales, atol=FP32, rtol=0)


def test_no_gaussians_are_an_asset_too(tmp_path: Path):
    some(0).save(tmp_path / "a.ply")
    assert len(Gaussians.load(tmp_path / "a.ply")) == 0
    assert not some(0).render(Cameras.turntable(2), (3, 5)).any()


def test_files_of_other_tools(tmp_path: Path):
    """Properties in any order, doubles, comments, CR LF, a list after the vertices, no normals."""
    properties = [(name, "double") for name in reversed(STORED) if not name.startswith("n")]
    content = ply(
        properties, rows=3, more="comment made elsewhere\nelement face 0\nproperty list uchar int vertex_index\n"
    )
    head, body = content.split(b"end_header\n")
    (tmp_path / "a.ply").write_bytes(head.replace(b"\n", b"\r\n") + b"end_header\r\n" + body)
    read = Gaussians.load(tmp_path / "a.ply")
    torch.testing.assert_close(read.means, torch.full((3, 3), 0.25), atol=EXACT, rtol=0)
    torch.testing.assert_close(read.quats, torch.full((3, 4), 0.5), atol=FP32, rtol=0)
    torch.testing.assert_close(read.opacities, torch.tensor(0.25).sigmoid().expand(3), atol=FP32, rtol=0)
    torch.testing.assert_close(read.scales, torch.tensor(0.25).exp().expand(3, 3), atol=FP32, rtol=0)
    torch.testing.assert_close(read.colors, torch.full((3, 3), 0.5 + 0.25 * 0.28209479177387814), atol=FP32, rtol=0)


def test_properties_that_are_not_read_are_warned_of(tmp_path: Path):
    extra = [(f"f_rest_{index}", "float") for index in range(45)]
    (tmp_path / "a.ply").write_bytes(ply([(name, "float") for name in STORED] + extra))
    with pytest.warns(AtokenWarning, match=r"f_rest_0 to f_rest_44 \(45\)"):
        assert len(Gaussians.load(tmp_path / "a.ply")) == 1


def without(*names):
    return ply([(name, "float") for name in STORED if name not in names])


def with_value(name, value):
    values = [0.25] * len(STORED)
    values[STORED.index(name)] = value
    return ply(data=struct.pack("<17f", *values))


HOSTILE = {
    "empty": (b"", "does not begin with 'ply'"),
    "image": (b"\x89PNG\r\n\x1a\n", "does not begin with 'ply'"),
    "no end": (b"ply\n" + b"comment a\n" * 100_000, "does not end within 65,536 bytes"),
    "one line": (b"ply\n" + b"x" * 1_000_000, "does not end within"),
    "cut header": (ply()[:60], "does not end within"),
    "no format": (ply().replace(b"format binary_little_endian 1.0\n", b""), "only binary little-endian"),
    "ascii": (ply(form="ascii"), "only binary little-endian"),
    "big endian": (ply(form="binary_big_endian"), "only binary little-endian"),
    "cut": (ply(rows=10)[:-1], "declares 10 Gaussians but is shorter"),
    "absurd count": (ply(count=10**14), "declares 100,000,000,000,000 Gaussians but is shorter"),
    "beyond count": (ply(count=10**400), "has a line"),
    "negative": (ply(count=-1), "has a line"),
    "no number": (ply(count="²"), "has a line"),
    "list": (ply().replace(b"property float nx", b"property list uchar int nx"), "has a list"),
    "unknown type": (ply().replace(b"float nx", b"quaternion nx"), "has a line"),
    "orphan": (b"ply\nformat binary_little_endian 1.0\nproperty float x\nend_header\n", "has a line"),
    "no element": (b"ply\nformat binary_little_endian 1.0\nend_header\n", "first element is not 'vertex'"),
    "other element": (ply().replace(b"element vertex", b"element chunk"), "first element is not 'vertex'"),
    "mesh": (ply([("x", "float"), ("y", "float"), ("z", "float")]), "lacks f_dc_0"),
    "flat": (without("scale_2"), "lacks scale_2"),
    "twice": (ply([(name, "float") for name in [*STORED, "x"]]), "has a property twice"),
    "nan": (with_value("y", float("nan")), "y must be finite"),
    "inf": (with_value("opacity", float("inf")), "opacity must be finite"),
    "large double": (ply([(n, "double") for n in STORED], data=struct.pack("<17d", *[1e300] * 17)), "must be finite"),
    "large scale": (with_value("scale_0", 200.0), "scales are beyond fp32"),
    "no rotation": (ply(data=bytes(17 * 4)), "rotations have length 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_one_sentence(tmp_path: Path, name):
    content, reason = HOSTILE[name]
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(MediaError, match="Cannot read .*" + reason) as refused:
        Gaussians.load(tmp_path / "a.ply")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))


def test_a_sparse_file_is_refused_by_its_size(tmp_path: Path):
    """A file may have the length that it declares and yet hold nothing: the limit stops it before it is read."""
    with (tmp_path / "a.ply").open("wb") as file:
        file.write(ply(count=10**9, data=b""))
        file.truncate(file.tell() + 68 * 10**9)
    with pytest.raises(MediaError, match="over the limit of 4,294,967,296"):
        Gaussians.load(tmp_path / "a.ply")
    (tmp_path / "b.ply").write_bytes(ply(rows=3))
    with pytest.raises(MediaError, match="204 bytes, over the limit of 100"):
        Gaussians.load(tmp_path / "b.ply", limits=Limits(max_memory=100))


def test_what_is_no_file_is_refused(tmp_path: Path):
    for path, reason in ((tmp_path, "not a file"), (tmp_path / "absent.ply", "no such file")):
        with pytest.raises(MediaError, match=reason):
            Gaussians.load(path)


def test_bytes_are_read_as_a_file_is(tmp_path: Path):
    some().save(tmp_path / "a.ply")
    from_path, from_bytes = (
        Gaussians.load(source) for source in (tmp_path / "a.ply", (tmp_path / "a.ply").read_bytes())
    )
    assert all(
        torch.equal(getattr(from_path, name), getattr(from_bytes, name)) for name in ("means", "quats", "colors")
    )


def test_mutated_files_are_read_or_refused(tmp_path: Path):
    rng, whole, path = np.random.default_rng(0), ply(rows=4), tmp_path / "a.ply"
    for _ in range(300):
        content = bytearray(whole)
        for position in rng.integers(0, len(content) if rng.random() < 0.3 else 330, rng.integers(1, 6)):
            content[position] = rng.integers(256)
        path.write_bytes(bytes(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.2 else content))
        with warnings.catch_warnings(), suppress(MediaError):  # any other exception fails
            warnings.simplefilter("ignore", AtokenWarning)
            assert len(Gaussians.load(path)) <= 4


@pytest.mark.parametrize("name", ["means", "scales", "opacities", "colors", "quats"])
def test_values_that_are_not_finite_are_not_saved(tmp_path: Path, name):
    broken = some(4)
    getattr(broken, name)[2] = float("nan")
    (tmp_path / "a.ply").write_bytes(b"as it was")
    with pytest.raises(MediaError, match="must be finite"):
        broken.save(tmp_path / "a.ply")
    assert (tmp_path / "a.ply").read_bytes() == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_names_and_folders_that_cannot_be_written(tmp_path: Path):
    with pytest.raises(MediaError, match=r"\.ply, \.png or \.mp4"):
        some(1).save(tmp_path / "a.glb")
    with pytest.raises(MediaError, match="No such file"):
        some(1).save(tmp_path / "absent" / "a.ply")
    with pytest.raises(MediaError, match="up must be one of z, y, -y"):
        some(1).save(tmp_path / "a.ply", up="x")
    assert not list(tmp_path.iterdir())


def test_an_image_and_a_turntable_are_saved(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_VIEW", 48)
    monkeypatch.setattr(module, "_FRAMES", 4)
    gaussians = some()
    gaussians.save(tmp_path / "a.png")
    gaussians.save(tmp_path / "a.mp4")
    image, video = load_media(tmp_path / "a.png"), load_media(tmp_path / "a.mp4")
    rendered = gaussians.render(Cameras.turntable(4), 48).clamp(0, 1).numpy() * 255
    assert isinstance(image, Image)
    assert isinstance(video, Video)
    assert np.abs(image.pixels - rendered[0]).max() <= 0.5 + FP32 * 255
    assert video.frames.shape == (4, 48, 48, 3)
    assert video.fps == 24
    assert np.abs(video.frames - rendered).mean() < 8


@pytest.mark.parametrize("terminal", [True, False])
def test_a_turntable_has_a_bar_on_a_terminal(tmp_path: Path, monkeypatch, terminal):
    monkeypatch.setattr(module, "_VIEW", 16)
    monkeypatch.setattr(module, "_FRAMES", 3)
    monkeypatch.setattr(module, "tqdm", lambda *args, **options: tqdm(*args, **options | {"delay": 0}))
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", shown)
    some().save(tmp_path / "a.mp4")
    assert ("turntable:" in shown.getvalue(), "/3" in shown.getvalue()) == (terminal, terminal)


def test_a_video_that_fails_half_way_leaves_no_file(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "_VIEW", 16)
    drawn = []

    def fails_at_the_third(self, camera, size):
        drawn.append(camera)
        if len(drawn) == 3:
            raise RuntimeError("out of memory")
        return np.zeros((1, size, size, 3), np.uint8)

    monkeypatch.setattr(Gaussians, "_view", fails_at_the_third)
    with pytest.raises(RuntimeError, match="out of memory"):
        some().save(tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_views_of_an_image_grid_are_in_rows():
    gaussians, views = some(), Cameras.sphere(5)
    grid = gaussians.image_grid(views, size=20, columns=3).pixels
    assert grid.shape == (40, 60, 3)
    for view in range(5):
        row, column = divmod(view, 3)
        tile = grid[20 * row : 20 * row + 20, 20 * column : 20 * column + 20]
        expected = gaussians.image_grid(views[view : view + 1], size=20).pixels
        np.testing.assert_array_equal(tile, expected)
    assert not grid[20:, 40:].any()
    assert gaussians.image_grid(size=8).pixels.shape == (16, 32, 3)


def test_gradients_reach_what_is_drawn():
    gaussians = some()
    gaussians.colors.requires_grad_()
    gaussians.render(Cameras.turntable(1), 16).sum().backward()
    assert float(gaussians.colors.grad.abs().sum()) > 0


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"quats must be \(2, 4\)"):
        Gaussians(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3))
