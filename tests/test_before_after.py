"""The picture of README is made of a photograph of a shard and of a video, and says of which weights."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import atoken
from atoken.io import load_media
from scripts import make_before_after

ROOT = Path(__file__).parents[1]


def packed(path, sources):
    """A shard of a photograph of each source: the first one is black, the second one blue."""
    with tarfile.open(path, "w") as shard:
        for number, source in enumerate(sources):
            file = io.BytesIO()
            PIL.Image.new("RGB", (40, 52), (0, 0, number * 255)).save(file, "PNG")
            record = json.dumps({"source": source, "label": "hat"}).encode()
            for suffix, data in ((".png", file.getvalue()), (".json", record)):
                member = tarfile.TarInfo(f"{number}{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def test_it_shows_the_first_photograph_of_the_source_that_is_free(tmp_path, monkeypatch):
    packed(tmp_path / "test.tar", ["GroceryStoreDataset", "clothing-dataset"])
    out = tmp_path / "picture.jpg"
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "test.tar"), "examples/pan.mp4", "-o", str(out)])
    make_before_after.main()
    with PIL.Image.open(out) as picture:
        assert picture.info["comment"].decode() == f"nano {atoken.load('nano').fingerprint}"
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (256 + 8 + 256, 256 + 8 + 40 + 8 + 128, 3)
    assert np.abs(pixels[:256, :256] - load_media("examples/leaves.png").pixels).mean() < 4
    for top in (0, 264):  # before and after
        assert np.abs(pixels[top : top + 52, 264:304].mean((0, 1)) - (0, 0, 255)).max() < 20


@pytest.mark.parametrize(
    ("shard", "video", "said"),
    [("nowhere.tar", "examples/pan.mp4", "There is no shard nowhere.tar"),
     ("none.tar", "examples/pan.mp4", "has no photograph of clothing-dataset"),
     ("one.tar", "nowhere.mp4", "Cannot read nowhere.mp4: there is no such file")],
)  # fmt: skip
def test_a_wrong_path_is_one_sentence(shard, video, said, tmp_path, monkeypatch):
    for name, source in (("none.tar", "GroceryStoreDataset"), ("one.tar", "clothing-dataset")):
        packed(tmp_path / name, [source])
    out = tmp_path / "picture.jpg"
    monkeypatch.chdir(ROOT)
    path = str(tmp_path / shard) if (tmp_path / shard).exists() else shard
    monkeypatch.setattr(sys, "argv", ["", path, video, "-o", str(out)])
    with pytest.raises(SystemExit, match=rf"^{out} was not made: [^\n]*{said}[^\n]*\.$"):
        make_before_after.main()
    assert not out.exists()
