"""Corrupted and hostile 3D files: whatever a file holds, the answer is its shape or one sentence.

``python -m benchmarks.fuzz_meshes`` makes valid files of every format, damages them and what they name as
``benchmarks.fuzz`` does, half of them by odd numbers in their text instead, adds the hostile files of
``tests.media.mesh_cases`` and two that are small and hold much, and reads each through the public API in another
process. The columns are those of ``benchmarks.fuzz``. Foreign opens are of files outside the folder of the 3D file, and
calls to a port of this machine. RSS growth is that of the process that asks, and may be 300 MB and four times the
largest file.

Exit code 1 if a column that must be zero is not.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import trimesh

from benchmarks.fuzz import HEAD, Tally, mutate, run
from benchmarks.fuzz_reader import Watch
from benchmarks.fuzz_seeds import Case, not_files
from tests.media.mesh_cases import HALVES, SQUARE, Gltf, hostile, png, secrets

ALLOWED_MB, ALLOWED_TIMES = 300, 4
ODD = (b"-1", b"0", b"1", b"3", b"255", b"65536", b"4294967295", b"1e999", b"1e-320", b"-0.5", b"NaN", b'"x"', b"[]")
_NUMBER = re.compile(rb"(?<![\w.])-?\d+(\.\d+)?(?![\w.])")
_NAMES = ("model.gltf", "textured.obj", "textured.ply")  # of seeds that name other files


def seeds(folder: Path) -> list[Path]:
    """Write a ball in each format: plain, painted, textured, and as two nodes."""
    ball = trimesh.creation.icosphere(2)
    painted, textured = ball.copy(), ball.copy()
    painted.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (len(ball.vertices), 4))
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    material = trimesh.visual.material.SimpleMaterial(image=PIL.Image.fromarray(pixels))
    textured.visual = trimesh.visual.TextureVisuals(uv=ball.vertices[:, :2] / 2 + 0.5, material=material)
    two = trimesh.Scene([painted, textured.copy().apply_translation([3, 0, 0])])
    files = {
        "plain.glb": trimesh.Scene([ball]).export(file_type="glb"), "two.glb": two.export(file_type="glb"),
        **two.export(file_type="gltf"), "plain.obj": ball.export(file_type="obj"),
        "painted.obj": painted.export(file_type="obj"), "painted.ply": painted.export(file_type="ply"),
        "text.ply": painted.export(file_type="ply", encoding="ascii"), "plain.stl": ball.export(file_type="stl"),
        "text.stl": ball.export(file_type="stl_ascii"), "plain.off": ball.export(file_type="off"),
        "textured.ply": b"ply\n" + textured.export(file_type="ply").replace(b"ply\n", b"", 1).replace(
            b"comment", b"comment TextureFile material_0.png\ncomment", 1),
    }  # fmt: skip
    text, more = trimesh.exchange.obj.export_obj(textured, return_texture=True, mtl_name="material.mtl")
    for name, data in (files | {"textured.obj": text} | more).items():
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return sorted(path for path in folder.iterdir() if path.suffix in (".glb", ".gltf", ".obj", ".ply", ".stl", ".off"))


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file, or set a few numbers in its text (of a GLB, in its header) to odd values."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    if data[:4] != b"glTF":
        return _odd_numbers(data, rng)
    length = struct.unpack_from("<I", data, 12)[0]
    text = _odd_numbers(data[20 : 20 + length], rng)
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _odd_numbers(data: bytes, rng: np.random.Generator) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return mutate(data, rng)
    for index in sorted(rng.choice(len(found), min(len(found), int(rng.integers(1, 4))), replace=False), reverse=True):
        data = data[: found[index].start()] + ODD[rng.integers(len(ODD))] + data[found[index].end() :]
    return data


def damaged(folder: Path, files: Sequence[Path], count: int, seed: int) -> Iterator[Case]:
    """``count`` damaged copies of ``files`` in turn, beside what they name."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        source = files[index % len(files)]
        path = folder / f"{index}-{source.name}"
        path.write_bytes(damage(source.read_bytes(), rng))
        yield Case(path)


def damaged_resources(folder: Path, files: Sequence[Path], count: int, seed: int) -> Iterator[Case]:
    """``count`` times a sound file, one of the files that it names damaged."""
    rng = np.random.default_rng(seed)
    mains = [path for path in files if path.name in _NAMES]
    others = [path for path in mains[0].parent.iterdir() if path not in files]
    for index in range(count):
        source, other = mains[index % len(mains)], others[rng.integers(len(others))]
        sound = other.read_bytes()
        (folder / other.name).write_bytes(damage(sound, rng))
        path = folder / f"{index}-{source.name}"
        path.write_bytes(source.read_bytes())
        yield Case(path)
        (folder / other.name).write_bytes(sound)


def crafted(folder: Path, port: int) -> Iterator[Case]:
    """The hostile files of the tests, and what is no file at all."""
    for name, (data, _) in hostile(folder, port).items():
        (folder / name).write_bytes(data)
        yield Case(folder / name, "refused")
    for name, data in heavy().items():
        (folder / name).write_bytes(data)
        yield Case(folder / name)
    yield from not_files(folder, ".glb")


def heavy() -> dict[str, bytes]:
    """Small files of large content, just under the limits: a texture of 64 megapixels, two million faces."""
    texture, instances = Gltf(), Gltf()
    image = png(np.zeros((8000, 8000), np.uint8))
    source = texture.add("images", bufferView=texture.bytes(image))
    base = {"baseColorTexture": {"index": texture.add("textures", source=source)}}
    material = texture.add("materials", pbrMetallicRoughness=base)
    texture.node(mesh=texture.mesh(material=material, TEXCOORD_0=SQUARE[:, :2].copy()))
    mesh = instances.mesh(faces=np.tile(HALVES, (2500, 1)))
    for _ in range(400):
        instances.node(mesh=mesh)
    return {"64-megapixels.glb": texture.glb(), "two-million-faces.glb": instances.glb()}


def tallies(folder: Path, options: argparse.Namespace) -> Iterator[tuple[Tally, int]]:
    """One type of file after another, with the bytes of its largest."""
    sound, cases = folder / "seeds", folder / "cases"
    sound.mkdir()
    watch = Watch(secrets(cases))
    files = seeds(sound)
    for path in set(sound.iterdir()) - set(files):
        (cases / path.name).write_bytes(path.read_bytes())
    largest = max(path.stat().st_size for path in files)
    few = options.files // 10
    yield run("3D files", files, damaged(cases, files, options.files - few, options.seed), watch), largest
    yield run("what they name", files, damaged_resources(cases, files, few, options.seed), watch), largest
    most = max(len(data) for data, _ in hostile(cases, watch.port).values())
    yield run("hostile 3D files", files, crafted(cases, watch.port), watch), most


def main() -> int:
    """Print the table, and below it every file that was not treated as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n| {' | '.join(['---'] * len(HEAD))} |")
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for tally, largest in tallies(Path(folder), options):
            print(tally.row(), flush=True)
            faults += tally.faults
            if tally.growth_mb > ALLOWED_MB + ALLOWED_TIMES * largest / 1e6:
                faults.append(f"{tally.name}: RSS grew by {tally.growth_mb:.0f} MB.")
    print("\n".join(["", *faults[:40]]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
