"""Speed of training: the step against the matrix-product rate, and the input pipeline against what the model takes.

``python -m benchmarks.training`` prints two tables; the machine should be otherwise idle. A step is forward, backward
and what the optimiser does; its share of the matrix-product rate is that of forward and backward, which are what MFU
counts. Data is ready before the clock starts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from dataclasses import replace
from itertools import islice

import torch

from atoken.layers import Block
from atoken.loading import load
from atoken.model import ATokenModel
from atoken.presets import preset
from atoken.pretrain.batches import Batch, MicroBatches
from atoken.pretrain.curriculum import NANO_3, PATCHES, UNUSED
from atoken.pretrain.datasets import load_datasets
from atoken.pretrain.objective import Objective
from atoken.pretrain.stages import Stage, Task
from atoken.train.devices import keep_freed_memory
from atoken.train.engine import PlainEngine
from atoken.train.loader import batches
from atoken.train.recipe import Recipe
from benchmarks.measure import best_of, matrix_rate
from benchmarks.tables import head, row

BATCH = 1024  # tokens
STEP = Stage("step", "base", {"image": Task("image", PATCHES, tokens=BATCH)}, {"image": 1}, frozen=UNUSED)


def steps(sizes: list[str], runs: int, compiled: bool) -> None:
    """Print the table of training steps; ``compiled``: blocks by ``torch.compile``, for micro-batches of any size."""
    head("model", "products in", "tokens", "step, s", "forward + backward, s", "Gop/s", "matrix product Gop/s", "share")
    for size in sizes:
        for mixed in (False, True):
            _step(replace(STEP, preset=size, recipe=Recipe(mixed_precision=mixed)), runs, compiled)


def _step(stage: Stage, runs: int, compiled: bool) -> None:
    dtype = torch.bfloat16 if stage.recipe.mixed_precision else torch.float32
    (batch,) = next(_batches(stage))
    config = preset(stage.preset)
    engine = PlainEngine(Objective(ATokenModel(config), stage), stage.recipe, "cpu")
    for block in (module for module in engine.objective.model.modules() if compiled and isinstance(module, Block)):
        block.compile(dynamic=True)
    rate = matrix_rate(dtype)
    whole = best_of(runs, lambda: engine.train([batch]))
    inner = best_of(runs, lambda: _forward_and_backward(engine, batch))
    rate = max(rate, matrix_rate(dtype))
    work = engine.objective.flops(batch) / inner
    row(
        stage.preset, str(dtype).removeprefix("torch."), len(batch), f"{whole:.3f}", f"{inner:.3f}",
        f"{work / 1e9:.0f}", f"{rate / 1e9:.0f}", f"{work / rate:.1%}",
    )  # fmt: skip


def _forward_and_backward(engine: PlainEngine, batch: Batch) -> None:
    engine._backward(batch, 1.0, last=True)
    engine.objective.zero_grad(set_to_none=True)


def pipeline(workers: list[int], count: int) -> None:
    """Print the table of the input pipeline, by task of nano's third stage, beside what a step of nano takes."""
    head("task", "nano takes, tokens/s", *(f"{n} processes give, tokens/s" for n in workers), "ratio")
    nano = load("nano")
    for name, task in NANO_3.tasks.items():
        if task.modality == "surface":
            continue
        stage = replace(NANO_3, tasks={name: task}, mixture={name: 1}, auxiliary=())
        (batch,) = next(_batches(stage))
        engine = PlainEngine(Objective(nano.model, stage, texts=nano.texts), stage.recipe, "cpu")
        taken = len(batch) / best_of(5, lambda batch=batch, engine=engine: engine.train([batch]))
        rates = [_rate(stage, number, count) for number in workers]
        row(name, f"{taken:,.0f}", *(f"{rate:,.0f}" for rate in rates), f"{max(rates) / taken:.1f}")


def _batches(stage: Stage, steps: int = 1, workers: int = 0) -> Generator[list[Batch]]:
    return batches(MicroBatches(stage, load_datasets("procedural", stage)), 0, steps, workers)


def _rate(stage: Stage, workers: int, count: int) -> float:
    """Tokens a second over ``count`` batches, after the workers have started and filled their queues."""
    first = 1 + 5 * workers  # what is ready does not count
    prefetched = _batches(stage, first + count + 1, workers)
    for _ in islice(prefetched, first):
        pass
    start = time.perf_counter()
    tokens = sum(len(batch) for step in islice(prefetched, count) for batch in step)
    seconds = time.perf_counter() - start  # without the end of the workers
    prefetched.close()
    return tokens / seconds


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--presets", nargs="+", default=["base", "nano"])
    parser.add_argument("--compiled", action="store_true", help="blocks by torch.compile, and steps alone")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, default=40, help="of the input pipeline that are timed")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # as ``atoken train`` does
    keep_freed_memory()
    steps(options.presets, options.runs, options.compiled)
    if not options.compiled:
        print()
        pipeline(options.workers, options.batches)


if __name__ == "__main__":
    main()
