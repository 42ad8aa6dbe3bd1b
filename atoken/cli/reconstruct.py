"""``atoken reconstruct``: through the tokenizer and back, and what came back against what went in.

Images are compared by their pixels, videos frame by frame, assets by views of them on black.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from atoken.cli import console
from atoken.cli.coding import add, result_path, write_item
from atoken.io import Image, VideoReader
from atoken.io.token_file import TokenFile, TokenFileWriter
from atoken.media.scaling import at_most, smaller
from atoken.metrics.pixels import psnr_of, squared_error, ssim
from atoken.modalities import MODALITIES, Modality
from atoken.tokenizer import Tokenizer

HEAD = ["file", "size", "tokens", "bytes", "bits/pixel", "PSNR dB", "SSIM", "encode s", "decode s"]
FORMATS = ("{}", "{}", "{:,}", "{:,}", "{:.3f}", "{:.2f}", "{:.4f}", "{:.2f}", "{:.2f}")


def reconstruct(options: argparse.Namespace) -> int:
    """Every file to a token file and back; a table of figures, the results, and side-by-side images.

    PSNR is of the mean squared error over all frames (as JSON, null where it is infinite), SSIM the mean over them; of
    an asset over views from all around, on black. Bits per pixel are null for an asset. Bytes are the whole token
    file. Encode seconds: reading, encoding and writing tokens; decode seconds: reading tokens, decoding and writing.
    """
    tokenizer, out = console.tokenizer(options), console.folder(options.out)
    files = console.inputs(options)
    jobs = list(zip(files, console.unique(map(console.plain_name, files)), strict=True))
    rows, failed = console.each(jobs, lambda job: _reconstruct(tokenizer, job[0], out / job[1], options), options)
    lines = [[form.format(v) if v is not None else "-" for form, v in zip(FORMATS, row.values(), strict=False)]
             for row in rows]  # fmt: skip
    for line, row in zip(lines, rows, strict=True):
        if original := row.get("scaled_from"):
            line[1] += f" (from {original[1]}x{original[0]})"
    plain = [row | {"psnr": row["psnr"] if isfinite(row["psnr"]) else None} for row in rows]
    console.say(HEAD, lines, options, plain)
    return failed


def _reconstruct(tokenizer: Tokenizer, file: str, target: Path, options: argparse.Namespace) -> dict[str, Any]:
    token_file = target.with_name(f"{target.name}.atok")
    start = perf_counter()
    with TokenFileWriter(token_file) as writer:
        original = add(tokenizer, writer, file, options)
    encoded = perf_counter()
    with ExitStack() as opened:
        source = smaller(console.media(file, options), options.max_side)
        if isinstance(source, VideoReader):
            opened.enter_context(source)
        tokens = opened.enter_context(TokenFile(token_file))
        item = tokens.items[0]
        comparison = Comparison(MODALITIES[item.modality], source, options.max_side if original else None)
        write_item(tokenizer, tokens, 0, result_path(target, item), options, seen=comparison.add)
    decode_seconds = perf_counter() - encoded - comparison.seconds
    Image(comparison.side_by_side).save(target.with_name(f"{target.name}.compare.png"))
    stored, modality = token_file.stat().st_size, MODALITIES[item.modality]
    return {
        "file": file,
        "size": modality.shown(item.size, item.frames),
        "tokens": item.tokens,
        "bytes": stored,
        "bits_per_pixel": None if modality.sparse else 8 * stored / (item.size[0] * item.size[1] * item.frames),
        "psnr": psnr_of(comparison.error),
        "ssim": comparison.similarity,
        "encode_seconds": encoded - start,
        "decode_seconds": decode_seconds,
    } | ({} if original in (None, item.size) else {"scaled_from": original})


class Comparison:
    """Sums over frames or views, and the first ones side by side: the original left, scaled as it was encoded."""

    def __init__(self, modality: Modality, original: Any, max_side: int | None) -> None:
        targets, self._images = modality.images(original)
        self._targets = (at_most(target, max_side) for target in targets)
        self._error = self._similarity = self.seconds = 0.0
        self._count = 0
        self.side_by_side = np.zeros((1, 1, 3), np.uint8)

    @property
    def error(self) -> float:
        """Mean squared error over all frames, of pixels in 0..255."""
        return self._error / max(self._count, 1)

    @property
    def similarity(self) -> float:
        """Mean SSIM over all frames."""
        return self._similarity / max(self._count, 1)

    def add(self, piece: Any) -> None:
        """Compare one decoded piece with the originals that are next."""
        start = perf_counter()
        for prediction in self._images(piece):
            target = next(self._targets)
            if not self._count:
                self.side_by_side = np.concatenate([target, prediction], axis=1)
            self._error += squared_error(prediction, target)
            self._similarity += ssim(prediction, target)
            self._count += 1
        self.seconds += perf_counter() - start
