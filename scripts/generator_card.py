"""The README of a bundled generator, a model card: what its run recorded, and who made its data."""

import json
from pathlib import Path

from atoken.pretrain.data_file import read_data
from generation.masked_ar import MaskedAR
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.pipelines.text_to_video import TextToVideoPipeline
from scripts.model_card import credited, minutes, rendered, trained_steps

PATCH = 16  # pixels


def generator_card(run: Path, name: str, pipeline: ClassToImagePipeline, data_file: Path) -> str:
    """The card of the pipeline that ``run`` left, whose store was made of ``data_file``.

    Raises: AtokenError (data that were trained on are no longer where they were).
    """
    origins = read_data(data_file, ()).tables["image"].values()
    shards = {("shards", origin.shards, "image"): {"images"} for origin in origins if origin.shards}
    started = json.loads((run / "start-000000.json").read_text())
    config, of_codes = pipeline.config, isinstance(pipeline.transformer, MaskedAR)
    side = pipeline.transformer.config.side
    return rendered(
        "generator_card.md.jinja", name=name, kind="TokenBridge" if of_codes else "Lightning-DiT", side=PATCH * side,
        tokens=side**2, classes=len(config.labels), labels=config.labels, tokenizer=config.tokenizer,
        fingerprint=config.fingerprint, weights=sum(weight.numel() for weight in pipeline.transformer.parameters()),
        steps=trained_steps(run), minutes=minutes(run), started=started,
        samples=started["generator"]["samples"] * started["generator"]["micro_batches"],
        figures=sum(origin.items or 0 for origin in origins), data=credited(shards)[0],
    )  # fmt: skip


def video_card(run: Path, name: str, pipeline: TextToVideoPipeline) -> str:
    """The card of the pipeline that ``run`` left, which began with the images of another."""
    config, started = pipeline.config, json.loads((run / "start-000000.json").read_text())
    return rendered(
        "video_card.md.jinja", name=name, size=config.sample_size, tokenizer=config.tokenizer,
        fingerprint=config.fingerprint, weights=sum(weight.numel() for weight in pipeline.transformer.parameters()),
        steps=trained_steps(run), minutes=minutes(run), started=started, items=started["store"]["items"],
        tokens=started["generator"]["tokens"] * started["generator"]["micro_batches"],
    )  # fmt: skip
