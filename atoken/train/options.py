"""Options that each command that trains has, and what is trained with where none is given."""

from __future__ import annotations

import argparse
import os


def whole_number(text: str) -> int:
    """For argparse: a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def add_options(train: argparse.ArgumentParser) -> None:
    """How a run is started on this machine, and the plan of one on another."""
    train.add_argument(
        "--zero", type=int, choices=range(4),
        help="stage of DeepSpeed's ZeRO (default: 1 on several processes, and no DeepSpeed in one)",
    )  # fmt: skip
    train.add_argument(
        "--workers", type=whole_number, default=1, help="processes a rank that make batches (default: 1)"
    )
    train.add_argument("--plan", action="store_true", help="say what it takes, and train nothing")
    train.add_argument("--gpus", type=int, default=1, help="of the plan (default: 1)")
    train.add_argument("--gpu", default="H100", help="of the plan: their name (default: H100)")
    train.add_argument("--mfu", type=float, default=0.45, help="of the plan: share of their peak (default: 0.45)")


def zero_stage(asked: int | None) -> int | None:
    """The stage of ZeRO: 1 where none is asked for and a launcher started several processes; None is no DeepSpeed."""
    return 1 if asked is None and int(os.environ.get("WORLD_SIZE", 1)) > 1 else asked
