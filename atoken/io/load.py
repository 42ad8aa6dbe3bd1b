"""Files of any modality: what they are, and what they hold."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from atoken.errors import MediaError
from atoken.media.formats import Format, head_of, listed
from atoken.media.image import Image
from atoken.media.limits import DEFAULT_LIMITS, Limits
from atoken.media.source import Source, error_prefix, name_of, opened
from atoken.media.video import FrameRange, Video
from atoken.media.views import Views
from atoken.mesh import Mesh
from atoken.modalities import MODALITIES, Modality


class Sniffed(NamedTuple):
    """What a file is: its modality, and its format."""

    modality: Modality
    format: Format


def sniff(source: Source, *, name: str | None = None, first_frame: bool = False) -> Sniffed:
    """Tell what a file (a path, bytes, or a binary file) or a folder of rendered views is, by its first bytes.

    ``name``: the file's name, for messages and for the formats without magic bytes. ``first_frame``: an animated image
    is an image, not a video. A file object is read to its end. Raises: MediaError if it is missing, neither a plain
    file nor such a folder, empty, or of no supported format.
    """
    name = name_of(source, name)
    order = list(MODALITIES.values())  # an animated image is of a video's formats and of an image's
    order = order if first_frame else order[::-1]
    known = [Sniffed(modality, format) for modality in order for format in modality.formats]
    folder = next((one for one in known if isinstance(source, str | Path) and _is_folder(source, one.format)), None)
    if folder is not None:
        return folder
    with opened(source, name) as file:
        head = head_of(file, name)
        found = next((one for one in known if one.format.matches(head)), None)
    if found is None:
        formats = "; ".join(f"{modality.name} ({listed(modality.formats)})" for modality in MODALITIES.values())
        raise MediaError(f"Cannot read {name}: its content is none of the supported formats: {formats}.")
    return found


def load_media(
    source: Source,
    *,
    name: str | None = None,
    frames: FrameRange | None = None,
    fps: Fraction | float | None = None,
    first_frame: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Image | Video | Mesh | Views:
    """Read an image, a video or a 3D asset, whichever the file is, as ``read_image``, ``read_video`` or ``read_mesh``.

    ``source``: a path, bytes, or a binary file. ``name``: for messages, and for the formats without magic bytes. A
    folder with a ``transforms.json`` is read as ``atoken.media.views.read_views`` does. ``frames`` (start, stop) and
    ``fps`` select from a video, and are refused for the others. An animated GIF, WebP, PNG or AVIF is a video; with
    ``first_frame``, an image of its first frame.
    Raises: MediaError, MissingExtraError (a 3D asset without the packages that read it).
    """
    name = name_of(source, name)
    if not isinstance(source, str | Path | bytes):  # a file object can be read only once
        with opened(source, name) as file:
            source = file.read()
    modality = sniff(source, name=name, first_frame=first_frame).modality
    selection: dict[str, Any] = {"frames": frames, "fps": fps} if modality.read_frames else {}
    if not selection and not frames is fps is None:
        raise MediaError(f"{name} is not a video; frames= and fps= select from videos only.")
    with error_prefix(name):
        media: Image | Video | Mesh | Views = modality.read(source, name=name, limits=limits, **selection)
    return media


def _is_folder(path: str | Path, format: Format) -> bool:
    try:
        return bool(format.folder_file) and (Path(path) / format.folder_file).is_file()
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}.") from error
