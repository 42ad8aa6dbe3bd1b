"""The picture of README is made of a photograph of a shard and of a video, and says of which weights."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image

import atoken
from atoken.io import load_media
from scripts import make_before_after

ROOT = Path(__file__).parents[1]


def add(shard, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def test_it_shows_the_first_photograph_of_the_source_that_is_free(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "test.tar", "w") as shard:
        for key, source in (("0", "GroceryStoreDataset"), ("1", "clothing-dataset")):
            file = io.BytesIO()
            PIL.Image.new("RGB", (40, 52), (0, 0, int(key) * 255)).save(file, "PNG")
            add(shard, f"{key}.png", file.getvalue())
            add(shard, f"{key}.json", json.dumps({"source": source, "label": "hat"}).encode())
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
