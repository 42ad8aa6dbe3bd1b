"""Media to token files and back; videos stream in constant memory."""

from __future__ import annotations

import argparse
import mimetypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoken.atomic import Target, called, is_written_into
from atoken.cli import console
from atoken.errors import AtokenError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video, VideoReader
from atoken.io.contents import TILE, Item
from atoken.io.token_file import TokenFile, TokenFileWriter, Tokens, read_items
from atoken.media.clock import clock_slack
from atoken.modalities import MODALITIES
from atoken.modalities.modality import Size
from atoken.tokenizer import Tokenizer


def encode(options: argparse.Namespace) -> int:
    """All files to one token file, item by item."""
    files = console.inputs(options)
    if options.out is None and (len(files) > 1 or files[0] in console.STDIN):
        raise AtokenError("Several inputs, or standard input, go into one token file: name it with -o set.atok.")
    target = console.target(options.out or Path(files[0]).with_suffix(".atok").name)
    tokenizer = console.tokenizer(options)
    with TokenFileWriter(target) as writer:
        done, failed = console.each(files, lambda file: add(tokenizer, writer, file, options), options)
        if not done:
            raise AtokenError(f"None of the inputs could be encoded; {called(target)} was not written.")
    _describe(writer.items, options, done)
    return failed


def add(tokenizer: Tokenizer, writer: TokenFileWriter, file: str, options: argparse.Namespace) -> Size | None:
    """Encode one file, and append it to a token file; height and width of the file, None for an asset.

    Raises: AtokenError.
    """
    media = console.media(file, options)
    if isinstance(media, VideoReader):
        with media as reader:
            pieces = console.encoded(tokenizer, reader, file, options)
            writer.add(pieces, dtype=options.latents, clock_slack=float(clock_slack(reader.info.time_base)))
        return reader.info.height, reader.info.width
    (tokens,) = console.encoded(tokenizer, media, file, options)
    writer.add(replace(tokens, name=console.plain_name(file)), dtype=options.latents)
    return media.pixels.shape[:2] if isinstance(media, Image) else None


def decode(options: argparse.Namespace) -> int:
    """Items of a token file to images, videos and Gaussians."""
    source = console.source(options.file)
    options.model = options.model or console.bundled(read_items(source)[0].model)
    tokenizer = console.tokenizer(options)
    with TokenFile(source) as tokens:
        chosen = options.item or range(len(tokens))
        for index in chosen:
            if not 0 <= index < len(tokens):
                raise AtokenError(f"{options.file} has no item {index}; it holds 0 to {len(tokens) - 1}.")
        jobs = list(zip(chosen, _decode_targets(tokens, list(chosen), options), strict=True))
        done, failed = console.each(
            jobs, lambda job: write_item(tokenizer, tokens, job[0], job[1], options, frames=options.frames), options
        )
    names = [called(target) for target in done]
    console.say(["wrote"], [[name] for name in names], options, names)
    return failed


def _decode_targets(tokens: TokenFile, chosen: list[int], options: argparse.Namespace) -> list[Target]:
    if _names_one(options.out):
        if len(chosen) > 1:
            raise AtokenError(f"{options.file} holds {len(chosen)} items; give a folder with -o, or one --item.")
        return [console.target(options.out)]
    out = console.folder(options.out)
    items = [tokens.items[index] for index in chosen]
    names = console.unique(item.name or f"item-{index}" for index, item in zip(chosen, items, strict=True))
    return [result_path(out / name, item) for name, item in zip(names, items, strict=True)]


def _names_one(path: str) -> bool:
    """Whether a path is no folder: an image, a video or Gaussians in whatever format, a device, a pipe, or ``-``."""
    media = (mimetypes.guess_type(path)[0] or "").startswith(("image/", "video/")) or path.lower().endswith(".ply")
    return media or path in console.STDOUT or is_written_into(path)


def result_path(target: Path, item: Item) -> Path:
    """A target with the suffix of its modality behind its name."""
    modality = MODALITIES[item.modality]
    return target.with_name(target.name + ((item.has_alpha and modality.alpha_suffix) or modality.suffix))


def write_item(
    tokenizer: Tokenizer,
    tokens: TokenFile,
    index: int,
    target: Target,
    options: argparse.Namespace,
    *,
    frames: tuple[int | None, int | None] | None = None,
    seen: Callable[[Image | Video | Gaussians], None] = lambda _: None,
) -> Target:
    """Decode one item piece by piece into ``target``; ``seen`` gets every decoded piece before any video codec."""
    item = tokens.items[index]
    write_frames = MODALITIES[item.modality].write_frames
    decoder = tokenizer.model.decoder
    if write_frames is None:
        console.estimate(decoder, f"decode {item.name or index}", item.tokens, 1, options)
        with console.layers(decoder, "decode", 1, options):
            media = tokenizer.decode(tokens.read(index))
        media.save(target)
        seen(media)
        return target
    first, last = _wanted_frames(item, frames)
    start = item.first_frame if tokenizer.model.config.cache_frames else first
    tiles = (last - start) / TILE
    console.estimate(decoder, f"decode {item.name or index}", round(item.tokens * TILE / item.frames), tiles, options)
    pieces = tokenizer.decode_stream(_pieces(tokens, index, start, last))
    with write_frames(target, item.fps or 24, size=item.size, alpha=item.has_alpha) as writer:
        at = start // TILE * TILE
        for video in console.watched(pieces, last - first, "decode", options):
            keep = slice(max(first - at, 0), max(last - at, 0))
            if len(video.frames[keep]):
                timed_and_alpha = (None if some is None else some[keep] for some in (video.timestamps, video.alpha))
                writer.write(video.frames[keep], *timed_and_alpha)
            seen(video)
            at += len(video.frames)
    return target


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
    _describe(read_items(console.source(options.file)), options)
    return 0


def _describe(items: Sequence[Item], options: argparse.Namespace, originals: Sequence[Size | None] = ()) -> None:
    """originals: the sizes of the files where some were scaled down, which their items do not know."""
    head = ["item", "name", "modality", "size", "fps", "tokens", "bytes", "stored as", "model"]
    cells = [
        [f"{i}", item.name, item.modality, MODALITIES[item.modality].shown(item.size, item.frames),
         f"{item.fps or '-'}", f"{item.tokens:,}", f"{item.stored_bytes:,}", item.dtype,
         f"{item.model} {item.fingerprint[:8]}"]
        for i, item in enumerate(items)
    ]  # fmt: skip
    plain: list[dict[str, Any]] = [
        {"name": item.name, "modality": item.modality, "height": item.size[0], "width": item.size[1],
         "frames": item.frames, "fps": None if item.fps is None else float(item.fps), "tokens": item.tokens,
         "bytes": item.stored_bytes, "stored_as": item.dtype, "model": item.model, "fingerprint": item.fingerprint}
        for item in items
    ]  # fmt: skip
    if any(size is not None and size != item.size for size, item in zip(originals, items, strict=False)):
        head.insert(4, "scaled from")
        for cell, row, size in zip(cells, plain, originals, strict=True):
            cell.insert(4, "-" if size is None else f"{size[1]}x{size[0]}")
            row["scaled_from"] = size
    console.say(head, cells, options, plain)
