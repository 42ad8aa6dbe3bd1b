"""3D files that are damaged or hostile: one sentence, no file outside the folder, no process left behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import psutil
import pytest

from atoken.errors import AtokenError, MediaError
from atoken.io import Limits, Mesh, load_media, read_mesh, sniff
from atoken.media.limits import DEFAULT_LIMITS
from atoken.media.mesh_folder import Folder
from atoken.media.mesh_worker import mesh_of
from tests.media.gltf_file import HALVES, SQUARE, Gltf, png
from tests.media.mesh_cases import hostile, secrets
from tests.media.reading_process import Watch

pytest.importorskip("trimesh", reason="trimesh is not installed")

NAMES = sorted(hostile(Path("/folder/asset")))
SLOW = {"solids.stl", "textures.glb"}
THROUGH_A_CHILD = ["points-1e8.glb", "deep.gltf", "library-web.obj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "asset"
    secrets(path)
    return path


@pytest.fixture(scope="module")
def watch(folder: Path) -> Watch:
    return Watch(sorted(folder.parent.glob("secret.*")))


def in_this_process(path: Path, limits: Limits = DEFAULT_LIMITS) -> Mesh:
    with path.open("rb") as file:
        return mesh_of(Folder(file, str(path.parent), path.name, limits), sniff(path).format.name)


@pytest.fixture(scope="module")
def cases(folder: Path, watch: Watch) -> dict[str, tuple[bytes, str]]:
    return hostile(folder, watch.port)


@pytest.mark.filterwarnings("ignore:overflow")  # of trimesh, on the way to points that are refused
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SLOW])
def test_hostile_files_are_refused(folder: Path, watch: Watch, cases: dict[str, tuple[bytes, str]], name: str) -> None:
    """In this process, without the limits on memory and time of the child."""
    content, sentence = cases[name]
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(MediaError if sentence else Exception, match=sentence or None) as caught:
        in_this_process(path)
    if sentence:
        assert re.fullmatch(r"[^\n]+\.", str(caught.value))
    assert not watch.alarmed()


@pytest.mark.parametrize("name", THROUGH_A_CHILD)
def test_the_child_says_it_in_one_sentence(
    folder: Path, watch: Watch, cases: dict[str, tuple[bytes, str]], name: str
) -> None:
    content, sentence = cases[name]
    (folder / name).write_bytes(content)
    with pytest.raises(AtokenError, match=sentence or "damaged") as caught:
        load_media(folder / name)
    assert re.fullmatch(r"[^\n]+\.", str(caught.value))
    assert not watch.alarmed()
    assert not [child for child in psutil.Process().children() if "atoken.media.mesh_worker" in child.cmdline()]


def test_a_file_that_takes_too_long_is_stopped(folder: Path, cases: dict[str, tuple[bytes, str]]) -> None:
    (folder / "solids.stl").write_bytes(cases["solids.stl"][0])
    with pytest.raises(MediaError, match=r"hung for 0\.5 seconds"):
        read_mesh(folder / "solids.stl", timeout=0.5)


def large(tmp_path: Path) -> Path:
    file = Gltf()
    source = file.add("images", bufferView=file.bytes(png(np.zeros((64, 64, 4), np.uint8))))
    base = {"baseColorTexture": {"index": file.add("textures", source=source)}}
    mesh = file.mesh(material=file.add("materials", pbrMetallicRoughness=base), TEXCOORD_0=SQUARE[:, :2].copy())
    for shift in range(5):
        file.node(mesh=mesh, translation=[shift, 0, 0])
    return file.save(tmp_path / "a.glb")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(max_faces=9), "10 faces, over the limit of 9"),
        (Limits(max_pixels=1000), "1,000 pixels"),
        (Limits(max_side=63), "63 a side"),
        (Limits(max_mesh_bytes=1000), "with the file, takes"),
        (Limits(max_mesh_bytes=10_000), "with its textures, takes"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, reason: str) -> None:
    path = large(tmp_path)
    assert len(in_this_process(path, Limits(max_faces=10, max_pixels=4096, max_side=64)).faces) == 10
    with pytest.raises(MediaError, match=reason):
        in_this_process(path, limits)


def test_memory_of_the_mesh_counts_too(tmp_path: Path) -> None:
    """Instances: a file of 5 kB becomes 60 kB."""
    file = Gltf()
    mesh = file.mesh(faces=np.tile(HALVES, (100, 1)))
    for _ in range(5):
        file.node(mesh=mesh)
    with pytest.raises(MediaError, match="The mesh of"):
        read_mesh(file.save(tmp_path / "a.glb"), limits=Limits(max_mesh_bytes=20_000))


def test_an_asset_may_lie_behind_a_link(tmp_path: Path) -> None:
    """The folder is that of the name that was given; the file itself may be a link to anywhere."""
    (tmp_path / "store").mkdir()
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "a.glb").symlink_to(large(tmp_path / "store"))
    assert len(read_mesh(tmp_path / "shown" / "a.glb").faces) == 10


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(png())
    (tmp_path / "a.png").symlink_to("real.png")
    (tmp_path / "a.mtl").write_text("newmtl m\nmap_Kd a.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n")
    assert len(read_mesh(tmp_path / "a.obj").textures) == 1
