"""Materials of glTF as one colour at each corner and one image, both sRGB (``atoken.media.mesh`` says how)."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, inf, sin
from typing import Any

import numpy as np

from atoken.media.mesh_accessor import Table, Tables

_REPEAT = 10497  # of a sampler
_WORKFLOWS = {  # the table in a material, its factor, and its texture
    "KHR_materials_pbrSpecularGlossiness": ("diffuseFactor", "diffuseTexture"),
    "pbrMetallicRoughness": ("baseColorFactor", "baseColorTexture"),
}


def srgb_bytes(linear: np.ndarray) -> np.ndarray:
    """Encode linear light in [0, 1] (others are clipped) by the sRGB curve as uint8. Source: IEC 61966-2-1."""
    values = np.clip(linear, 0, 1)
    encoded = np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


@dataclass(frozen=True)
class Surface:
    """One material: ``factor`` (4,) linear RGBA, a ``texture`` (H, W, 4) uint8 or None, and the ``gain`` on alpha.

    The gain is infinite where alpha does not count; of a mask, it moves the cutoff to one half, where the renderer has
    it; in a texture it is applied already. ``repeats``: whether the texture repeats beyond its edges.
    ``coordinates`` is the name of the set of texture coordinates; ``linear`` (2, 2) and ``shift`` (2,) map these to
    positions in the image, from its upper left corner down. Source: glTF 2.0 section 3.9.2, KHR_texture_transform.
    """

    factor: np.ndarray
    texture: np.ndarray | None
    gain: float
    repeats: bool
    coordinates: str
    linear: np.ndarray
    shift: np.ndarray

    def corners(
        self, faces: np.ndarray, colors: np.ndarray | None, uv: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Give the colours of faces (F, 3), their uv and the texture, from linear colours and uv of the points."""
        light = np.ones((1, 4)) if colors is None else colors
        if light.shape[1] == 3:
            light = np.concatenate([light, np.ones((len(light), 1))], 1)
        light = light * self.factor
        alpha = _alpha(light[:, 3:], 1.0 if self.texture is not None and self.gain < inf else self.gain)
        rgba = np.concatenate([srgb_bytes(light[:, :3]), alpha], 1)
        spread = rgba[0] if colors is None else rgba[faces]
        if uv is None or self.texture is None:
            return spread, None, None
        positions = uv @ self.linear.T + self.shift
        return spread, np.stack([positions[:, 0], 1 - positions[:, 1]], 1)[faces], self.texture


class Materials:
    """The materials of a file, read when they are first asked for."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._surfaces: dict[Any, Surface] = {}
        self._textures: dict[tuple[int, float], np.ndarray | None] = {}

    def get(self, index: Any) -> Surface:
        """Give a material by its number, or for None the one of glTF's default: white. Raises: MediaError."""
        if index not in self._surfaces:
            self._surfaces[index] = self._surface({} if index is None else self._tables.item("materials", index))
        return self._surfaces[index]

    def _surface(self, material: Table) -> Surface:
        tables = material | material.get("extensions", {})
        workflow = next((name for name in _WORKFLOWS if name in tables), "pbrMetallicRoughness")
        factor_key, texture_key = _WORKFLOWS[workflow]
        base = tables.get(workflow, {})
        factor = np.array(base.get(factor_key, [1, 1, 1, 1]), np.float64).reshape(4)
        cutoff = {"OPAQUE": 0.0, "MASK": material.get("alphaCutoff", 0.5)}.get(material.get("alphaMode", "OPAQUE"), 0.5)
        gain = 0.5 / cutoff if cutoff > 0 else inf
        used = base.get(texture_key, {})
        moved = used.get("extensions", {}).get("KHR_texture_transform", {})
        coordinates = f"TEXCOORD_{moved.get('texCoord', used.get('texCoord', 0))}"
        texture, repeats = self._texture(used["index"], gain) if used else (None, True)
        return Surface(factor, texture, gain, repeats, coordinates, *_placement(moved))

    def _texture(self, index: Any, gain: float) -> tuple[np.ndarray | None, bool]:
        """Pixels, and whether they repeat."""
        stated = self._tables.item("textures", index)
        sampler = self._tables.item("samplers", stated["sampler"]) if "sampler" in stated else {}
        repeats = all(sampler.get(key, _REPEAT) == _REPEAT for key in ("wrapS", "wrapT"))
        extensions = stated.get("extensions", {})
        own = (extensions[name]["source"] for name in ("EXT_texture_webp", "EXT_texture_avif") if name in extensions)
        source = next(own, stated.get("source"))
        if source is None:
            known = f"as {', '.join(extensions)[:80]}" if extensions else "nowhere"
            self._tables.folder.note(f"a texture of it is stored {known}, which is not read; it is read without it.")
            return None, repeats
        key = (source, gain)
        if key not in self._textures:
            pixels = self._image(source)
            if pixels is not None and gain != 1:
                pixels[..., 3] = _alpha(pixels[..., 3] / np.float32(255), gain)
            self._textures[key] = pixels
        return self._textures[key], repeats

    def _image(self, index: Any) -> np.ndarray | None:
        stated, folder = self._tables.item("images", index), self._tables.folder
        data = folder.read_uri(stated["uri"]) if "uri" in stated else self._tables.view(stated["bufferView"])
        if data is None:
            folder.note(f"the texture {stated['uri'][:80]!r} that it names is missing; it is read without it.")
            return None
        return folder.image(data, f"Texture {index}")


def _alpha(values: np.ndarray, gain: float) -> np.ndarray:
    """Alpha in 0..1, times ``gain``, as uint8; 255 where the gain is infinite."""
    return (
        np.rint(255 * (values * gain).clip(0, 1)).astype(np.uint8)
        if gain < inf
        else np.full_like(values, 255, np.uint8)
    )


def _placement(moved: Table) -> tuple[np.ndarray, np.ndarray]:
    """KHR_texture_transform as a linear map (2, 2) and a shift (2,)."""
    angle, scale = moved.get("rotation", 0.0), np.array(moved.get("scale", [1, 1]), np.float64).reshape(2)
    linear = np.array([[cos(angle), sin(angle)], [-sin(angle), cos(angle)]]) * scale
    return linear, np.array(moved.get("offset", [0, 0]), np.float64).reshape(2)
