"""What fits a text, an image, a video or an asset best: among files, or in a token store, which ``index`` prepares."""

from __future__ import annotations

import argparse
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from atoken.cli import console, semantic
from atoken.errors import AtokenError
from atoken.modalities import MODALITIES
from atoken.store import search as searching
from atoken.store.layout import PLAN, SHARDS
from atoken.store.reader import TokenStore
from atoken.store.vectors import MANY, QUERIES, TOP, build
from atoken.tokenizer import Tokenizer


def search(options: argparse.Namespace) -> int:
    """The files, or the items of a store, that fit the query best, best first."""
    stores = [file for file in options.files if (Path(file) / PLAN).is_file() and (Path(file) / SHARDS).is_dir()]
    if len(options.files) == len(stores) == 1:
        return _in_store(TokenStore(stores[0]), options)
    if stores:
        raise AtokenError(f"{stores[0]} is a token store; search it alone, without other inputs.")
    if options.out or options.modality or options.label:
        raise AtokenError("-o, --modality and --label are for a token store; make one with atoken tokenize.")
    options.model = options.model or "nano"
    tokenizer = console.tokenizer(options)
    query = _query(tokenizer, options)
    found, failed = semantic.found_in(tokenizer, options)
    if not found:
        return failed
    vectors = torch.stack([vector for _, vector in found])
    cosines = vectors @ query
    best = cosines.argsort(descending=True, stable=True).tolist()[: max(options.top, 0)]
    chances = tokenizer.logits(vectors, query[None])[:, 0].sigmoid()
    plain = [
        {"name": found[i][0], "cosine": float(cosines[i]), "probability": None if options.like else float(chances[i])}
        for i in best
    ]
    _say(plain, options)
    return failed


def _in_store(store: TokenStore, options: argparse.Namespace) -> int:
    if options.pool == "frames":
        raise AtokenError(f"{store.name} holds the vectors of whole videos; leave --pool frames out.")
    if options.modality not in (None, *MODALITIES):
        raise AtokenError(f"There is no modality {options.modality}; say {', '.join(MODALITIES)}.")
    index, tokenizer = searching.opened(store), _tokenizer_of(store, options)
    equal = {name: value for name in ("modality", "label") if (value := getattr(options, name)) is not None}
    of_text = None if options.like else tokenizer
    hits = searching.found(store, index, _query(tokenizer, options), max(options.top, 0), of_text, **equal)
    _say([{"name": hit.key, **asdict(hit)} for hit in hits], options)
    if options.out:
        words = [f"{len(index.rows):,} items of {store.name}", *(f"{name} {value}" for name, value in equal.items())]
        target = Path("/dev/stdout" if options.out in console.STDOUT else options.out)
        searching.write_page(target, options.query or options.like, ", ".join(words), hits, store, tokenizer)
    return 0


def _tokenizer_of(store: TokenStore, options: argparse.Namespace) -> Tokenizer:
    """Raises: TokenFileError for another than the one that made the store."""
    options.model = options.model or console.bundled(store.model)
    tokenizer = console.tokenizer(options)
    store.check(tokenizer)
    return tokenizer


def _query(tokenizer: Tokenizer, options: argparse.Namespace) -> Tensor:
    """(D,) the unit vector of what is looked for."""
    if options.like is None:
        return tokenizer.embed_text(options.query)[0]
    vectors = semantic.vectors_of(tokenizer, options.like, options)
    if len(vectors) != 1:
        raise AtokenError(f"{options.like} holds {len(vectors)} items; --like takes one.")
    return vectors[0][1]


def _say(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    head = ["name", "cosine", *([] if options.like else ["probability"])]
    lines = [[row["name"], f"{row['cosine']:.4f}", f"{row['probability'] or 0:.1%}"][: len(head)] for row in rows]
    console.say(head, lines, options, rows)


def index(options: argparse.Namespace) -> int:
    """Vectors of a store in one file, and a graph over them where they are many."""
    store = TokenStore(options.store)
    rows = searching.rows_of(store)
    many = len(rows) >= MANY
    with console.progress(len(rows) if many else None, "index", "vectors", options) as shown:
        texts = _texts(store, options) if many else None
        facts = build(Path(store.name), store.vectors(rows).numpy(), rows, texts, shown.update)
    shares = " and ".join(f"{share:.1%} for {name}" for name, share in facts.recall.items())
    said = f"a graph, which finds of the {TOP} nearest {shares}" if shares else "all are compared"
    console.say(["vectors", "search"], [[f"{facts.count:,}", said]], options, structs.asdict(facts))
    return 0


def _texts(store: TokenStore, options: argparse.Namespace) -> np.ndarray | None:
    """Vectors of what a store says of its items; None where it says nothing, or its model is not at hand."""
    texts = searching.texts_of(store, QUERIES)
    with suppress(AtokenError) if options.model is None else nullcontext():
        if texts:
            return _tokenizer_of(store, options).embed_text(texts).numpy()
    return None
