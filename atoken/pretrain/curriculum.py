"""The stages themselves: the paper's four (Table 2, sections 3.3 to 3.5), and those of the bundled models.

What the paper leaves open is chosen in docs/recipe.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from atoken.pretrain import losses
from atoken.pretrain.stages import MATCHING, Stage, Task, Term
from atoken.train.recipe import Recipe

# The paper's weights: reconstruction 0.2 with L1 1, LPIPS 10, Gram 1e3 and CLIP 1 in it; semantics 1; KL 1e-8.
PATCHES = (Term(losses.l1, 0.2), Term(losses.kl, 1e-8))
IMAGES = (
    *PATCHES,
    Term(losses.lpips, 0.2 * 10, teacher="vgg"),
    Term(losses.gram, 0.2 * 1e3, teacher="vgg"),
    Term(losses.clip, 0.2, teacher="clip"),
)
SEMANTICS = (Term(losses.semantics, 1.0, teacher="siglip", texts=True),)
ALIGNMENT = (Term(losses.alignment, 1.0, texts=True),)

GAUSSIANS = ("gaussian_decoder.",)
TEXT = ("text_tower.",)
LOGITS = ("logit_",)


def paper(first_preset: str, continuous: str, discrete: str) -> Mapping[str, Stage]:
    """The four stages for presets of one size; 256 micro-batches a step are one for each GPU of the paper's cluster."""
    recipe = Recipe(
        steps=200_000, warmup=2000, lr=3e-4, final_lr=3e-5, weight_decay=0.1, ema=0.9999, checkpointing=True
    )
    image = Task("image", IMAGES, tokens=4096, micro_batches=256, patches=(16, 1024), sampled=True)
    captioned = Task("image", SEMANTICS, tokens=8192, micro_batches=256, patches=(256, 256))
    video = Task(
        "video", PATCHES, tokens=6144, micro_batches=256, patches=(16, 1024), length=(4, 8), sampled=True, stream="clip"
    )
    shown = Task(
        "video", ALIGNMENT, tokens=8192, micro_batches=256, patches=(64, 256), length=(4, 16), fps=1.0,
        stream="clip-text",
    )  # fmt: skip
    asset = Task("asset", PATCHES, tokens=16384, micro_batches=256, patches=(16384, 16384), sampled=True)
    first = Stage(
        "1", first_preset, {"image": image, "image-text": captioned}, {"image": 1}, auxiliary=("image-text",),
        encoder_lr=0.1, frozen=(*TEXT, *GAUSSIANS, *LOGITS), recipe=recipe,
    )  # fmt: skip
    second = replace(
        first, name="2", preset=continuous, start_from="1", frozen=(*TEXT, *GAUSSIANS), recipe=replace(recipe, seed=1),
        tasks={**first.tasks, "image": replace(image, tokens=8192, patches=(16, 4096)), "video-text": shown,
               "video": video},
        mixture={"image": 2, "video-text": 1, "video": 6},
    )  # fmt: skip
    larger = {
        "image": replace(image, tokens=16384, patches=(16, 16384)),
        "video": replace(video, tokens=16384, patches=(16, 4096)),
        "asset-text": replace(asset, terms=ALIGNMENT),
        "asset": asset,
    }
    third = replace(
        second, name="3", start_from="2", tasks={**second.tasks, **larger},
        mixture={"image": 2, "video-text": 1, "video": 4, "asset-text": 1, "asset": 1},
        recipe=replace(recipe, steps=50_000, seed=2),
    )  # fmt: skip
    fourth = replace(third, name="4", preset=discrete, start_from="3", recipe=replace(recipe, steps=100_000, seed=3))
    return MappingProxyType({stage.name: stage for stage in (first, second, third, fourth)})


SURFACE = (Term(losses.position, 1.0), Term(losses.color, 3.0), Term(losses.size, 1.0), Term(losses.opacity, 0.5))
COLORS = (Term(losses.position, 1.0), Term(losses.color, 10.0), Term(losses.size, 1.0), Term(losses.opacity, 0.5))

UNUSED = (*MATCHING, *GAUSSIANS)  # by patches alone
TOKENIZER = ("encoder.", "to_latent.", "decoder.", "to_patch.", *MATCHING)
# The start of nano-d is a code already. What writes and reads it has weights so large that a step of Adam would break
# it, and bf16 would teach the rest of the decoder to expect noise in the finest digits.
CODE = ("encoder.", "to_latent.", "decoder.inputs.", "decoder.position.", "decoder.blocks.0.", *GAUSSIANS)

# Far below the paper's weight: its gradient is so large that nano's encoder would else forget how to reconstruct.
MATCHED = (Term(losses.label_alignment, 0.02, texts=True),)
LIGHT = (Term(losses.label_alignment, 0.01, texts=True),)
# Off unless --set gives a weight: nano trains without anything fetched (docs/recipe.md).
SEEN = (Term(losses.stlpips, 0.0, teacher="stlpips"), Term(losses.stlpips_gram, 0.0, teacher="stlpips"))
# The random streams of videos and crops have the names under which the recorded runs drew from them.
NANO_TASKS = {
    # Four times the weight: videos and crops, whose errors are larger, would else decide what the code is.
    "image": Task("image", (Term(losses.l1, 0.8), Term(losses.kl, 1e-8), *SEEN), tokens=768),
    "image-text": Task("image", MATCHED, tokens=936, patches=(9, 36), aspect=2.0),  # 48 images
    "video": Task("video", PATCHES, patches=(16, 100), length=(1, 8), stream="clip"),
    # 24 videos
    "video-text": Task("video", MATCHED, tokens=756, patches=(9, 25), length=(1, 3), aspect=2.0, stream="clip-text"),
    "crop": Task("crop", PATCHES, stream="part"),
    # 4 assets on grids of 8 to 28 cells a side, so that what is learned of them holds at all 64.
    "asset-text": Task("asset", LIGHT, tokens=6144, patches=(512, 3072)),
    "surface": Task("surface", SURFACE, tokens=2048),
}
NANO_1 = Stage(
    "1", "nano", NANO_TASKS, {"image": 1}, auxiliary=("image-text",), frozen=(*GAUSSIANS, *TEXT),
    code_kept=True, recipe=Recipe(steps=1500, lr=1e-3, final_lr=5e-5),
)  # fmt: skip
NANO_2 = replace(
    NANO_1, name="2", start_from="1", mixture={"image": 2, "video-text": 1, "video": 4},
    recipe=replace(NANO_1.recipe, steps=600, lr=6e-4, seed=1),
)  # fmt: skip
# Larger ones, as the paper's third stage has.
LARGER = {
    "image": replace(NANO_TASKS["image"], tokens=1024, patches=(16, 1024)),
    "image-text": replace(NANO_TASKS["image-text"], tokens=2048, patches=(16, 100)),  # 44 images
    "video-text": replace(NANO_TASKS["video-text"], tokens=1152, patches=(9, 64)),  # 21 videos
}
NANO_3 = replace(
    NANO_2, name="3", start_from="2", mixture={"image": 8, "video-text": 2, "video": 4, "asset-text": 2, "crop": 1},
    tasks=NANO_TASKS | LARGER, frozen=GAUSSIANS,
    recipe=replace(NANO_2.recipe, steps=5000, final_lr=1e-5, seed=2),
)  # fmt: skip
NANO_SURFACE = Stage(
    "surface", "nano", NANO_TASKS, {"surface": 1}, start_from="3", frozen=TOKENIZER,
    recipe=Recipe(steps=500, warmup=50, lr=2e-3, muon=2.5, mixed_precision=False, seed=3),
)  # fmt: skip
NANO_COLORS = replace(
    NANO_SURFACE, name="colors", tasks=NANO_TASKS | {"surface": Task("surface", COLORS, tokens=2048)},
    start_from="surface", recipe=replace(NANO_SURFACE.recipe, warmup=30, lr=1.5e-3, final_lr=1e-5, seed=13),
)  # fmt: skip
NANO_4 = replace(
    NANO_3, name="4", preset="nano-d", start_from="colors", frozen=CODE,
    recipe=replace(NANO_3.recipe, steps=300, lr=4e-4, warmup=75, mixed_precision=False, seed=4),
)  # fmt: skip
NANO = (NANO_1, NANO_2, NANO_3, NANO_SURFACE, NANO_COLORS, NANO_4)
FINISHED = {stage.name: stage.preset for stage in (NANO_COLORS, NANO_4)}  # the last stage of each bundled model

CURRICULA: Mapping[str, Mapping[str, Stage]] = {
    "nano": {stage.name: stage for stage in NANO},
    "base": paper("base-s1", "base", "base-d"),
    "so400m-c": paper("so400m-c-s1", "so400m-c", "so400m-d"),
}


TUNE = "tune"


def tuning(stage: Stage, start_from: str, **sizes: Any) -> Stage:
    """A short stage on a user's own images, a tenth of which are held out to measure it.

    What knows texts stays as it is, and the encoder moves away from it.
    """
    image = replace(stage.tasks["image"], patches=(16, 1024), **sizes)
    return replace(
        stage, name=TUNE, start_from=start_from, tasks={"image": image}, mixture={"image": 1}, auxiliary=(),
        frozen=UNUSED, encoder_lr=1.0, held_out=0.1,
        recipe=replace(stage.recipe, steps=200, warmup=20, lr=2e-4, final_lr=1e-6, seed=5),
    )  # fmt: skip


FP32 = replace(NANO_3, recipe=replace(NANO_3.recipe, mixed_precision=False))  # bf16 is slow on most laptops
TUNING = {
    "nano": tuning(FP32, "colors", tokens=2048),
    **{preset: tuning(CURRICULA[preset]["3"], "3", tokens=4096, micro_batches=8) for preset in ("base", "so400m-c")},
}  # no part of a curriculum: each begins with a finished model
