"""Make the media in ``examples/`` from the procedural generator: images (PNG, JPEG, alpha), videos (MP4), a GLB."""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import trimesh

from atoken.data.synthetic import labelled, procedural
from atoken.data.synthetic.drawing import figure_outline
from atoken.io import Image, Video
from atoken.mesh import Mesh

SEED = 2
MESH = 2_000_039, 154  # seed and index; crops of assets of the seeds of stages are trained on
VIDEOS = {  # name: (index in the series, frames, height, width, frames a second)
    "pan.mp4": (14, 20, 96, 128, 12),
    "flight.mp4": (12, 37, 64, 64, 24),
}


def star_mask(height: int, width: int) -> np.ndarray:
    """The opacity (height, width) uint8 of a star in the middle, its edge smooth."""
    enlarged = PIL.Image.new("L", (4 * width, 4 * height))
    corners = figure_outline("star") * 1.92 * min(height, width) + (2 * width, 2 * height)
    PIL.ImageDraw.Draw(enlarged).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(enlarged.reduce(4))


def scene(mesh: Mesh) -> trimesh.Scene:
    """A mesh for export, y up: a mesh for each texture, and one for corner colours alone."""
    parts, vertices = trimesh.Scene(), mesh.vertices[:, [0, 2, 1]] * np.float32([1, 1, -1])
    for index in np.unique(mesh.texture):
        chosen = mesh.texture == index
        corners, faces = vertices[mesh.faces[chosen]].reshape(-1, 3), np.arange(3 * chosen.sum()).reshape(-1, 3)
        if index < 0:
            colors = mesh.colors[chosen].reshape(-1, 4) / 255
            colors[:, :3] **= 2.2  # glTF's vertex colours are linear, to a rounding of their 8 bits
            look = trimesh.visual.ColorVisuals(vertex_colors=(colors * 255).round().astype(np.uint8))
        else:
            image = PIL.Image.fromarray(mesh.textures[index][..., :3])
            material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, metallicFactor=0.0)
            look = trimesh.visual.TextureVisuals(uv=mesh.uv[chosen].reshape(-1, 2), material=material)
        parts.add_geometry(trimesh.Trimesh(corners, faces, visual=look))
    return parts


def main() -> None:
    """Write every example into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("examples"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    Image(procedural.make_image(SEED, 3, 256, 256).frames[0]).save(folder / "leaves.png")
    PIL.Image.fromarray(procedural.make_image(SEED, 13, 157, 211).frames[0]).save(folder / "odd.jpg", quality=90)
    Image(procedural.make_image(SEED, 19, 96, 128).frames[0], star_mask(96, 128)).save(folder / "star.png")
    ring = labelled.FIGURE_PROMPTS.index("a green ring")
    Image(labelled.labelled_image(SEED, ring, 112, 112).frames[0]).save(folder / "ring.png")
    scene(procedural.make_asset(*MESH).mesh).export(folder / "tower.glb")
    for name, (index, frames, height, width, fps) in VIDEOS.items():
        Video(procedural.make_video(SEED, index, frames, height, width).frames, fps).save(folder / name)


if __name__ == "__main__":
    main()
