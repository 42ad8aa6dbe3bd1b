"""What glTF files of the field hold beside plain triangles, by closed forms and by the same asset written plainly."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from atoken.errors import AtokenWarning, MediaError, MissingExtraError
from atoken.io import Limits, Mesh, read_mesh
from atoken.media.mesh_folder import Folder
from atoken.media.mesh_worker import mesh_of
from tests.media.gltf_file import CORNERS, DRACO, GREEN, HALVES, RED, SQUARE, Gltf, png
from tests.tolerances import FP32

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")

BOX = trimesh.creation.box((1, 2, 3))
POINTS, FACES = BOX.vertices.astype(np.float32), BOX.faces.astype(np.uint16)
RANDOM = np.random.default_rng(0)


def read(file: Gltf, folder: Path, limits: Limits = Limits()) -> Mesh:  # noqa: B008 - frozen
    """Read in this process, without warnings."""
    path = file.save(folder / "a.glb")
    with path.open("rb") as opened:
        read = Folder(opened, str(folder), path.name, limits)
    mesh = mesh_of(read, "glb")
    assert not read.notes
    return mesh


def triangles(mesh: Mesh) -> np.ndarray:
    """The faces (F, 9), sorted: the same for the same surface, whatever the order of faces and of their corners."""
    corners = mesh.vertices[mesh.faces].astype(np.float64).round(5) + 0.0
    turns = np.stack([np.roll(corners, shift, 1).reshape(-1, 9) for shift in range(3)], 1)
    return np.array(sorted(min(map(tuple, turn)) for turn in turns.tolist()))


def same(one: Mesh, other: Mesh) -> None:
    np.testing.assert_allclose(triangles(one), triangles(other), atol=2 * FP32, rtol=0)


def turned(count: int) -> np.ndarray:
    turns = RANDOM.normal(size=(count, 4)).astype(np.float32)
    return turns / np.linalg.norm(turns, axis=1, keepdims=True)


def instanced(scales: np.ndarray, rotations: np.ndarray, shifts: np.ndarray) -> tuple[Gltf, Gltf]:
    """Boxes as instances in a node that is moved itself, with a child that is not repeated; and as plain nodes."""
    outer = {"translation": [1, 2, 3], "rotation": turned(1)[0].tolist(), "scale": [1, -2, 1]}
    packed, plain = Gltf(), Gltf()
    for file in (packed, plain):
        mesh, leaf = file.mesh(POINTS, FACES), file.mesh()
        child = file.node(root=False, mesh=leaf, translation=[9, 0, 0])
        if file is packed:
            given = {"TRANSLATION": shifts, "SCALE": scales, "ROTATION": rotations}
            numbers = {
                name: file.array(values, **({} if values.dtype == np.float32 else {"normalized": True}))
                for name, values in given.items()
            }
            file.instances(mesh, **numbers)
            file.tree["nodes"][-1] |= outer | {"children": [child]}
        else:
            each = zip(shifts.tolist(), _fractions(rotations).tolist(), _fractions(scales).tolist(), strict=True)
            below = [file.node(root=False, mesh=mesh, translation=t, rotation=r, scale=s) for t, r, s in each]
            file.node(children=[child, *below], **outer)
    return packed, plain


def _fractions(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.float32 else np.maximum(values / np.iinfo(values.dtype).max, -1)


@pytest.mark.parametrize("quantised", [None, np.int8, np.int16])
def test_instances_are_as_many_nodes(tmp_path: Path, quantised: type | None) -> None:
    shifts, rotations = RANDOM.uniform(-20, 20, (7, 3)).astype(np.float32), turned(7)
    scales = RANDOM.uniform(0.2, 1, (7, 3)).astype(np.float32) * [[1, 1, -1]] * RANDOM.choice([-1, 1], (7, 1))
    scales = scales.astype(np.float32)
    if quantised:
        rotations, scales = (
            np.rint(values * np.iinfo(quantised).max).astype(quantised) for values in (rotations, scales)
        )
    one, other = (read(file, tmp_path) for file in instanced(scales, rotations, shifts))
    assert len(one.faces) == 7 * 12 + 2
    same(one, other)


def test_the_limit_on_faces_counts_instances(tmp_path: Path) -> None:
    file = Gltf()
    file.instances(file.mesh(), TRANSLATION=file.array(RANDOM.uniform(-9, 9, (10, 3)).astype(np.float32)))
    assert len(read(file, tmp_path, Limits(max_faces=20)).faces) == 20
    with pytest.raises(MediaError, match="20 faces, over the limit of 19"):
        read(file, tmp_path, Limits(max_faces=19))


def test_a_mirrored_instance_keeps_its_colours_and_its_outside(tmp_path: Path) -> None:
    file = Gltf()
    painted = np.array([RED, GREEN, RED, GREEN], np.uint8)
    scales = np.array([[1, 1, 1], [-1, 1, 1]], np.float32)
    file.instances(file.mesh(COLOR_0=painted), SCALE=file.array(scales))
    mesh = read(file, tmp_path)
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (normals[:, 1] < 0).all()  # the front of both
    low, red = corners[..., 2] < 0, (mesh.colors[..., :3] == RED[:3]).all(-1)
    outer = np.abs(corners[..., 0]) > 0.4
    np.testing.assert_array_equal(red, low != outer)  # corners 0 (inside below) and 2 (outside above)


def quantised_square(values: np.ndarray, scale: float, **stated: object) -> Gltf:
    file = Gltf()
    file.node(mesh=file.mesh(values), scale=[scale] * 3)
    file.tree["accessors"][0] |= stated
    file.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    return file


@pytest.mark.parametrize(("dtype", "normalized"), list(itertools.product(["i1", "u1", "i2", "u2"], (True, False))))
def test_positions_may_be_whole_numbers(tmp_path: Path, dtype: str, normalized: bool) -> None:
    most = np.iinfo(dtype).max
    values = np.array([[0, 0, 0], [most, 0, 0], [most, most // 2, 0], [0, most // 2, 0]], dtype)
    plain = Gltf()
    plain.node(mesh=plain.mesh(values.astype(np.float32)))
    same(read(quantised_square(values, 0.5, normalized=normalized), tmp_path), read(plain, tmp_path))
    mixed = quantised_square(values, 1 if normalized else 1 / most, normalized=normalized)
    mixed.node(mesh=mixed.mesh(SQUARE, HALVES[:1]))  # whose size tells that of the other
    assert np.ptp(read(mixed, tmp_path).vertices[:4, 0]) == pytest.approx(1, abs=FP32)


def test_rows_of_whole_numbers_are_padded_to_four_bytes(tmp_path: Path) -> None:
    file = quantised_square(np.pad((SQUARE * 9).astype(np.int8), ((0, 0), (0, 1))), 1, type="VEC3")
    file.tree["bufferViews"][0]["byteStride"] = 4
    same(read(file, tmp_path), read(quantised_square((SQUARE * 9).astype(np.int8), 1), tmp_path))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2"])
@pytest.mark.parametrize("normalized", [True, False])
def test_texture_coordinates_may_be_whole_numbers(tmp_path: Path, dtype: str, normalized: bool) -> None:
    most = np.iinfo(dtype).max
    file, uv = Gltf(), np.array([[0, 1], [1, 1], [1, 0], [0, 0]])
    material = file.textured()
    if not normalized:
        texture = file.tree["materials"][material]["pbrMetallicRoughness"]["baseColorTexture"]
        texture["extensions"] = {"KHR_texture_transform": {"scale": [1 / most] * 2}}
    file.node(mesh=file.mesh(material=material, TEXCOORD_0=(most * uv).astype(dtype)))
    file.tree["accessors"][0]["normalized"] = normalized
    mesh = read(file, tmp_path)
    expected = (SQUARE[:, :2])[HALVES]  # v counts from below
    np.testing.assert_allclose(mesh.uv, expected, atol=FP32)
    np.testing.assert_array_equal(mesh.textures[0], CORNERS)


@pytest.mark.parametrize("rows", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("has_view", [True, False])
def test_sparse_values_replace_those_below(tmp_path: Path, rows: type, has_view: bool) -> None:
    wanted = SQUARE + np.array([[5, 0, 0], [0, 0, 0], [0, 7, 0], [0, 0, 0]]) if has_view else SQUARE
    changed = np.flatnonzero((wanted != (SQUARE if has_view else 0)).any(1))
    file, plain = Gltf(), Gltf()
    for one, points in ((file, SQUARE), (plain, wanted.astype(np.float32))):
        one.node(mesh=one.mesh(points))
    accessor = file.tree["accessors"][0]
    if not has_view:
        del accessor["bufferView"]
    kind = {np.uint8: 5121, np.uint16: 5123, np.uint32: 5125}[rows]
    accessor["sparse"] = {
        "count": len(changed),
        "indices": {"bufferView": file.bytes(changed.astype(rows).tobytes()), "componentType": kind},
        "values": {"bufferView": file.bytes(wanted[changed].astype(np.float32).tobytes())},
    }
    same(read(file, tmp_path), read(plain, tmp_path))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(("mode", "expected"), [
    (4, [[0, 1, 2], [3, 4, 5]]),
    (5, [[0, 1, 2], [1, 3, 2], [2, 3, 4], [3, 5, 4]]),
    (6, [[1, 2, 0], [2, 3, 0], [3, 4, 0], [4, 5, 0]]),
])  # fmt: skip
def test_triangles_strips_and_fans(tmp_path: Path, mode: int, expected: list, indexed: bool) -> None:
    points = RANDOM.uniform(0, 1, (6, 3)).astype(np.float32)
    file, plain = Gltf(), Gltf()
    plain.node(mesh=plain.mesh(points, np.array(expected, np.uint16)))
    order = RANDOM.permutation(6) if indexed else np.arange(6)
    file.node(mesh=file.mesh(points[np.argsort(order)], order.astype(np.uint16)))
    primitive = file.tree["meshes"][0]["primitives"][0]
    primitive["mode"] = mode
    if not indexed:
        del primitive["indices"]
    same(read(file, tmp_path), read(plain, tmp_path))


def test_draco(tmp_path: Path) -> None:
    pytest.importorskip("DracoPy", reason="DracoPy is not installed")
    file = Gltf()
    material = file.textured()
    file.node(mesh=file.draco(material=material))
    mesh = read(file, tmp_path)
    np.testing.assert_allclose(mesh.vertices[mesh.faces][..., [0, 2]] + 0.5, [[[0, 1], [0, 0], [1, 1]],
                               [[0, 0], [1, 0], [1, 1]]], atol=FP32)  # fmt: skip
    np.testing.assert_allclose(mesh.uv[..., 0], mesh.vertices[mesh.faces][..., 0] + 0.5, atol=FP32)
    np.testing.assert_allclose(1 - mesh.uv[..., 1], mesh.vertices[mesh.faces][..., 2] + 0.5, atol=FP32)
    assert len(read_mesh(file.glb(), name="a.glb").faces) == 2  # in the child


def test_without_its_package_draco_is_named_or_the_plain_copy_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = Gltf()
    file.node(mesh=file.draco())
    with pytest.raises(MissingExtraError, match=r"pip install 'atoken\[draco\]'"):
        read(file, tmp_path)
    both = Gltf()
    both.node(mesh=both.mesh())
    packed = {"bufferView": both.bytes(DRACO), "attributes": {"POSITION": 1}}
    both.tree["meshes"][0]["primitives"][0]["extensions"] = {"KHR_draco_mesh_compression": packed}
    assert len(read(both, tmp_path).faces) == 2


def test_draco_data_is_what_the_accessor_says(tmp_path: Path) -> None:
    pytest.importorskip("DracoPy", reason="DracoPy is not installed")
    file = Gltf()
    file.node(mesh=file.draco())
    file.tree["accessors"][0]["count"] = 5
    with pytest.raises(MediaError, match="where 5 VEC2 are expected"):
        read(file, tmp_path)


@pytest.mark.parametrize("textured", [False, True])
@pytest.mark.parametrize(("mode", "cutoff", "alpha", "solid"), [
    ("MASK", 0.9, 0.7, False), ("MASK", 0.9, 0.95, True), ("MASK", 0.1, 0.3, True), ("MASK", 0.1, 0.05, False),
    ("MASK", None, 0.6, True), ("MASK", None, 0.4, False), ("MASK", 0, 0.0, True), ("BLEND", 0.1, 0.4, False),
    ("OPAQUE", None, 0.0, True), ("MASK", 2.0, 1.0, False),
])  # fmt: skip
def test_a_mask_has_its_own_cutoff(
    tmp_path: Path, mode: str, cutoff: float | None, alpha: float, solid: bool, textured: bool
) -> None:
    """The renderer cuts at one half."""
    file, how = Gltf(), {"alphaMode": mode} | ({} if cutoff is None else {"alphaCutoff": cutoff})
    base = {"baseColorFactor": [1, 1, 1, alpha]}
    if textured:
        image = file.bytes(png(np.full((2, 2, 4), [255, 255, 255, round(255 * alpha)], np.uint8)))
        texture = file.add("textures", source=file.add("images", bufferView=image))
        base = {"baseColorTexture": {"index": texture}}
    uv = {"TEXCOORD_0": SQUARE[:, :2].copy()}
    file.node(mesh=file.mesh(material=file.add("materials", pbrMetallicRoughness=base, **how), **uv))
    mesh = read(file, tmp_path)
    assert len(mesh.textures) == textured
    seen = (mesh.textures[0][..., 3] if textured else 255) * (mesh.colors[..., 3].min() / 255)
    assert (seen >= 127.5 if solid else seen < 127.5).all()


@pytest.mark.parametrize("wrap", [33071, 33648])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_texture_that_does_not_repeat_is_said_where_it_shows(tmp_path: Path, wrap: int, scale: int) -> None:
    file = Gltf()
    material = file.textured()
    file.tree["textures"][0]["sampler"] = file.add("samplers", wrapS=wrap)
    file.node(mesh=file.mesh(material=material, TEXCOORD_0=scale * SQUARE[:, :2]))
    if scale == 1:
        assert len(read(file, tmp_path).textures) == 1  # without a warning
    else:
        with pytest.warns(AtokenWarning, match="does not repeat"):
            read_mesh(file.save(tmp_path / "a.glb"))


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    file = Gltf()
    texture = {"index": file.add("textures", extensions={"KHR_texture_basisu": {"source": 0}})}
    material = file.add("materials", pbrMetallicRoughness={"baseColorTexture": texture})
    file.node(mesh=file.mesh(material=material, TEXCOORD_0=SQUARE[:, :2].copy()))
    file.tree["meshes"][0] |= {"weights": [0.5]}
    file.tree["scenes"] += [{"nodes": []}]
    file.tree["extensionsUsed"] = ["KHR_texture_basisu", "ACME_gizmo", "KHR_materials_clearcoat"]
    with pytest.warns(AtokenWarning) as caught:
        assert len(read_mesh(file.save(tmp_path / "a.glb")).faces) == 2
    text = "\n".join(str(one.message) for one in caught)
    assert len(caught) == 4
    for part in ("(ACME_gizmo, KHR_texture_basisu)", "stored as KHR_texture_basisu", "morph targets", "2 scenes"):
        assert part in text


@pytest.mark.parametrize(("name", "advice"), [
    ("EXT_meshopt_compression", "without compression"), ("ACME_gizmo", "without it"),
])  # fmt: skip
def test_a_required_extension_that_is_not_read_is_named(tmp_path: Path, name: str, advice: str) -> None:
    file = Gltf()
    file.node(mesh=file.mesh())
    file.tree["extensionsRequired"] = [name]
    with pytest.raises(MediaError, match=rf"needs the extension {name}, .*export it {advice}\.$"):
        read(file, tmp_path)


def test_meshopt_data_without_a_plain_copy_is_named(tmp_path: Path) -> None:
    file = Gltf()
    file.node(mesh=file.mesh())
    file.add("buffers", byteLength=len(file.data))
    file.add("buffers", byteLength=len(file.data))
    file.tree["bufferViews"][0] |= {"buffer": 1, "extensions": {"EXT_meshopt_compression": {"buffer": 0}}}
    with pytest.raises(MediaError, match="EXT_meshopt_compression; export it without compression"):
        read(file, tmp_path)
