"""Batches of any source: the same whoever makes them, shared out to ranks, and processes that end as they should."""

import multiprocessing
from contextlib import closing

import pytest
import torch

from atoken.errors import AtokenError, MediaError
from atoken.train.loader import batches, living_workers
from tests.train.flow import Points, Shapes

SOURCE = Shapes((("ring", "cross"), ("ring",)))
STEPS = 6


class Failing(Shapes):
    def batch(self, key):
        raise MediaError(f"No sample of step {key[1]} is good.")


class Large(Shapes):
    def batch(self, key):
        return Points("ring", torch.zeros(25 << 20))  # 100 MB: its process is nearly always sending


class Unreachable(Shapes):
    def batch(self, key):
        raise ConnectionError("the server is gone")


def steps(first=0, workers=0, rank=0, world=1, source=SOURCE):
    with closing(batches(source, first, STEPS, workers, rank, world)) as found:
        return list(found)


def equal(left, right):
    assert [[one.task for one in step] for step in left] == [[one.task for one in step] for step in right]
    pairs = [pair for ranks in zip(left, right, strict=True) for pair in zip(*ranks, strict=True)]
    return all(torch.equal(one.rows, other.rows) for one, other in pairs)


def test_a_step_has_the_batches_of_its_keys_in_order():
    assert equal(steps(), [[SOURCE.batch(key) for key in SOURCE.keys(step)] for step in range(STEPS)])


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_a_later_start_change_nothing(workers):
    assert equal(steps(first=3, workers=workers), steps()[3:])
    assert not multiprocessing.active_children()


def test_ranks_share_the_batches_of_every_step():
    ranks = [steps(rank=rank, world=2) for rank in range(2)]
    for whole, *shares in zip(steps(), *ranks, strict=True):
        assert equal(shares, [whole[0::2], whole[1::2]])


def test_batches_that_ranks_cannot_share_evenly_are_refused():
    with pytest.raises(AtokenError, match=r"Step 0 has 4 micro-batches, which 3 ranks cannot share evenly\."):
        steps(world=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_is_one_sentence_whoever_meets_it(workers):
    with pytest.raises(AtokenError, match=r"^No sample of step 0 is good\.$"):
        steps(workers=workers, source=Failing())


def test_a_death_of_a_worker_is_one_sentence_and_no_other_error_is_taken_for_one():
    died = r"^A process that makes batches died: .*killed.* smaller micro-batches\.$"
    with pytest.raises(AtokenError, match=died), living_workers():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nA page of torch's")
    with pytest.raises(RuntimeError, match=r"^out of memory$"), living_workers():
        raise RuntimeError("out of memory")


def test_a_process_that_is_sending_ends_quietly(capfd):
    with closing(batches(Large(), 0, 100, workers=1)) as found:
        next(found)
    assert not multiprocessing.active_children()
    assert not "".join(capfd.readouterr())


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_a_death(monkeypatch):
    def broken(_):
        raise ConnectionResetError

    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter._next_data", broken)
    died = r"A process that makes batches died: DataLoader worker has broken its connection \(ConnectionResetError\)\."
    with pytest.raises(AtokenError, match=died), living_workers():
        steps(workers=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_connection_of_the_source_is_no_death(workers):
    with pytest.raises(ConnectionError, match="the server is gone"), living_workers():
        steps(workers=workers, source=Unreachable())
