"""Images as a modality: a video of one frame, and its alpha channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoken.media.image import FORMATS, Image, read_image
from atoken.modalities.modality import Modality, Size

if TYPE_CHECKING:
    from atoken.io.token_file import Tokens
    from atoken.model import ATokenModel
    from atoken.tokens import SparseTokens

MAX_SIDE = 1 << 20  # pixels
SIZES = f"height and width in pixels, each from 1 to {MAX_SIDE:,}"


def _patchify(image: Image, coarsen: bool) -> tuple[SparseTokens, dict[str, Any]]:
    from atoken.modalities.pixels import patchify_frames

    return patchify_frames(image.pixels[None]), {"size": image.pixels.shape[:2], "alpha": image.alpha}


def _unpatchify(model: ATokenModel, tokens: Tokens, patches: SparseTokens) -> Image:
    from atoken.modalities.pixels import to_uint8, unpatchify

    return Image(to_uint8(unpatchify(patches, 1, *tokens.size))[0], tokens.alpha)


def cells(size: Size, frames: int) -> tuple[int, int, int, int]:
    """Steps, rows, columns of patches, in one layer."""
    from atoken.patches import grid

    return (*grid(frames, *size), 1)


def allows_size(size: Size) -> bool:
    """Whether both sides are within ``SIZES``."""
    return all(1 <= side <= MAX_SIDE for side in size)


IMAGE = Modality(
    name="image",
    formats=FORMATS,
    types=(Image,),
    read=read_image,
    suffix=".png",
    patchify=_patchify,
    unpatchify=_unpatchify,
    images=lambda original: (iter([original.pixels]), lambda piece: iter([piece.pixels])),
    cells=cells,
    shown=lambda size, frames: f"{size[1]}x{size[0]}",
    sizes=SIZES,
    allows_size=allows_size,
    has_alpha=True,
)
