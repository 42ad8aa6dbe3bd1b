"""One rank of the tests of the ZeRO engine: ``python -m tests.train.zero_worker FOLDER``, launched by test_zero.py.

What the ranks train on and how is here, too, so that the plain twin in the test's own process has the same.
"""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed

from atoken.errors import AtokenError
from atoken.pretrain import losses
from atoken.pretrain.batches import Batch
from atoken.pretrain.crops import SurfaceTargets
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage, Task, Term
from atoken.tokens import SparseTokens
from atoken.train import engine as engine_module
from atoken.train import zero
from atoken.train.engine import PlainEngine
from atoken.train.recipe import Recipe
from atoken.train.run_folder import RunFolder
from atoken.train.zero import ZeroEngine
from tests.model.sizes import small_model

STEPS, SAVED = 12, (3, 6)  # of a run, and where its checkpoints are
ZEROS = (0, 1, 2, 3)
ONE, THREE, NOT_FINITE = CASES = ("one task a step", "three as micro-steps", "not finite")
MEDIA = ("image", "video", "surface")
POISONED = (4, 8)  # steps, where they are not finite


def pooled(step):
    """A term that reads the pooling head, whose weights the model uses outside of any module's forward pass."""
    return step.encoded.pooled.square().mean()


def patches(step):
    """Smooth, as the other terms here: where an absolute difference is near zero, rounding decides on its gradient."""
    ours, theirs = step.decoded.feats[:, : step.values], step.inputs.feats[:, : step.values]
    return (ours.float() - theirs).square().mean()


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
STAGE = Stage("zero", "nano", TASKS, dict.fromkeys(TASKS, 1), encoder_lr=0.5, frozen=FROZEN)
ADAMW = Recipe(steps=STEPS, warmup=2, lr=3e-4, final_lr=1e-4, weight_decay=0.1, ema=0.9, mixed_precision=False)
SGD = replace(ADAMW, lr=0.1, final_lr=0.05)
RECIPES = {"sgd": SGD, "adamw": ADAMW}
TWINS = [("sgd", case) for case in CASES] + [("adamw", case) for case in (THREE, NOT_FINITE)]  # resumed runs are ONE


def objective():
    sizes = {"width": 48, "layers": 1, "heads": 4, "mlp": 64}
    return Objective(small_model(encoder_layers=1, decoder_layers=1, gaussian_decoder=sizes), STAGE)


def tokens_of(generator, shapes):
    grids = [torch.cartesian_prod(*(torch.arange(side) for side in (*shape, 1))).int() for shape in shapes]
    coords = torch.cat(grids)
    feats = torch.rand(len(coords), 3072, generator=generator) * 2 - 1
    return SparseTokens(feats, coords, tuple(len(grid) for grid in grids))


def micro_batch(modality, step, number):
    """Images, a video of two tiles, or voxels for the Gaussian decoder, which leaves the tokenizer idle."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    if modality == "image":
        tokens = tokens_of(generator, [(1, 3, 2), (1, 1, 4)])
        tokens.feats[:, 768:] = 0
        return Batch(modality, tokens, 768)
    if modality == "video":
        return Batch(modality, tokens_of(generator, [(5, 1, 2)]), 3072)
    tokens = tokens_of(generator, [(1, 4, 2)])
    points, colors = torch.rand(2, 8 * 32, 3, generator=generator) - 0.5
    everywhere = torch.ones(len(points), dtype=torch.bool)
    return Batch(modality, tokens, 768, targets=SurfaceTargets(points, colors, everywhere, everywhere))


def micro_batches(case, step):
    """Those of all ranks, two of each task that the step has."""
    names = MEDIA if case == THREE else (MEDIA[step % 3],)
    made = [micro_batch(name, step, number) for name in names for number in (0, 1)]
    if case == NOT_FINITE and step in POISONED:
        made[-1].tokens.feats[1, 5] = torch.nan  # of the last rank
    return made


def engine_of(name, *zero, **changes):
    """Of SGD, weights move in proportion to their gradients."""
    recipe = replace(RECIPES[name], **changes)

    def sgd(groups, named, recipe):
        options = [{"params": [named[n] for n in group.names], "lr_scale": group.lr_scale} for group in groups]
        return dict.fromkeys((n for group in groups for n in group.names), torch.optim.SGD(options, lr=recipe.lr))

    before = engine_module.optimisers
    if name == "sgd":
        engine_module.optimisers = sgd
    try:
        return (ZeroEngine if zero else PlainEngine)(objective(), recipe, "cpu", *zero)
    finally:
        engine_module.optimisers = before


def go(engine, case, rank=0, world=1, until=STEPS):
    """Train on to a step; the rows."""
    return [engine.train(micro_batches(case, step)[rank::world]) for step in range(engine.step, until)]


class Worker:
    """A rank that writes what it finds into a folder."""

    def __init__(self, folder):
        self.folder = folder

    @contextmanager
    def engine(self, level, name="adamw", **changes):
        engine = engine_of(name, level, **changes)
        self.rank, self.world = engine.rank, engine.world
        yield engine
        engine.engine.destroy()

    def report(self, engine, name, rows=()):
        tensors, numbers = engine.state()
        if self.rank == 0:
            save_file(tensors, self.folder / f"{name}.safetensors")
            found = {"rows": list(rows), "skipped": engine.skipped, **numbers}
            (self.folder / f"{name}.json").write_text(json.dumps(found))

    def twins(self, level):
        for name, case in TWINS:
            with self.engine(level, name) as engine:
                rows = go(engine, case, self.rank, self.world)
                self.report(engine, f"{name} {case} {level} {self.world}", rows)
        with self.engine(level, mixed_precision=True) as engine:
            self.report(engine, f"bf16 {level} {self.world}", go(engine, THREE, self.rank, self.world, until=3))

    def resumed(self, level, start, name, until=None):
        """Go on from the checkpoint in ``start`` to the end, saving on the way."""
        with self.engine(level) as engine:
            engine.restore(*RunFolder(start).newest())
            if until:
                go(engine, ONE, self.rank, self.world, until)
                engine.save(RunFolder(self.folder / f"saved {level}"))
            rows = go(engine, ONE, self.rank, self.world)
            self.report(engine, name, rows)

    def refusals(self, level):
        """What is said where ranks disagree, and where the disk is full."""
        said = []
        videos = [Batch("video", tokens_of(torch.Generator(), [(4 * tiles, 1, 1)]), 3072) for tiles in (1, 2)]
        for batches in ([micro_batch("image", 0, 0), micro_batch("video", 0, 0)], videos):
            with self.engine(level) as engine:
                said.append(sentence(engine.train, batches[self.rank :][:1]))
        with self.engine(level) as engine:
            run_folder = RunFolder(self.folder / f"full {level}")
            run_folder.path = Path("/dev/null")
            said.append(sentence(engine.save, run_folder))
        (self.folder / f"refusals {level} {self.rank}.json").write_text(json.dumps(said))


def sentence(call, *arguments):
    try:
        call(*arguments)
    except AtokenError as error:
        return str(error)
    return None


def main(folder):
    torch.set_num_threads(1)
    zero.KEPT_WHOLE = 5000  # so that ZeRO-3 cuts up some parameters and keeps others
    worker = Worker(folder)
    for level in ZEROS:
        worker.twins(level)
        if worker.world == 2:
            worker.resumed(level, folder / "plain", f"uninterrupted {level} 2", until=SAVED[1])
            worker.resumed(level, folder / f"saved {level}", f"resumed {level} 2")
            worker.refusals(level)
        else:
            other = (level + 1) % len(ZEROS)
            worker.resumed(level, folder / f"saved {other}", f"resumed {level} 1")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
