"""Search in a token store: time and recall of the graph against comparing all, with queries that are not in the store.

``atoken tokenize procedural --items 100000 --crop 64 --latents float16 -o STORE`` makes a store, and
``OPENBLAS_NUM_THREADS=1 python -m benchmarks.search STORE`` builds its index and prints two tables, all on one thread:
the graph as it was built, and what wider and narrower searches find. Queries are generated images of another seed, and
captions of such. Recall is the share of the 10 nearest that is found. Targets for 100,000 vectors, at the width that
the index chose for each: recall 0.97, 20 times as fast as comparing all.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

import atoken
from atoken.data.synthetic.procedural import make_image
from atoken.io import Image
from atoken.store import vectors
from atoken.store.reader import TokenStore
from atoken.store.search import rows_of, texts_of
from atoken.store.vectors import FOLDER, QUERIES, TOP, WIDTHS, Vectors
from benchmarks.tables import head, row

SEED, SIDE, BATCH = 1_000_003, 64, 64
RECALL_TARGET, SPEED_TARGET = 0.97, 20.0


def queries(tokenizer: atoken.Tokenizer) -> dict[str, np.ndarray]:
    """Unit vectors of images, and of different captions of as many."""
    made = [make_image(SEED, number, SIDE, SIDE) for number in range(2 * QUERIES)]
    media = [Image(one.frames[0]) for one in made[:QUERIES]]
    tokens = [one for start in range(0, QUERIES, BATCH) for one in tokenizer.encode_batch(media[start : start + BATCH])]
    captions = list(dict.fromkeys(one.caption for one in made))[:QUERIES]
    return {
        "images": torch.stack([tokenizer.embed(one) for one in tokens]).numpy(),
        "texts": tokenizer.embed_text(captions).numpy(),
    }


def milliseconds(index: Vectors, queries_QD: np.ndarray, query_type: str) -> float:
    """Of one query, the median."""
    times = []
    for query in queries_QD:
        start = time.perf_counter()
        index.nearest(query, TOP, query_type=query_type)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> int:
    """Print both tables; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", metavar="STORE")
    torch.set_num_threads(1)
    store = TokenStore(parser.parse_args().store)
    tokenizer = atoken.load(store.model, device="cpu")
    rows = rows_of(store)
    start = time.perf_counter()
    found = store.vectors(rows).numpy()
    reading = time.perf_counter() - start
    texts = tokenizer.embed_text(texts_of(store, QUERIES)).numpy()
    start = time.perf_counter()
    facts = vectors.build(Path(store.name), found, rows, texts)
    building = time.perf_counter() - start
    index = vectors.load(Path(store.name))
    if index is None or index.graph is None:
        sys.exit(f"{len(rows):,} vectors have no graph; make a store of at least {vectors.MANY:,} items.")
    size = sum(path.stat().st_size for path in (Path(store.name) / FOLDER).iterdir())
    head("vectors", "reading s", "building and measuring s", "bytes a vector", "widths", "recall as measured")
    widths = ", ".join(f"{name} {width}" for name, width in facts.widths.items())
    shares = ", ".join(f"{name} {share:.4f}" for name, share in facts.recall.items())
    row(f"{len(rows):,}", f"{reading:.1f}", f"{building:.1f}", f"{size / len(rows):,.0f}", widths, shares)
    print()
    head("queries", "width", "recall", "ms", "ms, comparing all", "times as fast")
    missed = False
    for name, vectors_QD in queries(tokenizer).items():
        last = vectors.last_of_nearest(index.vectors, vectors_QD, None)
        query_type = "texts" if name == "texts" else "items"
        exact = milliseconds(Vectors(index.vectors, index.rows), vectors_QD, query_type)
        for width in WIDTHS:
            index.graph.expansion_search = width
            share = vectors.recall(index.graph, index.vectors, vectors_QD, None, last)
            taken = milliseconds(
                Vectors(index.vectors, index.rows, index.graph, {query_type: width}), vectors_QD, query_type
            )
            row(name, width, f"{share:.4f}", f"{taken:.3f}", f"{exact:.2f}", f"{exact / taken:.0f}")
            chosen = width == facts.widths[query_type]
            missed |= chosen and (share < RECALL_TARGET or exact / taken < SPEED_TARGET)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
