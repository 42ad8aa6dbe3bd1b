"""Shards on disk: what is written comes back, what is damaged does not, and nothing is unpickled."""

import hashlib
import io
import random

import numpy as np
import pytest

from atoken.errors import ReportError
from eval.shards import Shard, ShardFolder

SHARD = Shard(
    {
        "psnr": {"sum": np.array([0.1, np.pi]), "n.of": np.zeros(0), "a/b": np.ones(2)},
        "rfid": {"prediction.products": np.arange(6.0)},
    },
    [{"key": "a", "psnr": 0.1 + 0.2}, {"key": "ü\udc80", "failed": "It is damaged."}],
    {"lpips": "A sentence."},
)


def test_a_shard_comes_back_bit_for_bit(tmp_path):
    folder = ShardFolder(tmp_path / "new" / "shards", "run")
    folder.write(3, SHARD)
    back = folder.read(3)
    assert (back.lines, back.faults) == (SHARD.lines, SHARD.faults)
    assert {m: {k: (a.dtype, a.tobytes()) for k, a in s.items()} for m, s in back.states.items()} == {
        m: {k: (a.dtype, a.tobytes()) for k, a in s.items()} for m, s in SHARD.states.items()
    }
    assert folder.read(4) is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["000003.npz"]


def test_a_shard_of_another_run_does_not_count(tmp_path):
    ShardFolder(tmp_path, "run").write(0, SHARD)
    assert ShardFolder(tmp_path, "other").read(0) is None


def test_damage_is_never_read(tmp_path):
    folder, rng = ShardFolder(tmp_path, "run"), random.Random(0)
    folder.write(0, SHARD)
    data = folder.path(0).read_bytes()
    for place in rng.sample(range(len(data)), 200):
        hurt = bytearray(data)
        hurt[place] ^= 1 << rng.randrange(8)
        folder.path(0).write_bytes(hurt)
        assert folder.read(0) is None
    for length in rng.sample(range(len(data)), 50):
        folder.path(0).write_bytes(data[:length])
        assert folder.read(0) is None


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    """Not even where the checksum is right."""
    folder, file = ShardFolder(tmp_path, "run"), io.BytesIO()
    np.savez(file, notes=np.array([Bomb()], object))
    folder.path(0).write_bytes(file.getvalue() + hashlib.sha256(file.getvalue()).digest())
    with pytest.raises(ValueError, match="allow_pickle"):
        folder.read(0)


def test_numpy_alone_reads_a_shard(tmp_path):
    folder = ShardFolder(tmp_path, "run")
    folder.write(0, SHARD)
    with np.load(folder.path(0), allow_pickle=False) as file:
        assert np.array_equal(file["psnr/sum"], SHARD.states["psnr"]["sum"])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="Cannot make the folder"):
        ShardFolder(tmp_path / "file" / "shards", "run").write(0, SHARD)


def test_clear_leaves_other_files(tmp_path):
    folder = ShardFolder(tmp_path / "shards", "run")
    folder.clear()
    folder.write(0, SHARD)
    (folder.folder / ".000001.npz.1234.part").write_bytes(b"half")
    folder.clear()
    assert not folder.folder.exists()
    folder.write(0, SHARD)
    (folder.folder / "mine.txt").write_text("")
    folder.clear()
    assert [path.name for path in folder.folder.iterdir()] == ["mine.txt"]
