"""Batches of a store: a function of seed and step, for any number of ranks; each epoch has each sample once."""

import pickle
import re
from collections import Counter

import pytest
import torch

from atoken import AtokenError, TokenStore
from atoken.store.batches import StoreBatches
from atoken.train.loader import batches
from tests.io.token_cases import make
from tests.store.written import images, mixed, write_store

pytest.importorskip("pyarrow")


def of_two_sizes():
    return [*images(6, (16, 16)), *(one._replace(key=f"wide/{one.key}") for one in images(4, (16, 48), seed=50))]


def with_variants():
    """Five images, each with a flip and two draws, not side by side."""
    return [
        one._replace(tokens=make((16, 16), seed=10 * n + 2 * draw + flipped), flipped=flipped, draw=draw)
        for flipped in (False, True)
        for draw in (0, 1)
        for n, one in enumerate(images(5, (16, 16)))
    ]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {
        "one": TokenStore(write_store(folder / "one", images(7, (16, 16)))),
        "two": TokenStore(write_store(folder / "two", of_two_sizes(), 4)),
        "variants": TokenStore(write_store(folder / "variants", with_variants(), 6, flip=True, draws=2)),
        "mixed": TokenStore(write_store(folder / "mixed", mixed())),
        "codes": TokenStore(write_store(folder / "codes", images(4, discrete=True))),
    }


def rows_of(source, steps):
    """Rows of each micro-batch of the first steps."""
    return [source.batch(key).rows for step in range(steps) for key in source.keys(step)]


def same(left, right):
    assert (left.rows, left.captions, left.noise, left.samples, len(left)) == (
        right.rows, right.captions, right.noise, right.samples, len(right),
    )  # fmt: skip
    assert torch.equal(left.label_ids, right.label_ids)
    if isinstance(left.latents, torch.Tensor):
        return torch.equal(left.latents, right.latents)
    return torch.equal(left.latents.feats, right.latents.feats) and torch.equal(
        left.latents.coords, right.latents.coords
    )


def test_a_batch_has_what_the_store_has_of_its_rows(stores):
    store = stores["one"]
    batch = StoreBatches(store, seed=1, samples=3, captions=True).batch(2)
    rows = list(batch.rows)
    assert torch.equal(batch.latents, store.grids(rows))
    assert batch.label_ids.tolist() == store.label_ids[rows].tolist()
    assert all(caption in (f"image {row}", f"number {row}") for caption, row in zip(batch.captions, rows, strict=True))
    assert (batch.samples, len(batch), batch.codes, batch.broken) == (3, 3, None, ())
    codes = StoreBatches(stores["codes"], seed=1, samples=2).batch(0)
    assert torch.equal(codes.codes, stores["codes"].codes(list(codes.rows)))


def test_every_epoch_has_each_sample_once(stores):
    source = StoreBatches(stores["one"], seed=3, samples=2)
    stream = [row for rows in rows_of(source, 7) for row in rows]
    assert sorted(stream[:7]) == sorted(stream[7:]) == list(range(7))
    assert stream[:7] != stream[7:]
    assert source.steps_per_epoch == 3.5
    assert stream != [row for rows in rows_of(StoreBatches(stores["one"], seed=4, samples=2), 7) for row in rows]


def test_grids_take_turns_as_their_numbers_of_samples_demand(stores):
    source = StoreBatches(stores["two"], seed=0, samples=2, micro_batches=2)
    counts = Counter()
    for step in range(10):
        shapes = {source.batch(key).latents.shape for key in source.keys(step)}
        assert len(shapes) == 1  # no rank waits for another
        counts += Counter(shapes)
    assert counts == {(2, 12, 1, 1): 6, (2, 12, 1, 3): 4}
    rows = Counter(row for rows in rows_of(source, 10) for row in rows)
    assert rows == dict.fromkeys(range(10), 4)


@pytest.mark.parametrize("chosen", [{"samples": 2}, {"tokens": 5}])
def test_a_batch_is_a_function_of_seed_and_step(stores, chosen):
    source = StoreBatches(stores["two"], seed=5, micro_batches=4, captions=True, **chosen)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301 - its own
    for key in source.keys(7):
        assert same(source.batch(key), again.batch(key))
    assert source.keys(7) == [28, 29, 30, 31]


@pytest.mark.parametrize("chosen", [{"samples": 2}, {"tokens": 5}])
def test_any_number_of_ranks_has_the_same_steps(stores, chosen):
    source = StoreBatches(stores["two"], seed=5, micro_batches=4, **chosen)
    (expected,) = batches(source, 3, 4, workers=0)
    for world in (2, 4):
        ranks = [next(batches(source, 3, 4, workers=0, rank=rank, world=world)) for rank in range(world)]
        found = [ranks[number % world][number // world] for number in range(4)]
        assert all(same(left, right) for left, right in zip(found, expected, strict=True))
    with pytest.raises(AtokenError, match="cannot share evenly"):
        next(batches(source, 0, 1, workers=0, world=3))


def test_processes_of_the_loader_make_the_same(stores):
    source = StoreBatches(stores["mixed"], seed=5, tokens=40, micro_batches=2)
    made = [one for step in batches(source, 1, 3, workers=1) for one in step]
    assert all(same(one, source.batch(key)) for one, key in zip(made, [2, 3, 4, 5], strict=True))


def test_packed_batches_keep_to_the_budget_and_epochs_are_exact(stores):
    for name, budget in (("two", 7), ("mixed", 33)):
        source = StoreBatches(stores[name], seed=2, tokens=budget)
        steps = round(source.steps_per_epoch)
        found = [source.batch(key) for key in range(3 * steps)]
        assert all(len(batch) <= budget for batch in found)
        for epoch in range(3):
            rows = [row for batch in found[epoch * steps : (epoch + 1) * steps] for row in batch.rows]
            assert sorted(rows) == list(range(len(stores[name])))
        if name == "two":
            assert {batch.rows for batch in found[:steps]} != {batch.rows for batch in found[steps : 2 * steps]}
        for batch in found:
            assert torch.equal(batch.latents.feats, stores[name].packed(list(batch.rows)).feats)


def test_flips_and_draws_are_one_sample(stores):
    source = StoreBatches(stores["variants"], seed=0, samples=5)
    keys, seen = stores["variants"].column("key").to_pylist(), set()
    for rows in rows_of(source, 30):
        assert len({keys[row] for row in rows}) == 5
        seen.update(rows)
    assert seen == set(range(20))
    plain = StoreBatches(stores["variants"].where(flipped=False, draw=0), seed=0, samples=5)
    assert sorted(plain.batch(0).rows) == list(range(5))


def test_views_are_sources_too(stores):
    view = stores["mixed"].where(modality="image", label=["cat", "dog"])
    source = StoreBatches(view, seed=0, tokens=100)
    assert sorted(source.batch(0).rows) == [0, 1]
    assert sorted(view.column("key").take(list(source.batch(0).rows)).to_pylist()) == ["a", "b"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({}, "Give samples for dense batches or tokens for packed ones"),
        ({"samples": 2, "tokens": 100}, "Give samples for dense batches or tokens"),
        ({"samples": 0}, "Give samples"),
        ({"samples": 1, "micro_batches": 0}, "Give samples"),
        ({"samples": 1}, "7 tokens in a grid of 1 x 8 x 8 (asset) make no dense batch"),
        ({"tokens": 19}, "over the budget of 19"),
    ],
)
def test_what_does_not_fit_is_said_at_once(stores, chosen, said):
    with pytest.raises(AtokenError, match=re.escape(said)):
        StoreBatches(stores["mixed"], seed=0, **chosen)


def test_nothing_is_no_source(stores):
    with pytest.raises(AtokenError, match="is left to train on"):
        StoreBatches(stores["one"].where(label="none such"), seed=0, samples=1)
