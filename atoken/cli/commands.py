"""Commands for training, this machine, and foreign weights."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atoken.cli import console
from atoken.errors import AtokenError, CheckpointError
from atoken.presets import folder_of
from atoken.pretrain.stages import Stage
from atoken.text import TextTokenizer


def train(options: argparse.Namespace) -> int:
    """Stages of training, or what they would take, or a page that shows its runs."""
    if options.task == "report":
        from atoken.train.report import report

        console.out(str(report(options.runs, options.out)))
        return 0
    from atoken.pretrain import command
    from atoken.train.run_folder import rank_of_launch

    stages = command.chosen(options.preset, options.stage, options.changes, options.teachers)
    if options.plan:
        return _plan(stages, options)
    models = command.train(
        stages, console.folder(options.out), data=options.data, start=options.start and folder_of(options.start),
        teachers=options.teachers, device=options.device, workers=options.workers, zero=options.zero,
        evaluate_every=options.evaluate_every,
    )  # fmt: skip
    for stage, model in zip(stages, models, strict=True):
        if rank_of_launch() == 0:
            console.out(f"{stage.name}: {model}")
            if said := command.measured(model.parent):
                console.out(f"{stage.name}: {said}")
    return 0


def _plan(stages: list[Stage], options: argparse.Namespace) -> int:
    from atoken.pretrain.plan import plan

    for stage in stages:
        for table in plan(stage, gpus=options.gpus, gpu=options.gpu, mfu=options.mfu).tables():
            console.out(console.columns(table) + "\n")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Run the guarantees on this machine and this model."""
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
    from atoken.tokenizer import Tokenizer

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
    Tokenizer(model, source.stem, texts).save_pretrained(options.out)
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


def fetch(options: argparse.Namespace) -> int:
    """Foreign weights and data into the cache; without a name, what there is."""
    from atoken.fetch import FETCHABLES
    from atoken.fetch import fetch as bring

    if options.source and len(options.names) != 1:
        raise AtokenError("--from names the archive of one NAME; give exactly one.")
    for name in options.names or FETCHABLES:
        if one := FETCHABLES.get(name):
            there = " It is in the cache." if one.is_there() else ""
            console.out(f"{name}: {one.what}. Licence: {one.licence}. Download: {one.megabytes} MB.{there}")
        for path in bring(name, options.source) if options.names else ():
            console.out(str(path))
    return 0
