"""A path, its bytes and an open file give the same, and the same limits and sentences hold for all three."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atoken.errors import AtokenWarning, MediaError
from atoken.io import (
    Image,
    Limits,
    Mesh,
    Video,
    VideoReader,
    load_media,
    read_image,
    read_mesh,
    read_video,
    sniff,
    write_image,
)
from tests.media.gltf_file import Gltf
from tests.media.video_cases import moving, written

OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
WAYS: dict[str, Callable[[Path], object]] = {
    "bytes": Path.read_bytes,
    "file in memory": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
}


def image(folder: Path) -> Path:
    write_image(Image(moving(1, 24, 32)[0]), folder / "a.png")
    return folder / "a.png"


def video(folder: Path) -> Path:
    return written(folder / "a.mp4", 5)


def mesh(folder: Path) -> Path:
    pytest.importorskip("trimesh", reason="trimesh is not installed")
    (folder / "a.obj").write_text(OBJ)
    return folder / "a.obj"


def arrays(media: Image | Video | Mesh) -> list[np.ndarray]:
    return [value for value in vars(media).values() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "read"), [(image, read_image), (video, read_video), (mesh, read_mesh)])
def test_all_sources_give_the_same(tmp_path: Path, way: str, make: Callable, read: Callable) -> None:
    path = make(tmp_path)
    expected = arrays(read(path))
    for reader in (read, load_media):
        found = arrays(reader(WAYS[way](path), name=path.name))
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert sniff(WAYS[way](path), name=path.name) == sniff(path)


def test_frames_of_bytes_are_selected_as_those_of_a_path(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 12)
    expected = read_video(path, frames=(3, 9), fps=12)
    found = read_video(path.read_bytes(), frames=(3, 9), fps=12)
    np.testing.assert_array_equal(found.frames, expected.frames)
    assert found.fps == expected.fps


def test_a_file_object_is_read_from_where_it_stands_and_left_open(tmp_path: Path) -> None:
    path = image(tmp_path)
    file = io.BytesIO(b"before" + path.read_bytes())
    file.seek(6)
    np.testing.assert_array_equal(read_image(file).pixels, read_image(path).pixels)
    assert not file.closed


def test_the_name_is_in_the_message() -> None:
    png = b"\x89PNG\r\n\x1a\n"
    for source, name, said in (
        (png, None, "<bytes>"),
        (png, "a/b.png", "a/b.png"),
        (io.BytesIO(png), None, "<file>"),
        (io.BytesIO(png), "c.png", "c.png"),
    ):
        with pytest.raises(MediaError, match=re.escape(f"Cannot read {said}: it is damaged")):
            load_media(source, name=name)
    with pytest.raises(MediaError, match=r"^Cannot read s\.obj: its content is none of the supported"):
        load_media(b"nothing known", name="s.obj")
    with pytest.raises(MediaError, match=r"^Cannot read <bytes>: the file is empty"):
        sniff(b"")


def test_an_address_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for address in ("https://example.org/a.png", "s3://folder/a.png", Path("http://example.org/a.mp4")):
        for read in (load_media, sniff, read_image, read_video, read_mesh):
            with pytest.raises(MediaError, match=re.escape(f"Cannot read {address}: it is an address, and nothing is")):
                read(address)
    (tmp_path / "https:").mkdir()
    image(tmp_path / "https:")
    assert read_image("https://a.png").pixels.shape == (24, 32, 3)  # a file may be called so


def test_formats_without_magic_bytes_need_a_name(tmp_path: Path) -> None:
    data = mesh(tmp_path).read_bytes()
    assert sniff(data, name="x.OBJ").format.name == "obj"
    with pytest.raises(MediaError, match="none of the supported"):
        sniff(data)


def test_limits_hold_for_bytes(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="over the limit of 10 pixels"):
        read_image(image(tmp_path).read_bytes(), limits=Limits(max_pixels=10))
    with pytest.raises(MediaError, match="more than 2 frames"):
        read_video(video(tmp_path).read_bytes(), limits=Limits(max_frames=2))
    with pytest.raises(MediaError, match="takes 0 MB, over the limit"):
        read_mesh(mesh(tmp_path).read_bytes(), name="a.obj", limits=Limits(max_mesh_bytes=10))


def test_bytes_name_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the working folder, or beside the file that the bytes are of, is not opened."""
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 1 0 0\n")
    path = mesh(tmp_path)
    path.write_text(f"mtllib a.mtl\nusemtl m\n{OBJ}")
    monkeypatch.chdir(tmp_path)
    assert (read_mesh(path).colors == [255, 0, 0, 255]).all()
    with pytest.warns(AtokenWarning, match=r"'a\.mtl' that it names is missing"):
        assert (read_mesh(path.read_bytes(), name="a.obj").colors == 255).all()
    file = Gltf()
    file.node(mesh=file.mesh())
    (tmp_path / "a.bin").write_bytes(file.data)
    file.tree["buffers"] = [{"uri": "a.bin", "byteLength": len(file.data)}]
    (tmp_path / "a.gltf").write_text(json.dumps(file.tree))
    assert len(read_mesh(tmp_path / "a.gltf").faces) == 2
    with pytest.raises(MediaError, match=r"'a\.bin' that it needs is missing"):
        read_mesh((tmp_path / "a.gltf").read_bytes(), name="a.gltf")


@pytest.mark.parametrize("source", [None, 3, io.StringIO("text")], ids=["nothing", "number", "text"])
def test_what_gives_no_bytes_is_refused(source: object) -> None:
    for read in (read_image, read_video, read_mesh, load_media, sniff):
        with pytest.raises(MediaError, match=r"gives no bytes; pass a path, bytes, or a file opened with mode 'rb'\."):
            read(source)


def test_a_reader_outlives_the_file_that_it_was_given(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", 40)
    with path.open("rb") as file:
        reader = VideoReader(file)
    path.unlink()
    with reader:
        assert len(list(reader)) == 40
