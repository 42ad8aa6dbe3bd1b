"""Vectors of a store: exact search, the graph over many, what is measured of it, and an index that does not fit."""

import numpy as np
import pytest

from atoken.errors import StoreError
from atoken.store import vectors
from atoken.store.vectors import FOLDER, Vectors, build, exact, load

WIDTH, COUNT = 24, 1500


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def clustered():
    """(K, D) vectors in 30 clusters within one cone, as those of images are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, WIDTH)) + 2
    return unit(centres[rng.integers(0, 30, COUNT)] + 0.5 * rng.normal(size=(COUNT, WIDTH)))


@pytest.fixture(scope="module")
def texts():
    """(Q, D) vectors in another cone."""
    return unit(np.random.default_rng(1).normal(size=(60, WIDTH)) - 1)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder with the manifest of a store, where 1,000 vectors are many."""
    monkeypatch.setattr(vectors, "MANY", 1000)
    (tmp_path / "manifest.json").write_text("{}")
    return tmp_path


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_exact_search_is_a_sort_of_all_products_in_any_blocks(clustered, texts, monkeypatch):
    expected = np.argsort(-(texts @ clustered.T), axis=1, kind="stable")[:, :7]
    for block in (4, 100, 1 << 16):
        monkeypatch.setattr(vectors, "BLOCK", block)
        np.testing.assert_array_equal(exact(clustered, texts, 7), expected)
    chosen = np.arange(3, COUNT, 5)
    among = chosen[np.argsort(-(texts @ clustered[chosen].T), axis=1, kind="stable")[:, :7]]
    np.testing.assert_array_equal(exact(clustered, texts, 7, chosen), among)
    assert exact(clustered, texts, COUNT + 5).shape == (len(texts), COUNT)  # all that there are
    assert exact(clustered[:0], texts, 7).shape == (len(texts), 0)


def test_nearest_gives_rows_of_the_store_and_their_cosines(clustered, texts):
    rows = np.arange(COUNT) * 2  # a store with a flip of each
    found, cosines = Vectors(clustered, rows).nearest(texts[0], 5)
    np.testing.assert_array_equal(found, rows[np.argsort(-(clustered @ texts[0]), kind="stable")[:5]])
    np.testing.assert_array_equal(cosines, clustered[found // 2] @ texts[0])
    among = np.arange(0, 2 * COUNT, 6)
    found, _ = Vectors(clustered, rows).nearest(texts[0], 5, among)
    np.testing.assert_array_equal(found, among[np.argsort(-(clustered[among // 2] @ texts[0]), kind="stable")[:5]])
    assert len(Vectors(clustered, rows).nearest(texts[0], 5, among[:2])[0]) == 2
    assert len(Vectors(clustered, rows).nearest(texts[0], 5, np.array([1, 3]))[0]) == 0  # flips alone


def test_equal_vectors_are_found_in_the_order_of_the_store(clustered):
    same = np.repeat(clustered[:1], 9, axis=0)
    np.testing.assert_array_equal(Vectors(same, np.arange(9)).nearest(clustered[0], 9)[0], np.arange(9))


def test_few_vectors_have_no_graph_and_many_have_one_that_finds_the_measured_share(store, clustered, texts):
    assert load(store) is None
    facts = build(store, clustered[:900], np.arange(900))
    assert facts.widths == {}
    assert sorted(files(store / FOLDER)) == ["facts.json", "manifest.json", "rows.npy", "vectors.npy"]
    assert load(store).graph is None
    added = []
    facts = build(store, clustered, np.arange(COUNT), texts, added.append)  # in place of the first
    assert sum(added) == COUNT
    opened = load(store)
    assert isinstance(opened.vectors, np.memmap)
    assert min(facts.recall["items"], facts.recall["texts"]) >= vectors.RECALL
    expected = exact(clustered, texts, 10)
    found = [
        len(set(opened.nearest(text, 10, query_type="texts")[0]) & set(row))
        for text, row in zip(texts, expected, strict=True)
    ]
    assert sum(found) == round(facts.recall["texts"] * 10 * len(texts))
    among = np.arange(0, COUNT, 700)  # so few of them that a graph would hardly meet one
    np.testing.assert_array_equal(np.sort(opened.nearest(texts[0], 10, among)[0]), among)
    assert [path.name for path in store.iterdir() if path.name.startswith(".")] == []


def test_the_search_is_as_wide_as_each_kind_of_query_needs(store, clustered, texts, monkeypatch):
    monkeypatch.setattr(vectors, "WIDTHS", (10, 20, 40, 80))
    monkeypatch.setattr(vectors, "WIDTH_BLIND", 50)
    monkeypatch.setattr(
        vectors, "recall", lambda graph, v, queries, *_: float(3 * graph.expansion_search >= len(queries))
    )
    monkeypatch.setattr(vectors, "QUERIES", 60)
    assert build(store, clustered, np.arange(COUNT)).widths == {"items": 20}
    opened = load(store)
    for kind, width in (("items", 20), ("texts", 50)):  # no text was measured with
        opened.nearest(texts[0], 5, query_type=kind)
        assert opened.graph.expansion_search == width
    assert build(store, clustered, np.arange(COUNT), texts[:30]).widths == {"items": 20, "texts": 10}
    opened = load(store)
    opened.nearest(texts[0], 5, query_type="texts")
    assert opened.graph.expansion_search == 10


def test_an_item_is_not_its_own_neighbour_when_recall_is_measured(clustered):
    own = np.array([0, 7])
    cosines = clustered @ clustered.T
    np.fill_diagonal(cosines, -1)
    tenth = -np.sort(-cosines[own], axis=1)[:, 9]
    np.testing.assert_allclose(vectors.last_of_nearest(clustered, clustered[own], own), tenth, atol=1e-6)


def test_the_same_vectors_give_the_same_bytes(store, clustered, texts):
    build(store, clustered, np.arange(COUNT), texts)
    first = files(store / FOLDER)
    build(store, clustered, np.arange(COUNT), texts)
    assert files(store / FOLDER) == first


def test_an_index_of_other_contents_is_refused(store, clustered):
    build(store, clustered[:50], np.arange(50))
    (store / "manifest.json").write_text('{"a": 1}')
    with pytest.raises(StoreError, match="of other contents than it has now; make it again with atoken index"):
        load(store)


@pytest.mark.parametrize("name", ["graph.usearch", "vectors.npy", "rows.npy", "facts.json"])
def test_a_damaged_index_is_one_sentence_before_anything_reads_it(store, clustered, name):
    build(store, clustered, np.arange(COUNT))
    whole = (store / FOLDER / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:], None):
        if damaged is None:
            (store / FOLDER / name).unlink()
        else:
            (store / FOLDER / name).write_bytes(damaged)
        with pytest.raises(StoreError, match="is damaged; make it again"):
            load(store)


def test_what_cannot_be_written_leaves_the_older_index(store, clustered, monkeypatch):
    build(store, clustered[:50], np.arange(50))
    monkeypatch.setattr(vectors.manifest, "seal", lambda folder: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(StoreError, match=r"Cannot write the index of .*: No space left"):
        build(store, clustered[:60], np.arange(60))
    assert len(load(store).rows) == 50
    assert sorted(path.name for path in store.iterdir()) == ["manifest.json", FOLDER]
