"""Commands for token stores, data sets that are tokenised once."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.cli import console
from atoken.errors import AtokenError
from atoken.store import driver
from atoken.store.layout import FAILURES, Options
from atoken.store.local import LocalEngine
from atoken.store.source import open_source


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
    with console.progress(None, "tokenize", "items", options) as bar, LocalEngine(tokenizer, workers) as engine:
        stats = driver.tokenize(
            items, Path(options.out), tokenizer, model, wanted, engine, most_broken=options.most_broken,
            shown=lambda progress: _show(progress, bar),
        )  # fmt: skip
    every = stats["latents"]["all"]
    rows = [[f"{stats['items']:,}", f"{every['tokens']:,}", f"{stats['size_bytes'] / 1e6:,.1f}"]]
    facts = {name: stats[name] for name in ("items", "failures", "size_bytes")} | {"tokens": every["tokens"]}
    console.say(["items", "tokens", "MB"], rows, options, facts)
    if stats["failures"]:
        said = f"atoken: {stats['failures']} items could not be used; {options.out}/{FAILURES} lists them."
        tqdm.write(said, file=sys.stderr)
    return int(stats["failures"] > 0)


def _wanted(options: argparse.Namespace) -> Options:
    given = {name: getattr(options, name) for name in Options.__struct_fields__}
    return Options(**given | {"latents": "float32" if options.latents == "codes" else options.latents})


def _show(progress: driver.Progress, bar: tqdm[Any]) -> None:
    bar.total, bar.initial = progress.total, progress.before
    bar.set_postfix({"failed": len(progress.failures)}, refresh=False)
    bar.update(progress.done - bar.n)
