"""Groups of ranks that train vision-language models: ``python -m tests.mllm.vl_ranks FOLDER``, by a test.

The folder has sources (``vl_data``). Ranks are forked, as in tests/train/zero_worker.py, so that one can be killed.
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

from atoken.train import loop, zero
from atoken.train.engine import PlainEngine
from mllm import training
from mllm.data.mixture import read_mixture
from tests.mllm.vl_data import CHANGES
from tests.train.zero_worker import group, write_modules

STEPS, SAVED = 6, 2
RUNS = {  # name: what is trained, ZeRO, ranks, the step in which a rank is killed and which, before the run goes on
    "lora": ("projector+lora", None, 1, None),
    "lora ZeRO 2": ("projector+lora", 2, 2, None),
    "lora ZeRO 3": ("projector+lora", 3, 2, None),
    "lora ZeRO 3 killed": ("projector+lora", 3, 2, (5, 1)),
    "language": ("projector+language", None, 1, None),
    "language ZeRO 2": ("projector+language", 2, 2, None),
    "language ZeRO 3": ("projector+language", 3, 2, None),
    "language killed": ("projector+language", None, 1, (5, 0)),
}


def how_of(trains):
    """All in fp32, and micro-batches so small that some have no media."""
    return training.training(trains, 2, [*CHANGES, f"steps={STEPS}", "tokens=160", "mixed_precision=false"])


def train(folder, name, trains, level, rank, world, kill=None):
    """One run, or what a killed one left of it."""
    if kill and kill[1] == rank:
        whole = PlainEngine.train

        def dies(engine, batches):
            if engine.step == kill[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(engine, batches)

        PlainEngine.train = dies
    how = how_of(trains)
    training.loop = SimpleNamespace(run=partial(loop.run, save_every=SAVED))
    torch.manual_seed(0)
    both = training.model_of(how, str(folder / "language"), str(folder / "tower"), None, in_fp32=True)
    training.train(*both, read_mixture(folder / "mix.yaml"), folder / name, how, workers=0, zero=level)


def main(folder):
    torch.set_num_threads(1)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    zero.KEPT_WHOLE = 100  # so that ZeRO-3 cuts up some parameters and keeps others
    for name, (trains, level, world, kill) in RUNS.items():
        work = partial(train, folder, name, trains, level)
        if kill:
            group(folder, world, partial(work, kill=kill), mortal=True)
        group(folder, world, work, lambda **_: write_modules(folder))
        for module in json.loads((folder / "modules.json").read_text()):  # imported here, they are there in all forks
            with suppress(Exception):
                import_module(module)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
