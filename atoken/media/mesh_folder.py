"""The files and images that a 3D file names: only those inside its own folder, and only up to a limit."""

from __future__ import annotations

import base64
import binascii
import io
import re
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np

from atoken.errors import MediaError
from atoken.media.image import read_image
from atoken.media.limits import Limits

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # of an address, or the drive of a path of Windows
_ELSEWHERE = re.compile(r"^([A-Za-z]:)?[\\/](.*[\\/])?")  # folders on the machine that wrote the file
_DATA = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


class Folder:
    """Reads a 3D file and what it names; all together may take ``limits.max_mesh_bytes``, decoded images included.

    ``root``: the folder of the file, or None for bytes, which have no files beside them. ``name``: for messages.
    ``notes`` collects what could not be read and is not needed for the shape. Raises, from every method: MediaError.
    """

    def __init__(self, file: BinaryIO, root: str | None, name: str, limits: Limits) -> None:
        self.name, self.limits, self.notes = name, limits, dict[str, None]()
        self._root = None if root is None else Path(root).resolve()
        self._bytes = 0
        self.data = self._contents(file, "the file")

    def note(self, text: str) -> None:
        """Keep something to warn the user of, once."""
        self.notes[text] = None

    def count(self, size: int, what: str) -> None:
        """Count ``size`` bytes more against the limit."""
        self._bytes += size
        self.limits.check_mesh_bytes(self._bytes, f"{self.name}, with {what},")

    def read(self, reference: str) -> bytes | None:
        """Give the contents of the file ``reference`` (relative to the folder), None where there is none."""
        if _SCHEME.match(reference) or reference.startswith(("/", "\\")):
            raise self._refused(reference, "only files inside its own folder are read")
        if self._root is None:
            return None
        try:
            target = (self._root / reference.replace("\\", "/")).resolve()
            inside, exists = target.is_relative_to(self._root), target.is_file()
        except (OSError, RuntimeError, ValueError):  # too long, a ring of links, a NUL
            return None
        if not inside:
            raise self._refused(reference, "it is outside the folder of the file")
        if not exists:
            return None
        with target.open("rb") as file:
            return self._contents(file, f"{_short(reference)!r}")

    def read_uri(self, uri: str) -> bytes | None:
        """Give what a URI of glTF stands for: a data URI, or a file inside the folder, None where there is none."""
        head = _DATA.match(uri)
        if head is None:
            return self.read(unquote(uri))
        self.count(len(uri) * 3 // 4, "a data URI")
        try:
            return base64.b64decode(uri[head.end() :], validate=True)
        except binascii.Error as error:
            raise MediaError(f"Cannot read {self.name}: a data URI in it is damaged.") from error

    def image(self, data: bytes, what: str) -> np.ndarray:
        """Decode a texture: (H, W, 4) uint8 RGBA, in the formats and limits of ``read_image``."""
        image = read_image(data, name=f"{what} of {self.name}", limits=self.limits)
        alpha = np.full(image.pixels.shape[:2], 255, np.uint8) if image.alpha is None else image.alpha
        self.count(4 * alpha.size, "its textures")
        return np.dstack([image.pixels, alpha])

    def _contents(self, file: BinaryIO, what: str) -> bytes:
        data = file.read(max(self.limits.max_mesh_bytes - self._bytes, 0) + 1)
        self.count(len(data), what)
        return data

    def _refused(self, reference: str, why: str) -> MediaError:
        return MediaError(
            f"Cannot read {self.name}: it names {_short(reference)!r}, but {why}; put all files together."
        )


class FolderResolver:
    """Gives trimesh the files that an OBJ or PLY file names.

    Of a texture with an absolute path, as modelling programs write it, the one of its name in the folder is taken.
    trimesh catches every exception of its resolver, so the one to be raised is kept in ``refused``. Images are decoded
    here into ``images``, and trimesh gets images of one pixel in their place.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.refused: MediaError | None = None
        self.images: dict[str, np.ndarray] = {}

    def get(self, name: str) -> bytes:
        """Give a file's bytes; text comes as UTF-8. Raises: FileNotFoundError, MediaError."""
        try:
            library = name.lower().endswith(".mtl")
            data = self._folder.read(name.strip() if library else _ELSEWHERE.sub("", name.strip()))
            if data is None:
                self._folder.note(f"the file {_short(name)!r} that it names is missing; it is read without it.")
                raise FileNotFoundError(name)
            if library:
                return decoded(data).encode()
            self.images[name] = self._folder.image(data, f"The texture {_short(name)!r}")
        except MediaError as error:
            self.refused = self.refused or error
            raise
        return _stand_in(name)

    __getitem__ = get


def _stand_in(name: str) -> bytes:
    """A PNG of one pixel whose ``info`` in Pillow has ``name`` as "file_path", as trimesh notes it for MTL files."""
    import PIL.Image
    import PIL.PngImagePlugin

    text, file = PIL.PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("file_path", name)
    PIL.Image.new("L", (1, 1)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def decoded(data: bytes) -> str:
    """Give text in UTF-8, or else Latin-1, which decodes any bytes: the keywords of these formats are ASCII.

    Its lines end in newlines.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _short(reference: str) -> str:
    return " ".join(reference.split())[:80]
