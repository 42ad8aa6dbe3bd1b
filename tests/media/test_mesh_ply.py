"""PLY files of all line ends, byte orders and polygons."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from atoken.io import Limits
from atoken.media.mesh_folder import Folder
from atoken.media.mesh_worker import mesh_of
from atoken.mesh import fitted
from tests.media.gltf_file import BLUE, GREEN, RED

pytest.importorskip("trimesh", reason="trimesh is not installed")

POLYGONS = [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3]], [[0, 1, 2, 3], [3, 2, 4]], [[0, 1, 2, 4, 3]],
            [[0, 1], [0, 1, 2, 3], [3, 2, 4]]]  # fmt: skip


def ply_of(polygons: list[list[int]], kind: str, newline: str, painted: bool) -> tuple[np.ndarray, np.ndarray, bytes]:
    """A PLY of flat polygons: its vertices, the colours of its polygons, and its content."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 2, 0]], np.float32)
    vertices[0, 0] = np.frombuffer(b"\n\0\0\0", "<f4")[0]  # nearly 0: behind a header that ends in \r comes a \n
    colours = np.array([RED, GREEN, BLUE], np.uint8)[: len(polygons), :3]
    header = ["ply", f"format {kind} 1.0", "element vertex 5", *(f"property float {axis}" for axis in "xyz")]
    header += [f"element face {len(polygons)}", "property list uchar ushort vertex_indices"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue") if painted] + ["end_header"]
    if kind == "ascii":
        rows = [[len(polygon), *polygon, *colour[: 3 * painted]]
                for polygon, colour in zip(polygons, colours.tolist(), strict=True)]  # fmt: skip
        lines = [" ".join(map(str, row)) for row in [*vertices.tolist(), *rows]]
        return vertices, colours, newline.join([*header, *lines, ""]).encode()
    order = "<" if "little" in kind else ">"
    data = newline.join([*header, ""]).encode() + vertices.astype(f"{order}f4").tobytes()
    for polygon, colour in zip(polygons, colours, strict=True):
        data += struct.pack(f"{order}B{len(polygon)}H", len(polygon), *polygon) + colour.tobytes() * painted
    return vertices, colours, data


@pytest.mark.parametrize("painted", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("polygons", POLYGONS)
def test_ply_of_any_line_ends_and_polygons(
    tmp_path: Path, polygons: list[list[int]], kind: str, newline: str, painted: bool
) -> None:
    """Polygons become fans, each with the colour of its polygon."""
    vertices, colours, data = ply_of(polygons, kind, newline, painted)
    (tmp_path / "a.ply").write_bytes(data)
    with (tmp_path / "a.ply").open("rb") as file:
        mesh = mesh_of(Folder(file, None, "a.ply", Limits()), "ply")
    points = fitted(vertices[: 1 + max(map(max, polygons))]).round(5) + 0.0
    expected = [(frozenset(map(tuple, points[[polygon[0], *polygon[corner : corner + 2]]].tolist())),
                 (*colour, 255) if painted else (255,) * 4)
                for polygon, colour in zip(polygons, colours.tolist(), strict=True)
                for corner in range(1, len(polygon) - 1)]  # fmt: skip
    faces = zip((mesh.vertices[mesh.faces].round(5) + 0.0).tolist(), mesh.colors[:, 0].tolist(), strict=True)
    found = [(frozenset(map(tuple, points)), tuple(colour)) for points, colour in faces]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    one, two, three = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    assert (np.cross(two - one, three - one)[:, 2] > 0).all()
