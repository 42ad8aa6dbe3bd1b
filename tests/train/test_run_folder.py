"""A run's folder: checkpoints that exist whole or not at all."""

import resource
from contextlib import contextmanager
from itertools import product

import pytest
import torch

from atoken.errors import CheckpointError
from atoken.train.run_folder import KEEP, RunFolder


def filled(path, steps=(1, 2)):
    folder = RunFolder(path)
    for step in steps:
        folder.save({"x": torch.full((3,), float(step))}, {"step": step})
    return folder


def test_the_newest_checkpoints_are_kept_and_come_back(tmp_path):
    folder = filled(tmp_path, range(1, 6))
    assert [path.name for path in folder.checkpoints()] == [f"step-{step:06d}" for step in range(6 - KEEP, 6)]
    tensors, numbers = folder.newest()
    assert torch.equal(tensors["x"], torch.full((3,), 5.0))
    assert numbers == {"step": 5}
    assert RunFolder(tmp_path / "new").newest() is None


def test_the_newest_is_that_of_the_largest_number(tmp_path):
    folder = filled(tmp_path, (999_500, 999_750, 1_000_000))
    assert [path.name for path in folder.checkpoints()] == ["step-999750", "step-1000000"]
    assert folder.newest()[1] == {"step": 1_000_000}


def test_rewinding_drops_later_lines_those_cut_short_and_parts(tmp_path):
    folder = filled(tmp_path)
    for step in range(4):
        folder.log({"step": step})
    with folder.log_path.open("a") as file:
        file.write('{"step": 0}')  # no end of line
    (tmp_path / ".step-000003.part").mkdir()
    folder.rewind(2)
    assert folder.log_path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert not (tmp_path / ".step-000003.part").exists()


def test_a_log_that_cannot_be_written_is_said(tmp_path):
    folder = filled(tmp_path)
    with pytest.raises(CheckpointError, match=r"Cannot write .*log.jsonl: "), no_file_over(0):
        folder.log({"step": 0})


@pytest.mark.parametrize("name", ["state.safetensors", "numbers.json", "manifest.json"])
def test_any_flipped_byte_makes_the_older_checkpoint_the_newest(name, tmp_path):
    folder = filled(tmp_path)
    path = tmp_path / "step-000002" / name
    whole = path.read_bytes()
    for place, bit in product(range(len(whole)), (0x01, 0x80)):
        flipped = bytearray(whole)
        flipped[place] ^= bit
        path.write_bytes(flipped)
        assert folder.newest()[1] == {"step": 1}
    path.write_bytes(whole)
    assert folder.newest()[1] == {"step": 2}


@pytest.mark.parametrize("name", ["state.safetensors", "numbers.json", "manifest.json"])
def test_a_missing_or_cut_file_makes_the_older_checkpoint_the_newest(name, tmp_path):
    folder = filled(tmp_path)
    path = tmp_path / "step-000002" / name
    path.write_bytes(path.read_bytes()[:-1])
    assert folder.newest()[1] == {"step": 1}
    path.unlink()
    assert folder.newest()[1] == {"step": 1}


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    folder = filled(tmp_path)
    for checkpoint in folder.checkpoints():
        (checkpoint / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="are damaged; remove them"):
        folder.newest()


@contextmanager
def no_file_over(size):
    """The system refuses to let a file grow, as a full disk does; a real failure of a real write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 200])  # of the tensors nothing, or all but the end, fits
def test_a_write_that_fails_leaves_the_older_checkpoint(size, tmp_path):
    folder = filled(tmp_path)
    with pytest.raises(CheckpointError, match="step-000003") as error, no_file_over(size):
        folder.save({"x": torch.zeros(1000)}, {"step": 3})
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]
    assert folder.newest()[1] == {"step": 2}
    folder.save({"x": torch.zeros(1000)}, {"step": 3})
    assert folder.newest()[1] == {"step": 3}
