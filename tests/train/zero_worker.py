"""Groups of ranks for the tests of the ZeRO engine: ``python -m tests.train.zero_worker FOLDER``, by test_zero.py.

DeepSpeed is imported once; each group of one or two ranks is forked from here, so that a rank can be killed.
"""

import gc
import json
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import distributed

from atoken.errors import AtokenError
from atoken.pretrain import losses
from atoken.pretrain.batches import Batch
from atoken.pretrain.crops import SurfaceTargets
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage, Task, Term
from atoken.tokens import SparseTokens
from atoken.train import checkpoints, zero
from atoken.train.engine import PlainEngine
from atoken.train.loop import run
from atoken.train.recipe import Recipe
from atoken.train.zero import ZeroEngine
from tests.model.sizes import small_model
from tests.train.flow import RECIPE, Flow, Shapes, export
from tests.train.kept import saved
from tests.train.test_watch import evaluate

LEVELS, WORLDS = (0, 1, 2, 3), (1, 2)
SAVED = 6  # step of the checkpoint that changes hands
SOURCES = {
    "one task a step": Shapes(),
    "two tasks a step": Shapes((("ring", "cross"),)),
    "not finite": Shapes(not_finite=(4, 7)),
}
# When a rank is killed: in a call of a function, of which ZeRO stage, on how many ranks, and which of them.
KILLS = [
    ("train", PlainEngine, 2, 0, 2, 1),
    ("train", PlainEngine, 5, 1, 2, 0),
    ("train", PlainEngine, 8, 2, 2, 1),
    ("train", PlainEngine, 11, 3, 2, 0),
    ("train", PlainEngine, 4, 3, 1, 0),
    ("save_file", checkpoints, 1, 3, 2, 1),
    ("save_file", checkpoints, 2, 3, 2, 1),
    ("save_file", checkpoints, 2, 2, 2, 0),
    ("rename", checkpoints.Path, 2, 1, 2, 0),
    ("ema_weights", ZeroEngine, 1, 0, 2, 0),
]


def go(engine, source, until=RECIPE.steps):
    """Train on to a step; the rows."""
    return [
        engine.train([source.batch(key) for key in source.keys(step)[engine.rank :: engine.world]])
        for step in range(engine.step, until)
    ]


# The tokenizer, whose pooling head is read outside of any module's forward pass, and whose parts idle in turn


def pooled(step):
    return step.encoded.pooled.square().mean()


def patches(step):
    """Smooth, as the other terms here: where an absolute difference is near zero, rounding decides on its gradient."""
    return (step.decoded.feats.float() - step.inputs.feats).square().mean()


def colors(step):
    """Of the Gaussians."""
    return (step.gaussians.colors - step.surface.colors).square().mean()


TASKS = {
    "image": Task("image", (Term(patches, 1.0), Term(losses.kl, 1e-3))),
    "video": Task("video", (Term(patches, 1.0), Term(pooled, 0.1))),
    "surface": Task("surface", (Term(colors, 1.0),)),
}
# A bias of keys has no gradient but by rounding, and Adam would make of that a step like any other.
FROZEN = ("decoder.position.", "encoder.blocks.0.attention.qkv.bias")
TOKENIZER = Stage(
    "zero", "nano", TASKS, dict.fromkeys(TASKS, 1), encoder_lr=0.5, frozen=FROZEN,
    recipe=Recipe(steps=6, warmup=2, lr=3e-4, weight_decay=0.1, ema=0.9, mixed_precision=False),
)  # fmt: skip


def tokenizer():
    sizes = {"width": 48, "layers": 1, "heads": 4, "mlp": 64}
    return Objective(small_model(encoder_layers=1, decoder_layers=1, gaussian_decoder=sizes), TOKENIZER)


def tokens_of(generator, values, *shapes):
    grids = [torch.cartesian_prod(*(torch.arange(side) for side in (*shape, 1))).int() for shape in shapes]
    coords = torch.cat(grids)
    feats = torch.rand(len(coords), values, generator=generator) * 2 - 1
    return SparseTokens(feats, coords, tuple(len(grid) for grid in grids))


class Media:
    """All three tasks in a step: images, a video of two tiles, and voxels, which leave the tokenizer idle."""

    def keys(self, step):
        return [(task, step, number) for task in TASKS for number in (0, 1)]

    def batch(self, key):
        task, step, number = key
        generator = torch.Generator().manual_seed(1000 * step + number)
        if task == "image":
            return Batch(task, tokens_of(generator, 768, (1, 3, 2), (1, 1, 4)))
        if task == "video":
            return Batch(task, tokens_of(generator, 3072, (5, 1, 2)))
        points, colors = torch.rand(2, 8 * 32, 3, generator=generator) - 0.5
        everywhere = torch.ones(len(points), dtype=torch.bool)
        targets = SurfaceTargets(points, colors, everywhere, everywhere)
        return Batch(task, tokens_of(generator, 768, (1, 4, 2)), targets=targets)


# What a rank does


def twins(folder, level, rank, world):
    """Runs to compare with those of the plain engine, their rows and last checkpoints."""
    for name, source in SOURCES.items():
        engine = ZeroEngine(Flow(), RECIPE, "cpu", level)
        report(folder / f"{name} {level} {world}", engine, go(engine, source))
    engine = ZeroEngine(Flow(), replace(RECIPE, mixed_precision=True), "cpu", level)
    report(folder / f"bf16 {level} {world}", engine, go(engine, SOURCES["two tasks a step"], until=3))
    engine = ZeroEngine(tokenizer(), TOKENIZER.recipe, "cpu", level)
    report(folder / f"tokenizer {level} {world}", engine, go(engine, Media(), TOKENIZER.recipe.steps))
    refusals(folder, level, rank, world)


def report(folder, engine, found):
    saved(engine, folder)
    weights = engine.ema_weights()
    if engine.rank == 0:
        (folder / "rows.json").write_text(json.dumps(found))
        export(weights, folder)
    engine.engine.destroy()


def resumed(folder, level, rank, world, start, name, until=RECIPE.steps):
    """Resume from the checkpoint in ``start``, whoever wrote it."""
    engine = ZeroEngine(Flow(seed=1), RECIPE, "cpu", level, checkpoints.Checkpoints(start).newest())
    report(folder / name, engine, go(engine, SOURCES["one task a step"], until))


def refusals(folder, level, rank, world):
    """What is said where ranks disagree: on the task, and on the layout."""
    said, ring = [], Shapes().batch(("ring", 0, 0))
    for other in (Shapes().batch(("cross", 0, 0)), replace(ring, rows=ring.rows[:8])):
        engine = ZeroEngine(Flow(), RECIPE, "cpu", level)
        try:
            engine.train([other if rank else ring])
            said.append(None)
        except AtokenError as error:
            said.append(str(error))
        engine.engine.destroy()
    (folder / f"refusals {level} {world} {rank}.json").write_text(json.dumps(said))


def whole_run(folder, level, rank, world, name, kill=None, victim=None):
    """By the loop; the rank ``victim`` dies before the call ``kill``."""
    if rank == victim:
        function, home, calls = kill
        plain, count = getattr(home, function), iter(range(1, 1000))

        def dies(*arguments, **options):
            if next(count) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*arguments, **options)

        setattr(home, function, dies)
    run(
        Flow(), RECIPE, Shapes(), folder / name, export=export, evaluate=evaluate, zero=level, save_every=3,
        evaluate_every=6,
    )  # fmt: skip


def write_modules(folder):
    (folder / "modules.json").write_text(json.dumps(list(sys.modules)))


# Groups


def group(folder, world, *works, mortal=False):
    """Fork so many ranks, and let each do its works; where one dies, the others are killed, as launchers do."""
    meeting = folder / "meeting"
    meeting.unlink(missing_ok=True)
    ranks = {}
    for rank in range(world):
        process = os.fork()
        if not process:
            _rank(meeting, rank, world, works)
        ranks[process] = rank
    failed = False
    while ranks:
        process, status = os.wait()
        ranks.pop(process)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    if failed != mortal:
        sys.exit("A rank failed, or one that should be killed lives on.")


def _rank(meeting, rank, world, works):
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        for work in works:
            work(rank=rank, world=world)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, it must not go on in the forked copy of the parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(folder):
    torch.set_num_threads(1)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    zero.KEPT_WHOLE = 100  # so that ZeRO-3 cuts up some parameters and keeps others
    group(folder, 1, partial(whole_run, folder, 3, name="first"), lambda **_: write_modules(folder))
    for name in json.loads((folder / "modules.json").read_text()):  # imported here, they are there in all that follow
        with suppress(Exception):
            import_module(name)
    gc.freeze()  # DeepSpeed collects garbage for each engine
    for level in LEVELS:
        for world in WORLDS:
            shared = partial(resumed, folder, level)
            works = [
                partial(twins, folder, level),
                partial(shared, start=folder / "plain", name=f"from plain {level} {world}"),
                partial(shared, start=folder / "plain", name=f"half way {level} {world}", until=SAVED + 3),
                partial(shared, start=folder / f"half way {level} {world}", name=f"on the same {level} {world}"),
                partial(whole_run, folder, level, name=f"whole {level} {world}"),
            ]
            if world == 2:
                works.append(partial(shared, start=folder / f"half way {level} 1", name=f"from one to two {level}"))
            group(folder, world, *works)
        group(folder, 1, partial(shared, start=folder / f"half way {level} 2", name=f"from two to one {level}"))
    for number, (function, home, calls, level, world, victim) in enumerate(KILLS):
        work = partial(whole_run, folder, level, name=f"killed {number}")
        group(folder, world, partial(work, kill=(function, home, calls), victim=victim), mortal=True)
        group(folder, world, work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
