"""An item of a source, read and decoded for the encoder: pixels in their final size, or the voxels of an asset.

Only uint8 is sent from one process to another, never patches of floats. What comes out is what ``Tokenizer.encode``
makes of the same pixels, to the bit. Nothing here needs torch, but the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np

from atoken.data.sources.sample import TIMEOUT, Sample, reading
from atoken.errors import MediaError
from atoken.io import Image, Video, VideoReader, read_image, read_mesh, sniff
from atoken.io.inputs import modality_of, tiles
from atoken.media.clock import clock_slack, exact_fps, varying
from atoken.media.scaling import at_most, changed, resized
from atoken.media.source import error_prefix
from atoken.media.video import joined_alpha
from atoken.modalities import ASSET, VIDEO
from atoken.modalities.asset import VoxelPatches, voxelised
from atoken.store.layout import Options
from atoken.store.source import GENERATED, SIDE, Entry

MOST_FRAMES = 256 << 20  # bytes of frames of a video that are held at once; of a longer one, a tile at a time
GENERATED_FRAMES = 16  # of a generated video, where --frames does not say otherwise

Pixels = TypeVar("Pixels", bound=Image | Video)


@dataclass(frozen=True)
class Stream:
    """A video that is read when it is encoded, tile by tile, as ``Coder.encode_tiles`` takes it.

    clock_slack: of its time stamps, in seconds, for ``TokenFileWriter.add``.
    """

    sample: Sample
    options: Options
    clock_slack: float
    flipped: bool = False

    def tiles(self) -> Iterator[Video]:
        """Read the video anew. Raises: AtokenError."""
        with reading(self.sample), _opened(self.sample, self.options) as reader:
            for tile in tiles(reader, _rate(self.options)):
                yield _flipped(_prepared(tile, self.options)) if self.flipped else _prepared(tile, self.options)


@dataclass(frozen=True)
class Decoded:
    """An item that is ready for the encoder. All but a stream can be given to ``Coder.encode_batch`` as media."""

    key: str
    label: str | None
    captions: tuple[str, ...]
    media: Image | Video | VoxelPatches | Stream

    def variants(self, flip: bool) -> Iterator[tuple[bool, Image | Video | VoxelPatches | Stream]]:
        """Whether it is mirrored, and the media: as it is and, with ``flip``, mirrored; an asset never is."""
        yield False, self.media
        if flip and isinstance(self.media, Stream):
            yield True, replace(self.media, flipped=True)
        elif flip and isinstance(self.media, Image | Video):
            yield True, _flipped(self.media)

    @property
    def tokens(self) -> int | None:
        """How many tokens it becomes; None of a stream, whose length is not known."""
        if isinstance(self.media, Stream):
            return None
        if isinstance(self.media, VoxelPatches):
            return len(self.media.cells)
        frames = len(self.media.frames) if isinstance(self.media, Video) else 1
        height, width = (self.media.frames[0] if isinstance(self.media, Video) else self.media.pixels).shape[:2]
        modality = modality_of(self.media)
        assert modality is not None
        return math.prod(modality.cells((height, width), frames))


def decode(entry: Entry, options: Options) -> Decoded:
    """Read one item, and resize, cut and thin it out as the options say. Raises: AtokenError (it is broken)."""
    sample, captions = entry.sample, entry.sample.captions
    with reading(sample), error_prefix(entry.key):
        media: Image | Video | VoxelPatches | Stream
        if sample.suffix == GENERATED:
            media, captions = _generated(sample, options)
        else:
            modality = sniff(sample.media, name=sample.name, first_frame=entry.first_frame).modality
            if modality is ASSET:
                mesh = read_mesh(sample.media, name=sample.name, timeout=TIMEOUT)
                media = voxelised(mesh, options.coarsen, options.voxels)
            elif modality is VIDEO:
                media = _video(sample, options)
            else:
                media = _prepared(read_image(sample.media, name=sample.name), options)
    return Decoded(entry.key, entry.label, captions, media)


def _generated(sample: Sample, options: Options) -> tuple[Image | Video | VoxelPatches, tuple[str, ...]]:
    from atoken.data.synthetic.series import MAKERS

    modality, index = sample.record["modality"], sample.record["index"]
    make = MAKERS[modality][sample.record["series"]]
    side = int(sample.record.get("side") or options.resize or options.crop or SIDE)
    if modality == ASSET.name:
        asset = make(options.seed, index)
        return voxelised(asset.mesh, options.coarsen, options.voxels), (asset.caption,)
    count = () if modality != VIDEO.name else (options.frames or GENERATED_FRAMES,)
    made = make(options.seed, index, *count, side, side)
    media = Video(made.frames) if count else Image(made.frames[0])
    return _prepared(media, options), (made.caption,)


def _video(sample: Sample, options: Options) -> Video | Stream:
    """All frames of a video, or a stream of those of a long one."""
    pieces: list[Video] = []
    rate = _rate(options)
    with _opened(sample, options) as reader:
        slack = float(clock_slack(reader.info.time_base))
        for tile in tiles(reader, rate):
            pieces.append(_prepared(tile, options))
            count = max(sum(len(piece.frames) for piece in pieces), reader.expected_frames or 0)
            if count * pieces[0].frames[0].nbytes > MOST_FRAMES:
                return Stream(sample, options, slack)
    if not pieces:
        raise MediaError("The video has no frames.")
    times = np.concatenate([piece.timestamps for piece in pieces if piece.timestamps is not None])
    frames, fps = np.concatenate([piece.frames for piece in pieces]), pieces[0].fps
    alpha = joined_alpha([piece.alpha for piece in pieces], [piece.frames.shape[:3] for piece in pieces])
    return Video(frames, fps, varying(times, fps, slack), alpha)


def _opened(sample: Sample, options: Options) -> VideoReader:
    frames = None if options.frames is None else (0, options.frames)
    return VideoReader(sample.media, name=sample.name, frames=frames, fps=_rate(options), timeout=TIMEOUT)


def _rate(options: Options) -> Fraction | None:
    return None if options.fps is None else exact_fps(Fraction(options.fps))


def _prepared(media: Pixels, options: Options) -> Pixels:
    """In the size that the options say: the shorter side first, then the square in the middle, then the longer side."""
    if options.resize is options.crop is options.max_side is None:
        return media
    found: Pixels = changed(media, lambda pixels: _sized(pixels, options))
    return found


def _sized(pixels: np.ndarray, options: Options) -> np.ndarray:
    height, width = pixels.shape[:2]
    if options.resize is not None:
        scale = options.resize / min(height, width)
        height, width = max(round(height * scale), 1), max(round(width * scale), 1)
        pixels = resized(pixels, height, width)
    if options.crop is not None:
        if min(height, width) < options.crop:
            raise MediaError(f"It is {width}x{height}, smaller than --crop {options.crop}; enlarge it with --resize.")
        top, left = (height - options.crop) // 2, (width - options.crop) // 2
        pixels = pixels[top : top + options.crop, left : left + options.crop].copy()
    return at_most(pixels, options.max_side)


def _flipped(media: Pixels) -> Pixels:
    found: Pixels = changed(media, lambda pixels: np.ascontiguousarray(pixels[:, ::-1]))
    return found
