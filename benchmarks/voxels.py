"""Views and voxels of an asset: time of ray casting and of packing, and memory of packing, by number of views.

``python -m benchmarks.voxels`` generates a bumpy ball of 50,176 faces with a 1024x1024 texture and, for 8 to 128 views
of 256x256, casts the rays and packs them into 64^3; each number of views has its own process. Targets for 16 views on
2 cores: ray casting 1.5 s, packing 0.5 s and 500 MB; from 8 to 128 views, time grows at most linearly. A second table
has ray casting alone, by number of faces. Linux only (``/proc``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from atoken.mesh import Mesh
from atoken.modalities.views import render_views
from atoken.modalities.voxels import voxelize
from benchmarks.measure import best_of
from benchmarks.tables import head, row

VIEWS = (8, 16, 32, 64, 128)
RINGS = (36, 112, 354)  # 4 x rings x rings faces: 5,184, 50,176, 501,264
RUNS = 3
CAST_TARGET, PACK_TARGET, MEMORY_TARGET = 1.5, 0.5, 500.0  # seconds, seconds, MB, all of 16 views


def ball(rings: int = 112) -> Mesh:
    """A bumpy ball in the box, textured with noise."""
    pole, around = np.meshgrid(
        np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij"
    )
    unit = np.stack([np.sin(pole) * np.cos(around), np.sin(pole) * np.sin(around), np.cos(pole)], -1)
    vertices = unit * (0.42 + 0.07 * np.sin(6 * around) * np.sin(5 * pole) * np.sin(pole))[..., None]
    columns = 2 * rings + 1
    first = (np.arange(rings)[:, None] * columns + np.arange(2 * rings)).reshape(-1, 1)
    faces = (first + np.array([0, columns, 1, 1, columns, columns + 1])).reshape(-1, 3).astype(np.int32)
    uv = np.stack([around / (2 * np.pi), 1 - pole / np.pi], -1).reshape(-1, 2)[faces].astype(np.float32)
    texture = np.random.default_rng(0).integers(0, 256, (1024, 1024, 4), dtype=np.uint8)
    texture[..., 3] = 255
    white, index = np.full((len(faces), 3, 4), 255, np.uint8), np.zeros(len(faces), np.int32)
    return Mesh(vertices.reshape(-1, 3).astype(np.float32), faces, white, uv, index, (texture,))


def memory(field: str) -> float:
    """MB of this process: VmRSS is the current size, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def figures(count: int) -> dict[str, float]:
    """Seconds, tokens and MB for ``count`` views."""
    mesh = ball()
    cast = best_of(RUNS, lambda: render_views(mesh, count))
    views = render_views(mesh, count)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    tokens = len(voxelize(views).tokens.feats)
    rise, peak = memory("VmHWM") - before, memory("VmHWM")
    return {"cast": cast, "pack": best_of(RUNS, lambda: voxelize(views)), "tokens": tokens, "rise": rise, "peak": peak}


def main() -> int:
    """Print both tables; exit code 1 if a target is missed."""
    rows = {}
    head("views", "ray casting s", "packing s", "packing ms a view", "voxels", "packing adds MB", "process MB")
    for count in VIEWS:
        command = [sys.executable, "-m", "benchmarks.voxels", str(count)]
        one = rows[count] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        seconds = f"{one['cast']:.2f}", f"{one['pack']:.3f}", f"{1e3 * one['pack'] / count:.1f}"
        row(count, *seconds, f"{one['tokens']:,}", f"{one['rise']:.0f}", f"{one['peak']:.0f}")
    print()
    head("faces", "ray casting of 16 views s", "million rays a second")
    for rings in RINGS:
        mesh = ball(rings)
        taken = best_of(RUNS, lambda mesh=mesh: render_views(mesh))
        row(f"{len(mesh.faces):,}", f"{taken:.2f}", f"{16 * 256**2 / taken / 1e6:.2f}")
    few, usual, many = rows[VIEWS[0]], rows[16], rows[VIEWS[-1]]
    growth = many["pack"] / few["pack"] * VIEWS[0] / VIEWS[-1]
    print(f"\nFrom {VIEWS[0]} to {VIEWS[-1]} views, the time of packing one view grows {growth:.2f}-fold.")
    missed = usual["cast"] > CAST_TARGET or usual["pack"] > PACK_TARGET or usual["rise"] > MEMORY_TARGET or growth > 1.0
    return int(missed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(figures(int(sys.argv[1]))))
    else:
        sys.exit(main())
