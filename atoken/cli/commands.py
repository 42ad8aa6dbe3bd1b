"""What the commands do; each takes the parsed options and gives an exit code. Videos stream in constant memory."""

from __future__ import annotations

import argparse
import json
import math
import mimetypes
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from safetensors import SafetensorError

from atoken.cli import console
from atoken.cli.compare import Comparison, Originals
from atoken.errors import AtokenError, CheckpointError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video, load_media, sniff
from atoken.io.contents import TILE, Item
from atoken.io.token_file import TokenFile, TokenFileWriter, Tokens, read_items
from atoken.media.clock import clock_slack
from atoken.metrics.pixels import psnr_of
from atoken.modalities import MODALITIES
from atoken.presets import BUNDLED, PRESETS, folder_of
from atoken.pretrain.stages import Stage
from atoken.text import TextTokenizer
from atoken.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of ``reconstruct``'s table.

    PSNR is of the mean squared error over all frames, SSIM the mean of them; of an asset over views from all around, on
    black. Bits per pixel are None for an asset.
    ``bytes`` is the whole token file. Encode seconds: reading, encoding and writing tokens; decode seconds: reading
    tokens, decoding and writing the result.
    """

    file: str
    size: str
    tokens: int
    bytes: int
    bits_per_pixel: float | None
    psnr: float
    ssim: float
    encode_seconds: float
    decode_seconds: float

    def cells(self) -> list[str]:
        """For a person."""
        bits = "-" if self.bits_per_pixel is None else f"{self.bits_per_pixel:.3f}"
        quality = [bits, f"{self.psnr:.2f}", f"{self.ssim:.4f}"]
        seconds = [f"{self.encode_seconds:.2f}", f"{self.decode_seconds:.2f}"]
        return [self.file, self.size, f"{self.tokens:,}", f"{self.bytes:,}", *quality, *seconds]

    def plain(self) -> dict[str, Any]:
        """As JSON has it: an infinite PSNR is null."""
        return asdict(self) | {"psnr": self.psnr if math.isfinite(self.psnr) else None}


HEAD = ["file", "size", "tokens", "bytes", "bits/pixel", "PSNR dB", "SSIM", "encode s", "decode s"]


def reconstruct(options: argparse.Namespace) -> int:
    """Every file to a token file and back; a table of figures, the results, and side-by-side images."""
    tokenizer, out = console.tokenizer(options), console.folder(options.out)
    jobs = list(zip(options.files, console.unique(Path(file).name for file in options.files), strict=True))
    rows, failed = console.each(jobs, lambda job: _reconstruct(tokenizer, job[0], out / job[1], options))
    console.say(rows, [HEAD, *(row.cells() for row in rows)], options, [row.plain() for row in rows])
    return failed


def _reconstruct(tokenizer: Tokenizer, file: str, target: Path, options: argparse.Namespace) -> Row:
    token_file = target.with_name(f"{target.name}.atok")
    start = perf_counter()
    with TokenFileWriter(token_file) as writer:
        _add(tokenizer, writer, file, options)
    encoded = perf_counter()
    originals = Originals(
        console.reader(file, options)
        if sniff(file).modality.read_frames
        else load_media(file, limits=console.limits(options))
    )
    with TokenFile(token_file) as tokens, originals as frames:
        item = tokens.items[0]
        comparison = Comparison(frames, originals.cameras)
        _write_item(tokenizer, tokens, 0, _result_path(target, item), seen=comparison.add)
    decode_seconds = perf_counter() - encoded - comparison.seconds
    Image(comparison.side_by_side).save(target.with_name(f"{target.name}.compare.png"))
    stored, modality = token_file.stat().st_size, MODALITIES[item.modality]
    return Row(
        file=file,
        size=modality.shown(item.size, item.frames),
        tokens=item.tokens,
        bytes=stored,
        bits_per_pixel=None if modality.sparse else 8 * stored / (item.size[0] * item.size[1] * item.frames),
        psnr=psnr_of(comparison.error),
        ssim=comparison.similarity,
        encode_seconds=encoded - start,
        decode_seconds=decode_seconds,
    )


def encode(options: argparse.Namespace) -> int:
    """All files to one token file, item by item."""
    if options.out is None and len(options.files) > 1:
        raise AtokenError("Several inputs go into one token file: name it with -o set.atok.")
    target = Path(options.out or Path(options.files[0]).with_suffix(".atok").name)
    tokenizer = console.tokenizer(options)
    with TokenFileWriter(target) as writer:
        done, failed = console.each(options.files, lambda file: _add(tokenizer, writer, file, options))
        if not done:
            raise AtokenError(f"None of the inputs could be encoded; {target} was not written.")
    return _describe(target, options) or failed


def _add(tokenizer: Tokenizer, writer: TokenFileWriter, file: str, options: argparse.Namespace) -> None:
    if sniff(file).modality.read_frames:
        with console.reader(file, options) as reader:
            pieces = console.progress(
                tokenizer.encode_stream(reader, fps=options.fps), reader.expected_frames, "encode"
            )
            slack = float(clock_slack(reader.info.time_base))
            writer.add(pieces, dtype=options.latents, clock_slack=slack)
        return
    tokens = tokenizer.encode(load_media(file, limits=console.limits(options)), coarsen=options.coarsen)
    writer.add(replace(tokens, name=Path(file).name), dtype=options.latents)


def decode(options: argparse.Namespace) -> int:
    """Items of a token file to images, videos and Gaussians."""
    if options.model is None:
        named = read_items(options.file)[0].model
        options.model = named if named in PRESETS and (BUNDLED / named).is_dir() else "nano"
    tokenizer = console.tokenizer(options)
    with TokenFile(options.file) as tokens:
        chosen = options.item or range(len(tokens))
        for index in chosen:
            if not 0 <= index < len(tokens):
                raise AtokenError(f"{options.file} has no item {index}; it holds 0 to {len(tokens) - 1}.")
        jobs = list(zip(chosen, _decode_targets(tokens, list(chosen), options), strict=True))
        done, failed = console.each(jobs, lambda job: _write_item(tokenizer, tokens, *job, frames=options.frames))
    console.say(done, [["wrote"], *([str(path)] for path in done)], options, [str(path) for path in done])
    return failed


def _decode_targets(tokens: TokenFile, chosen: list[int], options: argparse.Namespace) -> list[Path]:
    if _names_media(options.out):
        if len(chosen) > 1:
            raise AtokenError(f"{options.file} holds {len(chosen)} items; give a folder with -o, or one --item.")
        return [Path(options.out)]
    out = console.folder(options.out)
    items = [tokens.items[index] for index in chosen]
    names = console.unique(item.name or f"item-{index}" for index, item in zip(chosen, items, strict=True))
    return [_result_path(out / name, item) for name, item in zip(names, items, strict=True)]


def _names_media(path: str) -> bool:
    """Whether a path names an image, a video or Gaussians, also in a format that we do not write, and not a folder."""
    kind = mimetypes.guess_type(path)[0] or ""
    return kind.startswith(("image/", "video/")) or Path(path).suffix.lower() == ".ply"


def _result_path(target: Path, item: Item) -> Path:
    return target.with_name(target.name + MODALITIES[item.modality].suffix)


def _write_item(
    tokenizer: Tokenizer,
    tokens: TokenFile,
    index: int,
    path: Path,
    *,
    frames: tuple[int | None, int | None] | None = None,
    seen: Callable[[Image | Video | Gaussians], None] = lambda _: None,
) -> Path:
    """Decode one item piece by piece into ``path``; ``seen`` gets every decoded piece before any video codec."""
    item = tokens.items[index]
    write_frames = MODALITIES[item.modality].write_frames
    if write_frames is None:
        media = tokenizer.decode(tokens.read(index))
        media.save(path)
        seen(media)
        return path
    first, last = _wanted_frames(item, frames)
    start = item.first_frame if tokenizer.model.config.cache_frames else first
    pieces = tokenizer.decode_stream(_pieces(tokens, index, start, last))
    with write_frames(path, item.fps or 24, size=item.size) as writer:
        at = start // TILE * TILE
        for video in console.progress(pieces, last - first, "decode"):
            keep = slice(max(first - at, 0), max(last - at, 0))
            if len(video.frames[keep]):
                writer.write(video.frames[keep], None if video.timestamps is None else video.timestamps[keep])
            seen(video)
            at += len(video.frames)
    return path


def _wanted_frames(item: Item, frames: tuple[int | None, int | None] | None) -> tuple[int, int]:
    """The first frame wanted and the one behind the last, counted over the whole video."""
    end = item.first_frame + item.frames
    first, last = frames or (None, None)
    first, last = item.first_frame if first is None else first, end if last is None else min(last, end)
    if not item.first_frame <= first < last:
        raise AtokenError(f"{item.name} has frames {item.first_frame} to {end - 1}; --frames selects none of them.")
    return first, last


def _pieces(tokens: TokenFile, index: int, first: int, last: int) -> Iterator[Tokens]:
    """The tiles that hold the frames from ``first`` to before ``last``, one by one."""
    for start in range(first // TILE * TILE, last, TILE):
        yield tokens.read(index, (start, min(start + TILE, last)))


def info(options: argparse.Namespace) -> int:
    """Say what a token file holds."""
    return _describe(Path(options.file), options)


def _describe(path: Path, options: argparse.Namespace) -> int:
    items = read_items(path)
    head = ["item", "name", "modality", "size", "fps", "tokens", "bytes", "stored as", "model"]
    cells = [
        [f"{i}", item.name, item.modality, MODALITIES[item.modality].shown(item.size, item.frames),
         f"{item.fps or '-'}", f"{item.tokens:,}", f"{item.stored_bytes:,}", item.dtype,
         f"{item.model} {item.fingerprint[:8]}"]
        for i, item in enumerate(items)
    ]  # fmt: skip
    plain = [
        {"name": item.name, "modality": item.modality, "height": item.size[0], "width": item.size[1],
         "frames": item.frames, "fps": None if item.fps is None else float(item.fps), "tokens": item.tokens,
         "bytes": item.stored_bytes, "stored_as": item.dtype, "model": item.model, "fingerprint": item.fingerprint}
        for item in items
    ]  # fmt: skip
    console.say(cells, [head, *cells], options, plain)
    return 0


def train(options: argparse.Namespace) -> int:
    """Stages of training, or what they would take, or a page that shows its runs."""
    if options.task == "report":
        from atoken.train.report import report

        console.out(str(report(options.runs, options.out)))
        return 0
    from atoken.pretrain import command

    stages = command.chosen(options.preset, options.stage, options.changes, options.teachers)
    if options.plan:
        return _plan(stages, options)
    models = command.train(
        stages, console.folder(options.out), data=options.data, start=options.start and folder_of(options.start),
        teachers=options.teachers, device=options.device, workers=options.workers, zero=options.zero,
        evaluate_every=options.evaluate_every,
    )  # fmt: skip
    for stage, model in zip(stages, models, strict=True):
        if command.speaks():
            console.out(f"{stage.name}: {model}")
    return 0


def _plan(stages: list[Stage], options: argparse.Namespace) -> int:
    from atoken.pretrain.plan import plan

    for stage in stages:
        for table in plan(stage, gpus=options.gpus, gpu=options.gpu, mfu=options.mfu).tables():
            console.say(table, table, options, [])
            console.out("")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Run the promises on this machine and this model."""
    from atoken.doctor import examine

    findings = []
    for finding in examine(console.tokenizer(options)):
        findings.append(finding)
        if not options.json:
            console.out(finding.line())
    if options.json:
        console.out(json.dumps([asdict(finding) for finding in findings], indent=1))
    return 0 if all(finding.passed for finding in findings) else 1


def convert(options: argparse.Namespace) -> int:
    """Foreign weights to a folder that ``atoken.load`` reads."""
    from atoken import checkpoint
    from atoken.presets import preset

    source = Path(options.source)
    if source.is_dir():
        try:
            config = preset(options.preset)
        except ValueError as error:
            raise AtokenError(str(error)) from error
        model = checkpoint.from_siglip2(_siglip2(source, "vision"), config)
    else:
        model = checkpoint.load_official(source, options.config, options.gaussians, options.gaussian_config)
    texts = None
    if options.text:
        model = checkpoint.with_text(model, _siglip2(Path(options.text), "text"))
        texts = TextTokenizer.load(options.text, model.text_length)
    _save(model, texts, console.folder(options.out))
    console.out(f"{options.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights")
    return 0


def _siglip2(folder: Path, side: str) -> Any:
    """One of the towers, "vision" or "text", of a folder of transformers."""
    from transformers import Siglip2TextModel, Siglip2VisionModel

    from atoken.checkpoint import load_transformers

    tower = {"vision": Siglip2VisionModel, "text": Siglip2TextModel}[side]
    try:
        return load_transformers(folder, {"siglip2": tower, f"siglip2_{side}_model": tower})
    except CheckpointError as error:
        raise CheckpointError(f"{folder} holds no SigLIP2 {side} tower: {error}.") from error


def _save(model: Any, texts: TextTokenizer | None, folder: Path) -> None:
    """Write a model, and the files of its text tokenizer, into ``folder``; nothing is left of them if that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as part:
            model.save_pretrained(part)
            if texts is not None:
                texts.save(part)
            for file in Path(part).iterdir():
                file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Cannot write {folder}: {reason}.") from error
