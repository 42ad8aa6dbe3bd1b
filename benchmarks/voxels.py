"""Views and voxels of an asset: seconds of ray casting and of packing, and the memory of packing, by number of views.

``python -m benchmarks.voxels`` makes a bumpy ball of 50,176 faces with a 1024x1024 texture and, for 8 to 128 views of
256x256, casts the rays and packs them into 64^3, each number of views in a process of its own. Targets for 16 views on
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
    """MB of this process: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def figures(count: int) -> dict[str, float]:
    """Seconds, tokens and MB for so many views."""
    mesh = ball()
    cast = best_of(RUNS, lambda: render_views(mesh, count))
    views = render_views(mesh, count)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    tokens = len(voxelize(views).tokens.feats)
    rise, peak = memory("VmHWM") - before, memory("VmHWM")
    return {"cast": cast, "pack": best_of(RUNS, lambda: voxelize(views)), "tokens": tokens, "rise": rise, "peak": peak}


def main() -> int:
    """Print both tables; exit code 1 where a target is missed."""
    rows = {}
    print(
        "| views | ray casting s | packing s | packing ms a view | voxels | packing takes MB | process MB |\n|"
        + " --- |" * 7
    )
    for count in VIEWS:
        command = [sys.executable, "-m", "benchmarks.voxels", str(count)]
        row = rows[count] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        seconds = f"{row['cast']:.2f} | {row['pack']:.3f} | {1e3 * row['pack'] / count:.1f}"
        print(f"| {count} | {seconds} | {row['tokens']:,} | {row['rise']:.0f} | {row['peak']:.0f} |", flush=True)
    print("\n| faces | ray casting of 16 views s | million rays a second |\n|" + " --- |" * 3)
    for rings in RINGS:
        mesh = ball(rings)
        seconds = best_of(RUNS, lambda mesh=mesh: render_views(mesh))
        print(f"| {len(mesh.faces):,} | {seconds:.2f} | {16 * 256**2 / seconds / 1e6:.2f} |")
    few, usual, many = rows[VIEWS[0]], rows[16], rows[VIEWS[-1]]
    growth = many["pack"] / few["pack"] * VIEWS[0] / VIEWS[-1]
    print(f"\nPacking {VIEWS[-1]} views takes {growth:.2f} times as long a view as packing {VIEWS[0]}.")
    missed = usual["cast"] > CAST_TARGET or usual["pack"] > PACK_TARGET or usual["rise"] > MEMORY_TARGET or growth > 1.0
    return int(missed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(figures(int(sys.argv[1]))))
    else:
        sys.exit(main())
