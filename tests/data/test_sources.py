"""Sources give what was written, by number and in any order; what is damaged or hostile gets one sentence."""

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from atoken.data.sources import FolderSource, Sample, ShardSource, Source, TableSource, Templated
from atoken.data.sources.sample import MOST_TEXT
from atoken.data.sources.tar import entries
from atoken.errors import AtokenWarning, MediaError
from atoken.modalities import ASSET

MAGIC = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".mp4": b"\0\0\0\x18ftypisom", ".glb": b"glTF\2\0\0\0"}
Wanted = tuple[str, bytes, str, tuple[str, ...]]  # key, bytes, suffix, captions


def written(count: int = 24) -> list[Wanted]:
    """Samples of four formats with none to three captions, in the order of their names."""
    rng, suffixes = np.random.default_rng(0), list(MAGIC)
    captions = [tuple(f"ein Bild, Nr. {n}.{k}: \u00e4\u6f22\U0001f600" for k in range(n % 4)) for n in range(count)]
    media = [MAGIC[suffixes[n % 4]] + rng.bytes(int(rng.integers(1, 2000))) for n in range(count)]
    return [(f"part{n // 9}/{n:04d}", media[n], suffixes[n % 4], captions[n]) for n in range(count)]


def members(samples: list[Wanted]) -> dict[str, bytes]:
    """Files as folders and shards hold them: captions as lines, every fifth sample's as JSON, or in both."""
    files = {}
    for n, (key, media, suffix, captions) in enumerate(samples):
        files[key + suffix] = media
        if captions and n % 5:
            files[key + ".txt"] = "".join(f"{caption}\r\n" for caption in captions).encode()
        if captions and n % 5 < 2:
            files[key + ".json"] = json.dumps({"captions": captions, "width": 3}).encode()
    return files


def write_folder(top: Path, samples: list[Wanted]) -> Source:
    for name, data in members(samples).items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    for hidden in (".cache/x.png", "._0000.png", "notes.md"):
        (top / hidden).parent.mkdir(exist_ok=True)
        (top / hidden).write_bytes(b"x")
    return FolderSource(top)


def tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_shards(top: Path, samples: list[Wanted]) -> Source:
    (top / "more").mkdir(parents=True)
    for name, some in (("a.tar", samples[:10]), ("more/b.tar", samples[10:])):
        tar(top / name, members(some) | {"meta.cls": b"1", "part0/0000.seg.png": b"no media", "no_suffix": b""})
    return ShardSource(top)


def table_of(samples: list[Wanted], struct: bool) -> pa.Table:
    cells = [{"bytes": media, "path": None} if struct else media for _, media, _, _ in samples]
    return pa.table({"id": list(range(len(samples))), "image": cells, "caption": [list(s[3]) for s in samples]})


def write_parquet(top: Path, samples: list[Wanted]) -> Source:
    top.mkdir()
    pq.write_table(table_of(samples[:10], True), top / "a.parquet", row_group_size=4)
    pq.write_table(table_of(samples[10:], True), top / "b.parquet", row_group_size=3)
    return TableSource(top)


def write_arrow(top: Path, samples: list[Wanted]) -> Source:
    """A file, compressed as Feather is, and a stream."""
    top.mkdir()
    packed = pa.ipc.IpcWriteOptions(compression="lz4")
    first, second = table_of(samples[:10], False), table_of(samples[10:], False)
    with pa.ipc.new_file(top / "a.feather", first.schema, options=packed) as file:
        file.write_table(first, max_chunksize=4)
    with pa.ipc.new_stream(top / "b.arrow", second.schema) as stream:
        stream.write_table(second, max_chunksize=3)
    return TableSource(top)


WRITERS = [write_folder, write_shards, write_parquet, write_arrow]
Writer = Callable[[Path, list[Wanted]], Source]


def contents(sample: Sample) -> bytes:
    return sample.media.read_bytes() if isinstance(sample.media, Path) else sample.media


def given(source: Source, order: list[int]) -> list[tuple[bytes, str, tuple[str, ...]]]:
    return [(contents(sample), sample.suffix, sample.captions) for sample in map(source.__getitem__, order)]


@pytest.mark.parametrize("write", WRITERS)
def test_a_source_gives_what_was_written_in_any_order_and_as_a_copy(write: Writer, tmp_path: Path) -> None:
    samples = written()
    source = write(tmp_path / "data", samples)
    assert len(source) == len(samples)
    assert given(source, list(range(len(samples)))) == [sample[1:] for sample in samples]
    assert len({source[n].key for n in range(len(source))}) == len(samples)
    order = np.random.default_rng(1).integers(0, len(samples), 100).tolist()
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own, made in this line
    assert given(copy, order) == [samples[n][1:] for n in order]
    assert len(pickle.dumps(source)) < 2000
    for outside in (-1, len(source)):
        with pytest.raises(IndexError):
            source[outside]


def test_keys_are_paths_in_a_folder_or_a_shard_and_rows_of_a_table(tmp_path: Path) -> None:
    samples = written(12)
    folder, shards, table = (write(tmp_path / write.__name__, samples) for write in WRITERS[:3])
    assert [folder[11].key, shards[11].key, table[11].key] == ["part1/0011.glb", "more/b.tar/part1/0011", "b.parquet/1"]


def test_shards_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/1.tar", "c.tar", "a.tar", "b/0.tar"):  # as they are written, and as a folder may list them
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / name, {f"{key}.jpg": f"{name} {key}".encode() for key in ("y", "x")})
    source = ShardSource(tmp_path)
    assert [source[n].media.decode() for n in range(len(source))] == [
        f"{name} {key}" for name in ("a.tar", "b/0.tar", "b/1.tar", "c.tar") for key in ("y", "x")
    ]


def test_links_to_files_are_followed_and_those_to_folders_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", written(2))
    (tmp_path / "data/below").mkdir(parents=True)
    (tmp_path / "data/below/a.png").symlink_to(tmp_path / "real/part0/0000.png")
    (tmp_path / "data/below/loop.png").symlink_to(tmp_path / "data")
    with pytest.warns(AtokenWarning, match=r"1 links to folders, such as [^\n]*loop\.png, are not followed"):
        source = FolderSource(tmp_path / "data")
    assert [sample.key for sample in source] == ["below/a.png"]


def test_a_folder_of_assets_can_leave_their_textures_out(tmp_path: Path) -> None:
    write_folder(tmp_path, written(8))
    assert [sample.suffix for sample in FolderSource(tmp_path, ASSET.suffixes)] == [".glb", ".glb"]


def test_of_a_shards_sample_the_preview_is_not_the_media(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"x.jpg": b"preview", "./x.MP4": b"video", "x.txt": b"moving"})
    (sample,) = ShardSource(tmp_path / "a.tar")
    assert sample == Sample("a.tar/x", b"video", ".mp4", ("moving",))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_tarfile_reads_them(format: int, tmp_path: Path) -> None:
    long = "" if format == tarfile.USTAR_FORMAT else "l" * 300 + "/\u00e4/"
    names = ["a.jpg", "d" * 90 + "/" + "e" * 90 + ".jpg", long + "b.jpg", "empty.txt"]
    tar(tmp_path / "a.tar", {name: name.encode() * 9 * (name != "empty.txt") for name in names}, format)
    with tarfile.open(tmp_path / "a.tar", "a", format=format) as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"{long}kind{kind.decode()}")
            member.type, member.linkname = kind, long + "/etc/passwd"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("last.txt"))
    with tarfile.open(tmp_path / "a.tar") as archive:
        wanted = [(m.name, m.type.decode(), m.offset_data, m.size) for m in archive]
    with (tmp_path / "a.tar").open("rb") as file:
        found = [tuple(entry) for entry in entries(file.fileno(), tmp_path / "a.tar")]
    assert [(name.rstrip("/"), *rest) for name, *rest in found] == wanted
    assert len(wanted) == 10


def test_a_shards_index_is_made_once_and_again_when_the_shard_changes(tmp_path: Path) -> None:
    shard, index = tmp_path / "a.tar", tmp_path / "a.tar.index"
    tar(shard, {"x.jpg": b"one"})
    old = ShardSource(shard)
    first = index.stat().st_ino
    assert ShardSource(shard)[0].media == b"one"
    assert index.stat().st_ino == first
    tar(shard, {"w.txt": b"", "x.jpg": b"two", "y.jpg": b"three"})
    assert [sample.media for sample in ShardSource(shard)] == [b"two", b"three"]
    assert index.stat().st_ino != first
    with pytest.raises(MediaError, match="has changed since the run began"):
        old[0]


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    shard, index = tmp_path / "a.tar", tmp_path / "a.tar.index"
    tar(shard, {"x.jpg": b"one", "x.txt": b"a cat"})
    whole = [ShardSource(shard)[0]]
    data = index.read_bytes()
    for at in range(0, len(data), 3):
        index.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert list(ShardSource(shard)) == whole
        assert index.read_bytes() == data


def test_where_no_index_can_be_written_it_stays_in_memory_and_in_copies(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", members(written()))
    (tmp_path / "a.tar.index" / "in the way").mkdir(parents=True)
    source = ShardSource(tmp_path / "a.tar")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - our own, made in this line
    assert given(copy, [5, 2]) == [sample[1:] for sample in (written()[5], written()[2])]


def test_links_devices_and_outside_names_are_left_out_with_a_warning(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in (str(secret), "../secret.jpg", "x/../../secret.jpg"):
            archive.addfile(tarfile.TarInfo(name))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            member.type, member.linkname, member.size = kind, str(secret), 0
            archive.addfile(member)
        folder, good = tarfile.TarInfo("folder.jpg"), tarfile.TarInfo("folder/good.jpg")
        folder.type, good.size = tarfile.DIRTYPE, 4
        archive.addfile(folder)
        archive.addfile(good, io.BytesIO(b"good"))
    with pytest.warns(AtokenWarning, match="8 members of the shard"):
        source = ShardSource(tmp_path / "a.tar")
    assert list(source) == [Sample("a.tar/folder/good", b"good", ".jpg", ())]


def header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header whose size field is what we like, with its right sum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157], block[148:156] = size.ljust(12, b"\0"), kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


ENDED = bytes(1024)
BIG = b"\x80" + (1 << 62).to_bytes(11)
IMAGE = header("a.jpg", b"3") + block(b"jpg")
HOSTILE = {
    "nothing": b"",
    "compressed": b"\x1f\x8b\x08" + bytes(600),
    "a size beyond the file": header("a.jpg", b"77777777777") + ENDED,
    "a size of exabytes": header("a.jpg", BIG) + ENDED,
    "a size below zero": header("a.jpg", b"\xff" * 12) + ENDED,
    "a size that is no number": header("a.jpg", b"12z") + ENDED,
    "a minus sign": header("a.jpg", b"-1") + ENDED,
    "a name of exabytes": header("a", BIG, b"L") + ENDED,
    "a pax header of exabytes": header("a", BIG, b"x") + ENDED,
    "a global header of exabytes": header("a", BIG, b"g") + ENDED,
    "a sparse member": header("a.jpg", b"", b"S") + ENDED,
    "a sparse member of pax": header("a", b"26", b"x") + block(b"22 GNU.sparse.major=1\n") + IMAGE + ENDED,
    "a pax record of no length": header("a", b"11", b"x") + block(b"0 path=abc\n") + IMAGE + ENDED,
    "a pax record that is too long": header("a", b"13", b"x") + block(b"99 path=abc\n") + IMAGE + ENDED,
    "a pax size that is no number": header("a", b"14", b"x") + block(b"12 size=-9e\n") + IMAGE + ENDED,
    "a pax size beyond the file": header("a", b"16", b"x") + block(b"16 size=9999999\n") + IMAGE + ENDED,
    "one name twice": IMAGE + IMAGE + ENDED,
    "no media": header("a.txt", b"3") + block(b"txt") + ENDED,
    "an end alone": ENDED,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_shard_gets_one_sentence(case: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(HOSTILE[case])
    with pytest.raises(MediaError, match=r"^The shard [^\n]*a\.tar [^\n]*\.$"):
        ShardSource(tmp_path)


def test_a_member_too_large_for_memory_breaks_its_sample_alone(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"a.jpg": b"a", "a.txt": b"x" * (MOST_TEXT + 1), "b.jpg": b"b"})
    with (tmp_path / "b.tar").open("wb") as file:  # 2 GiB that take no room on the disk
        file.write(header("c.mp4", b"20000000000") + bytes(1024))
        file.truncate(512 + 0o20000000000 + 1024)
    source = ShardSource(tmp_path)
    assert source[1].media == b"b"
    for broken in (0, 2):
        with pytest.raises(MediaError, match="over the limit"):
            source[broken]


def test_a_shard_that_is_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    """Up to its end mark, after which no member can be missing."""
    tar(tmp_path / "a.tar", members(written(4)) | {"l" * 200 + ".txt": b"long name"})
    data = (tmp_path / "a.tar").read_bytes()
    with (tmp_path / "a.tar").open("rb") as file:
        *_, last = entries(file.fileno(), tmp_path / "a.tar")
    mark = last.offset + 512 + 512
    for length in [*range(0, mark, 61), *range(512, mark, 512), mark - 1]:
        (tmp_path / "b.tar").write_bytes(data[:length])
        with pytest.raises(MediaError, match=r"b\.tar is truncated or damaged at byte .*\.$"):
            ShardSource(tmp_path / "b.tar")
    for length in (mark, mark + 100, len(data)):
        (tmp_path / "b.tar").write_bytes(data[:length])
        assert given(ShardSource(tmp_path / "b.tar"), [0, 1, 2, 3]) == [sample[1:] for sample in written(4)]


def one_sentence(path: Path) -> Iterator[bool]:
    """Whether the source opens and each of its first samples comes; where not, a MediaError must say so in a line."""
    made: list[Source] = []
    source = ShardSource if path.suffix == ".tar" else TableSource
    yield attempted(lambda: made.append(source(path)))
    for index in range(min(len(made[0]), 20) if made else 0):
        yield attempted(lambda index=index: made[0][index])


def attempted(read: Callable[[], object]) -> bool:
    try:
        read()
    except MediaError as error:
        if "\n" in str(error):
            pytest.fail(str(error))
        return False
    return True


@pytest.mark.parametrize("write", WRITERS[1:])
def test_damage_anywhere_gives_samples_or_one_sentence(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "whole", written(12))
    rng, refused = np.random.default_rng(2), 0
    for path in sorted(path for path in (tmp_path / "whole").rglob("?.*") if path.suffix != ".index"):
        whole = path.read_bytes()
        for n in range(80):
            data = bytearray(whole[: int(rng.integers(len(whole)))] if n % 4 == 0 else whole)
            for at in rng.integers(0, len(data), int(rng.integers(1, 20))) if data else ():
                data[at] = rng.integers(256)
            damaged = tmp_path / f"{n}{path.suffix}"
            damaged.write_bytes(data)
            refused += not all([*one_sentence(damaged)])
    assert refused > 40


CAPTIONS = {
    "a.txt": [b"\xff\xfe\xfa", b"x" * (MOST_TEXT + 1)],
    "a.json": [b"{", b"\xff", b"[" * 100_000, b'{"captions": [1]}', b'{"captions": {}}', b'{"captions": "\\ud800"}'],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name in CAPTIONS for data in CAPTIONS[name]])
def test_damaged_captions_break_their_sample_alone(name: str, data: bytes, tmp_path: Path) -> None:
    for file in ("a.png", "b.png"):
        (tmp_path / file).write_bytes(b"x")
    (tmp_path / name).write_bytes(data)
    source = FolderSource(tmp_path)
    with pytest.raises(MediaError, match="captions"):
        source[0]
    assert source[1].captions == ()


@pytest.mark.parametrize("record", [[1, 2], {"boxes": []}, {"caption": None}, "text"])
def test_a_json_that_is_about_other_things_has_no_captions(record: object, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert FolderSource(tmp_path)[0].captions == ()


COLUMN = pa.array([MAGIC[".png"] * 8, MAGIC[".jpg"] * 20], pa.large_binary())


@pytest.mark.parametrize("captions", [["one", None], pa.array(["one", None]).dictionary_encode(), [["one"], None]])
def test_columns_are_found_by_name_and_type_or_named(captions: object, tmp_path: Path) -> None:
    links = ["https://x", "https://y"]
    pq.write_table(pa.table({"image": links, "jpg": COLUMN, "text": captions}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"mine": COLUMN, "jpg": pa.nulls(2, pa.binary()), "alt": captions,
                             "text": links}), tmp_path / "b.parquet")  # fmt: skip
    for source in (TableSource(tmp_path / "a.parquet"), TableSource(tmp_path / "b.parquet", "mine", "alt")):
        assert [(s.media, s.suffix, s.captions) for s in source] == [
            (COLUMN[0].as_py(), ".png", ("one",)),
            (COLUMN[1].as_py(), ".jpg", ()),
        ]


def test_the_path_beside_the_bytes_tells_the_format_where_they_do_not(tmp_path: Path) -> None:
    cells = [{"bytes": b"v 0 0 0\n", "path": "far/away/Chair.OBJ"}, {"bytes": b"v 0 0 0\n", "path": None},
             {"bytes": None, "path": "a.png"}]  # fmt: skip
    pq.write_table(pa.table({"mesh": cells}), tmp_path / "a.parquet")
    source = TableSource(tmp_path)
    assert source[0] == Sample("a.parquet/0", b"v 0 0 0\n", ".obj", ())
    for broken, reason in ((1, "none of the supported formats"), (2, "a.png: there is no such file")):
        with pytest.raises(MediaError, match=reason):
            source[broken]


def of_hugging_face(table: pa.Table, **classes: list[str]) -> pa.Table:
    """A table with the names of its classes where ``datasets`` writes them."""
    features = {column: {"names": names, "_type": "ClassLabel"} for column, names in classes.items()}
    features |= {"image": {"_type": "Image"}, "boxes": {"feature": {"_type": "ClassLabel"}, "_type": "Sequence"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_labels_of_tables_have_the_names_of_their_classes(tmp_path: Path) -> None:
    cells = [{"bytes": bytes_, "path": "x.png"} for bytes_ in [MAGIC[".png"] * 8] * 4]
    table = pa.table({"image": cells, "label": [1, 0, -1, None], "size": [3, None, 4, 5], "caption": ["a cat"] * 4})
    pq.write_table(of_hugging_face(table, label=["tench, Tinca tinca", "goldfish"]), tmp_path / "a.parquet")
    source = TableSource(tmp_path, fields=["size"])
    assert [sample.label for sample in source] == ["goldfish", "tench, Tinca tinca", None, None]
    assert [sample.record.get("size") for sample in source] == ["3", None, "4", "5"]
    assert source[0].captions == ("a cat",)
    assert Templated(source, ["{label}"])[0].captions == ("a cat", "goldfish")
    with pytest.raises(MediaError, match="no column 'colour' of the right type"):
        TableSource(tmp_path, fields=["colour"])


LABELS = [
    ({"label": [7, 8]}, ["7", "8"]),
    ({"cls": ["n01", ""]}, ["n01", None]),
    ({"cls": pa.array(["one", None]).dictionary_encode(), "class": [1, 2]}, ["one", None]),
    ({"label": [0.5, 1.5], "labels": [[1], [2]]}, [None, None]),  # of a regression, and of several classes
    ({"coarse_label": [0, 1]}, ["fish", "bird"]),
]


@pytest.mark.parametrize(("columns", "expected"), LABELS)
@pytest.mark.parametrize("write", [pq.write_table, pa.feather.write_feather])
def test_labels_are_in_the_usual_columns(write, columns, expected, tmp_path: Path) -> None:
    table = of_hugging_face(pa.table({"img": COLUMN, **columns}), coarse_label=["fish", "bird"])
    write(table, tmp_path / ("a.parquet" if write is pq.write_table else "a.feather"))
    assert [sample.label for sample in TableSource(tmp_path)] == expected


@pytest.mark.parametrize("stated", [b"{", b"[]", b'{"info": {"features": 3}}', b"[" * 100_000])
def test_nonsense_in_place_of_classes_is_none(stated: bytes, tmp_path: Path) -> None:
    table = pa.table({"img": COLUMN, "label": [0, 1]}).replace_schema_metadata({"huggingface": stated})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [sample.label for sample in TableSource(tmp_path)] == ["0", "1"]


def test_a_table_may_have_paths_beside_it_or_anywhere(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val/1.JPEG").write_bytes(b"1")
    paths = ["val/1.JPEG", str(tmp_path / "val/1.JPEG"), "val/2.JPEG", "https://x/1.jpg", "a" * 300, "a\0b", "", None]
    pq.write_table(pa.table({"file_name": paths, "text": ["a dog"] * 8, "label": [3] * 8}), tmp_path / "val.parquet")
    source = TableSource(tmp_path / "val.parquet")
    record = {"label": "3"}
    for row in (0, 1):
        assert source[row] == Sample(f"val.parquet/{row}", tmp_path / "val/1.JPEG", ".jpeg", ("a dog",), record)
    reasons = ["there is no such file", "it is an address", "name too long", "no such file", "0 bytes", "0 bytes"]
    for row, reason in enumerate(reasons, 2):
        with pytest.raises(MediaError, match=rf"(?i)^[^\n]*val\.parquet/{row}[^\n]*{reason}[^\n]*\.$"):
            source[row]


def test_bytes_are_preferred_to_paths_of_the_same_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "png": COLUMN}), tmp_path / "a.parquet")
    assert TableSource(tmp_path)[0].media == COLUMN[0].as_py()
    assert TableSource(tmp_path, "png")[0].media == COLUMN[0].as_py()
    with pytest.raises(MediaError, match="no such file"):
        TableSource(tmp_path, "image")[0]


def test_a_class_in_a_shard_is_that_of_the_sample_unless_its_json_says_another(tmp_path: Path) -> None:
    classes = {"1.cls": b"17\n", "2.cls": b"17", "2.json": b'{"label": "cat"}', "3.cls": b"\xff"}
    others = {"4.json": b'{"cls": 5, "label": [1]}'}
    tar(tmp_path / "a.tar", {f"{number}.jpg": b"x" for number in range(1, 6)} | classes | others)
    assert [sample.label for sample in ShardSource(tmp_path)] == ["17", "cat", "\\xff", "5", None]


def refused_tables(top: Path) -> dict[str, Callable[[], object]]:
    pq.write_table(pa.table({"link": ["https://x"]}), top / "links.parquet")
    pq.write_table(pa.table({"image": COLUMN.slice(0, 0)}), top / "no-rows.parquet")
    pq.write_table(pa.table({"image": COLUMN, "alt": [1, 2]}), top / "numbers.parquet")
    return {
        "bytes or paths with a usual name; name one of: link": lambda: TableSource(top / "links.parquet"),
        "no column 'jpg' of the right type": lambda: TableSource(top / "links.parquet", "jpg"),
        "no column 'alt' of the right type": lambda: TableSource(top / "numbers.parquet", "image", "alt"),
        "has no rows": lambda: TableSource(top / "no-rows.parquet"),
    }


def test_what_is_no_source_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    missing, long = tmp_path / "missing", tmp_path / ("x" * 300)
    tests = refused_tables(tmp_path) | {"has no file to read": lambda: FolderSource(tmp_path)}
    for reason, make in tests.items():
        with pytest.raises(MediaError, match=reason):
            make()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    for kind in (FolderSource, ShardSource, TableSource):
        for path in (missing, long, tmp_path / "notes.txt", tmp_path / "empty", tmp_path / "pipe.tar"):
            with pytest.raises(MediaError, match=r"^[^\n]+\.$"):
                kind(path)


@pytest.mark.parametrize(("count", "share", "held"), [(2, 0.1, 1), (7, 0.1, 1), (24, 0.1, 2), (100, 0.1, 10)])
def test_a_folder_is_split_by_names_alone(count, share, held, tmp_path):
    for number in range(count):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    kept, others = FolderSource(tmp_path).split(share)
    keys = [{source[number].key for number in range(len(source))} for source in (kept, others)]
    assert (len(keys[0]), keys[0] & keys[1], len(keys[0] | keys[1])) == (held, set(), count)
    for number in range(count):
        (tmp_path / f"{number}.png").write_bytes(b"other")
    again, _ = FolderSource(tmp_path).split(share)
    assert {again[number].key for number in range(len(again))} == keys[0]


LABELLED = {"label": "shirt", "group": "clothes", "size": 3}


def test_templates_make_captions_of_what_the_record_of_a_sample_says(tmp_path: Path) -> None:
    tar(
        tmp_path / "a.tar",
        {"1.png": b"x", "1.json": json.dumps(LABELLED | {"caption": "a shirt"}).encode(), "2.png": b"y"},
    )
    source = Templated(ShardSource(tmp_path), ["a photo of a {label}", "{group}", "{size}", "{colour}", "a shirt"])
    assert source[0].captions == ("a shirt", "a photo of a shirt", "clothes")
    assert source[1].captions == ("a shirt",)  # a template without fields holds of every sample
    assert len(source) == 2


def test_a_folder_has_records_as_shards_have(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "1.json").write_text(json.dumps(LABELLED))
    assert FolderSource(tmp_path)[0].record == LABELLED


@pytest.mark.parametrize("template", ["a {", "{0}", "{}", "{label.upper}", "{label[0]}"])
def test_a_template_that_is_none_gets_one_sentence(template: str, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    with pytest.raises(MediaError, match="is not a template; write names in braces"):
        Templated(FolderSource(tmp_path), [template])
