"""Photographs come out of clones and out of ready shards, split, never enlarged, with English names."""

import io
import json
import subprocess
import tarfile
import zlib
from base64 import b64encode
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from atoken import photographs
from atoken.data.sources import ShardSource
from atoken.errors import AtokenError
from atoken.fetch import fetch
from atoken.photographs import COUNTS, Photo, Photographs

# A sender of each split by its hash, and 50, who is in none.
CLOTHES = [
    ("a", "2", "Shoes"), ("b", "78", "Undershirt"), ("c", "41", "T-Shirt"), ("d", "50", "Hat"), ("e", "2", "Skip"),
]  # fmt: skip
GROCERIES = ["train/Fruit/Apple/Royal-Gala/Royal-Gala_001", "val/Packages/Oat-Milk/Oatly-Oat-Milk/Oatly-Oat-Milk_001"]
GROCERIES += [f"test/Fruit/Avocado/Avocado_{n:03d}" for n in range(8)]
FEW = {"train/clothes": 1, "train/groceries": 1, "validation/clothes": 1, "validation/groceries": 1, "test/clothes": 1}


def picture(width, height, format):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, format)
    return file.getvalue()


def committed(folder, files):
    """A repository with one commit of some files, and the hash of that."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    named = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], [*named, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return str(folder), done.stdout.strip()


@pytest.fixture
def clones(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "cache"))
    rows = [f"{image},{sender},{label},False\n" for image, sender, label in CLOTHES]
    clothes = {"images.csv": ("image,sender_id,label,kids\n" + "".join(rows)).encode()}
    clothes |= {f"images/{image}.jpg": picture(300, 600, "JPEG") for image, *_ in CLOTHES}
    classes = "Class Name (str),Coarse Class Name (str)\nRoyal-Gala,Apple\nOatly-Oat-Milk,Oat-Milk\nAvocado,Avocado\n"
    groceries = {"dataset/classes.csv": classes.encode()}
    groceries |= {f"dataset/{name}.jpg": picture(100, 80, "JPEG") for name in GROCERIES}
    top = tmp_path / "clones"
    monkeypatch.setattr(photographs, "CLOTHES", committed(top / "clothing-dataset", clothes))
    monkeypatch.setattr(photographs, "GROCERIES", committed(top / "GroceryStoreDataset", groceries))
    monkeypatch.setattr(photographs, "COUNTS", FEW | {"test/groceries": 1})
    return top


def found(cache):
    return {
        where: [ShardSource(cache / f"photos/{where}.tar")[n] for n in range(count)]
        for where, count in photographs.COUNTS.items()
    }


@pytest.mark.parametrize("cloned", [True, False])
def test_clones_are_split_by_sender_and_as_the_data_set_is(clones, tmp_path, cloned):
    (clones / "clothing-dataset" / "images" / "a.jpg").unlink()  # what is committed counts, not the work tree
    fetch("photos", clones if cloned else None)
    samples = found(tmp_path / "cache")
    labels = {where: [sample.record["label"] for sample in some] for where, some in samples.items()}
    assert labels == {
        "train/clothes": ["pair of shoes"], "validation/clothes": ["undershirt"], "test/clothes": ["t-shirt"],
        "train/groceries": ["royal gala"], "validation/groceries": ["oatly oat milk"], "test/groceries": ["avocado"],
    }  # fmt: skip
    assert samples["train/groceries"][0].record == {
        "label": "royal gala", "group": "apple", "source": "GroceryStoreDataset",
        "a_label": "a royal gala apple", "a_group": "an apple",
    }  # fmt: skip
    sizes = [Image.open(io.BytesIO(samples[where][0].media)).size for where in ("test/clothes", "test/groceries")]
    assert sizes == [(256, 512), (100, 80)]


def test_other_photographs_than_those_that_are_meant_are_refused(clones, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "COUNTS", FEW | {"test/groceries": 8})
    with pytest.raises(AtokenError, match="not those that are meant"):
        fetch("photos", clones)
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_without_the_commit_there_is_one_sentence(clones, monkeypatch):
    monkeypatch.setattr(photographs, "GROCERIES", (photographs.GROCERIES[0], "0" * 40))
    with pytest.raises(AtokenError, match=r"^Cannot get [^\n]* by git \([^\n]*\); pass a folder with clones"):
        fetch("photos", clones)


def test_ready_shards_are_sorted_and_not_encoded_again(clones, tmp_path, monkeypatch):
    shards = {"train": [("pair of shoes", "clothing"), ("kiwi", "kiwi"), ("leek", "leek")], "test": [("lime", "lime")]}
    for split, labels in shards.items():
        with tarfile.open(tmp_path / f"photos-{split}-000.tar", "w") as shard:
            for number, (label, group) in enumerate(labels):
                about = json.dumps({"label": label, "group": group, "source": "some"}).encode()
                for suffix, data in ((".webp", label.encode()), (".json", about)):
                    member = tarfile.TarInfo(f"{number:06d}{suffix}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
    with pytest.raises(AtokenError, match="SHA-256"):
        fetch("photos", tmp_path)
    data = b"".join((tmp_path / f"photos-{split}-000.tar").read_bytes() for split in ("test", "train"))
    monkeypatch.setattr(photographs, "SHARDS_SHA256", sha256(data).hexdigest())
    monkeypatch.setattr(photographs, "_VALIDATION", (b64encode(zlib.compress(bytes([3]))).decode(),))  # number 2
    counts = {"train/clothes": 1, "train/groceries": 1, "validation/groceries": 1, "test/groceries": 1}
    monkeypatch.setattr(photographs, "COUNTS", counts)
    fetch("photos", tmp_path)
    media = {where: [sample.media for sample in some] for where, some in found(tmp_path / "cache").items()}
    assert media == {
        "train/clothes": [b"pair of shoes"], "train/groceries": [b"kiwi"], "validation/groceries": [b"leek"],
        "test/groceries": [b"lime"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("label", "group", "named", "of_group"),
    [
        ("undershirt", "clothing", "an undershirt", "clothing"),
        ("pair of shoes", "clothing", "a pair of shoes", "clothing"),
        ("anjou", "pear", "an anjou pear", "a pear"),
        ("watermelon", "melon", "a watermelon", "a melon"),
        ("arla sour milk", "sour milk", "arla sour milk", "sour milk"),
        ("tropicana mandarin morning", "juice", "tropicana mandarin morning juice", "juice"),
        ("carrots", "carrots", "carrots", "carrots"),
    ],
)
def test_labels_have_the_article_that_they_need(label, group, named, of_group):
    record = Photo("train/any", b"", label, group, "any").record()
    assert (record["a_label"], record["a_group"]) == (named, of_group)


def test_there_are_8040_photographs():
    assert sum(COUNTS.values()) == 8040
    assert sum(count for where, count in COUNTS.items() if where.startswith("test")) == 1008


def test_a_folder_without_the_clones_is_one_sentence(tmp_path):
    with pytest.raises(AtokenError, match=r"^There is no \S*clothing-dataset: clone clothing-dataset and Groc"):
        Photographs().bring(tmp_path)
