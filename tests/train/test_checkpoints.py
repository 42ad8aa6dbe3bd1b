"""Checkpoints: they exist whole or not at all, damage is noticed and named, and what is frozen is written once."""

import json
import os
import resource
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise, product
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import load_file

from atoken import atomic
from atoken.errors import AtokenWarning, CheckpointError
from atoken.train import checkpoints as module
from atoken.train import manifest
from atoken.train.checkpoints import KEEP, Checkpoints
from atoken.train.engine import PlainEngine
from tests.train.flow import RECIPE, Flow, Shapes
from tests.train.kept import saved

FILES = ["rank-00000.safetensors", "numbers.json", "manifest.json", "../frozen-000000.safetensors"]


def filled(path, steps=(1, 2)):
    """Checkpoints of three numbers, which are those of the step, and one that is frozen."""
    found = Checkpoints(path)
    found.keep_frozen({"y": torch.zeros(())}, None)
    for step in steps:
        found.save({"step": step}, {"weights/x": torch.full((3,), float(step))}, {"x": 0})
    return found


def step_of(checkpoint):
    step = checkpoint.numbers["step"]
    assert checkpoint.read("weights/x", 0, 3).tolist() == [step] * 3
    return step


def test_the_newest_checkpoints_are_kept_and_come_back(tmp_path):
    found = filled(tmp_path, range(1, 6))
    assert [path.name for path in found.folders()] == [f"step-{step:06d}" for step in range(6 - KEEP, 6)]
    assert step_of(found.newest()) == 5
    assert Checkpoints(tmp_path / "new").newest() is None


def test_the_newest_is_that_of_the_largest_number(tmp_path):
    found = filled(tmp_path, (999_500, 999_750, 1_000_000))
    assert [path.name for path in found.folders()] == ["step-999750", "step-1000000"]
    assert step_of(found.newest()) == 1_000_000


def falls_back(found, name, file):
    """An older checkpoint is taken, and the newest is named; a frozen file is that of all."""
    if file.startswith("../"):
        with pytest.raises(CheckpointError, match=r"frozen-000000\.safetensors is damaged"):
            found.newest()
        return
    with pytest.warns(AtokenWarning, match=rf"{name}.* is damaged.* The run resumes from step-000001\.$"):
        assert step_of(found.newest()) == 1


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_noticed_and_the_damaged_checkpoint_is_named(name, tmp_path):
    found = filled(tmp_path)
    path = tmp_path / "step-000002" / name
    whole = path.read_bytes()
    for place, bit in product(range(len(whole)), (0x01, 0x80)):
        flipped = bytearray(whole)
        flipped[place] ^= bit
        path.write_bytes(flipped)
        falls_back(found, "step-000002", name)
    path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step_of(found.newest()) == 2


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_is_noticed(name, tmp_path):
    found = filled(tmp_path)
    path = tmp_path / "step-000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    falls_back(found, "step-000002", name)
    if not name.startswith("../"):
        path.unlink()
        falls_back(found, "step-000002", name)


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    found = filled(tmp_path)
    for checkpoint in found.folders():
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"are damaged; remove them to begin the run anew. .*step-000002"):
        found.newest()


@contextmanager
def no_file_over(size):
    """The system refuses to let a file grow, as a full disk does; a real failure of a real write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("size", [0, 200])  # of the tensors nothing, or all but the end, fits
def test_a_write_that_fails_leaves_the_older_checkpoint(size, tmp_path):
    found, large = filled(tmp_path), {"weights/x": torch.full((1000,), 3.0)}
    with pytest.raises(CheckpointError, match="step-000003") as error, no_file_over(size):
        found.save({"step": 3}, large, {"x": 0})
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.glob("*step-*")] == ["step-000001", "step-000002"]
    assert step_of(found.newest()) == 2
    found.save({"step": 3}, large, {"x": 0})
    assert step_of(found.newest()) == 3


def test_everything_is_on_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    """Fsync of each file, with all that is in it, then of the temporary folder, the rename, and fsync of the parent."""
    events, fsync, rename = [], os.fsync, Path.rename

    def noted_fsync(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append((path.name, path.stat().st_size if path.is_file() else sorted(x.name for x in path.iterdir())))
        fsync(descriptor)

    def noted_rename(path, target):
        events.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(atomic.os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    filled(tmp_path, [7])
    (folder,) = Checkpoints(tmp_path).folders()
    names = ["manifest.json", "numbers.json", "rank-00000.safetensors"]
    renamed = events.index(("rename", "step-000007"))
    for name in names:
        assert (name, (folder / name).stat().st_size) in events[:renamed]
    last = max(number for number, (name, _) in enumerate(events[:renamed]) if name in names)
    assert events[last][0] == "manifest.json"
    assert (".step-000007.part", names) in events[last:renamed]
    assert events[renamed + 1][0] == tmp_path.name
    frozen = (tmp_path / "frozen-000000.safetensors").stat().st_size
    assert any(name.startswith(".frozen") and size == frozen for name, size in events[:renamed])


# Pieces


def save_on_ranks(found, step, pieces):
    """Each rank, a thread, saves its piece (begin, numbers)."""
    barrier, said = Barrier(len(pieces)), [""] * len(pieces)

    def save(rank):
        def exchange(text):
            said[rank] = text
            barrier.wait()
            everything = list(said)
            barrier.wait()
            return everything

        begin, values = pieces[rank]
        tensors, starts = ({"weights/x": values}, {"x": begin}) if len(values) else ({}, {})
        found.save({"step": step}, tensors, starts, rank, exchange)

    with ThreadPoolExecutor(len(pieces)) as threads:
        return [thread.exception() for thread in [threads.submit(save, rank) for rank in range(len(pieces))]]


def test_pieces_of_any_number_of_processes_are_one_tensor(tmp_path):
    whole, found = torch.arange(10.0), Checkpoints(tmp_path)
    for step, bounds in enumerate([(0, 10), (0, 6, 10), (0, 3, 3, 9, 10)]):
        assert save_on_ranks(found, step, [(a, whole[a:b]) for a, b in pairwise(bounds)]) == [None] * (len(bounds) - 1)
        checkpoint = found.newest()
        assert checkpoint.numbers == {"step": step}
        for start in range(10):
            for size in range(1, 11 - start):
                assert torch.equal(checkpoint.read("weights/x", start, size), whole[start : start + size])
        with pytest.raises(CheckpointError, match=r"has 10 of 11 weights/x"):
            checkpoint.read("weights/x", 0, 11)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_cannot_write_all_ranks_say(rank, tmp_path, monkeypatch):
    found, save_file = filled(tmp_path, [1]), module.save_file

    def full(tensors, path, metadata):
        if path.name == f"rank-{rank:05d}.safetensors":
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(module, "save_file", full)
    errors = save_on_ranks(found, 2, [(0, torch.ones(3)), (3, torch.ones(3))])
    assert [str(error) for error in errors] == [f"Cannot write {tmp_path}/step-000002: No space left on device."] * 2
    assert step_of(found.newest()) == 1
    assert [path.name for path in tmp_path.glob("*step-*")] == ["step-000001"]


# What is in one


def trained(steps=1):
    engine = PlainEngine(Flow(), RECIPE, "cpu")
    for step in range(steps):
        engine.train([Shapes().batch(key) for key in Shapes().keys(step)])
    return engine


def test_a_tied_weight_is_stored_once_and_a_frozen_one_beside_all_checkpoints(tmp_path):
    engine = trained()
    saved(engine, tmp_path)
    held = load_file(tmp_path / "step-000001" / "rank-00000.safetensors")
    names = {name for name, _ in engine.objective.named_parameters()} - {"frequencies"}
    kinds = ("weights", "ema", "exp_avg", "exp_avg_sq")
    assert set(held) == {f"{kind}/{name}" for kind in kinds for name in names}
    assert "first.weight" in names
    assert "second.weight" not in names
    assert sum(tensor.numel() for tensor in held.values()) == 4 * sum(p.numel() for p in engine.parameters.values())
    assert set(load_file(tmp_path / "frozen-000000.safetensors")) == {"weights/frequencies"}
    sums = json.loads((tmp_path / "step-000001" / "manifest.json").read_text())
    frozen = manifest.sha256(tmp_path / "frozen-000000.safetensors")
    assert sums["../frozen-000000.safetensors"] == frozen
    assert set(sums) == {"rank-00000.safetensors", "numbers.json", "../frozen-000000.safetensors"}


def test_what_is_frozen_is_written_again_only_where_something_else_is(tmp_path):
    first = Checkpoints(tmp_path)
    first.keep_frozen({"a": torch.ones(2), "b": torch.zeros(3)}, None)
    first.save({"step": 1}, {"weights/x": torch.ones(1)}, {"x": 0})
    same = Checkpoints(tmp_path)
    same.keep_frozen({"a": torch.empty(2), "b": torch.empty(3)}, same.newest())
    assert same.frozen == first.frozen
    same.save({"step": 2}, {"weights/x": torch.ones(1)}, {"x": 0})
    other = Checkpoints(tmp_path)
    other.keep_frozen({"a": torch.empty(2), "x": torch.empty(1)}, other.newest())
    assert other.frozen.keys() == {"../frozen-000002.safetensors"}
    for step in (3, 4):
        assert (tmp_path / "frozen-000000.safetensors").exists()  # a checkpoint still names it
        other.save({"step": step}, {"weights/b": torch.zeros(3)}, {"b": 0})
    assert [path.name for path in tmp_path.glob("frozen-*")] == ["frozen-000002.safetensors"]
    newest = other.newest()
    assert newest.read("weights/a", 0, 2).tolist() == [1, 1]
    assert newest.read("weights/x", 0, 1).tolist() == [1]
    other.keep_frozen({}, newest)
