"""All commands and their options. Nothing heavy is imported: ``atoken --help`` answers at once.

Each command is a function of its name in one of the modules of this package, which ``module`` names. Names of presets,
stages and fields are checked by the commands.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import TYPE_CHECKING

from atoken import __version__
from atoken.train.options import add_options, whole_number

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="atoken", description="Images, videos and 3D assets to tokens and back.")
    top.add_argument("--version", action="version", version=f"atoken {__version__}")
    # DeepSpeed's launcher gives every program this option, and the environment again, which is where it is read.
    top.add_argument("--local_rank", help=argparse.SUPPRESS)
    top.set_defaults(module="commands", json=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_tokenizing(commands)
    _add_semantic(commands)
    _add_store(commands)
    _add_train(commands)
    _add_upkeep(commands)
    return top


def _add_tokenizing(commands: Commands) -> None:
    """Media to tokens and back."""
    reconstruct = commands.add_parser("reconstruct", help="through the tokenizer and back, with a table of figures")
    reconstruct.set_defaults(module="reconstruct")
    reconstruct.add_argument("-o", "--out", default="out", help="folder for the results (default: out)")
    encode = commands.add_parser("encode", help="images, videos and 3D assets to one token file")
    encode.add_argument(
        "-o", "--out", help="token file, or - for standard output (default, for one input: its name with .atok)"
    )
    for command in (reconstruct, encode):
        _add_inputs(command, "images, videos and 3D assets, or folders of them; - is standard input")
        command.add_argument(
            "--latents", default="float32", choices=["float32", "float16"],
            help="how a continuous model's latents are stored; float16 is half the size and rounds them",
        )  # fmt: skip

    decode = commands.add_parser("decode", help="a token file back to images, videos and Gaussians")
    decode.add_argument("file", metavar="FILE.atok", help="- is standard input")
    decode.add_argument(
        "-o",
        "--out",
        default="out",
        help="folder, or for one item a .png, .jpg, .mp4 or .ply name, or - (default: out)",
    )
    decode.add_argument("--item", type=int, action="append", help="number of an item, from 0; may be given again")
    decode.add_argument("--frames", type=_frame_range, help="of a video: FIRST:LAST, from 0, LAST not included")
    _add_model(decode, default=None, shown="the bundled one that the file names, else nano")

    info = commands.add_parser("info", help="what a token file holds")
    info.add_argument("file", metavar="FILE.atok", help="- is standard input")
    _add_json(info)
    for command in (encode, decode, info):
        command.set_defaults(module="coding")


def _add_semantic(commands: Commands) -> None:
    """Media and texts."""
    embed = commands.add_parser("embed", help="one vector for each image, video, asset, item of a token file, or text")
    embed.add_argument("--text", action="append", default=[], help="a text to embed, too; may be given again")
    embed.add_argument(
        "-o", "--out", default="vectors.npz", help="NumPy file of names and vectors, or - (default: vectors.npz)"
    )
    classify = commands.add_parser("classify", help="which label fits each file best")
    classify.add_argument("--labels", nargs="+", required=True, metavar="LABEL", help="texts to choose from")
    search = commands.add_parser("search", help="the files, or items of a token store, that fit best")
    looked_for = search.add_mutually_exclusive_group(required=True)
    looked_for.add_argument("query", metavar="QUERY", nargs="?", help="a text")
    looked_for.add_argument("--like", metavar="FILE", help="an image, a video, an asset, or a token file, for a text")
    search.add_argument("--top", type=int, default=10, help="how many to show (default: 10)")
    search.add_argument("--modality", help="of a store: only image, video or asset")
    search.add_argument("--label", help="of a store: only items with this label")
    search.add_argument("-o", "--out", metavar="PAGE.html", help="of a store: a page that shows what was found")
    files = "media, folders of them, or token files, which hold vectors; - is standard input"
    for command in (embed, classify):
        command.set_defaults(module="semantic")
        _add_inputs(command, files)
    search.set_defaults(module="search")
    _add_inputs(search, f"a token store, or {files}", None, "the bundled one that a store names, else nano")
    for command in (embed, classify, search):
        command.add_argument(
            "--pool", choices=["whole", "frames"], default="whole",
            help="of videos: one vector of all tokens, or the mean of the frames' vectors (default: whole)",
        )  # fmt: skip

    index = commands.add_parser(
        "index", help="prepare a token store for fast search",
        description="Prepare a token store for search. Of many items it measures how much a fast search finds, with "
        "items and, where the model is at hand, with captions or labels.",
    )  # fmt: skip
    index.set_defaults(module="search")
    index.add_argument("store", metavar="STORE")
    _add_model(index, None, "the bundled one that the store names, where it is that one")


def _add_store(commands: Commands) -> None:
    """Whole data sets as tokens."""
    tokenize = commands.add_parser(
        "tokenize", help="a whole data set to a token store, which trainers read",
        description="Interrupted, the same command goes on; any number of workers gives the same bytes.",
    )  # fmt: skip
    tokenize.add_argument(
        "source", metavar="SRC",
        help="folder of media, .tar shards, .parquet or .arrow tables, a data file (.toml), or procedural:SERIES",
    )  # fmt: skip
    tokenize.add_argument("-o", "--out", required=True, metavar="STORE", help="folder of the store")
    _add_model(tokenize)
    tokenize.add_argument(
        "--latents", default="float32", choices=["float32", "float16", "codes"],
        help="what is stored: latents of a continuous model, which float16 rounds, or codes of a discrete one",
    )  # fmt: skip
    tokenize.add_argument(
        "--sample", type=_positive, default=0, metavar="N", dest="draws",
        help="draws from the posterior of each item (default: its mean)",
    )  # fmt: skip
    tokenize.add_argument("--seed", type=whole_number, default=0, help="of draws, and of generated items (default: 0)")
    tokenize.add_argument("--flip", action="store_true", help="each image and video mirrored as well")
    tokenize.add_argument("--resize", type=_pixels, metavar="PIXELS", help="the shorter side, before --crop")
    tokenize.add_argument("--crop", type=_pixels, metavar="PIXELS", help="a square of this side from the middle")
    tokenize.add_argument("--fps", help="of videos: take so many frames a second")
    tokenize.add_argument("--frames", type=_positive, metavar="N", help="of videos: the first N at most")
    tokenize.add_argument("--max-side", type=_pixels, metavar="PIXELS", help="scale larger images and frames down")
    tokenize.add_argument("--coarsen", action="store_true", help="pack assets of too many voxels at a lower resolution")
    tokenize.add_argument("--voxels", type=_positive, metavar="N", help="a side of the grid of assets (default: 64)")
    tokenize.add_argument("--items", type=_positive, metavar="N", help="only so many of the source")
    tokenize.add_argument(
        "--shuffle", type=whole_number, metavar="SEED", help="items in a random order (default: as in SRC)"
    )
    tokenize.add_argument("--shard-mb", type=_positive, default=256, help="size of a shard, about (default: 256)")
    tokenize.add_argument(
        "--batch-tokens", type=_positive, default=16_384, help="encoded at once, about (default: 16384)"
    )
    tokenize.add_argument("--vectors", action="store_true", help="pooled unit vectors in the index, too, for searching")
    tokenize.add_argument(
        "--workers", type=_positive, help="processes that read (default: half of the cores; all of Ray)"
    )
    tokenize.add_argument(
        "--engine", default="local", choices=["local", "ray"], help="this machine (default), or Ray, which spans many"
    )
    tokenize.add_argument(
        "--address", default="local", metavar="HOST:PORT",
        help="of a Ray cluster, auto for that of this machine (default: start Ray on this machine)",
    )  # fmt: skip
    tokenize.add_argument("--actors", type=_positive, default=1, metavar="N", help="of Ray, that encode (default: 1)")
    tokenize.add_argument(
        "--gpus-per-actor", type=float, default=0.0, metavar="G", help="of Ray; 0.5 is half of one (default: 0, a core)"
    )
    tokenize.add_argument(
        "--most-broken", type=float, default=0.1, metavar="SHARE",
        help="of items that may fail, which are listed (default: 0.1)",
    )  # fmt: skip
    tokenize.add_argument("--plan", action="store_true", help="say what it takes, and make nothing")
    store = commands.add_parser("store", help="token stores: contents, checks, and other programs' files")
    tasks = store.add_subparsers(dest="task", required=True, metavar="TASK")
    info = tasks.add_parser("info", help="items, tokens, model, options, labels")
    verify = tasks.add_parser("verify", help="compare every file with its checksum; exit code 1 if one is damaged")
    export = tasks.add_parser("export", help="as files for other programs; interrupted, the same command goes on")
    for task in (info, verify, export):
        task.add_argument("store", metavar="STORE", help="folder of the store")
        _add_json(task)
    export.add_argument("-o", "--out", required=True, metavar="OUT", help="new folder")
    bring = tasks.add_parser("import", help="a store of such files; interrupted, the same command goes on")
    bring.add_argument("source", metavar="SRC", help="folder that was exported, or of LightningDiT's extraction")
    bring.add_argument("-o", "--out", required=True, metavar="STORE", help="folder of the store")
    _add_model(bring)
    for task in (export, bring):
        task.add_argument(
            "--format", required=True, choices=["webdataset", "lightningdit"],
            help=".tar of .npy and .json; or .safetensors of images and mirrored images, of one size, with labels",
        )  # fmt: skip
    for command in (tokenize, store):
        command.set_defaults(module="store")


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train", help="a model, stage by stage; or the report of a run",
        description="Train stages of a curriculum, or resume them; launched by torchrun or deepspeed, on many GPUs.",
    )  # fmt: skip
    train.add_argument("--preset", default="nano", help="nano, base or so400m-c (default: nano)")
    train.add_argument("--stage", default="all", help="name of one, all (default), or tune: on your own images")
    train.add_argument(
        "--data", help="folder of media, TOML file of sources, or procedural (default, but for the stage tune)"
    )
    train.add_argument("-o", "--out", default="runs", help="folder of runs, one for each stage (default: runs)")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="change the stages: steps=100 tasks.image.micro_batches=8 mixture.video=4 tasks.image.terms.l1=0.5",
    )  # fmt: skip
    train.add_argument(
        "--start", metavar="MODEL", help="folder or bundled name to start from (default: what the stage before left)"
    )
    train.add_argument("--teachers", metavar="FOLDER", help="of the frozen networks, or none (default: the caches)")
    train.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    train.add_argument(
        "--evaluate-every", type=whole_number, default=0, metavar="STEPS", help="between evaluations (default: none)"
    )
    add_options(train)
    tasks = train.add_subparsers(dest="task", metavar="report")
    report = tasks.add_parser("report", help="one page of the curves and images of a run, to look at or to mail")
    report.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run; of several, each goes on from the last"
    )
    report.add_argument(
        "-o", "--out", help=".html, or .svg for the loss alone (default: report.html in the last folder)"
    )


def _add_upkeep(commands: Commands) -> None:
    """Models and this machine."""
    doctor = commands.add_parser("doctor", help="check the guarantees on this machine and this model")
    _add_model(doctor)

    stats = commands.add_parser("stats", help="mean and deviation of each latent channel, for generators")
    stats.set_defaults(module="stats")
    _add_inputs(stats, "media, folders of media, or the word procedural: the generator of nano's training data")
    stats.add_argument(
        "-o", "--out", help="folder of the model, a .json file, or -, to keep them in (default: only shown)"
    )
    stats.add_argument(
        "--tokens", type=whole_number, default=131_072, help="generated of each modality (default: 131072)"
    )
    stats.add_argument("--seed", type=whole_number, default=11, help="of what is generated (default: 11)")

    convert = commands.add_parser("convert", help="foreign weights to a folder that atoken loads")
    convert.add_argument("source", help="a published .pt or .safetensors file, or a SigLIP2 folder of transformers")
    convert.add_argument("-o", "--out", required=True, help="folder to write")
    convert.add_argument("--config", help="the published YAML (default: the name of the file, with .yaml)")
    convert.add_argument("--gaussians", metavar="FILE", help="the published Gaussian decoder's weights, for 3D")
    convert.add_argument("--gaussian-config", metavar="YAML", help="its YAML (default: the name of FILE, with .yaml)")
    convert.add_argument("--text", metavar="FOLDER", help="a SigLIP2 folder with its text tokenizer, for the text side")
    convert.add_argument("--preset", default="so400m-c", help="for SigLIP2: the size to build around it")

    fetch = commands.add_parser("fetch", help="foreign weights and data, pinned and checked, into the cache")
    fetch.add_argument("names", nargs="*", metavar="NAME", help="what to fetch (default: list all)")
    fetch.add_argument("--from", dest="source", metavar="PATH", help="of one NAME: its archive, downloaded elsewhere")


def _add_inputs(
    command: argparse.ArgumentParser, files: str, default: str | None = "nano", shown: str = "nano"
) -> None:
    """Files, a model, and what to take of the files."""
    command.add_argument("files", nargs="+", metavar="FILE", help=files)
    _add_model(command, default, shown)
    command.add_argument("--frames", type=_frame_range, help="of videos: FIRST:LAST, from 0, LAST not included")
    command.add_argument("--fps", type=_fps, help="of videos: take so many frames a second")
    command.add_argument("--first-frame", action="store_true", help="of animated images, instead of a video")
    command.add_argument("--coarsen", action="store_true", help="pack assets of too many voxels at a lower resolution")
    command.add_argument(
        "--max-side", type=_pixels, metavar="PIXELS", help="scale larger images and frames down to this"
    )
    command.add_argument("--limit-pixels", type=int, help="refuse larger images and frames (default: 64 million)")
    command.add_argument("--limit-side", type=int, help="refuse longer sides (default: 16384)")
    command.add_argument("--limit-seconds", type=float, help="refuse longer videos (default: 3600)")
    command.add_argument("--limit-frames", type=int, help="refuse videos of more frames (default: 216000)")


def _add_model(command: argparse.ArgumentParser, default: str | None = "nano", shown: str = "nano") -> None:
    command.add_argument(
        "--model", default=default, help=f"bundled name, folder, weight file or hub id (default: {shown})"
    )
    command.add_argument("--config", help="of a published weight file: its YAML")
    command.add_argument("--device", default="auto", help="cpu, cuda, ... (default: cuda where there is one)")
    command.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="of the model")
    _add_json(command)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="machine-readable results")


def _frame_range(text: str) -> tuple[int | None, int | None]:
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return int(first) if first else None, int(last) if last else None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, such as 0:48 or 16:") from None


def _positive(text: str) -> int:
    if not (count := whole_number(text)):
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return count


def _pixels(text: str) -> int:
    if not (count := whole_number(text)):
        raise argparse.ArgumentTypeError("0 pixels are no image")
    return count


def _fps(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 8 or 30000/1001") from None
