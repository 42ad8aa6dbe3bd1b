"""Vectors of media and texts: ``embed``, ``classify``, and what ``search`` compares; token files hold them already."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atoken.atomic import Target, atomic_path
from atoken.cli import console
from atoken.errors import AtokenError, MediaError
from atoken.io import VideoReader
from atoken.io.contents import TILE
from atoken.io.token_checks import check_model
from atoken.io.token_file import TokenFile
from atoken.modalities import MODALITIES
from atoken.tokenizer import Tokenizer

Vector = tuple[str, Tensor]  # what a vector is of, and the unit vector (D,)


def embed(options: argparse.Namespace) -> int:
    """Vectors of media and texts to a NumPy file: ``names`` (N,) and ``vectors`` (N, D) float32."""
    tokenizer = console.tokenizer(options)
    found, failed = found_in(tokenizer, options)
    found += zip(options.text, tokenizer.embed_text(options.text) if options.text else [], strict=True)
    if not found:
        raise AtokenError(f"None of the inputs could be embedded; {options.out} was not written.")
    names, vectors = [name for name, _ in found], torch.stack([vector for _, vector in found]).numpy()
    _write(console.target(options.out), names, vectors)
    plain = [{"name": name, "vector": vector.tolist()} for name, vector in found]
    console.say(["name", "values"], [[name, f"{vectors.shape[1]}"] for name in names], options, plain)
    return failed


def classify(options: argparse.Namespace) -> int:
    """The label that fits each file best, and how likely it is that they belong together."""
    tokenizer = console.tokenizer(options)
    labels = tokenizer.embed_text(options.labels)
    found, failed = found_in(tokenizer, options)
    lines, plain = [], []
    for name, vector in found:
        logits = tokenizer.logits(vector[None], labels)[0]
        order = logits.argsort(descending=True, stable=True).tolist()
        chances = logits.sigmoid().tolist()
        lines.append([name, options.labels[order[0]], f"{chances[order[0]]:.1%}"])
        plain.append({"name": name, "labels": [{"label": options.labels[i], "logit": float(logits[i]),
                                               "probability": chances[i]} for i in order]})  # fmt: skip
    console.say(["name", "label", "probability"], lines, options, plain)
    return failed


def found_in(tokenizer: Tokenizer, options: argparse.Namespace) -> tuple[list[Vector], int]:
    """Vectors of all inputs that can be read, and the exit code."""

    def kept(file: str) -> list[Vector]:
        # Copies: a small vector among what an input leaves behind keeps the memory of that from being given back.
        return [(name, vector.clone()) for name, vector in vectors_of(tokenizer, file, options)]

    found, failed = console.each(console.inputs(options), kept, options)
    return [one for vectors in found for one in vectors], failed


def vectors_of(tokenizer: Tokenizer, file: str, options: argparse.Namespace) -> list[Vector]:
    """The vector of a file, or those of a token file's items."""
    source = console.source(file)
    if Path(file).suffix == ".atok" or (isinstance(source, bytes) and source.startswith(b"ATOK")):
        return _stored(tokenizer, file, options)
    media = console.media(file, options)
    with media if isinstance(media, VideoReader) else nullcontext(media) as opened:
        if options.pool == "frames" and isinstance(opened, VideoReader):
            tiles = None if opened.expected_frames is None else -(-opened.expected_frames // TILE)
            with console.layers(tokenizer.model.encoder, "encode", tiles, options):
                return [(file, tokenizer.embed_frames(opened, max_side=options.max_side))]
        *_, last = console.encoded(tokenizer, opened, file, options)
        return [(file, tokenizer.embed(last))]


def _stored(tokenizer: Tokenizer, file: str, options: argparse.Namespace) -> list[Vector]:
    """No pixel is read, and no token. Raises: TokenFileError for another model's; AtokenError for vectors of frames."""
    with TokenFile(console.source(file)) as tokens:
        if options.pool == "frames" and any(MODALITIES[item.modality].read_frames for item in tokens.items):
            raise AtokenError(f"{file} holds the vectors of whole videos; pass the videos for --pool frames.")
        found = []
        for index, item in enumerate(tokens.items):
            check_model(item, tokenizer.fingerprint, tokenizer.name)
            found.append((f"{file}:{item.name or index}", tokens.vector(index)))
    return found


def _write(target: Target, names: list[str], vectors: np.ndarray) -> None:
    """Write the file atomically. Raises: MediaError."""
    with atomic_path(target, MediaError) as temporary, temporary.open("wb") as file:
        np.savez(file, names=np.array(names), vectors=vectors)
