"""Tokenizers that come as TorchScript: an encoder and a decoder, as Cosmos has them (arXiv 2501.03575), or both in one.

TorchScript is a program: loading one runs code of its maker, so the user must say that the maker is trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atoken.errors import AtokenError, CheckpointError
from atoken.modalities.pixels import to_uint8, to_values
from eval.contract import Item, Output
from eval.models.pixels import Block, PixelModel, checksum, cut, failing, frames_of, how_drawn, padded, rounded


class TorchScriptModel(PixelModel):
    """An encoder and a decoder, or one autoencoder, each a TorchScript file; pixels in [-1, 1].

    An image model maps (B, 3, H, W), one that takes videos (``video``) maps (B, 3, T, H, W), causally: T is 1 + k times
    the first number of ``block``. An encoder gives latents, or a tuple that begins with latents or, if they are
    integers, with indices of a codebook; this first one is what the decoder takes. Sides are padded by their edge to
    ``block`` and cut again. A video goes in independent windows of ``window`` frames (49 in Cosmos's training and
    program). ``size`` is the plain bytes of the latents in float32, or of the indices in the fewest whole bytes that
    ``codebook`` numbers need; None for one autoencoder.

    trust: must be True. Raises: AtokenError without ``trust``; CheckpointError for what cannot be loaded.
    """

    def __init__(
        self,
        encoder: str | Path,
        decoder: str | Path | None = None,
        *,
        trust: bool = False,
        device: str = "auto",
        video: bool = False,
        block: Block = (1, 16, 16),
        window: int = 49,
        codebook: int = 64_000,
    ) -> None:
        paths = [Path(path) for path in (encoder, decoder) if path is not None]
        if not trust:
            raise AtokenError(f"{paths[0]} is a program that could do anything; pass --trust if you trust its maker.")
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.modules = [_loaded(path, self.device) for path in paths]
        self.dtype = next((one.dtype for one in self.modules[0].parameters() if one.is_floating_point()), torch.float32)
        self.name = paths[0].resolve().parent.name or paths[0].stem
        self.video, self.block, self.window, self.codebook = video, block, window, codebook
        counted = f"latents as float32, or indices below {codebook:,}; without header"
        self.record = {
            "model": f"TorchScript, {len(paths)} files",
            "fingerprint": checksum(*paths),
            "dtype": str(self.dtype).removeprefix("torch."),
            **how_drawn(None),
            "padding": " x ".join(map(str, block)) + ", the first frame alone" * video,
            "windows": f"{window} frames" if video else "single frames",
            "bytes": counted if decoder else "not counted",
        }

    @torch.inference_mode()
    def _output(self, item: Item) -> Output:
        frames = frames_of(item, self.name)
        step = self.window if self.video else 1
        windows = [self._through(frames[start : start + step]) for start in range(0, len(frames), step)]
        pixels, sizes, codes = zip(*windows, strict=True)
        size = sum(sizes) if len(self.modules) == 2 else None
        return Output(
            item, frames, np.concatenate(pixels), size=size, codes=None if codes[0] is None else np.concatenate(codes)
        )

    def _through(self, frames: np.ndarray) -> tuple[np.ndarray, int, np.ndarray | None]:
        """One window: its pixels, its bytes, its codes (N, 1)."""
        values = to_values(padded(frames, self.block, first_alone=self.video)).to(self.device, self.dtype)
        values = values.movedim(-1, 0)[None] if self.video else values.movedim(-1, 1)
        codes, size = None, 0
        for module in self.modules:
            if module is not self.modules[0]:
                values, size, codes = self._stored(values)
            with failing(self.name, values):
                output = module(values)
                values = output if isinstance(output, Tensor) else output[0]
        back = values[0].movedim(0, -1) if self.video else values.movedim(1, -1)
        return cut(to_uint8(back), frames, self.name), size, codes

    def _stored(self, latents: Tensor) -> tuple[Tensor, int, np.ndarray | None]:
        """What the decoder gets, its bytes, and the codes among it."""
        if latents.is_floating_point():
            return *rounded(latents, "float32"), None
        if not 0 <= int(latents.min()) <= int(latents.max()) < self.codebook:
            raise AtokenError(f"{self.name} gave indices that are not below {self.codebook:,}; state its codebook.")
        width = (max(self.codebook - 1, 1).bit_length() + 7) // 8
        return latents, latents.numel() * width, latents.long().cpu().numpy().reshape(-1, 1)


def _loaded(path: Path, device: str) -> Any:
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} cannot be loaded as TorchScript; it is missing, damaged or another type of file."
        ) from error
