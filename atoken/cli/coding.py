"""Media to token files and back; videos stream in constant memory."""

from __future__ import annotations

import argparse
import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from atoken.cli import console
from atoken.errors import AtokenError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video, VideoReader
from atoken.io.contents import TILE, Item
from atoken.io.token_file import TokenFile, TokenFileWriter, Tokens, read_items
from atoken.media.clock import clock_slack
from atoken.modalities import MODALITIES
from atoken.presets import BUNDLED, PRESETS
from atoken.tokenizer import Tokenizer


def encode(options: argparse.Namespace) -> int:
    """All files to one token file, item by item."""
    if options.out is None and len(options.files) > 1:
        raise AtokenError("Several inputs go into one token file: name it with -o set.atok.")
    target = Path(options.out or Path(options.files[0]).with_suffix(".atok").name)
    tokenizer = console.tokenizer(options)
    with TokenFileWriter(target) as writer:
        done, failed = console.each(options.files, lambda file: add(tokenizer, writer, file, options))
        if not done:
            raise AtokenError(f"None of the inputs could be encoded; {target} was not written.")
    return _describe(target, options) or failed


def add(tokenizer: Tokenizer, writer: TokenFileWriter, file: str, options: argparse.Namespace) -> None:
    """Encode one file, and append it to a token file. Raises: AtokenError."""
    media = console.media(file, options)
    if isinstance(media, VideoReader):
        with media as reader:
            pieces = tokenizer.encode_stream(reader, fps=options.fps)
            slack = float(clock_slack(reader.info.time_base))
            shown = console.progress(pieces, reader.expected_frames, "encode")
            writer.add(shown, dtype=options.latents, clock_slack=slack)
        return
    tokens = tokenizer.encode(media, coarsen=options.coarsen)
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
        done, failed = console.each(jobs, lambda job: write_item(tokenizer, tokens, *job, frames=options.frames))
    console.say(["wrote"], [[str(path)] for path in done], options, [str(path) for path in done])
    return failed


def _decode_targets(tokens: TokenFile, chosen: list[int], options: argparse.Namespace) -> list[Path]:
    if _names_media(options.out):
        if len(chosen) > 1:
            raise AtokenError(f"{options.file} holds {len(chosen)} items; give a folder with -o, or one --item.")
        return [Path(options.out)]
    out = console.folder(options.out)
    items = [tokens.items[index] for index in chosen]
    names = console.unique(item.name or f"item-{index}" for index, item in zip(chosen, items, strict=True))
    return [result_path(out / name, item) for name, item in zip(names, items, strict=True)]


def _names_media(path: str) -> bool:
    """Whether a path names an image, a video or Gaussians, also in a format that we do not write, and not a folder."""
    kind = mimetypes.guess_type(path)[0] or ""
    return kind.startswith(("image/", "video/")) or Path(path).suffix.lower() == ".ply"


def result_path(target: Path, item: Item) -> Path:
    """A target with the suffix of its modality behind its name."""
    return target.with_name(target.name + MODALITIES[item.modality].suffix)


def write_item(
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
    console.say(head, cells, options, plain)
    return 0
