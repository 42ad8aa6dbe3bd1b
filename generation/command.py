"""The command line of the generators: ``python -m generation train`` and ``sample``.

Exit codes: 0 done, 1 an error in one sentence, 2 usage. Only what parsing needs is imported here. On several GPUs a
launcher starts the same command: ``torchrun --nproc_per_node 8 -m generation ...``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from atoken.errors import AtokenError
from atoken.train.options import add_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = parser().parse_args(arguments)
    try:
        commands = import_module("generation.commands")
        return int(getattr(commands, options.command)(options))
    except AtokenError as error:
        print(f"generation: {error}", file=sys.stderr)  # noqa: T201 - the output of the program
        return 1
    except KeyboardInterrupt:
        print("generation: interrupted; the same command continues from here.", file=sys.stderr)  # noqa: T201
        return 130


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m generation", description="Train generators on tokens, and sample.")
    top.add_argument("--local_rank", help=argparse.SUPPRESS)  # older launchers pass it to every program
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="a generator on the tokens of a store")
    train.add_argument(
        "kind", choices=["dit", "tokenbridge", "mmdit", "structure-vae", "structure", "slat"],
        help="from labels a flow on latents, or a masked model of codes; from captions a flow on images and videos; "
        "of assets an autoencoder of the voxels in use, and from images of them flows of these and of their tokens",
    )  # fmt: skip
    train.add_argument("--store", required=True, help="folder that atoken tokenize made, with labels or captions")
    train.add_argument(
        "--start", type=Path, metavar="FOLDER",
        help="pipeline that a run begins with: of images for mmdit, of structure-vae for structure, of structure for "
        "slat",
    )  # fmt: skip
    train.add_argument("--modality", choices=["image", "video"], help="train on these alone (default: all)")
    train.add_argument("--views", type=Path, metavar="FOLDER", help="images of the assets, for structure and slat")
    train.add_argument("--preset", default="nano", help="size (default: nano); a wrong one lists all")
    train.add_argument("-o", "--out", default="runs/generator", help="folder of the run (default: runs/generator)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="change how it is trained: steps=100 lr=1e-3 samples=16 micro_batches=2",
    )  # fmt: skip
    train.add_argument(
        "--evaluate-every", type=int, default=0, metavar="STEPS", help="between squares of samples (default: none)"
    )
    add_options(train)
    _add_device(train)

    views = commands.add_parser("views", help="images of the assets of a store, to train on")
    views.add_argument("source", metavar="SRC", help="what the store was made of, as atoken tokenize took it")
    views.add_argument("--store", required=True, help="the store; its options say which assets there are")
    views.add_argument("-o", "--out", required=True, help="folder of the images, a folder an asset")
    views.add_argument("-n", "--number", type=int, default=24, help="images of an asset (default: 24)")
    views.add_argument("--size", type=int, default=256, help="pixels a side (default: 256)")

    sample = commands.add_parser("sample", help="images of classes by a trained generator")
    sample.add_argument("model", help="folder of a pipeline, or a bundled name")
    sample.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help="names or numbers (default: all)")
    sample.add_argument("-n", "--number", type=int, default=16, help="images in all (default: 16)")
    sample.add_argument(
        "-o", "--out", default="samples.png",
        help="an image of all, a token file (.atok), or a folder, which gets samples.npz as ADM's evaluation reads it "
        "and is gone on with where it was (default: samples.png)",
    )  # fmt: skip
    sample.add_argument(
        "--random", action="store_true", help="random labels with replacement, not equally many of each"
    )
    sample.add_argument("--seed", type=int, default=0, help="of all images (default: 0)")
    sample.add_argument("--batch", type=int, default=16, help="images at a time (default: 16)")
    sample.add_argument("--steps", type=int, default=50, help="of the solver, or iterations (default: 50)")
    sample.add_argument("--guidance", type=float, default=1.65, help="scale; 1 is none (default: 1.65)")
    sample.add_argument(
        "--interval", type=float, nargs=2, default=[0.0, 1.0], metavar=("LOW", "HIGH"), help="of sigma, with guidance"
    )
    sample.add_argument("--solver", default="euler", help="euler, heun, unipc or dpm++ (default: euler)")
    sample.add_argument("--shift", type=float, default=1.0, help="of sigma; above 1 is more steps near noise")
    sample.add_argument("--temperature", type=float, default=1.0, help="of a masked model (default: 1)")
    sample.add_argument("--top-k", type=int, help="of a masked model")
    sample.add_argument("--top-p", type=float, help="of a masked model")
    _add_device(sample)
    return top


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
