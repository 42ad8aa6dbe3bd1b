"""What a user names becomes items with unique keys and the labels that people expect, in an order of its own."""

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atoken.data.synthetic.labelled import FIGURE_PROMPTS
from atoken.errors import AtokenWarning, MediaError
from atoken.store.layout import Options
from atoken.store.media import decode
from atoken.store.source import open_source

JPG = b"\xff\xd8\xff"


def files(top: Path, *names: str, data: bytes = JPG) -> Path:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    return top


def labels(source: object, **options: object) -> dict[str, str | None]:
    return {entry.key: entry.label for entry in open_source(str(source), Options(**options))}


@pytest.mark.parametrize(
    "expected",
    [
        {"cat/1.jpg": "cat", "cat/old/1.jpg": "cat", "dog/1.jpg": "dog", "no.jpg": None},
        {"train/n01440764/x.JPEG": "n01440764", "val/n01440764/y.JPEG": "n01440764"},  # ImageNet, sorted
        {"train/n01440764/x.JPEG": "n01440764", "val/ILSVRC2012_val_00000001.JPEG": None},  # and as it comes
        {"ILSVRC2012_val_00000001.JPEG": None, "ILSVRC2012_val_00000002.JPEG": None},
        {"bus/1.jpg": "bus", "train/1.jpg": "train"},  # no split, but a class of CIFAR-100
        {"Train/a/1.jpg": "a", "Val/b/1.jpg": "b", "preview.jpg": None},
    ],
)
def test_the_label_of_a_file_is_its_first_folder_that_is_no_split(expected, tmp_path):
    assert labels(files(tmp_path, *expected)) == expected


def test_of_a_folder_hidden_and_other_files_are_passed_over_and_captions_are_carried_along(tmp_path):
    files(
        tmp_path, "a/1.jpg", "a/1.mp4", ".b/1.jpg", "a/.2.jpg", "a/3.md", "__MACOSX/._1.jpg", "b/chair.glb", "b/1.jpg"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "a/1.txt").write_text("a dog\nits tail\n")
    (tmp_path / "b/1.json").write_text(json.dumps({"caption": "a cat", "label": "feline"}))
    items = list(open_source(str(tmp_path), Options()))
    assert [(item.key, item.label, item.sample.captions) for item in items] == [
        ("a/1.jpg", "a", ("a dog", "its tail")),
        ("a/1.mp4", "a", ("a dog", "its tail")),
        ("b/1.jpg", "feline", ("a cat",)),
        ("b/chair.glb", "b", ()),
    ]


def test_names_that_are_not_utf_8_are_escaped_and_never_collide(tmp_path):
    files(tmp_path, os.fsdecode(b"\xe4/\xff.jpg"), "漢/\n.jpg")
    assert labels(tmp_path) == {"\\xe4/\\xff.jpg": "\\xe4", "漢/\n.jpg": "漢"}
    files(tmp_path, "\\xe4/\\xff.jpg")
    with pytest.raises(MediaError, match="differ only in bytes that are not UTF-8"):
        labels(tmp_path)


def test_links_to_files_are_read_and_a_link_to_nothing_is_an_item_that_fails(tmp_path):
    real = files(tmp_path / "real", "1.jpg")
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/a/1.jpg").symlink_to(real / "1.jpg")
    (tmp_path / "data/a/2.jpg").symlink_to(real / "2.jpg")
    (tmp_path / "data/b").symlink_to(real)
    with pytest.warns(AtokenWarning, match="1 links to folders, such as .*b, are not followed"):
        assert labels(tmp_path / "data") == {"a/1.jpg": "a", "a/2.jpg": "a"}
    (tmp_path / "link").symlink_to(real)
    assert labels(tmp_path / "link") == {"1.jpg": None}


def test_a_source_may_be_one_file(tmp_path):
    files(tmp_path, "photo.JPG", "other.jpg")
    (tmp_path / "photo.txt").write_text("a dog")
    (item,) = open_source(str(tmp_path / "photo.JPG"), Options())
    assert (item.key, item.sample.captions, item.label) == ("photo.JPG", ("a dog",), None)


def shard(path: Path, **members: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_shards_have_the_labels_of_their_json_and_cls(tmp_path):
    shard(tmp_path / "0.tar", a_jpg=JPG, a_cls=b"3", b_jpg=JPG, b_json=b'{"label": 4}')
    shard(tmp_path / "1.tar", a_jpg=JPG)
    assert labels(tmp_path) == {"0.tar/a": "3", "0.tar/b": "4", "1.tar/a": None}
    assert labels(tmp_path / "0.tar") == {"0.tar/a": "3", "0.tar/b": "4"}


def test_a_table_about_a_shard_is_no_source_beside_it(tmp_path):
    """What img2dataset writes."""
    shard(tmp_path / "00000.tar", a_jpg=JPG, a_txt=b"a dog", a_json=b'{"caption": "a dog", "url": "x"}')
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    (item,) = open_source(str(tmp_path), Options())
    assert (item.key, item.sample.captions) == ("00000.tar/a", ("a dog",))
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "others.parquet")
    with pytest.raises(MediaError, match=r"no media, 1 shards \(00000\.tar\) and 1 tables \(others\.parquet\)"):
        labels(tmp_path)


def table(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [JPG, JPG], **columns}), path)
    return path


def test_tables_have_the_labels_of_their_column(tmp_path):
    table(tmp_path / "data/train-00000-of-00002.parquet", label=["a", None])
    table(tmp_path / "data/train-00001-of-00002.parquet", label=["b", "c"])
    named = [f"train-0000{part}-of-00002.parquet/{row}" for part in (0, 1) for row in (0, 1)]
    assert labels(tmp_path / "data") == dict(zip(named, ["a", None, "b", "c"], strict=True))


def data_file(top: Path, text: str) -> Path:
    (top / "data.toml").write_text(text)
    return top / "data.toml"


def test_a_data_file_is_all_its_sources_each_once(tmp_path):
    files(tmp_path / "photos", "a/1.jpg", "a/2.mp4")
    (tmp_path / "photos/a/1.json").write_text('{"label": "cat", "article": "a"}')
    shard(tmp_path / "0.tar", x_gif=b"GIF89a", x_json=b'{"id": 7, "label": "dog"}', y_jpg=JPG)
    table(tmp_path / "t.parquet", kind=["x", "y"], alt=["first", "second"])
    file = data_file(
        tmp_path,
        """
        seed = 3
        [image.photos]
        folder = "photos"
        weight = 3
        [image.rows]
        table = "t.parquet"
        captions = "alt"
        label = "{kind}"
        [image-text.again]
        folder = "photos"
        templates = ["a photo of {article} {label}"]
        [video.photos]
        folder = "photos"
        [video.shards]
        shards = "0.tar"
        label = "{id}"
        """,
    )
    items = list(open_source(str(file), Options()))
    assert [(item.key, item.label, item.sample.captions, item.first_frame) for item in items] == [
        ("image.photos/a/1.jpg", "cat", ("a photo of a cat",), True),
        ("image.rows/t.parquet/0", "x", ("first",), True),
        ("image.rows/t.parquet/1", "y", ("second",), True),
        ("video.photos/a/2.mp4", "a", (), False),
        ("video.shards/0.tar/x", "7", (), False),
        ("video.shards/0.tar/y", None, (), False),
    ]


def test_what_of_a_data_file_is_for_training_alone_is_said(tmp_path):
    files(tmp_path / "photos", "1.jpg")
    photos = '[{}.photos]\nfolder = "photos"\n{} = true\n'
    generated = '[image.generated]\nprocedural = "mixed"\n'
    for text in (photos.format("image", "cropped"), photos.format("video", "filmed")):
        with pytest.warns(AtokenWarning, match="filmed and cropped in .* are for training"):
            (item,) = open_source(str(data_file(tmp_path, text)), Options())
        assert item.sample.media == tmp_path / "photos/1.jpg"
    file = data_file(tmp_path, generated + photos.format("image", "cropped").replace("true", "false"))
    with pytest.warns(AtokenWarning, match="Series of the generator in .* are left out"):
        assert labels(file) == {"image.photos/1.jpg": None}
    with pytest.raises(MediaError, match="names the generator alone"):
        labels(data_file(tmp_path, generated))


def test_a_series_of_a_data_file_has_as_many_items_as_it_says(tmp_path):
    files(tmp_path / "photos", "cat/1.jpg")
    text = """
        [image.figures]
        procedural = "labelled"
        label = "{class}"
        items = %d
        [image.photos]
        folder = "photos"
        """
    three, four = (open_source(str(data_file(tmp_path, text % items)), Options()) for items in (3, 4))
    assert [(item.key, item.label) for item in three] == [
        ("image.figures/image/labelled/000000000", "red circle"),
        ("image.figures/image/labelled/000000001", "red square"),
        ("image.figures/image/labelled/000000002", "red triangle"),
        ("image.photos/cat/1.jpg", "cat"),
    ]
    assert len(four) == 5
    assert three.digest != four.digest
    own = decode(three[1], Options(crop=32)).media
    alone = decode(open_source("procedural:labelled", Options(items=2))[1], Options(crop=32)).media
    assert np.array_equal(own.pixels, alone.pixels)
    with pytest.raises(MediaError, match=r"data\.toml, \[image\.figures\]: The generator has no series image/moving"):
        open_source(str(data_file(tmp_path, (text % 3).replace("labelled", "moving"))), Options())


def test_the_generator_has_as_many_items_as_are_asked_for_with_their_classes():
    expected = {f"image/labelled/{number:09d}": FIGURE_PROMPTS[number] for number in range(3)}
    assert labels("procedural:labelled", items=3) == expected == labels("procedural:image/labelled", items=3)
    assert labels("procedural:grounded", items=2)["image/grounded/000000001"] == FIGURE_PROMPTS[0]
    assert labels("procedural:asset/labelled", items=1) == {"asset/labelled/000000000": "a red ball"}
    assert labels("procedural", items=1) == {"image/mixed/000000000": None}
    assert labels("procedural:moving", items=1) == {"video/moving/000000000": None}


def test_what_is_no_source_gets_one_sentence(tmp_path):
    files(tmp_path / "mixed", "1.jpg")
    shard(tmp_path / "mixed/0.tar", a_jpg=JPG)
    files(tmp_path / "none", "1.md", "1.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.toml").write_text("[image.x]\nfolder = 'gone'\n")
    os.mkfifo(tmp_path / "pipe.jpg")
    cases = {
        "gone": "there is no such file; name a folder",
        "x" * 300: "too long",
        "s3://bucket/data": "it is an address",
        "procedural:nonsense": "The generator has no series nonsense; it has image/mixed",
        "procedural:video/scenes": "The generator has no series video/scenes",
        "procedural:labelled": "say how many items with --items",
        str(tmp_path / "mixed"): r"holds 1 media \(1\.jpg\), 1 shards \(0\.tar\) and no tables; name",
        str(tmp_path / "none"): "has no file to read",
        str(tmp_path / "none/1.md"): "has no file to read",
        str(tmp_path / "empty"): "has no file to read",
        str(tmp_path / "broken.toml"): r"broken\.toml, \[image\.x\]: Cannot list the folder",
    }
    for source, reason in cases.items():
        with pytest.raises(MediaError, match=rf"^[^\n]*{reason}[^\n]*\.$"):
            open_source(source, Options())


def everything(top: Path) -> dict[str, str]:
    """Each sort of source, by what it is called."""
    files(top / "folder", "a/1.jpg", "b/2.jpg")
    (top / "folder/a/1.txt").write_text("a dog")
    shard(top / "shards/0.tar", a_jpg=JPG, b_jpg=JPG)
    table(top / "tables/a.parquet", label=["x", "y"])
    text = "[image.f]\nfolder = 'folder'\n[image.s]\nshards = 'shards'\n"
    data_file(top, text)
    names = {
        "data file": "data.toml",
        "folder": "folder",
        "file": "folder/a/1.jpg",
        "shards": "shards",
        "table": "tables",
    }
    sources = {f"{what} {Path(name).name}": str(top / name) for what, name in names.items()}
    return sources | {"generated image/labelled": "procedural:labelled"}


def test_a_source_is_the_same_in_another_process_and_on_another_machine(tmp_path):
    ours, theirs = everything(tmp_path / "here"), everything(tmp_path / "there/far")
    digests = set()
    for name, source in ours.items():
        items, other = (open_source(each, Options(items=9)) for each in (source, theirs[name]))
        assert items.described == other.described == name
        assert items.digest == other.digest
        copy = pickle.loads(pickle.dumps(items))  # noqa: S301 - our own, made in this line
        assert [*copy] == [*items]
        assert [item.key for item in items] == [item.key for item in other]
        assert len({item.key for item in items}) == len(items)
        with pytest.raises(IndexError):
            items[len(items)]
        digests.add(items.digest)
    assert len(digests) == len(ours)


def test_the_digest_knows_names_and_sizes_of_all_files_that_are_read(tmp_path):
    everything(tmp_path)
    folder = tmp_path / "folder"
    before = {name: open_source(str(tmp_path / name), Options()).digest for name in ("folder", "data.toml")}

    def differs() -> bool:
        after = {name: open_source(str(tmp_path / name), Options()).digest for name in before}
        assert (after["folder"] == before["folder"]) == (after["data.toml"] == before["data.toml"])
        return after != before

    (folder / "notes.md").write_text("not read")
    os.utime(folder / "a/1.jpg", (0, 0))  # as a copy may have
    assert not differs()
    for change in (
        lambda: (folder / "a/1.txt").write_text("two dogs"),
        lambda: (folder / "b/2.jpg").write_bytes(JPG * 2),
        lambda: (folder / "b/2.jpg").rename(folder / "b/3.jpg"),
        lambda: shutil.copy(folder / "a/1.jpg", folder / "c.jpg"),
    ):
        shutil.rmtree(folder)
        everything(tmp_path)
        assert not differs()
        change()
        assert differs()


def test_the_digest_knows_how_a_data_file_reads_its_sources(tmp_path):
    table(tmp_path / "t.parquet", label=["x", "y"], alt=["a", "b"], other=[JPG, JPG])
    text = "[image.t]\ntable = 't.parquet'\n"
    changes = ["", "captions = 'alt'", "media = 'other'", "label = '{alt}'", "templates = ['a {label}']", "weight = 2"]
    found = [open_source(str(data_file(tmp_path, f"{text}{change}\n")), Options()).digest for change in changes]
    assert len({*found[:-1]}) == len(changes) - 1
    assert found[-1] == found[0]  # only training has a use for it
