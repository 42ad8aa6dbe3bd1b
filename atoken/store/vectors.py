"""Search among the vectors of a store: all of them, or, where they are many, a graph over them.

``atoken index`` writes a folder into the store. All of it follows from the store: it may be deleted, and made again::

    STORE/vectors/vectors.npy     (K, D) float32: the unit vector of each key, whose flips and draws are left out
    STORE/vectors/rows.npy        (K,) int64: the row of the store that each is of
    STORE/vectors/graph.usearch   where there are many: HNSW (Malkov and Yashunin 2018) over them, in float16
    STORE/vectors/facts.json      which store they are of, how the graph is searched, and how much it finds
    STORE/vectors/manifest.json   SHA-256 of these files, written last

A text lies far from all images, for the two fill different cones of the space; a graph of images leads it astray sooner
than it does an image. Therefore what the graph finds is measured with both, and for each it is searched as widely as it
needs.

Letters: ``K`` vectors, ``D`` their width, ``Q`` queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import Struct

from atoken.errors import CheckpointError, MissingExtraError, StoreError
from atoken.train import manifest

if TYPE_CHECKING:
    from usearch.index import Index

FOLDER = "vectors"
_VECTORS, _ROWS, _GRAPH, _FACTS = "vectors.npy", "rows.npy", "graph.usearch", "facts.json"
MANY = 10_000  # vectors; fewer are compared one by one, in about 0.1 ms
LINKS, WIDTH_ADD = 32, 256  # of the graph: links of a vector, and candidates kept while it is added
WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)  # candidates kept; the first that finds enough is taken
WIDTH_BLIND = 256  # for texts, where none was there to measure with
RECALL = 0.975  # to find of the ``TOP`` nearest, so that 0.97 holds for other queries than those that were measured
TOP = 10
QUERIES = 500  # of each type that the recall is measured with
SLACK = 1e-6  # of a cosine: two sums of the same products differ by this
BLOCK = 1 << 16  # vectors that are compared at once


class Facts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``facts.json``. store: SHA-256 of the manifest of the store.

    widths, recall: by type of query (``items``, ``texts``), candidates that are kept in a search, and the share of the
    ``TOP`` nearest that it finds; empty without a graph.
    """

    store: str
    count: int
    widths: dict[str, int]
    recall: dict[str, float]


@dataclass(frozen=True)
class Vectors:
    """The unit vectors (K, D) float32 of so many rows (K,) of a store, with a graph if they are many."""

    vectors: np.ndarray
    rows: np.ndarray
    graph: Index | None = None
    widths: Mapping[str, int] = field(default_factory=dict)

    def nearest(
        self, query_D: np.ndarray, top: int, among: np.ndarray | None = None, query_type: str = "items"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the ``top`` vectors nearest to a unit vector, nearest first, and their cosines.

        among: only of these rows of the store; they are compared one by one, and so are all where there is no graph.
        query_type: ``items`` or ``texts``.
        """
        if among is None and self.graph is not None:
            self.graph.expansion_search = self.widths.get(query_type, WIDTH_BLIND)  # type: ignore[misc] # two properties
            found = _by_graph(self.graph, self.vectors, query_D, top)
        else:
            chosen = None if among is None else np.flatnonzero(np.isin(self.rows, among))
            found = exact(self.vectors, query_D[None], top, chosen)[0]
        cosines = self.vectors[found] @ query_D
        order = np.lexsort((self.rows[found], -cosines))
        return self.rows[found[order]], cosines[order]


def exact(vectors_KD: np.ndarray, queries_QD: np.ndarray, top: int, chosen: np.ndarray | None = None) -> np.ndarray:
    """(Q, top) places of the largest products with each query, largest first; of ``chosen`` places only, if given."""
    count = len(vectors_KD if chosen is None else chosen)
    best, places = np.empty((len(queries_QD), 0), np.float32), np.empty((len(queries_QD), 0), np.int64)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        scores = queries_QD @ (vectors_KD[start:stop] if chosen is None else vectors_KD[chosen[start:stop]]).T
        kept = np.argpartition(scores, -min(top, stop - start), axis=1)[:, -min(top, stop - start) :]
        best = np.concatenate([best, np.take_along_axis(scores, kept, 1)], axis=1)
        places = np.concatenate([places, kept + start], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :top]
        best, places = np.take_along_axis(best, order, 1), np.take_along_axis(places, order, 1)
    return places if chosen is None else chosen[places]


def _by_graph(graph: Index, vectors_KD: np.ndarray, query_D: np.ndarray, top: int) -> np.ndarray:
    """(top,) places. The graph rounds to float16: twice as many are taken from it, and compared in float32."""
    found = graph.search(query_D, 2 * top, threads=1).keys.astype(np.int64)
    return found[np.argsort(-(vectors_KD[found] @ query_D), kind="stable")[:top]]


def build(
    store: Path,
    vectors_KD: np.ndarray,
    rows_K: np.ndarray,
    texts_QD: np.ndarray | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Facts:
    """Write the folder of a store, in place of an older one.

    texts_QD: unit vectors of texts, to measure with. progress: gets the number of vectors that were added to the graph.
    One thread adds them, so that the same vectors give the same graph. Raises: StoreError, MissingExtraError.
    """
    try:
        with TemporaryDirectory(prefix=f".{FOLDER}-", dir=store) as part:
            folder, widths, recall = Path(part) / FOLDER, dict[str, int](), dict[str, float]()
            folder.mkdir()
            np.save(folder / _VECTORS, vectors_KD)
            np.save(folder / _ROWS, rows_K)
            if len(vectors_KD) >= MANY:
                graph = _graph(vectors_KD, progress)
                widths, recall = _measured(graph, vectors_KD, texts_QD)
                graph.save(folder / _GRAPH)
            facts = Facts(store=fingerprint(store), count=len(vectors_KD), widths=widths, recall=recall)
            (folder / _FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts), indent=1))
            manifest.seal(folder)
            if (store / FOLDER).exists():
                (store / FOLDER).rename(Path(part) / "before")
            folder.rename(store / FOLDER)
    except OSError as error:
        raise StoreError(f"Cannot write the index of {store}: {error.strerror or error}.") from error
    return facts


def _graph(vectors_KD: np.ndarray, progress: Callable[[int], object]) -> Index:
    graph = _new(vectors_KD.shape[1], connectivity=LINKS, expansion_add=WIDTH_ADD)
    for start in range(0, len(vectors_KD), BLOCK // 16):
        part = vectors_KD[start : start + BLOCK // 16]
        graph.add(np.arange(start, start + len(part), dtype=np.uint64), part, threads=1)
        progress(len(part))
    return graph


def _new(width: int, **settings: Any) -> Index:
    try:
        from usearch.index import Index
    except ImportError as error:
        raise MissingExtraError("usearch", "store", f"Search among {MANY:,} items or more") from error
    return Index(ndim=width, metric="ip", dtype="f16", enable_key_lookups=False, **settings)


def _measured(
    graph: Index, vectors_KD: np.ndarray, texts_QD: np.ndarray | None
) -> tuple[dict[str, int], dict[str, float]]:
    """By type of query the narrowest search that finds enough, and what share it finds."""
    own = np.linspace(0, len(vectors_KD) - 1, QUERIES).astype(int)
    kinds: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"items": (np.asarray(vectors_KD[own]), own)}
    if texts_QD is not None:
        kinds["texts"] = texts_QD[:QUERIES], None
    widths, shares = dict[str, int](), dict[str, float]()
    for name, of in kinds.items():
        limits = last_of_nearest(vectors_KD, *of)
        for width in WIDTHS:
            graph.expansion_search = width  # type: ignore[misc] # usearch declares two properties crosswise
            widths[name], shares[name] = width, recall(graph, vectors_KD, *of, limits)
            if shares[name] >= RECALL:
                break
    return widths, shares


def last_of_nearest(vectors_KD: np.ndarray, queries_QD: np.ndarray, own_Q: np.ndarray | None) -> np.ndarray:
    """(Q,) cosine of the last of the ``TOP`` nearest to each query; it is not its own neighbour."""
    places = exact(vectors_KD, queries_QD, TOP + 1)
    cosines = np.einsum("qd,qtd->qt", queries_QD, vectors_KD[places])
    if own_Q is not None:
        cosines[places == own_Q[:, None]] = -2
    return -np.sort(-cosines, axis=1)[:, TOP - 1]


def recall(
    graph: Index, vectors_KD: np.ndarray, queries_QD: np.ndarray, own_Q: np.ndarray | None, last_Q: np.ndarray
) -> float:
    """The share of the ``TOP`` nearest that the graph finds. What is as near as the last of them counts as well."""
    found = 0
    for number, (query, last) in enumerate(zip(queries_QD, last_Q, strict=True)):
        places = _by_graph(graph, vectors_KD, query, TOP + 1)
        others = places if own_Q is None else places[places != own_Q[number]]
        found += int((vectors_KD[others[:TOP]] @ query >= last - SLACK).sum())
    return found / (TOP * len(queries_QD))


def load(store: Path) -> Vectors | None:
    """Open the index of a store, memory-mapped; None where there is none. Raises: StoreError, MissingExtraError."""
    folder, again = store / FOLDER, f"make it again with atoken index {store}"
    if not folder.exists():
        return None
    try:
        manifest.read(folder)  # before usearch reads a graph: it trusts the numbers in it
        facts = msgspec.json.decode((folder / _FACTS).read_bytes(), type=Facts)
        vectors, rows = np.load(folder / _VECTORS, mmap_mode="r"), np.load(folder / _ROWS)
    except (CheckpointError, msgspec.MsgspecError, OSError, ValueError) as error:
        raise StoreError(f"The index of {store} is damaged; {again}.") from error
    if facts.store != fingerprint(store):
        raise StoreError(f"The index of {store} is of other contents than it has now; {again}.")
    if not facts.widths:
        return Vectors(vectors, rows)
    graph = _new(vectors.shape[1])
    try:
        graph.view(folder / _GRAPH)
    except RuntimeError as error:  # such as another version of the format
        raise StoreError(f"This version of usearch cannot read the index of {store}; {again}.") from error
    return Vectors(vectors, rows, graph, facts.widths)


def fingerprint(store: Path) -> str:
    """SHA-256 of the manifest of a store, which has those of all its files. Raises: OSError."""
    return manifest.sha256(store / manifest.NAME)
