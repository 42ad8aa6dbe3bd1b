"""Published files count only with their SHA-256, and say how to get them."""

import hashlib
import pickle
from dataclasses import replace

import pytest
import torch

from atoken.errors import CheckpointError
from atoken.metrics.pinned import PinnedFile, sha256_of


def pinned(data):
    return PinnedFile("a.pth", hashlib.sha256(data).hexdigest(), "a network", "download it")


def test_the_very_bytes_that_are_checked_are_given(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    assert pinned(b"weights").read(tmp_path) == b"weights"
    assert sha256_of(tmp_path / "a.pth") == pinned(b"weights").sha256


@pytest.mark.parametrize(("otherwise", "end"), [("", "download it."), ("or go without", "download it, or go without.")])
def test_another_file_is_one_sentence_with_what_to_do(tmp_path, otherwise, end):
    file = pinned(b"weights")
    with pytest.raises(
        CheckpointError, match=r"a\.pth is needed \(a network\), in .* or a folder that you name: download it"
    ):
        file.read(None, otherwise)
    with pytest.raises(CheckpointError, match=r"Cannot read .*a\.pth \(a network; No such file") as error:
        file.read(tmp_path, otherwise)
    assert str(error.value).endswith(end)
    (tmp_path / "a.pth").write_bytes(b"weight5")
    with pytest.raises(CheckpointError, match=r"a\.pth is not the published file \(a network; SHA-256") as error:
        file.read(tmp_path, otherwise)
    assert str(error.value).endswith(end)


def test_what_is_not_in_the_folder_may_be_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "cache"))
    folder, cached = tmp_path / "folder", tmp_path / "cache" / "a.pth"
    for one in (folder, cached.parent):
        one.mkdir()
    assert pinned(b"weights").path(folder) is None
    cached.write_bytes(b"weights")
    assert pinned(b"weights").path(None) == pinned(b"weights").path(folder) == cached
    assert pinned(b"weights").read(folder) == b"weights"
    (folder / "a.pth").write_bytes(b"weight5")
    with pytest.raises(CheckpointError, match=r"folder.a\.pth is not the published file"):
        pinned(b"weights").read(folder)


@pytest.mark.parametrize("place", [0, 7, 8, 31, 63])
def test_every_digit_of_the_sha256_counts(place, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    right = pinned(b"weights")
    digits = right.sha256[:place] + ("0" if right.sha256[place] != "0" else "1") + right.sha256[place + 1 :]
    with pytest.raises(CheckpointError, match="is not the published file"):
        replace(right, sha256=digits).read(tmp_path)


def test_tensors_come_without_running_a_pickle(tmp_path):
    torch.save({"x": torch.arange(3)}, tmp_path / "a.pth")
    assert pinned((tmp_path / "a.pth").read_bytes()).tensors(tmp_path)["x"].tolist() == [0, 1, 2]
    (tmp_path / "a.pth").write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(pickle.UnpicklingError):
        pinned((tmp_path / "a.pth").read_bytes()).tensors(tmp_path)
