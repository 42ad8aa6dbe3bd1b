"""OBJ, PLY, STL and OFF through trimesh, after a look at what they declare."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from atoken.errors import MediaError
from atoken.media.mesh_folder import Folder, FolderResolver, decoded
from atoken.media.mesh_parts import WHITE, Part, checked, joined
from atoken.media.ply import Element, for_trimesh, read_header
from atoken.mesh import Mesh

if TYPE_CHECKING:
    from trimesh import Scene

_COUNTS_BACK = re.compile(r"^f[^\n]*[ \t/]-\d", re.MULTILINE)


def read_plain(folder: Folder, format: str) -> Mesh:
    """Read ``folder.data``. Raises: MediaError; on damaged input what trimesh raises."""
    import trimesh

    resolver = FolderResolver(folder)
    scene = trimesh.load_scene(_checked(folder, format), format, resolver=cast(Any, resolver), process=False)
    if resolver.refused:
        raise resolver.refused
    return joined(list(_parts(scene, folder, resolver.images)), folder.name, folder.limits, y_up=format == "obj")


def _parts(scene: Scene, folder: Folder, images: dict[str, np.ndarray]) -> Iterator[Part]:
    """The meshes of a scene of trimesh; in these formats, none is moved by a node."""
    for mesh in scene.geometry.values():
        if len(faces := np.asarray(getattr(mesh, "faces", ()))):
            vertices = np.asarray(mesh.vertices, np.float64)
            yield Part(vertices, checked(faces, len(vertices), folder.name), *_surface(mesh, faces, images))


def _checked(folder: Folder, format: str) -> IO[Any]:
    """Give the file to trimesh: text as UTF-8, after a look at its counts. Raises: MediaError."""
    if format == "ply":
        return io.BytesIO(_ply(folder))
    if format == "stl":
        return io.BytesIO(_stl(folder))
    text = decoded(folder.data)
    if format == "obj":
        folder.limits.check_faces(text.count("\nf "), text.count("\nv "), folder.name)
        text = _counted_on(text) if _COUNTS_BACK.search(text) else text
    elif "COFF" in text[:4096]:
        folder.note("colours of OFF files are not read; it is white.")
    return io.StringIO(text)


def _ply(folder: Folder) -> bytes:
    """A PLY for trimesh. Raises: MediaError (no faces, 3D Gaussians, more declared than the file has)."""
    failed = f"Cannot read {folder.name}"
    header = read_header(folder.data, failed)
    elements = {element.name: element for element in header.elements}
    vertices, faces = (elements.get(name, Element(name, 0, [])) for name in ("vertex", "face"))
    if not faces.rows:
        splats = any(property.name == "f_dc_0" for property in vertices.properties)
        what = "it holds 3D Gaussians, not a mesh" if splats else "it has no faces, or strips of triangles"
        raise MediaError(f"{failed}: {what}; export a mesh with faces.")
    folder.limits.check_faces(faces.rows, vertices.rows, folder.name)
    is_text = header.format == "ascii"
    # The least that a row takes: lists empty; as text, a digit and a space for each property.
    widths = (2 * len(e.properties) if is_text else sum(np.dtype(p.type).itemsize for p in e.properties)
            for e in header.elements)  # fmt: skip
    least = sum(e.rows * width for e, width in zip(header.elements, widths, strict=True)) - is_text
    if least > (rest := len(folder.data) - header.size):
        raise MediaError(f"{failed}: it declares at least {least:,} bytes of data and has {rest:,}; it is truncated.")
    if any(p.name == "red" and p.type[-2:] not in ("u1", "f4", "f8") for p in vertices.properties + faces.properties):
        raise MediaError(f"{failed}: its colours have an unsupported type; export them as uchar.")
    return for_trimesh(folder.data, header, folder.limits, failed)


def _stl(folder: Folder) -> bytes:
    """A binary STL as it is, and text as UTF-8; either may begin with the word solid."""
    count = int.from_bytes(folder.data[80:84], "little")
    if len(folder.data) == 84 + 50 * count:
        folder.limits.check_faces(count, 0, folder.name)
        return folder.data
    text = decoded(folder.data)
    folder.limits.check_faces(text.count("endloop"), 0, folder.name)
    return text.encode()


def _counted_on(text: str) -> str:
    """The text of an OBJ file with indices that count back from the last point so far as plain ones.

    trimesh takes them to count back from the last point of the file.
    """
    so_far = {"v": 0, "vt": 0, "vn": 0}
    lines = []
    for line in text.replace("\\\n", " ").splitlines():
        word, *values = line.split() or [""]
        if word in so_far:
            so_far[word] += 1
        elif word == "f":
            line = " ".join([word, *("/".join(map(_plain, value.split("/"), so_far.values())) for value in values)])
        lines.append(line)
    return "\n".join(lines)


def _plain(index: str, so_far: int) -> str:
    return str(so_far + 1 + int(index)) if index.startswith("-") else index


def _surface(
    mesh: Any, faces: np.ndarray, images: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Colours that spread to (F, 3, 4), texture coordinates (F, 3, 2) and the texture of a mesh of trimesh."""
    from trimesh.visual.color import to_rgba

    visual = mesh.visual
    if visual.kind == "vertex":
        return np.asarray(visual.vertex_colors)[faces], None, None
    if visual.kind == "face":
        return np.asarray(visual.face_colors)[:, None], None, None
    material = getattr(visual, "material", None)
    image, uv = getattr(material, "image", None), getattr(visual, "uv", None)
    texture = images.get(image.info.get("file_path", "")) if image is not None else None  # or trimesh's own, grey
    if texture is not None and uv is not None:
        return WHITE, np.asarray(uv)[faces], texture
    if "color" in mesh.vertex_attributes:
        return to_rgba(mesh.vertex_attributes["color"])[faces], None, None
    if "color" in mesh.face_attributes:
        return to_rgba(mesh.face_attributes["color"])[:, None], None, None
    return _diffuse(material), None, None


def _diffuse(material: Any) -> np.ndarray:
    """Kd of an OBJ material as (4,) uint8, white where there is none. Raises: MediaError."""
    stated = np.array(getattr(material, "kwargs", {}).get("kd", 1.0), np.float64)
    if stated.shape not in ((), (1,), (3,)) or not np.isfinite(stated).all():
        raise MediaError("A material has a colour Kd that is not three numbers; export the asset again.")
    colour = WHITE.copy()
    colour[:3] = np.rint(255 * stated.clip(0, 1))
    return colour
