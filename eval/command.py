"""The command line of the harness: ``python -m eval COMMAND``, with the commands of ``parser``.

Exit codes: 0 done, 1 something failed or is missing (listed, the rest done), 2 usage. Only what parsing needs is
imported here. On several GPUs or cores a launcher starts the same command: ``torchrun --nproc_per_node 8 -m eval ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import count
from typing import Any

from atoken.errors import AtokenError, AtokenWarning

MOST_NOTES = 5  # warnings about single files that are shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = parser().parse_args(arguments)
    # OpenMP reads it when torch loads. One thread, because sums in torch depend on the number of threads, and results
    # must not; more cores are for more ranks. A user who sets the variable overrides this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        from eval.torchvision_step import mend_torchvision

        mend_torchvision()  # before transformers, and so AToken, looks for it
        commands = import_module("eval.commands")
        from atoken.cli import console

        console.silence_transformers()
        console.refuse_addresses(options)
        with warnings.catch_warnings():
            warnings.simplefilter("always", AtokenWarning)
            warnings.showwarning = _printer()
            return int(getattr(commands, options.command)(options))
    except AtokenError as error:
        print(f"eval: {error}", file=sys.stderr)  # noqa: T201 - the output of the program
        return 1
    except BrokenPipeError:  # who reads the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("eval: interrupted; the same command continues from here.", file=sys.stderr)  # noqa: T201
        return 130


def _printer() -> Callable[..., None]:
    """Prints the first few warnings that are meant for a user."""
    numbers = count(1)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, AtokenWarning) and (number := next(numbers)) <= MOST_NOTES:
            more = "" if number < MOST_NOTES else " (No more notes are shown.)"
            print(f"eval: note: {message}{more}", file=sys.stderr)  # noqa: T201

    return show


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m eval", description="Measure tokenizers, and record how.")
    top.add_argument("--local_rank", help=argparse.SUPPRESS)  # older launchers pass it to every program
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model, loading, data, out, networks, device = (argparse.ArgumentParser(add_help=False) for _ in range(6))
    model.add_argument(
        "--model", default="nano",
        help="of AToken: bundled name, folder, weight file or hub id (default: nano); or another type, TYPE:WHICH, "
        "such as jpeg:80, h264:23, diffusers:FOLDER, torchscript:FOLDER@4x8x8, vl:vl-nano; a wrong type lists all",
    )  # fmt: skip
    model.add_argument("--sample", type=int, metavar="SEED", help="draw latents with this seed (default: the mean)")
    loading.add_argument("--config", help="of a published weight file of AToken: its YAML")
    loading.add_argument("--gaussians", metavar="FILE", help="the published Gaussian decoder's weights, for 3D")
    loading.add_argument("--gaussian-config", metavar="YAML", help="its YAML")
    loading.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the model")
    data.add_argument("--data", default=".", metavar="ROOT", help="folder of data sets, laid out as in eval/tasks.py")
    data.add_argument("--items", type=_count, help="only so many, from the first; the row is then partial")
    out.add_argument("-o", "--out", help="folder for results; rows that are complete there are not measured again")
    out.add_argument("--json", action="store_true", help="print the result file instead of tables")
    networks.add_argument("--weights", metavar="FOLDER", help="of the published networks of metrics (or in the cache)")
    networks.add_argument("--trust", action="store_true", help="allow TorchScript files, which run their own code")
    device.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    measuring = [model, loading, out, networks, device]

    def add(name: str, help: str, parents: Sequence[argparse.ArgumentParser] = ()) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, parents=parents)

    reconstruct = add("reconstruct", "your own images, videos and meshes, to a report", measuring)
    reconstruct.add_argument("folder", metavar="FOLDER", help="everything below it that can be read is measured")

    run = add("run", "tasks of eval/tasks.py", [data, *measuring])
    run.add_argument("task", nargs="+", metavar="TASK", help="a name; a wrong one lists all")
    run.add_argument("--seed", type=int, help="of synthetic data (default: 1000003, which no training uses)")

    add("table3", "the tasks of the paper's table 3", [data, *measuring])

    english = add("english", "perplexity of texts: what a vision-language model kept", [loading, out, device])
    english.add_argument("--model", default="vl:vl-nano", metavar="vl:MODEL", help="(default: vl:vl-nano)")

    rate = add("rate", "quality by bytes: tokenizers and codecs, as curves and at the same bytes", measuring[1:])
    rate.add_argument("folder", metavar="FOLDER", help="of images or videos")
    own = ["nano", "nano-d"]
    rate.add_argument(
        "--model", nargs="+", default=own, help="tokenizers, and further points TYPE:WHICH (default: nano nano-d)"
    )

    probes = add("probes", "what linear classifiers and neighbours find in vectors and tokens", [loading, device])
    probes.add_argument("--model", default="nano", help="of AToken (default: nano)")
    probes.add_argument("--json", action="store_true", help="print all numbers, and how they were measured")

    generation = add("generation", "gFID, sFID, Inception Score, precision, recall of samples", measuring[2:])
    generation.add_argument("samples", metavar="SAMPLES", help="folder of images, or an ADM .npz")
    generation.add_argument("--reference", required=True, help="folder, or an ADM .npz of images or statistics")
    which = "inception, efficientnet-lite0, nano, or FILE@SHA256 of a TorchScript file (default: inception)"
    generation.add_argument("--network", default="inception", help=which)

    videos = add("videos", "a folder of videos of prompts: agreement, smoothness, flicker, FVD", measuring)
    videos.add_argument("samples", metavar="SAMPLES", help="folder of PROMPT-0.mp4, PROMPT-1.mp4, ...")
    videos.add_argument("--reference", help="folder of real videos, for FVD")

    generator = add("generator", "samples of a generator of classes, figures and photographs", measuring[2:])
    generator.add_argument("generator", metavar="GENERATOR", help="the folder of a pipeline, or a bundled name")
    generator.add_argument("--store", required=True, help="folder of tokens that it was trained on")
    generator.add_argument(
        "--split", choices=["validation", "test"], default="validation",
        help="of the photographs: validation to choose by, test to publish (default: validation)",
    )  # fmt: skip
    generator.add_argument("-n", "--number", type=_count, default=2000, help="of figures, at most of photographs")
    generator.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="options of python -m generation sample: steps=25 guidance=2 interval=0,0.7",
    )  # fmt: skip

    for number, what in ((11, "a flow on latents, Lightning-DiT"), (12, "a masked model of codes, TokenBridge")):
        table = add(f"table{number}", f"the paper's table {number}: {what}, by 50,000 samples", [data, *measuring[2:]])
        table.add_argument(
            "--model", metavar="GENERATOR",
            help="folder of a pipeline, or samples of one, a folder or an .npz (default: the bundled one)",
        )  # fmt: skip
        table.add_argument(
            "--reference", help="folder of images or .npz (default: ADM's reference batch below ROOT, docs/data.md)"
        )
        table.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
            help="options of python -m generation sample that differ from the paper's: guidance=1.5 seed=1 batch=64",
        )  # fmt: skip

    for number, what in ((9, "images"), (10, "videos")):
        table = add(
            f"table{number}", f"the paper's table {number}: questions about {what}, by lmms-eval", [out, device]
        )
        table.add_argument("--model", default="vl:vl-nano", metavar="vl:MODEL", help="(default: vl:vl-nano)")
        table.add_argument("--items", type=_count, help="of each task only so many; its row is then partial")

    actions = add("actions", "what I3D, the network of FVD, sees people do in videos", [networks, device])
    actions.add_argument("video", nargs="+", metavar="VIDEO", help="the first ten seconds count")

    compare = add("compare", "rows of result files side by side; refuses what cannot be compared")
    compare.add_argument("results", nargs="+", metavar="RESULT.json")

    report = add("report", "one page, or Markdown, of several result files")
    report.add_argument("results", nargs="+", metavar="RESULT.json")
    report.add_argument("-o", "--out", default="report.html", help=".html or .md (default: report.html)")
    report.add_argument("--short", action="store_true", help="no images and no histograms: a page to commit or to mail")
    report.add_argument("--boxes", help="JSON of boxes by key (texts, faces, ...) to show as crops")
    return top


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
