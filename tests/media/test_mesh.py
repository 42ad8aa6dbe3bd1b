"""Reading 3D files: every format by trimesh's own exports, and places and colours by closed forms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from atoken.errors import AtokenWarning, MediaError, MissingExtraError
from atoken.io import Limits, Mesh, load_media, read_image, read_mesh, sniff
from atoken.media.mesh_folder import Folder
from atoken.media.mesh_material import srgb_bytes
from atoken.media.mesh_worker import mesh_of
from atoken.mesh import fitted
from tests.media.gltf_file import BLUE, CORNERS, GREEN, GREY, HALVES, RED, SQUARE, Gltf, png
from tests.media.mesh_cases import ply
from tests.tolerances import FP32

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")

Y_UP = ("glb", "gltf", "obj")
FORMATS = {"glb": {}, "gltf": {}, "obj": {}, "ply": {}, "text.ply": {"encoding": "ascii"}, "stl": {}, "off": {}}
SHAPES = {
    "box": trimesh.creation.box((1, 2, 3)),
    "ball": trimesh.creation.icosphere(1),
    "cylinder": trimesh.creation.cylinder(1, 3, sections=12),
    "cycle": trimesh.creation.annulus(1, 2, 1, sections=12),
    "cone": trimesh.creation.cone(1, 2, sections=12),
}


def saved(folder: Path, format: str, mesh) -> Path:
    """Export with trimesh, and give the path of the 3D file."""
    path = folder / f"asset.{format}"
    suffix = format.split(".")[-1]
    data = mesh.export(file_type=suffix, **FORMATS[format])
    if isinstance(data, dict):
        for name, content in data.items():
            (folder / name).write_bytes(content)
        return folder / "model.gltf"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(path: Path) -> Mesh:
    """Read in this process, which is faster than in a child."""
    with path.open("rb") as file:
        return mesh_of(Folder(file, str(path.parent), path.name, Limits()), sniff(path).format.name)


def corners(mesh: Mesh) -> np.ndarray:
    return mesh.vertices[mesh.faces]


def z_up(points: np.ndarray) -> np.ndarray:
    return points[..., [0, 2, 1]] * [1, -1, 1]


@pytest.mark.parametrize("format", FORMATS)
def test_load_media_reads_every_format(tmp_path: Path, format: str) -> None:
    path = saved(tmp_path, format, SHAPES["box"])
    mesh, same = load_media(path), read(path)
    assert isinstance(mesh, Mesh)
    np.testing.assert_array_equal(corners(mesh), corners(same))
    np.testing.assert_array_equal(mesh.colors, same.colors)


@pytest.mark.parametrize(("format", "shape"), list(product(FORMATS, SHAPES)))
def test_what_trimesh_writes_is_read(tmp_path: Path, format: str, shape: str) -> None:
    source = SHAPES[shape]
    mesh = read(saved(tmp_path, format, source))
    expected = source.triangles - source.bounds.mean(0)
    expected = (z_up(expected) if format in Y_UP else expected) / source.extents.max()
    np.testing.assert_allclose(corners(mesh), expected, atol=FP32, rtol=0)
    assert mesh.vertices.dtype == np.float32
    assert (mesh.colors == 255).all()
    assert (mesh.texture == -1).all()


@pytest.mark.parametrize("newline", ["\r", "\r\n"])
@pytest.mark.parametrize("format", ["obj", "off", "stl_ascii", "ply"])
def test_lines_may_end_in_any_way(tmp_path: Path, format: str, newline: str) -> None:
    """Also those of comments and of a material library."""
    options = {"encoding": "ascii"} if format == "ply" else {}
    data = SHAPES["box"].export(file_type=format, **options)
    text = data.decode() if isinstance(data, bytes) else data
    path, plain = (tmp_path / f"{name}.{format[:3]}" for name in ("a", "b"))
    if format == "obj":
        text = f"# a box\nmtllib a.mtl\nusemtl m\n{text}"
        (tmp_path / "a.mtl").write_bytes(f"newmtl m{newline}Kd 1 0 0{newline}".encode())
    plain.write_text(text)
    path.write_bytes(text.replace("\n", newline).encode())
    one, other = read(path), read(plain)
    np.testing.assert_array_equal(corners(one), corners(other))
    assert tuple(one.colors[0, 0]) == (RED if format == "obj" else (255,) * 4)


@pytest.mark.parametrize("ascii_stl", [b"solid", b"  SOLID"])
def test_a_text_stl_is_read(tmp_path: Path, ascii_stl: bytes) -> None:
    path = tmp_path / "a.stl"
    path.write_bytes(SHAPES["box"].export(file_type="stl_ascii").encode().replace(b"solid", ascii_stl, 1))
    assert len(read(path).faces) == 12


@pytest.mark.parametrize("format", ["ply", "text.ply", "obj"])
def test_vertex_colours_are_read_as_stored(tmp_path: Path, format: str) -> None:
    source = SHAPES["box"].copy()
    source.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (8, 4)) | [0, 0, 0, 255]
    mesh = read(saved(tmp_path, format, source))
    np.testing.assert_array_equal(mesh.colors, source.visual.vertex_colors[source.faces])


def test_face_colours_are_read_as_stored(tmp_path: Path) -> None:
    source = SHAPES["box"].copy()
    source.visual.face_colors = np.random.default_rng(0).integers(0, 256, (12, 4))
    mesh = read(saved(tmp_path, "ply", source))
    np.testing.assert_array_equal(mesh.colors, np.repeat(source.visual.face_colors[:, None], 3, axis=1))


def seen_at(mesh: Mesh, vertex: np.ndarray) -> tuple[int, ...]:
    """The colour of the texture, nearest pixel, a little inside of the corner at this place."""
    at = np.argwhere(np.abs(corners(mesh) - vertex).max(-1) < FP32)[0]
    u, v = mesh.uv[tuple(at)] * 0.9 + 0.05
    image = mesh.textures[mesh.texture[at[0]]]
    return tuple(image[int((1 - v) * image.shape[0]), int(u * image.shape[1])].tolist())


# The square's corners as glTF and OBJ have them, x right and y up, and what it shows there; z up, y becomes z.
SEEN = {(-0.5, 0, -0.5): BLUE, (0.5, 0, -0.5): GREY, (0.5, 0, 0.5): GREEN, (-0.5, 0, 0.5): RED}


def gltf_square(folder: Path) -> Path:
    file = Gltf()
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # glTF counts v from the upper edge down
    file.node(mesh=file.mesh(material=file.textured(), TEXCOORD_0=uv))
    return file.save(folder / "a.glb")


def gltf_square_of_bytes(folder: Path) -> Path:
    file = Gltf()
    uv = np.array([[0, 255], [255, 255], [255, 0], [0, 0]], np.uint8)
    file.node(mesh=file.mesh(material=file.textured(), TEXCOORD_0=uv))
    file.tree["accessors"][0]["normalized"] = True
    return file.save(folder / "a.glb")


def gltf_square_transformed(folder: Path) -> Path:
    """Texture coordinates a quarter turn, doubled and shifted, which KHR_texture_transform undoes."""
    file = Gltf()
    material = file.textured()
    texture = file.tree["materials"][material]["pbrMetallicRoughness"]["baseColorTexture"]
    how = {"rotation": np.pi / 2, "scale": [0.5, 0.5], "offset": [0, 1], "texCoord": 1}
    texture["extensions"] = {"KHR_texture_transform": how}
    u, v = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32).T  # wanted: u = b / 2, v = 1 - a / 2
    uv = np.stack([2 * (1 - v), 2 * u], 1).astype(np.float32)
    file.node(mesh=file.mesh(material=material, TEXCOORD_1=uv, TEXCOORD_0=np.zeros_like(uv)))
    return file.save(folder / "a.glb")


def gltf_square_of_files(folder: Path) -> Path:
    """The buffer and the image in files whose names need quoting."""
    (folder / "a b").mkdir()
    gltf_square(folder)
    path = folder / "a.glb"
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    tree = json.loads(data[20 : 20 + length])
    (folder / "a b" / "x.bin").write_bytes(data[28 + length :])
    (folder / "a b" / "x.png").write_bytes(png())
    tree["buffers"][0]["uri"], tree["images"] = "a%20b/x.bin", [{"uri": "a%20b/x.png"}]
    (folder / "a.gltf").write_text(json.dumps(tree))
    return folder / "a.gltf"


OBJ = "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nusemtl m\n"


def obj_square(folder: Path) -> Path:
    (folder / "a.mtl").write_text("newmtl m\nKd 0.4 0.4 0.4\nmap_Kd a.png\n")
    (folder / "a.png").write_bytes(png())
    (folder / "a.obj").write_text(f"{OBJ}f 1/1 2/2 3/3 4/4\n")
    return folder / "a.obj"


def ply_square(folder: Path) -> Path:
    """PLY is z up, so the square is stood up."""
    (folder / "a.png").write_bytes(png())
    rows = ["0 0 0 0 0", "1 0 0 1 0", "1 0 1 1 1", "0 0 1 0 1"]
    text = ply(rows, ["3 0 1 2", "3 0 2 3"], "float s", "float t", comment="TextureFile a.png")
    (folder / "a.ply").write_text(text)
    return folder / "a.ply"


@pytest.mark.parametrize(
    "square",
    [gltf_square, gltf_square_of_bytes, gltf_square_transformed, gltf_square_of_files, obj_square, ply_square],
)
def test_which_corner_of_a_texture_is_which(tmp_path: Path, square) -> None:
    mesh = read(square(tmp_path))
    np.testing.assert_array_equal(mesh.textures[0], CORNERS)
    assert {place: seen_at(mesh, np.array(place)) for place in SEEN} == SEEN


@pytest.mark.parametrize("folder", ["C:\\Users\\me\\", "c:/", "/home/me/my textures/", "/"])
def test_a_texture_with_the_path_of_another_machine_is_looked_for_in_the_folder(tmp_path: Path, folder: str) -> None:
    path = obj_square(tmp_path)
    (tmp_path / "a.mtl").write_text(f"newmtl m\nKd 0.4 0.4 0.4\nmap_Kd {folder}a.png\n")
    np.testing.assert_array_equal(read(path).textures[0], CORNERS)
    (tmp_path / "a.png").unlink()
    with pytest.warns(AtokenWarning, match=r"a\.png' that it names is missing"):
        mesh = read_mesh(path)
    assert not mesh.textures
    np.testing.assert_array_equal(mesh.colors[..., :3], 102)


def test_nodes_place_their_meshes(tmp_path: Path) -> None:
    """A box of red below the root, and one of green on top of it by two nodes, the upper turned; then y becomes z."""
    file, box = Gltf(), trimesh.creation.box((1, 1, 1))
    points, faces = box.vertices.astype(np.float32), box.faces.astype(np.uint16)
    red, green = (
        file.add("materials", pbrMetallicRoughness={"baseColorFactor": c}) for c in ([1, 0, 0, 1], [0, 1, 0, 1])
    )
    below, above = file.mesh(points, faces, red), file.mesh(points, faces, green)
    quarter = [0, 0, np.sqrt(0.5), np.sqrt(0.5)]  # about z: x to y
    leaf = file.node(root=False, mesh=above, translation=[2, 0, 0])
    file.node(mesh=below, children=[file.node(root=False, children=[leaf], rotation=quarter)], scale=[1, 2, 1])
    mesh = read(file.save(tmp_path / "a.glb"))
    red_z, green_z = (corners(mesh)[mesh.colors[:, 0, k] == 255][..., 2] for k in range(2))
    span = 1 / 6  # z from -1 to 5: the red box 2 tall around 0, the green one 2 tall around 2 * 2
    np.testing.assert_allclose([red_z.min(), red_z.max()], [-0.5, -0.5 + 2 * span], atol=FP32)
    np.testing.assert_allclose([green_z.min(), green_z.max()], [0.5 - 2 * span, 0.5], atol=FP32)
    assert np.abs(mesh.vertices[:, :2]).max() == pytest.approx(span / 2, abs=FP32)


def test_a_mirrored_node_keeps_the_outside_outside(tmp_path: Path) -> None:
    file, box = Gltf(), SHAPES["box"]
    file.node(mesh=file.mesh(box.vertices.astype(np.float32), box.faces.astype(np.uint16)), scale=[-1, 1, 1])
    one, two, three = np.moveaxis(corners(read(file.save(tmp_path / "a.glb"))), 1, 0)
    assert (np.cross(two - one, three - one) * (one + two + three)).sum(-1).min() > 0


def test_strips_and_files_without_a_scene(tmp_path: Path) -> None:
    file = Gltf()
    mesh = file.mesh(faces=np.array([[0, 1, 3, 2]], np.uint16))
    file.tree["meshes"][mesh]["primitives"][0]["mode"] = 5
    file.add("nodes", mesh=mesh)
    area = corners(read(file.save(tmp_path / "a.glb")))
    assert len(area) == 2
    normals = np.cross(area[:, 1] - area[:, 0], area[:, 2] - area[:, 0])
    np.testing.assert_allclose(normals, [[0, -1, 0]] * 2, atol=FP32)  # it faces the front


def test_linear_colours_become_srgb(tmp_path: Path) -> None:
    file = Gltf()
    painted = np.array([[1, 1, 1, 1], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0], [0.2, 0.4, 0.8, 1]], np.float32)
    factor = [0.5, 1, 0.25, 0.5]
    material = file.add("materials", alphaMode="BLEND", pbrMetallicRoughness={"baseColorFactor": factor})
    file.node(mesh=file.mesh(material=material, COLOR_0=painted))
    mesh = read(file.save(tmp_path / "a.glb"))
    linear = painted * factor
    expected = np.concatenate([srgb_bytes(linear[:, :3]), np.rint(255 * linear[:, 3:])], 1)[HALVES]
    np.testing.assert_array_equal(mesh.colors, expected)


def test_colours_may_be_bytes_and_alpha_of_what_is_opaque_is_not_read(tmp_path: Path) -> None:
    file = Gltf()
    file.node(mesh=file.mesh(COLOR_0=np.full((4, 4), 55, np.uint8)))
    expected = [*srgb_bytes(np.full(3, 55 / 255)).tolist(), 255]
    assert read(file.save(tmp_path / "a.glb")).colors.reshape(-1, 4).tolist() == [expected] * 6


def test_the_srgb_curve() -> None:
    known = {0.0: 0, 1.0: 255, 0.5: 188, 0.2158605: 128, 0.0031308: 10, 2.0: 255, -1.0: 0}
    np.testing.assert_array_equal(srgb_bytes(np.array(list(known))), list(known.values()))


def test_diffuse_of_specular_glossiness_is_the_colour(tmp_path: Path) -> None:
    file = Gltf()
    extension = {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}}
    file.tree["extensionsRequired"] = list(extension)
    file.node(mesh=file.mesh(material=file.add("materials", extensions=extension)))
    assert tuple(read(file.save(tmp_path / "a.glb")).colors[0, 0]) == RED


def test_a_texture_that_two_materials_share_is_kept_once(tmp_path: Path) -> None:
    file = Gltf()
    for material in (file.textured(), file.add("materials", **file.tree["materials"][0])):
        file.node(mesh=file.mesh(material=material, TEXCOORD_0=SQUARE[:, :2].copy()))
    mesh = read(file.save(tmp_path / "a.glb"))
    assert len(mesh.textures) == 1
    assert mesh.texture.tolist() == [0] * 4


@pytest.mark.parametrize(("opaque", "alpha"), [({}, 255), ({"alphaMode": "BLEND"}, 7)])
def test_alpha_of_a_texture_counts_unless_the_material_is_opaque(tmp_path: Path, opaque: dict, alpha: int) -> None:
    file = Gltf()
    source = file.add("images", bufferView=file.bytes(png(np.full((2, 2, 4), 7, np.uint8))))
    texture = {"index": file.add("textures", source=source)}
    material = file.add("materials", pbrMetallicRoughness={"baseColorTexture": texture}, **opaque)
    file.node(mesh=file.mesh(material=material, TEXCOORD_0=SQUARE[:, :2].copy()))
    assert (read(file.save(tmp_path / "a.glb")).textures[0][..., 3] == alpha).all()


def test_kd_without_a_texture_is_the_colour(tmp_path: Path) -> None:
    """In Latin-1, as old programs write it."""
    (tmp_path / "a.obj").write_text(f"{OBJ}f 1 2 3\n".replace("m\n", "größe\n"), encoding="latin-1")
    (tmp_path / "a.mtl").write_text("newmtl größe\nKd 1 0 0.5\n", encoding="latin-1")
    assert read(tmp_path / "a.obj").colors[0, 0].tolist() == [255, 0, 128, 255]


def test_indices_of_obj_that_count_back(tmp_path: Path) -> None:
    """They count from the last point so far, not from the last of the file."""
    first, second = "v 0 0 0\nv 1 0 0\nv 1 1 0\n", "v 2 0 0\nv 3 0 0\nv 3 1 0\n"
    (tmp_path / "a.obj").write_text(f"{first}f -3 -2 -1\n{second}f -3 -2 -1\n")
    (tmp_path / "b.obj").write_text(f"{first}{second}f 1 2 3\nf 4 5 6\n")
    np.testing.assert_array_equal(corners(read(tmp_path / "a.obj")), corners(read(tmp_path / "b.obj")))


def test_far_away_and_tiny_assets_keep_their_shape(tmp_path: Path) -> None:
    points = SHAPES["ball"].vertices
    np.testing.assert_allclose(fitted(points * 1e-3 + 1e6), fitted(points), atol=1e-6)
    assert np.abs(fitted(points * 1e-200)).max() == 0.5


def test_fitted_puts_the_box_around_the_origin() -> None:
    points = np.array([[1, 2, 3], [5, 4, 3]], np.float64)
    np.testing.assert_array_equal(fitted(points), [[-0.5, -0.25, 0], [0.5, 0.25, 0]])


def test_points_that_no_face_uses_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text("OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n9 9 9\n3 0 1 2\n")
    mesh = read(tmp_path / "a.off")
    assert mesh.vertices.shape == (3, 3)
    assert mesh.vertices[:, :2].max() == 0.5


def test_missing_textures_give_a_warning(tmp_path: Path) -> None:
    path = obj_square(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.warns(AtokenWarning, match=r"'a\.png'.* missing"):
        assert not read_mesh(path).textures


def test_colours_of_off_are_said_to_be_lost(tmp_path: Path) -> None:
    (tmp_path / "a.off").write_text("COFF\n3 1 0\n0 0 0 1 0 0 1\n1 0 0 1 0 0 1\n0 1 0 1 0 0 1\n3 0 1 2\n")
    with pytest.warns(AtokenWarning, match="colours of OFF"):
        assert (read_mesh(tmp_path / "a.off").colors == 255).all()


def test_a_mesh_is_no_image_and_no_video(tmp_path: Path) -> None:
    path = saved(tmp_path, "glb", SHAPES["box"])
    with pytest.raises(MediaError, match="is not a video"):
        load_media(path, fps=24)
    with pytest.raises(MediaError):
        read_image(path)
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(MediaError, match=r"none of the formats \.glb"):
        read_mesh(tmp_path / "a.png")


def test_a_name_decides_only_where_the_content_does_not(tmp_path: Path) -> None:
    glb = saved(tmp_path, "glb", SHAPES["box"])
    assert len(read_mesh(glb.rename(tmp_path / "a.png")).faces) == 12
    obj = saved(tmp_path, "obj", SHAPES["box"])
    with pytest.raises(MediaError, match="none of the formats"):
        read_mesh(obj.rename(tmp_path / "a.txt"))


def test_without_trimesh_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "glb", SHAPES["box"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'atoken\[3d\]'"):
        read_mesh(path)


def test_reading_needs_neither_torch_nor_scipy_and_the_parent_not_even_trimesh(tmp_path: Path) -> None:
    path = saved(tmp_path, "glb", SHAPES["box"])
    script = (
        "import sys, atoken.io; atoken.io.read_mesh(sys.argv[1]);"
        "heavy = {'torch', 'trimesh', 'embreex', 'PIL', 'av', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
