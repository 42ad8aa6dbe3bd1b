"""``Modality``: all that is known of one kind of media. The network between encoding and decoding knows none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atoken.media.formats import Format
from atoken.media.video import VideoReader
from atoken.media.video_writer import VideoWriter

if TYPE_CHECKING:
    from atoken.io.token_file import Tokens
    from atoken.model import ATokenModel
    from atoken.tokens import SparseTokens

Size = tuple[int, int]


@dataclass(frozen=True)
class Modality:
    """A record. Its functions import heavy packages when they are called.

    **Files.** ``formats``: those that are read. ``read(source, name=, limits=)`` gives one of ``types``; of a modality
    with frames also ``frames=`` and ``fps=``. ``suffix``: of the file that a decoded result's ``save`` writes,
    ``alpha_suffix`` of one with alpha, where that is another.

    **Tokens.** ``patchify(media, coarsen)`` gives one sample of patches, (N, 3072), or (N, 768) where all frames but
    the first are empty, and the fields ``size``, ``frames``, ``fps``, ``timestamps`` and ``alpha`` of ``Tokens``, those
    that the modality has. ``unpatchify(model, tokens, patches)`` turns decoded patches into what the user gets.
    ``refusal(model, tokens)`` says in a sentence why a model cannot decode such tokens, "" if it can.
    ``images(original)`` compares what went in (media, or an open reader of frames) with what came back: it gives images
    (H, W, 3) uint8 of the first, and a function for those of a decoded piece.

    **Token files.** ``cells(size, frames)``: steps, rows, columns and layers of the grid that the tokens lie in; they
    fill it unless the modality is ``sparse``. ``allows_size(size)``, in words ``sizes``. ``has_alpha``: whether an
    alpha channel is stored. ``shown(size, frames)``: the size for a person.

    **Frames.** Only a modality with ``read_frames`` and ``write_frames`` has more than one frame, a rate and time
    stamps; it is read, encoded, decoded and written tile by tile.
    """

    name: str
    formats: tuple[Format, ...]
    types: tuple[type, ...]
    read: Callable[..., Any]
    suffix: str
    patchify: Callable[[Any, bool], tuple[SparseTokens, dict[str, Any]]]
    unpatchify: Callable[[ATokenModel, Tokens, SparseTokens], Any]
    images: Callable[[Any], tuple[Iterator[np.ndarray], Callable[[Any], Iterator[np.ndarray]]]]
    cells: Callable[[Size, int], tuple[int, int, int, int]]
    shown: Callable[[Size, int], str]
    sizes: str
    allows_size: Callable[[Size], bool]
    refusal: Callable[[ATokenModel, Tokens], str] = lambda model, tokens: ""
    sparse: bool = False
    has_alpha: bool = False
    alpha_suffix: str = ""
    read_frames: type[VideoReader] | None = None
    write_frames: type[VideoWriter] | None = None

    @property
    def suffixes(self) -> frozenset[str]:
        """Of the names of its files, in lower case, with the dot."""
        return frozenset(suffix for format in self.formats for suffix in format.suffixes)
