"""Valid files for ``benchmarks.fuzz`` to damage: every image, video and mesh format, and token files of each kind."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import PIL.Image
import torch
from pillow_heif import register_heif_opener

from atoken.io import Image, Video
from atoken.io.token_file import TokenFileWriter, Tokens
from atoken.media.video_writer import X264_OPTIONS
from atoken.model import ATokenConfig, ATokenModel
from atoken.tokenizer import Tokenizer
from tests.media.gltf_file import HALVES, SQUARE, Gltf, png
from tests.media.image_files import wide_png, wide_tiff

IMAGES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> Pillow's mode, and how it is saved
    "rgb.png": ("RGB", {}), "alpha.png": ("RGBA", {}), "palette.png": ("P", {}), "grey16.png": ("I;16", {}),
    "plain.jpg": ("RGB", {}), "progressive.jpg": ("RGB", {"progressive": True}), "cmyk.jpg": ("CMYK", {}),
    "lossy.webp": ("RGB", {}), "lossless.webp": ("RGBA", {"lossless": True}),
    "raw.tif": ("RGB", {}), "lzw.tif": ("RGB", {"compression": "tiff_lzw"}),
    "jpeg.tif": ("RGB", {"compression": "jpeg"}), "deflate.tif": ("RGBA", {"compression": "tiff_deflate"}),
    "rgb.bmp": ("RGB", {}), "palette.bmp": ("P", {}), "still.gif": ("P", {}),
    "rgb.avif": ("RGB", {}), "alpha.avif": ("RGBA", {}), "rgb.heic": ("RGB", {}), "alpha.heic": ("RGBA", {}),
    "rgb.jp2": ("RGB", {}), "lossy.jp2": ("RGBA", {"quality_layers": [20], "irreversible": True}),
    "tiles.j2k": ("RGB", {"tile_size": (32, 32)}), "grey16.jp2": ("I;16", {}),
    "rgb.ppm": ("RGB", {}), "grey16.pgm": ("I;16", {}), "bits.pbm": ("1", {}),
    "rgb.tga": ("RGB", {}), "palette.tga": ("P", {}), "run.tga": ("RGBA", {"compression": "tga_rle"}),
    "png.ico": ("RGBA", {}), "bitmap.ico": ("RGBA", {"bitmap_format": "bmp"}),
}  # fmt: skip
ANIMATIONS: dict[str, dict[str, Any]] = {
    "moving.gif": {}, "moving.webp": {"quality": 60}, "moving.png": {}, "moving.avif": {"quality": 60},
}  # fmt: skip
VIDEOS = {  # name -> encoder and pixel format
    "x264.mp4": ("libx264", "yuv420p"), "mpeg4.mp4": ("mpeg4", "yuv420p"), "x264.mkv": ("libx264", "yuv420p"),
    "ffv1.mkv": ("ffv1", "yuv420p"), "vp9.webm": ("libvpx-vp9", "yuv420p"), "mpeg4.avi": ("mpeg4", "yuv420p"),
    "mjpeg.avi": ("mjpeg", "yuvj420p"), "x264.ts": ("libx264", "yuv420p"), "mpeg2.m2ts": ("mpeg2video", "yuv420p"),
    "raw.y4m": ("rawvideo", "yuv420p"), "x264.h264": ("libx264", "yuv420p"), "x265.hevc": ("libx265", "yuv420p"),
    "alpha.webm": ("libvpx-vp9", "yuva420p"), "alpha.mov": ("png", "rgba"), "alpha.mkv": ("ffv1", "bgra"),
}  # fmt: skip


class Case(NamedTuple):
    """A file and what must become of it."""

    path: Path
    expected: str = ""  # image, video, tokens or refused; "" where it may be read and may be refused
    contents: str = ""  # SHA-256 of what it must hold if it is read as tokens; "" where that may be anything


def moving(count: int, height: int, width: int) -> np.ndarray:
    """Frames (count, H, W, 3) uint8 that all differ, smooth waves with a little noise."""
    t, y, x = np.ogrid[:count, :height, :width]
    waves = np.broadcast_arrays(np.sin(x / 9 + t / 3) + 0 * y, np.cos(y / 7 - t / 4) + 0 * x, np.sin((x + y + t) / 11))
    noise = np.random.default_rng(0).normal(size=(count, height, width, 3))
    return np.clip(127.5 + 110 * np.stack(waves, -1) + 4 * noise, 0, 255).astype(np.uint8)


def images(folder: Path) -> list[Path]:
    """One file of each entry of ``IMAGES``, a PNG and TIFFs of 16-bit colours, and a PPM in text."""
    register_heif_opener()
    pixels = moving(1, 48, 64)[0]
    for name, (mode, how) in IMAGES.items():
        grey = PIL.Image.fromarray(pixels.astype(np.uint16)[..., 0] << 8)
        (grey if mode == "I;16" else PIL.Image.fromarray(pixels).convert(mode)).save(folder / name, **how)
    plain = "P3 64 48 255\n" + " ".join(map(str, pixels.ravel()))
    wide = pixels.astype(np.uint16) << 4
    more = {"wide.png": wide_png(wide), "wide.tif": wide_tiff(wide, "<", 1),
            "wide-deflate.tif": wide_tiff(wide, ">", 8), "plain.ppm": plain.encode()}  # fmt: skip
    for name, data in more.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in (*IMAGES, *more)]


def animations(folder: Path) -> list[Path]:
    """One file of each entry of ``ANIMATIONS``, four frames of 64x48 of different durations."""
    first, *rest = [PIL.Image.fromarray(pixels) for pixels in moving(4, 48, 64)]
    for name, how in ANIMATIONS.items():
        first.save(folder / name, save_all=True, append_images=rest, duration=[40, 80, 120, 40], **how)
    return [folder / name for name in ANIMATIONS]


def videos(folder: Path) -> list[Path]:
    """One file of each entry of ``VIDEOS``, 12 small frames."""
    sizes = {"libx265": (128, 128)}  # of 64 pixels or less a side, x265 writes outside its memory
    return [
        encoded(folder / name, codec, moving(12, *sizes.get(codec, (48, 64))), pix_fmt)
        for name, (codec, pix_fmt) in VIDEOS.items()
    ]


def encoded(path: Path, codec: str, frames: np.ndarray, pix_fmt: str = "yuv420p") -> Path:
    """Write ``frames`` at 24 fps with an encoder of FFmpeg, the same bytes each time; the suffix names the format.

    The green of the frames is their alpha, if the pixel format has any.
    """
    options = {"libx264": X264_OPTIONS, "libx265": {"x265-params": "log-level=none:pools=none"}}
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=24, options=options.get(codec, {}))
        stream.codec_context.thread_count = 1
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        for pixels in frames:
            rgba = np.dstack([pixels, pixels[..., 1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode(None))
    return path


def token_files(folder: Path) -> list[Path]:
    """An image, a video, and several items, of a continuous and of a discrete model of random weights."""
    paths, alpha = [], moving(20, 33, 48)[..., 0]
    for name, levels in (("continuous", None), ("discrete", (4,) * 6)):
        tokenizer = small_tokenizer(levels)
        items = {
            "image": [tokenizer.encode(Image(moving(1, 40, 50)[0], np.arange(2000, dtype=np.uint8).reshape(40, 50)))],
            "video": [tokenizer.encode(Video(moving(20, 33, 48), Fraction(24), np.arange(20) ** 1.5, alpha))],
        }
        for kind, tokens in (
            items | {"several": [*items["image"], *items["video"], every_second(items["video"][0])]}
        ).items():
            paths.append(folder / f"{name}-{kind}.atok")
            _write(paths[-1], tokens)
    return paths


def small_tokenizer(levels: tuple[int, ...] | None = None) -> Tokenizer:
    """A tokenizer of two narrow layers a side with weights from a fixed seed."""
    torch.manual_seed(0)
    size = {"width": 96, "layers": 2, "heads": 2, "mlp": 128}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in size.items()}
    return Tokenizer(ATokenModel(ATokenConfig(**sides, fsq_levels=levels)), "small")


def every_second(tokens: Tokens) -> Tokens:
    """Half of the tokens, so that a file has to say where they lie."""
    codes = None if tokens.codes is None else tokens.codes[::2]
    return replace(tokens, latents=tokens.latents[::2], coords=tokens.coords[::2], codes=codes)


def _write(path: Path, items: list[Tokens]) -> None:
    with TokenFileWriter(path) as writer:
        for index, tokens in enumerate(items):
            writer.add(tokens, dtype="float16" if index % 2 else "float32")


def not_files(folder: Path, suffix: str) -> Iterator[Case]:
    """What has a name but no content to read: a folder, a pipe, links that lead nowhere, a device, an empty file."""
    for name in ("folder", "pipe", "loop", "device", "absent", "empty"):
        path = folder / f"{name}{suffix}"
        match name:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "loop":
                path.symlink_to(path.name)
            case "device":
                path.symlink_to("/dev/zero")
            case "empty":
                path.touch()
        yield Case(path, "refused")
    yield Case(Path("/dev/zero"), "refused")


def meshes(folder: Path) -> list[Path]:
    """A ball in each format: plain, painted, textured, and as two nodes; and squares as ``packed``."""
    import trimesh

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
    for name, data in (files | packed() | {"textured.obj": text} | more).items():
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return sorted(path for path in folder.iterdir() if path.suffix in (".glb", ".gltf", ".obj", ".ply", ".stl", ".off"))


def packed() -> dict[str, bytes]:
    """A square with instances, as whole numbers, sparse, as a strip and a fan, and by Draco; PLY of other line ends."""
    instanced, whole, sparse, strip, draco = Gltf(), Gltf(), Gltf(), Gltf(), Gltf()
    moves = np.arange(30, dtype=np.float32).reshape(10, 3)
    turns = np.random.default_rng(0).integers(-32767, 32767, (10, 4)).astype(np.int16)
    where = {"TRANSLATION": instanced.array(moves), "ROTATION": instanced.array(turns, normalized=True)}
    instanced.instances(instanced.mesh(), **where)
    uv = (SQUARE[:, :2] * 255).astype(np.uint8)
    whole.node(mesh=whole.mesh((SQUARE * 32767).astype(np.int16), material=whole.textured(), TEXCOORD_0=uv))
    whole.tree["accessors"][0]["normalized"] = True
    whole.tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    sparse.node(mesh=sparse.mesh())
    rows, values = sparse.bytes(np.arange(4, dtype=np.uint16).tobytes()), sparse.bytes(SQUARE.tobytes())
    indices = {"bufferView": rows, "componentType": 5123}
    sparse.tree["accessors"][0]["sparse"] = {"count": 4, "indices": indices, "values": {"bufferView": values}}
    for mode in (5, 6):
        strip.node(mesh=(mesh := strip.mesh(faces=np.array([0, 1, 3, 2], np.uint16))))
        strip.tree["meshes"][mesh]["primitives"][0]["mode"] = mode
    draco.node(mesh=draco.draco(material=draco.textured()))
    made = {"instanced": instanced, "whole": whole, "sparse": sparse, "strip": strip, "draco": draco}
    lines = ["ply", "format binary_little_endian 1.0", "element vertex 4", *(f"property float {x}" for x in "xyz")]
    lines += ["element face 2", "property list uchar int vertex_indices", "end_header", ""]
    body = SQUARE.tobytes() + struct.pack("<B4iB3i", 4, 0, 1, 2, 3, 3, 0, 1, 2)
    ends = {"lf": "\n", "cr": "\r", "crlf": "\r\n"}
    mixed = {f"{name}.ply": end.join(lines).encode() + body for name, end in ends.items()}
    return {f"{name}.glb": file.glb() for name, file in made.items()} | mixed


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
