"""Groups of ranks that train generators: ``python -m tests.generation.generator_ranks FOLDER``, by a test.

The folder has a store. Ranks are forked, as in tests/train/zero_worker.py, so that one can be killed.
"""

import json
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch

from atoken.store.reader import TokenStore
from atoken.train import loop, zero
from atoken.train.engine import PlainEngine
from generation import presets, training
from tests.train.zero_worker import group, write_modules

STEPS, SAVED = 8, 3
CHANGES = (f"steps={STEPS}", "micro_batches=2", "warmup=2", "ema=0.9", "mixed_precision=false")
SIZED = {"dit": "samples=4", "tokenbridge": "samples=4", "mmdit": "tokens=40"}
SIZES = {"encoder_size": (32, 1, 2), "decoder_size": (48, 1, 2), "head_size": (16, 1, 2), "buffer": 2}
presets.DIT["tiny"] = {"width": 32, "depth": 2, "heads": 2, "patch": 1}
presets.MMDIT["tiny"] = {"width": 32, "depth": 2, "heads": 2}
presets.TOKENBRIDGE["tiny"] = presets.TOKENBRIDGE["nano"] | SIZES
RUNS = {  # name: kind, ZeRO, ranks, the step in which a rank is killed and which, before the run is gone on with
    "dit": ("dit", None, 1, None),
    "dit ZeRO 2": ("dit", 2, 2, None),
    "dit ZeRO 3": ("dit", 3, 2, None),
    "dit on two ranks": ("dit", None, 2, None),
    "dit ZeRO 3 killed": ("dit", 3, 2, (7, 1)),
    "mmdit": ("mmdit", None, 1, None),
    "mmdit ZeRO 2": ("mmdit", 2, 2, None),
    "mmdit ZeRO 3": ("mmdit", 3, 2, None),
    "tokenbridge": ("tokenbridge", None, 1, None),
    "tokenbridge ZeRO 2": ("tokenbridge", 2, 2, None),
    "tokenbridge ZeRO 3": ("tokenbridge", 3, 2, None),
    "tokenbridge killed": ("tokenbridge", None, 1, (7, 0)),
}


def train(folder, name, kind, level, rank, world, kill=None):
    """One run, or what a killed one left of it."""
    if kill and kill[1] == rank:
        whole = PlainEngine.train

        def dies(engine, batches):
            if engine.step == kill[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(engine, batches)

        PlainEngine.train = dies
    how = training.training(kind, "tiny", (*CHANGES, SIZED[kind]))
    training.loop = SimpleNamespace(run=partial(loop.run, save_every=SAVED))
    training.train(kind, "tiny", TokenStore(folder / "store"), folder / name, how, workers=0, zero=level)


def main(folder):
    torch.set_num_threads(1)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    zero.KEPT_WHOLE = 100  # so that ZeRO-3 cuts up some parameters and keeps others
    for name, (kind, level, world, kill) in RUNS.items():
        work = partial(train, folder, name, kind, level)
        if kill:
            group(folder, world, partial(work, kill=kill), mortal=True)
        group(folder, world, work, lambda **_: write_modules(folder))
        for module in json.loads((folder / "modules.json").read_text()):  # imported here, they are there in all forks
            with suppress(Exception):
                import_module(module)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
