"""What came back against what went in: squared error, similarity, and both side by side.

Images are compared by their pixels, videos frame by frame, assets by views of them on black.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from time import perf_counter

import numpy as np
import torch

from atoken.cameras import Cameras
from atoken.gaussians import Gaussians
from atoken.io import Image, Video, VideoReader
from atoken.media.views import Views
from atoken.metrics.pixels import squared_error, ssim
from atoken.modalities.views import render_views
from atoken.tokenizer import as_media

VIEWS, VIEW_SIZE = 8, 256  # of an asset: once around, pixels a side


class Originals:
    """The frames of an input as the encoder saw them, read a second time; ``cameras`` where it is an asset.

    An asset that came as views is seen as those views show it, a mesh from ``VIEWS`` cameras around it, which are none
    of those that it was encoded from.
    """

    def __init__(self, source: Image | Views | VideoReader | object) -> None:
        self.cameras: Cameras | None = None
        self._source = source
        self._stack = ExitStack()

    def __enter__(self) -> Iterator[np.ndarray]:
        if isinstance(self._source, VideoReader):
            reader = self._stack.enter_context(self._source)
            return (frame for _, frame in reader)
        media = as_media(self._source)
        if isinstance(media, Image):
            return iter([media.pixels])
        if isinstance(media, Video):
            return iter(media.frames)
        views = media if isinstance(media, Views) else render_views(media, Cameras.turntable(VIEWS), VIEW_SIZE)
        self.cameras = views.cameras
        return iter(views.rgb)

    def __exit__(self, *error: object) -> None:
        self._stack.close()


class Comparison:
    """Sums over frames or views, and the first ones side by side: the original left."""

    def __init__(self, originals: Iterator[np.ndarray], cameras: Cameras | None = None) -> None:
        self._originals, self._cameras = originals, cameras
        self._error = self._similarity = self.seconds = 0.0
        self._frames = 0
        self.side_by_side = np.zeros((1, 1, 3), np.uint8)

    @property
    def error(self) -> float:
        """Mean squared error over all frames, of pixels in 0..255."""
        return self._error / max(self._frames, 1)

    @property
    def similarity(self) -> float:
        """Mean SSIM over all frames."""
        return self._similarity / max(self._frames, 1)

    def add(self, piece: Image | Video | Gaussians) -> None:
        """Compare one decoded piece with the originals that are next."""
        start = perf_counter()
        for prediction in self._frames_of(piece):
            target = next(self._originals)
            if not self._frames:
                self.side_by_side = np.concatenate([target, prediction], axis=1)
            self._error += squared_error(prediction, target)
            self._similarity += ssim(prediction, target)
            self._frames += 1
        self.seconds += perf_counter() - start

    def _frames_of(self, piece: Image | Video | Gaussians) -> Iterator[np.ndarray]:
        if isinstance(piece, Image):
            yield piece.pixels
        elif isinstance(piece, Video):
            yield from piece.frames
        elif self._cameras is not None:
            for view in range(len(self._cameras)):
                with torch.inference_mode():
                    rgb = piece.render(self._cameras[view : view + 1], VIEW_SIZE)[0]
                yield rgb.mul(255).round_().clamp_(0, 255).to(torch.uint8).numpy()
