"""``atoken stats``: mean and deviation of each latent channel over data, tile by tile, in constant memory."""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from atoken.cli import console
from atoken.errors import AtokenError
from atoken.io import VideoReader
from atoken.pretrain.curriculum import NANO_TASKS
from atoken.pretrain.datasets import generated
from atoken.pretrain.packing import budgets
from atoken.statistics import ALL, NAME, Measured, Sums
from atoken.tokenizer import Tokenizer
from atoken.tokens import SparseTokens

PROCEDURAL = "procedural"
TASKS = {"image": "image", "video": "video", "asset": "asset-text"}  # of nano's training: sizes of generated samples


def stats(options: argparse.Namespace) -> int:
    """A table of the statistics of each modality and of all together, or the contents of ``latents.json``."""
    tokenizer = console.tokenizer(options)
    if options.files == [PROCEDURAL]:
        sums, failed = {modality: _generated(tokenizer, modality, options) for modality in TASKS}, 0
        data = f"{PROCEDURAL}, seed {options.seed}"
    else:
        sums, failed = _read(tokenizer, options)
        data = ", ".join(options.files)
    if not sums:
        raise AtokenError("None of the inputs could be encoded; there is nothing to measure.")
    latents = {ALL: sum(sums.values(), start=Sums(tokenizer.model.config.latent_channels)), **sums}
    measured = Measured(data, tokenizer.fingerprint, {name: one.statistics() for name, one in latents.items()})
    if options.out:
        folder = Path(options.out).is_dir()
        measured.save(Path(options.out) / NAME if folder else console.target(options.out))
    head, *rows = _table(measured)
    console.say(head, rows, options, asdict(measured))
    return failed


def _table(measured: Measured) -> list[list[str]]:
    """A line for each channel: mean and deviation of each modality."""
    found = measured.latents.values()
    counts = [[what, *(f"{getattr(one, what):,}" for one in found)] for what in ("samples", "tokens")]
    channels = zip(*(zip(one.mean, one.std, strict=True) for one in found), strict=True)
    rows = ([str(channel), *(f"{m:.4f} ± {s:.4f}" for m, s in row)] for channel, row in enumerate(channels))
    return [["channel", *measured.latents], *rows, *counts]


@torch.inference_mode()
def _generated(tokenizer: Tokenizer, modality: str, options: argparse.Namespace) -> Sums:
    """Samples of the sizes that nano is trained on, from one series of the generator, until there are enough tokens."""
    name, sums = TASKS[modality], Sums(tokenizer.model.config.latent_channels)
    with console.progress(options.tokens, modality, "tokens", options) as shown:
        number = 0
        while sums.tokens < options.tokens:
            batch = budgets(NANO_TASKS[name], options.seed, name, number)
            samples = [generated(NANO_TASKS[name], budget, options.seed, "mixed").tokens for budget in batch]
            latents = tokenizer.model.encode(SparseTokens.pack(samples).to(tokenizer.device)).latents.feats
            sums.add(latents, len(samples))
            shown.update(len(latents))
            number += 1
    return sums


def _read(tokenizer: Tokenizer, options: argparse.Namespace) -> tuple[dict[str, Sums], int]:
    """Sums of each modality over the files that can be read, and exit code 1 if some cannot."""
    found, failed = console.each(console.inputs(options), partial(_encoded, tokenizer, options=options), options)
    sums: dict[str, Sums] = defaultdict(partial(Sums, tokenizer.model.config.latent_channels))
    for modality, one in found:
        sums[modality] += one
    return sums, failed


def _encoded(tokenizer: Tokenizer, file: str, options: argparse.Namespace) -> tuple[str, Sums]:
    media, sums = console.media(file, options), Sums(tokenizer.model.config.latent_channels)
    with media if isinstance(media, VideoReader) else nullcontext(media) as opened:
        for piece in console.encoded(tokenizer, opened, file, options):
            sums.add(piece.latents, samples=int(piece.first_frame == 0))
    return piece.modality, sums
