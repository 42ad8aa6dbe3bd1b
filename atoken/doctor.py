"""``atoken doctor``: the guarantees, checked on this machine and this model, each with its figure.

Inputs are synthetic, from a fixed seed. A limit is an absolute difference of latents or of [-1, 1] pixels unless the
line says otherwise; bf16 and accelerators are judged by the PSNR between two reconstructions.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atoken import SPINNING
from atoken.checkpoint import fingerprint
from atoken.data.synthetic.procedural import make_asset, make_image, make_video
from atoken.errors import MissingExtraError, TokenFileError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video
from atoken.io.token_file import Tokens
from atoken.metrics.pixels import psnr
from atoken.modalities.views import render_views
from atoken.model import ATokenConfig, ATokenModel
from atoken.presets import BUNDLED
from atoken.tokenizer import Tokenizer
from atoken.train.devices import peak_memory

FP32, BF16_DB, DEVICE_DB = 1e-5, 30.0, 45.0
BF16 = 2e-2  # of latents, relative to their largest, where the model itself runs in bf16
TILES, GROWTH = 72, 16 << 20  # of a video; bytes by which the peak may rise after its first 8 tiles (one has 0.8 MB)


@dataclass(frozen=True)
class Finding:
    """One guarantee, what was measured, what is allowed."""

    guarantee: str
    figure: str
    passed: bool

    def line(self) -> str:
        """For a person."""
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.guarantee:<58} {self.figure}"


def examine(tokenizer: Tokenizer) -> Iterator[Finding]:
    """Run every check, one after another."""
    checks: list[Callable[[Tokenizer], Finding | None]] = [
        weights, statistics, sizes, alpha_and_rate, twice, batch, streaming, constant_memory, strided, files, assets,
        other_model, neighbours, bfloat16, accelerator,
    ]  # fmt: skip
    for check in checks:
        try:
            finding = check(tokenizer)
        except Exception as error:  # noqa: BLE001 - whatever it raises, the guarantee is broken
            finding = Finding(str(check.__doc__).splitlines()[0], f"{type(error).__name__}: {error}", False)
        if finding is not None:
            yield finding


def weights(tokenizer: Tokenizer) -> Finding:
    """Bundled weights are the published ones; no weights hold NaN or infinity."""
    known = BUNDLED / "fingerprints.txt"
    expected = dict(line.split() for line in known.read_text().splitlines()) if known.exists() else {}
    finite = all(bool(torch.isfinite(value).all()) for value in tokenizer.model.state_dict().values())
    right = expected.get(tokenizer.name, tokenizer.fingerprint) == tokenizer.fingerprint
    what = "weights: finite, and of the published fingerprint" if tokenizer.name in expected else "weights: finite"
    return Finding(what, f"{tokenizer.name} {tokenizer.fingerprint[:8]}", finite and right)


def statistics(tokenizer: Tokenizer) -> Finding:
    """Statistics of the latents are of these weights; a model may have none."""
    found = tokenizer.statistics
    figure = "none yet; atoken stats measures them" if found is None else f"over {found.tokens:,} tokens"
    return Finding("statistics of the latents, for generators", figure, True)


def sizes(tokenizer: Tokenizer) -> Finding:
    """Any size and length comes back at its size."""
    shapes = [(1, 1, 1), (1, 17, 33), (1, 16, 70), (5, 18, 1), (17, 3, 40)]
    right = 0
    for frames, height, width in shapes:
        pixels = make_video(0, 0, frames, height, width).frames
        back = tokenizer.decode(tokenizer.encode(Image(pixels[0]) if frames == 1 else Video(pixels)))
        right += _pixels(back).shape == (pixels[0] if frames == 1 else pixels).shape
    figure = f"{right} of {len(shapes)} shapes"
    return Finding("nothing lost: every size and length comes back", figure, right == len(shapes))


def alpha_and_rate(tokenizer: Tokenizer) -> Finding:
    """Alpha, rate and time stamps come back as they were."""
    alpha = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    image = tokenizer.decode(tokenizer.encode(Image(make_image(0, 1, 20, 30).frames[0], alpha)))
    times = np.array([0.0, 0.1, 0.35, 0.4, 1.0])
    masks = np.arange(5 * 16 * 16, dtype=np.uint8).reshape(5, 16, 16)
    video = Video(make_video(0, 1, 5, 16, 16).frames, Fraction(30000, 1001), times, masks)
    timed = tokenizer.decode(tokenizer.encode(video))
    assert isinstance(image, Image)
    assert isinstance(timed, Video)
    pairs = ((image.alpha, alpha), (timed.timestamps, times), (timed.alpha, masks))
    same = timed.fps == Fraction(30000, 1001) and all(a is not None and np.array_equal(a, b) for a, b in pairs)
    return Finding("nothing lost: alpha, frame rate, time stamps", "equal" if same else "changed", same)


def twice(tokenizer: Tokenizer) -> Finding:
    """The same input gives the same tokens and pixels."""
    image = _image()
    tokens = [tokenizer.encode(image) for _ in range(2)]
    pixels = [_pixels(tokenizer.decode(one)) for one in tokens]
    steps = int(np.abs(pixels[0].astype(int) - pixels[1]).max())
    difference = _difference(tokens[0].latents, tokens[1].latents) + steps
    return Finding("twice = the same", f"max difference {difference:.1e}", difference == 0)


def batch(tokenizer: Tokenizer) -> Finding:
    """A sample does not depend on its batch mates."""
    tokenizer = _before_the_quantiser(tokenizer)
    media = [_image(), _video(), Image(make_image(0, 3, 9, 50).frames[0])]
    together = tokenizer.encode_batch(media)
    pairs = zip(media, together, strict=True)
    difference = max(_difference(tokenizer.encode(one).latents, many.latents) for one, many in pairs)
    return _numeric("alone = in a batch (latents)", difference, tokenizer)


def streaming(tokenizer: Tokenizer) -> Finding:
    """A video tile by tile gives what the whole call gives."""
    tokenizer = _before_the_quantiser(tokenizer)
    whole, pieces = tokenizer.encode(_video()), list(tokenizer.encode_stream(_video()))
    joined = Tokens.join(pieces)
    difference = max(_difference(whole.latents, joined.latents), _difference(whole.pooled, joined.pooled))
    frames = np.concatenate([piece.frames for piece in tokenizer.decode_stream(pieces)])
    off = int(np.abs(frames.astype(int) - _pixels(tokenizer.decode(whole))).max())
    finding = _numeric("streaming = whole (latents, pooled; pixels)", difference, tokenizer)
    return Finding(finding.guarantee, f"{finding.figure}; {off} of 255", finding.passed and off <= 1)


def constant_memory(tokenizer: Tokenizer) -> Finding:
    """Memory does not grow with a video that is encoded and decoded tile by tile.

    The peak is that of a process of its own, which has a small model with the switches of this one.
    """
    config = tokenizer.model.config
    switches = {name: getattr(config, name) for name in ("fsq_levels", "tile_frames", "cache_frames")}
    code = "import json, sys; from atoken.doctor import streamed_growth; print(streamed_growth(**json.load(sys.stdin)))"
    paths = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        input=json.dumps(switches),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    growth = int(done.stdout.splitlines()[-1])
    figure = f"peak grows by {growth / 1e6:.1f} MB in {TILES - 8} tiles, at most {GROWTH / 1e6:.1f}"
    return Finding("streaming in constant memory", figure, growth <= GROWTH)


def streamed_growth(**switches: Any) -> int:
    """Bytes by which this process's peak memory rises between the 8th and the last tile of a long streamed video.

    switches: fields of the config of the small model. Its latents of a tile take more bytes than the frames of a tile,
    so that a stream that keeps either is seen. Only the first call in a process is of use: a peak never falls.
    """
    sizes = {"width": 64, "layers": 1, "heads": 2, "mlp": 64}
    sides = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    channels = 512 * len(switches["fsq_levels"] or range(6))  # 3.1 MB a tile of 16 frames of 128x128
    model = ATokenModel(ATokenConfig(**sides, latent_channels=channels, **switches))
    tokenizer, frames = Tokenizer(model, "small"), repeat(np.zeros((128, 128, 3), np.uint8), 16 * TILES)
    before = 0
    for tile, _ in enumerate(tokenizer.decode_stream(tokenizer.encode_stream(frames)), 1):
        before = peak_memory("cpu") if tile == 8 else before
    return peak_memory("cpu") - before


def strided(tokenizer: Tokenizer) -> Finding:
    """The memory layout of an array does not matter."""
    pixels = _image().pixels
    views = [pixels.swapaxes(0, 1).copy().swapaxes(0, 1), np.asfortranarray(pixels), pixels[::-1].copy()[::-1]]
    plain = tokenizer.encode(Image(pixels))
    difference = max(_difference(plain.latents, tokenizer.encode(Image(view)).latents) for view in views)
    return Finding("contiguous = strided input", f"max difference {difference:.1e}", difference == 0)


def files(tokenizer: Tokenizer) -> Finding:
    """Decoding a saved file gives the same pixels as decoding the tokens."""
    tokens = tokenizer.encode(_image())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.atok"
        tokens.save(path)
        same = np.array_equal(_pixels(tokenizer.decode(Tokens.load(path))), _pixels(tokenizer.decode(tokens)))
    return Finding("decode(load(save(tokens))) = decode(tokens)", "equal" if same else "changed", same)


def assets(tokenizer: Tokenizer) -> Finding | None:
    """Tokens of an asset survive a file, and its Gaussians stay at their voxels.

    No line where the model has no Gaussian decoder, or where the extra 3d is not installed.
    """
    if tokenizer.model.gaussian_decoder is None:
        return None
    try:
        tokens = tokenizer.encode(render_views(make_asset(0, 0).mesh, 4, 64))
    except MissingExtraError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokens.save(path := Path(folder) / "check.atok")
        direct, saved = tokenizer.decode(tokens), tokenizer.decode(Tokens.load(path))
    assert isinstance(direct, Gaussians)
    assert isinstance(saved, Gaussians)
    centres = (tokens.coords[:, 1:] + 0.5) / tokens.size[0] - 0.5
    reach = (direct.means.unflatten(0, (len(centres), -1)) - centres[:, None]).abs().max() * tokens.size[0]
    same = all(torch.equal(getattr(direct, name), getattr(saved, name)) for name in ("means", "scales", "colors"))
    figure = f"{'equal' if same else 'changed'}; at most {float(reach):.2f} voxels from the centre"
    return Finding("assets: decode(load(save(tokens))), Gaussians at their voxels", figure, same and reach <= 0.75)


def other_model(tokenizer: Tokenizer) -> Finding:
    """Tokens of another model are refused."""
    changed = copy.deepcopy(tokenizer.model)
    with torch.no_grad():
        changed.to_patch.weight.mul_(1.5)
    try:
        Tokenizer(changed, "another").decode(tokenizer.encode(_image()))
    except TokenFileError:
        return Finding("tokens of another model are refused", "refused", fingerprint(changed) != tokenizer.fingerprint)
    return Finding("tokens of another model are refused", "decoded", False)


def bfloat16(tokenizer: Tokenizer) -> Finding | None:
    """The reconstruction in bf16 is that in fp32 except for rounding."""
    dtypes = (torch.float32, torch.bfloat16)
    twins = [Tokenizer(copy.deepcopy(tokenizer.model).to(dtype), tokenizer.name) for dtype in dtypes]
    return _same_image("fp32 = bf16 (between reconstructions)", twins, BF16_DB)


def accelerator(tokenizer: Tokenizer) -> Finding | None:
    """The CPU and this machine's accelerator give the same image in fp32; no line where there is none."""
    if not torch.accelerator.is_available():
        return None
    device = torch.accelerator.current_accelerator()
    twins = [Tokenizer(copy.deepcopy(tokenizer.model).float().to(where), tokenizer.name) for where in ("cpu", device)]
    return _same_image(f"cpu = {device} (fp32, between reconstructions)", twins, DEVICE_DB)


def neighbours(_: Tokenizer) -> Finding:
    """Threads that wait sleep, so that a busy process beside this one does not make it dear."""
    late = SPINNING and torch.get_num_threads() > 1
    figure = f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}"
    if late:
        figure = "torch was imported before atoken: import atoken first, or set OMP_WAIT_POLICY=PASSIVE"
    return Finding("threads that wait leave the cores to other processes", figure, not late)


def _before_the_quantiser(tokenizer: Tokenizer) -> Tokenizer:
    """The same model without rounding: a value on a rounding boundary may rightly fall on either side of it."""
    if tokenizer.model.quantiser is None:
        return tokenizer
    model = copy.deepcopy(tokenizer.model)
    model.quantiser, model.config.fsq_levels = None, None
    return Tokenizer(model, tokenizer.name)


def _same_image(guarantee: str, twins: list[Tokenizer], least: float) -> Finding:
    first, second = (_pixels(twin.decode(twin.encode(_image()))) for twin in twins)
    figure = psnr(first, second)
    return Finding(guarantee, f"{figure:.1f} dB, at least {least:.0f}", figure >= least)


def _numeric(guarantee: str, difference: float, tokenizer: Tokenizer) -> Finding:
    limit = FP32 if tokenizer.model.dtype == torch.float32 else BF16
    return Finding(guarantee, f"max difference {difference:.1e}, at most {limit:.0e}", difference <= limit)


def _difference(first: torch.Tensor | None, second: torch.Tensor | None) -> float:
    """The largest difference, relative to the largest of the second where that is above 1."""
    if first is None or second is None:
        return float("inf")
    difference = float((first - second).abs().max()) / max(1.0, float(second.abs().max()))
    return float("inf") if math.isnan(difference) else difference  # max() skips a NaN


def _image() -> Image:
    return Image(make_image(0, 0, 45, 70).frames[0])


def _video() -> Video:
    return Video(make_video(0, 0, 37, 33, 48).frames)


def _pixels(media: Image | Video | Gaussians) -> np.ndarray:
    assert not isinstance(media, Gaussians)
    return media.pixels if isinstance(media, Image) else media.frames
