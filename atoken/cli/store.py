"""Commands for token stores, data sets that are tokenised once."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import structs
from tqdm import tqdm

from atoken.cli import console
from atoken.errors import AtokenError, StoreError
from atoken.statistics import ALL
from atoken.store import driver, formats
from atoken.store.layout import FAILURES, PLAN, SHARDS, STATS, Options
from atoken.store.local import LocalEngine
from atoken.store.plan import is_whole, load_plan
from atoken.store.ray_engine import RayEngine
from atoken.store.reader import TokenStore
from atoken.store.source import open_source
from atoken.store.verify import known_files, verify

MOST_LABELS = 20  # that a person is shown


def tokenize(options: argparse.Namespace) -> int:
    """A data set to a store; exit code 1 if some items failed."""
    wanted = _wanted(options)
    items = open_source(options.source, wanted)
    model = {name: getattr(options, name) for name in ("model", "device", "dtype", "config")}
    model["source"] = model.pop("model")
    tokenizer = console.tokenizer(options)
    if options.latents == "codes" and tokenizer.model.quantiser is None:
        raise AtokenError(f"{tokenizer.name} is a continuous model, which has no codes; take --latents float16.")
    workers = options.workers or max((os.cpu_count() or 1) // 2, 1)
    if options.plan:
        head, *rows = driver.forecast(items, tokenizer, wanted, workers)
        console.say(head, rows, options, dict(rows))
        return 0
    every_gpu = tokenizer.device.type == "cuda" and options.device in ("auto", "cuda")
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if every_gpu else []
    chosen: RayEngine | LocalEngine = LocalEngine(tokenizer, workers, devices)
    if options.engine == "ray":
        chosen = RayEngine(options.address, options.actors, options.gpus_per_actor)
    with console.progress(None, "tokenize", "items", options) as bar, chosen as engine:
        stats = driver.tokenize(
            items, Path(options.out), tokenizer, model, wanted, engine, most_broken=options.most_broken,
            shown=lambda progress: _show(progress, bar),
        )  # fmt: skip
    _say(stats, options)
    if stats["failures"]:
        said = f"atoken: {stats['failures']} items could not be used; {options.out}/{FAILURES} lists them."
        tqdm.write(said, file=sys.stderr)
    return int(stats["failures"] > 0)


def store(options: argparse.Namespace) -> int:
    """What a store holds, whether it is whole, or its tokens as files of other programs and back."""
    tasks = {"info": _info, "verify": _verify, "export": _export, "import": _import}
    return tasks[options.task](options)


def _info(options: argparse.Namespace) -> int:
    path = Path(options.store)
    plan = load_plan(path)
    if plan is None:
        raise StoreError(f"{path} is no token store: it has no {PLAN}.")
    files, whole = known_files(path), is_whole(path)
    shards = sum(name.startswith(SHARDS) for name in files)
    stats = msgspec.json.decode((path / STATS).read_bytes()) if whole else {}
    changed = {name: value for name, value in structs.asdict(plan.options).items() if value != getattr(Options(), name)}
    rows = [
        ["source", plan.source],
        ["model", f"{plan.model.name} in {plan.model.dtype} ({plan.model.fingerprint[:12]})"],
        ["options", ", ".join(f"{name}={value}" for name, value in changed.items()) or "as by default"],
        ["shards", f"{shards:,}" if whole else f"{shards:,} of {plan.shards:,}: unfinished"],
        ["MB", f"{sum(entry.size_bytes for entry in files.values()) / 1e6:,.1f}"],
    ]
    if whole:
        rows += [["items", f"{stats['items']:,}, and {stats['failures']:,} failed"]]
        rows += [
            [f"rows: {name}", f"{one['samples']:,} of {one['tokens']:,} tokens"]
            for name, one in stats["latents"].items()
            if name != ALL or len(stats["latents"]) > 2
        ]
        rows += [["labels", f"{len(stats['labels']):,}"]]
        rows += [[f"  {name}", f"{count:,} rows"] for name, count in list(stats["labels"].items())[:MOST_LABELS]]
    plain = {"plan": msgspec.to_builtins(plan), "finished": whole, "shards": shards, "statistics": stats}
    console.say(["store", str(path)], rows, options, plain)
    return 0


def _verify(options: argparse.Namespace) -> int:
    path = Path(options.store)
    files, found = known_files(path), []
    with console.progress(len(files), "verify", "files", options) as bar:
        for finding in verify(path, files):
            found.append(finding)
            bar.update()
    damaged = [finding for finding in found if finding.fault]
    size = sum(entry.size_bytes for entry in files.values()) / 1e6
    rows = [[one.file, one.fault or "", f"{len(one.items):,}", " ".join(one.items[:3])] for one in damaged]
    if not is_whole(path):
        tqdm.write(f"atoken: {path} is unfinished; these are its shards that are complete.", file=sys.stderr)
    plain = {"finished": is_whole(path), "files": len(files), "damaged": msgspec.to_builtins(damaged)}
    console.say(["file", "fault", "items", "such as"], rows, options, plain)
    if not options.json:
        console.out(f"{len(files):,} files, {size:,.1f} MB: {len(damaged):,} damaged.")
    return int(bool(damaged))


def _export(options: argparse.Namespace) -> int:
    with TokenStore(options.store) as opened, console.progress(len(opened), "export", "rows", options) as bar:
        about = formats.export(opened, Path(options.out), options.format, bar.update)
    facts = {"rows": about.rows, "left_out": about.left_out, "labels": len(about.labels)}
    console.say(["rows", "labels"], [[f"{about.rows:,}", f"{len(about.labels):,}"]], options, facts)
    return 0


def _import(options: argparse.Namespace) -> int:
    with console.progress(None, "import", "files", options) as bar:
        stats = formats.bring(
            Path(options.source), Path(options.out), options.format, console.tokenizer(options),
            shown=lambda progress: _show(progress, bar),
        )  # fmt: skip
    _say(stats, options)
    return 0


def _wanted(options: argparse.Namespace) -> Options:
    given = {name: getattr(options, name) for name in Options.__struct_fields__}
    return Options(**given | {"latents": "float32" if options.latents == "codes" else options.latents})


def _say(stats: dict[str, Any], options: argparse.Namespace) -> None:
    """What a store that is finished holds."""
    every = stats["latents"]["all"]
    rows = [[f"{stats['items']:,}", f"{every['tokens']:,}", f"{stats['size_bytes'] / 1e6:,.1f}"]]
    facts = {name: stats[name] for name in ("items", "failures", "size_bytes")} | {"tokens": every["tokens"]}
    console.say(["items", "tokens", "MB"], rows, options, facts)


def _show(progress: driver.Progress, bar: tqdm[Any]) -> None:
    bar.total, bar.initial = progress.total, progress.before
    bar.set_postfix({"failed": len(progress.failures)}, refresh=False)
    bar.update(progress.done - bar.n)
