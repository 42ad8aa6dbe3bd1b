"""Mixtures: exact ratios, exact epochs, one global order for all ranks; broken samples are counted and listed."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from math import factorial
from pathlib import Path

import pytest

from atoken.data.mixing import ATTEMPTS, Mixture, permuted
from atoken.data.sources import Sample
from atoken.errors import AtokenError, MediaError, MissingExtraError


@dataclass
class Numbers:
    """A source of ``size`` samples, the number as key and bytes; some cannot be read."""

    size: int
    unreadable: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if index in self.unreadable:
            raise MediaError(f"{index} is unreadable.")
        return Sample(f"key {index}", str(index).encode(), ".png", ())


def mixture(seed: int = 5) -> Mixture:
    return Mixture({"a": (Numbers(10), 2), "b": (Numbers(7), 1), "c": (Numbers(10**12), 6)}, seed)


def order(count: int = 300) -> list[tuple[str, int]]:
    return [mixture().position(g) for g in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1000])
def test_each_epoch_is_a_permutation_of_its_own(size: int) -> None:
    alone = Mixture({"a": (Numbers(size), 1)}, 3)
    epochs = [tuple(alone.position(epoch * size + n)[1] for n in range(size)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size < 100 or len(set(epochs)) == 4


def test_each_epoch_of_a_source_is_a_permutation_whatever_it_is_mixed_with() -> None:
    for name, size in (("a", 10), ("b", 7)):
        items = [item for source, item in order(900) if source == name]
        for first in range(0, len(items) - size + 1, size):
            assert sorted(items[first : first + size]) == list(range(size))


def test_the_orders_of_a_few_samples_are_equally_frequent() -> None:
    draws = 3000
    for size in (2, 3, 4):
        seen = Counter(tuple(permuted(number, size, 0, key) for number in range(size)) for key in range(draws))
        expected = draws / factorial(size)
        assert len(seen) == factorial(size)
        assert sum((count - expected) ** 2 / expected for count in seen.values()) < 3 * factorial(size)


def test_the_ratio_is_exact_in_every_cycle_and_its_order_changes() -> None:
    names = [name for name, _ in order(9 * 50)]
    cycles = [tuple(names[first : first + 9]) for first in range(0, len(names), 9)]
    assert all(Counter(cycle) == {"a": 2, "b": 1, "c": 6} for cycle in cycles)
    assert len(set(cycles)) > 30
    assert {name for name, _ in order(900)[::9]} == {"a", "b", "c"}  # of 9 ranks, the first one


def test_the_position_is_a_function_of_seed_and_index_alone() -> None:
    mixed, copy = mixture(), pickle.loads(pickle.dumps(mixture()))  # noqa: S301 - our own, made in this line
    backwards = {g: mixed.position(g) for g in reversed(range(300))}
    assert [backwards[g] for g in range(300)] == [copy.position(g) for g in range(300)] == order()
    assert [mixture(6).position(g) for g in range(300)] != order()


def test_another_process_has_the_same_order() -> None:
    code = "import json, test_mixing; print(json.dumps(test_mixing.order()))"
    here = Path(__file__).parent
    other = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert [tuple(position) for position in json.loads(other.stdout)] == order()


def test_the_order_of_a_seed_never_changes() -> None:
    """A run that resumes after an update continues where it stopped."""
    assert [item for name, item in order(45) if name == "b"] == [5, 3, 6, 4, 1]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_one_global_order(world: int) -> None:
    drawn = {}
    for rank in range(world):
        mixed = mixture()
        drawn |= {g: mixed.draw(g, lambda sample: sample.media) for g in range(rank, 300, world)}
    assert [(drawn[g].source, int(drawn[g].value)) for g in range(300)] == order()


BAD = {3, 4, 8, 15}


def load(sample: Sample) -> int:
    number = int(sample.media)
    if number in BAD:
        raise AtokenError(f"{number} is damaged.")
    return number


def test_broken_samples_are_skipped_and_listed_exactly() -> None:
    mixed = Mixture({"a": (Numbers(100, unreadable={20, 21}), 1), "b": (Numbers(50), 1)}, 0)
    tried, broken = [], []
    for g in range(400):
        drawn = mixed.draw(g, load)
        broken += drawn.broken
        positions = [mixed.position(g, attempt) for attempt in range(len(drawn.broken) + 1)]
        assert {name for name, _ in positions} == {drawn.source}  # a broken sample does not shift the ratio
        assert drawn.value == positions[-1][1]
        tried += [(g, name, item) for name, item in positions]
    bad = [(g, name, item) for g, name, item in tried if item in BAD or (name, item) in (("a", 20), ("a", 21))]
    assert len(tried) == 400 + len(bad)
    assert {item for _, _, item in bad} == BAD | {20, 21}
    assert [(entry.at, entry.source) for entry in broken] == [(g, name) for g, name, _ in bad]
    for entry, (_, _, item) in zip(broken, bad, strict=True):
        key, state = (f"sample {item}", "unreadable") if item in (20, 21) else (f"key {item}", "damaged")
        assert (entry.key, entry.reason) == (key, f"{item} is {state}.")


def test_a_source_that_is_broken_altogether_stops_the_run() -> None:
    mixed = Mixture({"a": (Numbers(5, unreadable=set(range(5))), 1)}, 1)
    with pytest.raises(MediaError, match=rf"^{ATTEMPTS} samples of a in a row are broken\. .* \d is unreadable\.$"):
        mixed.draw(0, load)


@pytest.mark.parametrize("error", [MissingExtraError("trimesh", "3d", "Reading it"), ZeroDivisionError()])
def test_what_is_no_fault_of_the_sample_is_not_skipped(error: Exception) -> None:
    def fail(_: Sample) -> None:
        raise error

    with pytest.raises(type(error)):
        mixture().draw(0, fail)


@pytest.mark.parametrize("parts", [{}, {"a": (Numbers(0), 1)}, {"a": (Numbers(1), 0)}, {"a": (Numbers(1), 0.5)}])
def test_a_mixture_of_nothing_is_refused(parts: dict[str, tuple[Numbers, int]]) -> None:
    with pytest.raises(MediaError):
        Mixture(parts, 0)


def test_sources_in_order_come_one_after_the_other() -> None:
    mixed = Mixture({"a": (Numbers(10), 2), "b": (Numbers(7), 1)}, 5, {"b"})
    found = [mixed.position(index) for index in range(60)]
    assert [item for name, item in found if name == "b"] == [n % 7 for n in range(20)]
    others = Mixture({"a": (Numbers(10), 2), "b": (Numbers(7), 1)}, 5)
    assert [one for one in found if one[0] == "a"] == [one for one in map(others.position, range(60)) if one[0] == "a"]
