"""A row is the same however it is cut over ranks and by kills, and says what it lacks."""

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atoken import atomic
from atoken.errors import AtokenError
from atoken.metrics.pixels import psnr_of
from eval import run, shards
from eval.metrics.pixels import Psnr, Ssim
from eval.protocol import MOST_LISTED
from eval.run import Ranks, measure
from tests.eval.small import Copy, MeanDifference, contents, job

FORK = multiprocessing.get_context("fork")  # the modules are loaded already, so that a process takes milliseconds


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the command line sets it; and a fork does not have the threads that OpenMP believes it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def process(work, *arguments):
    child = FORK.Process(target=work, args=arguments)
    child.start()
    return child


def whole(folder, **options):
    row = measure(job(**options), folder)
    return json.dumps(row), contents(folder)


def test_numbers_are_those_of_plain_loops(tmp_path):
    small = job(count=20)
    row = measure(small, tmp_path)
    samples = [Copy().reconstruct([small.data[index]])[0] for index in range(20)]
    errors = [float(np.square(s.prediction.astype(float) - s.target).mean()) for s in samples]
    assert row["numbers"]["psnr"]["value"] == pytest.approx(np.mean([psnr_of(error) for error in errors]), rel=1e-12)
    assert row["numbers"]["mean error"]["metric"] == "error"
    assert (row["status"], row["why"], row["failed"]) == ("complete", "", [])
    assert row["items"] == {"planned": 20, "measured": 20, "full": 20, "file": row["items"]["file"]}
    lines = [json.loads(line) for line in (tmp_path / row["items"]["file"]).read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"{n:05d}" for n in range(20)]
    assert [line["psnr"] for line in lines] == pytest.approx([psnr_of(error) for error in errors], rel=1e-12)
    order = sorted(range(20), key=lambda n: (lines[n]["psnr"], n))
    assert [one["key"] for one in row["worst"]] == [lines[n]["key"] for n in order[:8]]
    assert [one["key"] for one in row["shown"]] == [f"{n * 20 // 8:05d}" for n in range(8)]
    assert all((tmp_path / one[side]).is_file() for one in row["worst"] for side in ("target", "prediction"))


def test_a_measured_row_is_not_measured_again(tmp_path):
    first = whole(tmp_path)
    seen = []
    assert json.dumps(measure(job(model=Copy(before=seen.append)), tmp_path)) == first[0]
    assert seen == []
    assert not list(tmp_path.rglob("*.npz"))


def test_any_number_of_ranks_gives_the_same_bytes(tmp_path):
    results = []
    for world in (1, 2, 4):
        folder = tmp_path / str(world)
        small = job(count=100, metrics=[Psnr(), Ssim(), MeanDifference()])
        others = [process(measure, small, folder, Ranks(rank, world)) for rank in range(1, world)]
        row = measure(small, folder, Ranks(0, world))
        for other in others:
            other.join(60)
            assert other.exitcode == 0
        results.append((json.dumps(row), contents(folder)))
    assert results[0] == results[1] == results[2]


def test_every_rank_measures_its_own_share_and_nothing_else(tmp_path):
    """Of 13 shards of 8 items; rank 0 also makes the images of a report."""
    shares = []
    for rank in reversed(range(3)):
        seen = []
        measure(job(count=100, model=Copy(before=seen.append)), tmp_path, Ranks(rank, 3))
        items = [int(key) for key in seen]
        own = [number for number in range(100) if number // 8 % 3 == rank]
        assert items[: len(own)] == own
        again = items[len(own) :]
        assert len(again) == len(set(again)) <= 16 * (rank == 0)
        shares += own
    assert sorted(shares) == list(range(100))


class InOrder(MeanDifference):
    """Keeps the keys of its outputs, in the order in which they were folded and merged."""

    name = "order"

    def start(self):
        return {"keys": np.zeros(0, np.int64)}

    def add(self, state, outputs):
        state["keys"] = np.concatenate([state["keys"], [int(output.item.key) for output in outputs]])
        return [{} for _ in outputs]

    def merge(self, first, second):
        return {"keys": np.concatenate([first["keys"], second["keys"]])}

    def finish(self, state):
        assert state["keys"].tolist() == list(range(60))
        return {"last": float(state["keys"][-1])}


def test_shards_are_merged_in_order_whichever_came_first(tmp_path):
    small = job(count=60, metrics=[InOrder()])
    for rank in (3, 1, 2):
        measure(small, tmp_path, Ranks(rank, 4))
    row = measure(small, tmp_path, Ranks(0, 4))
    assert row["numbers"]["last"]["value"] == 59


def dying_at(folder, number, where):
    """Measure, and die at the nth item, or at the nth call of something that writing makes, before or after it."""
    calls = itertools.count(1)

    def die_when_due(*_):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "item":
        measure(job(model=Copy(before=die_when_due)), folder)
        return
    home, name, when = where
    plain = getattr(home, name)

    def wrapped(*arguments, **options):
        if when == "before":
            die_when_due()
        result = plain(*arguments, **options)
        if when == "after":
            die_when_due()
        return result

    setattr(home, name, wrapped)
    measure(job(), folder)


MOMENTS = [
    (1, "item"), (9, "item"), (30, "item"), (37, "item"),  # the last of these is while images are made again
    (1, (np, "savez", "after")), (3, (Path, "replace", "before")), (3, (Path, "replace", "after")),
    (10, (atomic, "sync", "before")), (1, (run, "merge", "before")), (1, (run, "merge", "after")),
    (1, (run, "write_json", "after")), (1, (shards.ShardFolder, "clear", "after")),
]  # fmt: skip


def test_killed_at_many_moments_and_resumed_it_gives_the_same_bytes(tmp_path):
    wanted = whole(tmp_path / "whole")
    for place, moment in enumerate(MOMENTS):
        folder = tmp_path / str(place)
        child = process(dying_at, folder, *moment)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, moment
        before = {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
        seen = []
        row = measure(job(model=Copy(before=seen.append)), folder)
        assert json.dumps(row) == wanted[0], moment
        left = {name: data for name, data in contents(folder).items() if not name.endswith(".part")}
        assert left == wanted[1], moment
        finished = {int(name.partition(".")[0]) for name in before}
        assert not {int(key) // 8 for key in seen[:-16]} & finished, moment  # the last 16 are made again for images


def test_killed_again_and_again_it_ends(tmp_path):
    wanted, folder = whole(tmp_path / "whole"), tmp_path / "killed"
    for _ in range(10):
        child = process(dying_at, folder, 12, "item")  # past one shard, within the next
        child.join(60)
        if child.exitcode == 0:
            break
    assert json.dumps(measure(job(), folder)) == wanted[0]


def test_a_rank_that_is_late_is_waited_for(tmp_path):
    slow = Copy(before=lambda key: time.sleep(0.01))
    other = process(measure, job(model=slow, count=24), tmp_path / "two", Ranks(1, 2))
    row = measure(job(count=24), tmp_path / "two", Ranks(0, 2))
    other.join(60)
    assert row == measure(job(count=24), tmp_path / "one")


def test_a_damaged_shard_is_measured_again(tmp_path):
    wanted = whole(tmp_path / "whole")
    child = process(dying_at, tmp_path / "hurt", 30, "item")
    child.join(60)
    (first, *_) = sorted(tmp_path.glob("hurt/*/shards/*.npz"))
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    assert whole(tmp_path / "hurt") == wanted


def test_items_that_cannot_be_measured_are_listed_and_the_row_is_partial(tmp_path):
    row = measure(job(count=20, unreadable=[3], refused=[7, 19]), tmp_path)
    assert row["status"] == "partial"
    assert row["why"] == "17 items were measured, and the whole data set has 20."
    assert row["failed"] == [
        {"key": "00003", "why": "This image is damaged."},
        {"key": "refused-00007", "why": "This model does not take refused-00007."},
        {"key": "refused-00019", "why": "This model does not take refused-00019."},
    ]
    assert row["protocol"]["items"] == 17
    kept = job(count=20, refused=[7, 19])
    full = measure(job(count=20), tmp_path)
    assert row["protocol"]["data"] != full["protocol"]["data"]
    lines = (tmp_path / row["items"]["file"]).read_text().splitlines()
    assert json.loads(lines[3]) == {"key": "00003", "failed": "This image is damaged."}
    assert len(kept.data) == len(lines)


def test_of_many_failed_items_the_first_are_listed_and_all_are_in_the_file(tmp_path):
    row = measure(job(count=MOST_LISTED + 30, refused=range(5, MOST_LISTED + 20)), tmp_path)
    assert [one["key"] for one in row["failed"]] == [f"refused-{n:05d}" for n in range(5, MOST_LISTED + 5)]
    lines = [json.loads(line) for line in (tmp_path / row["items"]["file"]).read_text().splitlines()]
    assert sum("failed" in line for line in lines) == MOST_LISTED + 15
    assert row["items"]["measured"] == 15


def test_fewer_items_than_the_data_set_has_are_partial(tmp_path):
    row = measure(job(count=20, full=5000), tmp_path)
    assert row["status"] == "partial"
    assert row["items"]["full"] == 5000


def test_no_item_at_all_is_a_failed_row_with_the_reason(tmp_path):
    row = measure(job(count=5, refused=range(5)), tmp_path)
    assert row["status"] == "failed"
    assert row["why"] == "None of 5 items could be measured (This model does not take refused-00000)."
    assert row["numbers"] == {}


def test_a_number_that_is_not_finite_fails_the_row(tmp_path):
    row = measure(job(count=5, model=Copy(noise=0)), tmp_path)
    assert row["status"] == "failed"
    assert "psnr is inf; it is not finite for 5 items, such as 00000." in row["faults"]["psnr"]
    assert set(row["numbers"]) == {"mean error"}
    line = json.loads((tmp_path / row["items"]["file"]).read_text().splitlines()[0])
    assert line["psnr"] == "inf"


class Choosy(MeanDifference):
    """Takes no sample whose key ends in 5."""

    name = "choosy"

    def add(self, state, samples):
        for sample in samples:
            if sample.item.key.endswith("5"):
                raise AtokenError(f"{sample.item.key} is not to my taste.")
        return super().add(state, samples)

    def finish(self, state):
        return {"choosy error": super().finish(state)["mean error"]}


def test_a_metric_that_cannot_go_on_is_left_out_and_the_others_go_on(tmp_path):
    metrics = [Psnr(), Choosy(), MeanDifference()]
    row = measure(job(count=30, metrics=metrics, skipped={"lpips": "A file is missing."}), tmp_path)
    assert row["status"] == "complete"
    assert row["skipped"] == {"lpips": "A file is missing.", "choosy": "00005 is not to my taste."}
    assert "choosy error" not in row["numbers"]
    assert "choosy" not in row["protocol"]["metrics"]
    plain = measure(job(count=30, metrics=[Psnr(), MeanDifference()]), tmp_path)
    assert {name: one["value"] for name, one in row["numbers"].items()} == {
        name: one["value"] for name, one in plain["numbers"].items()
    }


def test_another_protocol_is_another_run(tmp_path):
    names = {job().name(), job(shard=9).name(), job(batch=4).name(), job(count=59).name(), job(full=7).name()}
    names |= {job(model=Copy(noise=5)).name(), job(metrics=[Psnr()]).name(), job(skipped={"lpips": "x"}).name()}
    assert len(names) == 8
    assert job().name() == job().name()


class Watched:
    """A source that counts how many of its items are alive."""

    def __init__(self, data):
        self._data, self._given, self.most = data, [], 0
        self.key, self.line = data.key, data.line

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index):
        item = self._data[index]
        self._given.append(weakref.ref(item))
        self.most = max(self.most, sum(given() is not None for given in self._given))
        return item


def test_memory_does_not_grow_with_items(tmp_path):
    most = []
    for count in (24, 72):
        made = replace(job(count=count), data=Watched(job(count=count).data))
        measure(made, tmp_path / str(count))
        most.append(made.data.most)
    assert max(most) <= 10  # a batch of 3, as many read ahead, one in the thread, and what the loops still hold


def test_the_reader_ahead_ends_with_its_shard_whatever_happens(monkeypatch):
    """An exception keeps the frame that made it, and so what the frame holds."""

    def fails(*_):
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(run, "_fold", fails)
    with pytest.raises(KeyboardInterrupt) as kept:
        run.measured(job(count=20), 0, lambda _: None)
    assert threading.active_count() == before
    assert kept.value is not None
