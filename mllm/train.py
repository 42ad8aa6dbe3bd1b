"""``python -m mllm train``: its options, and what it does. Only what parsing needs is imported at the top."""

from __future__ import annotations

import argparse
from pathlib import Path

from atoken.train.options import add_options, zero_stage


def add_train(train: argparse.ArgumentParser) -> None:
    """All options of the command."""
    train.set_defaults(module="mllm.train")
    train.add_argument("--llm", default="smollm2", help="a fetched name, a folder or a hub id (default: smollm2)")
    train.add_argument("--tower", default="nano", help="a bundled name, a folder or a hub id (default: nano)")
    train.add_argument("--start", metavar="MODEL", help="go on with a model, such as that of stage 1; not with --llm")
    train.add_argument("--data", required=True, help="mixture (YAML), or conversations (JSON or JSONL)")
    train.add_argument("--stage", type=int, choices=[1, 2], default=2, help="1: images only; 2: all (default: 2)")
    train.add_argument(
        "--trains", choices=["projector", "projector+language", "projector+lora"], default="projector+language",
        help="(default: projector+language)",
    )  # fmt: skip
    train.add_argument("-o", "--out", default="runs/vl", help="folder of the run (default: runs/vl)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="change how it is trained: epochs=2 lr=1e-3 language_lr=0.1 tokens=4096 frames=64 rank=16",
    )  # fmt: skip
    train.add_argument("--features", metavar="FOLDER", help="keep the tower's features there, and read them again")
    train.add_argument("--validation", metavar="DATA", help="count right answers on it at the beginning and the end")
    train.add_argument("--evaluate-every", type=int, default=0, metavar="STEPS", help="and in between (default: never)")
    train.add_argument(
        "--most-broken", type=float, default=0.1, metavar="SHARE", help="of conversations at most (default: 0.1)"
    )
    add_options(train)
    train.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    train.add_argument("--local_rank", help=argparse.SUPPRESS)  # older launchers pass it to every program


def train(options: argparse.Namespace) -> int:
    """Train a model, from its newest checkpoint if there is one; or print the plan. Raises: AtokenError."""
    import torch

    from atoken.cli import console
    from atoken.placement import checked_device
    from atoken.train.run_folder import rank_of_launch
    from mllm import training
    from mllm.config import ATokenVLConfig
    from mllm.data.mixture import read_mixture
    from mllm.plan import plan

    console.silence_transformers()
    start = ATokenVLConfig.from_pretrained(options.start) if options.start else None
    how = training.training(options.trains, options.stage, options.changes, start)
    mixture = read_mixture(options.data)
    source = (options.llm, options.tower, options.start)
    if options.plan:
        gpus = {"gpus": options.gpus, "gpu": options.gpu, "mfu": options.mfu}
        for table in plan(mixture, how, *source, options.most_broken, **gpus).tables():
            console.out(console.columns(table) + "\n")
        return 0
    zero = zero_stage(options.zero)
    torch.manual_seed(how.recipe.seed)
    model, processor = training.model_of(how, *source, in_fp32=zero is not None)
    folder = training.train(
        model, processor, mixture, Path(options.out), how, start=options.start,
        validation=read_mixture(options.validation) if options.validation else None,
        features=Path(options.features) if options.features else None, device=checked_device(options.device).type,
        workers=options.workers, zero=zero, evaluate_every=options.evaluate_every, most_broken=options.most_broken,
    )  # fmt: skip
    if rank_of_launch() == 0:
        console.out(str(folder))
    return 0
