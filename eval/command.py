"""The command line of the harness: ``python -m eval COMMAND``, with the commands of ``parser``.

Exit codes: 0 done, 1 something failed or is missing (listed, the rest done), 2 usage. Only what parsing needs is
imported here. On several GPUs or cores a launcher starts the same command: ``torchrun --nproc_per_node 8 -m eval ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from atoken.errors import AtokenError, AtokenWarning

MOST_NOTES = 5  # warnings about single files that are shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = parser().parse_args(arguments)
    # OpenMP reads both when torch loads. One thread, because sums in torch depend on the number of threads, and results
    # must not; more cores are for more ranks. A user who sets the variable overrides this.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    notes = _Notes()
    try:
        from eval.torchvision_step import mend_torchvision

        mend_torchvision()  # before transformers, and so AToken, looks for it
        commands = import_module("eval.commands")
        from atoken.cli.console import silence_transformers

        silence_transformers()
        with warnings.catch_warnings():
            warnings.simplefilter("always", AtokenWarning)
            warnings.showwarning = notes.show
            return int(getattr(commands, options.command)(options))
    except AtokenError as error:
        print(f"eval: {error}", file=sys.stderr)  # noqa: T201 - the output of the program
        return 1
    except KeyboardInterrupt:
        print("eval: interrupted; the same command continues from here.", file=sys.stderr)  # noqa: T201
        return 130


class _Notes:
    """Prints the first few warnings that are meant for a user."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if not issubclass(category, AtokenWarning):
            return
        self._shown += 1
        if self._shown <= MOST_NOTES:
            more = "" if self._shown < MOST_NOTES else " (No more notes are shown.)"
            print(f"eval: note: {message}{more}", file=sys.stderr)  # noqa: T201


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m eval", description="Measure tokenizers, and record how.")
    top.add_argument("--local_rank", help=argparse.SUPPRESS)  # older launchers pass it to every program
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_measuring(commands)
    _add_reading(commands)
    return top


def _add_measuring(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What takes a model, or samples, and makes a result file."""
    reconstruct = commands.add_parser("reconstruct", help="your own images, videos and meshes, to a report")
    reconstruct.add_argument("folder", metavar="FOLDER", help="everything below it that can be read is measured")
    _add_model(reconstruct)

    run = commands.add_parser("run", help="tasks of eval/tasks.py")
    run.add_argument("task", nargs="+", metavar="TASK", help="a name; a wrong one lists all")
    run.add_argument("--seed", type=int, help="of synthetic data (default: 1000003, which no training uses)")
    _add_data(run)
    _add_model(run)

    table3 = commands.add_parser("table3", help="the tasks of the paper's table 3")
    _add_data(table3)
    _add_model(table3)

    rate = commands.add_parser(
        "rate", help="quality by bytes: tokenizers beside codecs, as curves and at the same bytes"
    )
    rate.add_argument("folder", metavar="FOLDER", help="of images or videos")
    rate.add_argument(
        "--model", nargs="+", default=["nano", "nano-d"], help="tokenizers of AToken, and further points TYPE:WHICH "
        "(default: nano nano-d)",
    )  # fmt: skip
    _add_loading(rate)
    _add_out(rate)
    _add_networks(rate)

    probes = commands.add_parser("probes", help="what linear classifiers and neighbours find in vectors and tokens")
    probes.add_argument("--model", default="nano", help="of AToken (default: nano)")
    _add_loading(probes)
    probes.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    probes.add_argument("--json", action="store_true", help="print all numbers, and how they were made")

    generation = commands.add_parser("generation", help="gFID, sFID, Inception Score, precision, recall of samples")
    generation.add_argument("samples", metavar="SAMPLES", help="folder of images, or an ADM .npz")
    generation.add_argument("--reference", required=True, help="folder, or an ADM .npz of images or statistics")
    generation.add_argument(
        "--network",
        default="inception",
        help="inception, nano, or FILE@SHA256 of a TorchScript file (default: inception)",
    )
    _add_out(generation)
    _add_networks(generation)


def _add_reading(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What takes result files."""
    compare = commands.add_parser("compare", help="rows of result files side by side; refuses what cannot be compared")
    compare.add_argument("results", nargs="+", metavar="RESULT.json")

    report = commands.add_parser("report", help="one page, or Markdown, of several result files")
    report.add_argument("results", nargs="+", metavar="RESULT.json")
    report.add_argument("-o", "--out", default="report.html", help=".html or .md (default: report.html)")
    report.add_argument("--boxes", help="JSON of boxes by key (texts, faces, ...) to show as crops")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="nano",
        help="of AToken: bundled name, folder, weight file or hub id (default: nano); or another type, TYPE:WHICH, "
        "such as jpeg:80, h264:23, diffusers:FOLDER, torchscript:FOLDER@4x8x8; a wrong type lists all",
    )  # fmt: skip
    command.add_argument("--sample", type=int, metavar="SEED", help="draw latents with this seed (default: the mean)")
    _add_loading(command)
    _add_out(command)
    _add_networks(command)


def _add_loading(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", help="of a published weight file of AToken: its YAML")
    command.add_argument("--gaussians", metavar="FILE", help="the published Gaussian decoder's weights, for 3D")
    command.add_argument("--gaussian-config", metavar="YAML", help="its YAML")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the model")


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", default=".", metavar="ROOT", help="folder of data sets, laid out as eval/tasks.py says"
    )
    command.add_argument("--items", type=_count, help="only so many, from the first; the row is then partial")


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--out", help="folder for results; rows that are complete there are not measured again")
    command.add_argument("--json", action="store_true", help="print the result file instead of tables")


def _add_networks(command: argparse.ArgumentParser) -> None:
    command.add_argument("--weights", metavar="FOLDER", help="of the published networks of metrics")
    command.add_argument("--trust", action="store_true", help="allow TorchScript files, which run their own code")
    command.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
