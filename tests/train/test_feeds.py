"""The same media give the same batches wherever they are kept; a file of data is read as it is meant, or refused."""

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from atoken.data.labelled import FIGURE_PROMPTS, WAYS, class_of
from atoken.data.loading import load_clip, load_picture
from atoken.data.mixing import Broken
from atoken.data.procedural import clip, picture
from atoken.data.sources import FolderSource
from atoken.errors import MediaError
from atoken.io import Clip, write_clip
from atoken.modalities.pixels import patchify, to_values
from atoken.train.batches import batch
from atoken.train.curriculum import CURRICULA, SEMANTICS
from atoken.train.data_file import read_data
from atoken.train.feeds import Feed, generated, load_feeds, shape
from atoken.train.packing import Room, rooms
from atoken.train.stages import Stage, Task
from tests.io.clip_cases import moving

TASKS = {
    "image": Task("image", (), tokens=64, patches=(4, 16)),
    "captioned": Task("image", SEMANTICS, tokens=64, patches=(16, 16)),
    "clip": Task("clip", (), tokens=64, patches=(4, 9), length=(1, 2), strides=((1, 2),)),
    "surface": Task("surface", ()),
}
STAGE = Stage("any", "nano", TASKS, {"image": 2, "captioned": 1, "clip": 1, "surface": 1}, seed=3)
PICTURES = replace(STAGE, mixture={"image": 1})


def pictures(count: int = 7) -> list[tuple[str, bytes, list[str]]]:
    rng, found = np.random.default_rng(0), []
    for n in range(count):
        file = io.BytesIO()
        size = (*rng.integers(20, 90, 2).tolist(), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(file, format="PNG")
        found.append((f"{n:02d}", file.getvalue(), [f"number {n}", f"Nummer {n}"]))
    return found


def write_folder(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    (top / "photos").mkdir()
    for key, media, captions in samples:
        (top / "photos" / f"{key}.png").write_bytes(media)
        (top / "photos" / f"{key}.txt").write_text("\n".join(captions))
    return "folder = 'photos'"


def write_shards(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    (top / "shards").mkdir()
    for name, some in (("a.tar", samples[:3]), ("b.tar", samples[3:])):
        with tarfile.open(top / "shards" / name, "w") as archive:
            for key, media, captions in some:
                for suffix, data in ((".png", media), (".txt", "\n".join(captions).encode())):
                    member = tarfile.TarInfo(key + suffix)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return "shards = 'shards'"


def write_table(top: Path, samples: list[tuple[str, bytes, list[str]]]) -> str:
    columns = {"picture": [media for _, media, _ in samples], "said": [captions for *_, captions in samples]}
    pq.write_table(pa.table(columns), top / "a.parquet", row_group_size=2)
    return "table = 'a.parquet'\nmedia = 'picture'\ncaptions = 'said'"


def feeds_of(top: Path, text: str, stage: Stage = PICTURES) -> dict[str, Feed]:
    (top / "data.toml").write_text(text)
    return load_feeds(top / "data.toml", stage)


# Sources


@pytest.mark.parametrize("write", [write_shards, write_table])
def test_the_same_media_give_the_same_batches_wherever_they_are(write: Callable, tmp_path: Path) -> None:
    stage = replace(STAGE, mixture={"image": 1, "captioned": 1})
    feeds = [
        feeds_of(tmp_path, f"[image.mine]\n{kind(tmp_path, pictures())}\n", stage) for kind in (write_folder, write)
    ]
    captions = set()
    for name in ("image", "captioned"):
        for number in range(3):
            ours, theirs = (batch(stage, one, name, number) for one in feeds)
            assert torch.equal(ours.tokens.feats, theirs.tokens.feats)
            assert torch.equal(ours.tokens.coords, theirs.tokens.coords)
            assert ours.captions == theirs.captions
            captions |= set(ours.captions)
    assert captions <= {caption for *_, both in pictures() for caption in both}
    assert {caption.split()[0] for caption in captions} == {"number", "Nummer"}


def test_a_feed_gives_what_loading_its_samples_gives(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures())
    for n in range(3):
        write_clip(Clip(moving(20 + n, 48, 64)), tmp_path / "photos" / f"{n}.mp4")
    stage = replace(STAGE, mixture={"image": 1, "clip": 1})
    feeds = feeds_of(tmp_path, "[image.x]\nfolder = 'photos'\n[clip.x]\nfolder = 'photos'", stage)
    for name, suffix in (("image", ".png"), ("clip", ".mp4")):
        source, task = FolderSource(tmp_path / "photos", [suffix]), TASKS[name]
        for room in rooms(task, 3, name, 1):
            drawn = feeds[name].draw(room)
            sample = source[feeds[name].mixture.place(room.index)[1]]
            rng = room.rng()
            if name == "image":
                frames = load_picture(sample, room.patches, 4)
            else:
                frames = load_clip(sample, room.length, room.patches, rng, least=4, strides=task.strides)
            assert (drawn.source, drawn.key) == ("x", sample.key)
            assert torch.equal(drawn.value.tokens.feats, patchify(to_values(frames)).feats)
            assert drawn.value.caption in sample.captions or drawn.value.caption == ""


def test_tasks_on_one_table_have_orders_of_their_own(tmp_path: Path) -> None:
    stage = replace(STAGE, mixture={"image": 1, "captioned": 1})
    text = f"[image.mine]\n{write_folder(tmp_path, pictures(30))}\n"
    first, again, seeded = (feeds_of(tmp_path, seed + text, stage) for seed in ("", "seed = 0\n", "seed = 1\n"))
    later = feeds_of(tmp_path, text, replace(stage, seed=4))

    def order(feed: Feed) -> list[int]:
        return [feed.mixture.place(index)[1] for index in range(30)]

    assert order(first["image"]) == order(again["image"])
    orders = [order(first["image"]), order(first["captioned"]), order(seeded["image"]), order(later["image"])]
    assert all(sorted(one) == list(range(30)) for one in orders)
    assert len({tuple(one) for one in orders}) == 4


def test_the_word_procedural_generates_all_tasks_but_parts() -> None:
    feeds = load_feeds("procedural", STAGE)
    assert list(feeds) == ["image", "captioned", "clip"]
    room = Room(5, 2, 9, (3, 1, 2, 5))
    drawn, (rows, columns) = feeds["clip"].draw(room).value, shape(TASKS["clip"], room)
    made = clip(feeds["clip"].seed, 5, 8, rows * 16, columns * 16)
    assert torch.equal(drawn.tokens.feats, patchify(to_values(made.frames)).feats)
    assert drawn.caption == made.caption
    made = picture(8, 5, rows * 16, columns * 16)
    assert torch.equal(generated(TASKS["image"], room, 8, "mixed").tokens.feats, patchify(to_values(made.frames)).feats)
    assert len({feed.seed for feed in feeds.values()}) == 3


def test_what_is_generated_for_captions_has_labels_that_come_round() -> None:
    feed = load_feeds("procedural", STAGE)["captioned"]
    rooms_of_all = [Room(index, 1, 16, (3, index)) for index in range(2 * WAYS)]
    found = [feed.draw(room) for room in rooms_of_all]
    own = [index for index, one in enumerate(found) if one.source == "labelled"]
    assert {one.source for one in found} == {"labelled", "grounded"}
    assert len(own) > len(found) / 2
    assert all(found[index].value.caption.startswith(FIGURE_PROMPTS[class_of(index)]) for index in own)


def test_a_series_that_a_medium_lacks_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"\[clip\.x\]: the generator has no scenes for the medium clip; it has mix"):
        feeds_of(tmp_path, "[clip.x]\nprocedural = 'scenes'", replace(STAGE, mixture={"clip": 1}))


def test_the_generator_is_a_source_among_others(tmp_path: Path) -> None:
    mine, made = write_folder(tmp_path, pictures()), "procedural = 'mixed'\nweight = 2"
    feed = feeds_of(tmp_path, f"[image.mine]\n{mine}\n[image.made]\n{made}")["image"]
    found = [feed.draw(room) for number in range(3) for room in rooms(TASKS["image"], 3, "image", number)]
    assert len(found) % 3 == 0
    assert [one.source for one in found].count("made") == len(found) * 2 // 3
    assert all(one.value.tokens.lengths[0] <= 16 for one in found)


def test_a_task_on_captions_skips_samples_without_and_one_of_several_is_drawn(tmp_path: Path) -> None:
    stage, some = replace(STAGE, mixture={"captioned": 1}), pictures(12)
    bare = [(key, media, captions if n % 3 else []) for n, (key, media, captions) in enumerate(some)]
    feed = feeds_of(tmp_path, f"[captioned.mine]\n{write_folder(tmp_path, bare)}", stage)["captioned"]
    found = [feed.draw(room) for number in range(12) for room in rooms(TASKS["captioned"], 3, "captioned", number)]
    assert {one.value.caption for one in found} == {caption for *_, both in bare for caption in both}
    broken = {entry for one in found for entry in one.broken}
    assert {entry.key for entry in broken} == {f"{n:02d}.png" for n in range(0, 12, 3)}
    assert all(
        isinstance(entry, Broken) and "has no caption, and captioned is trained" in entry.reason for entry in broken
    )


def test_feeds_are_pickled_small(tmp_path: Path) -> None:
    feeds = feeds_of(tmp_path, f"[image.mine]\n{write_shards(tmp_path, pictures())}")
    data = pickle.dumps(feeds)
    assert len(data) < 5000
    copy = pickle.loads(data)  # noqa: S301 - our own, made in this line
    assert copy.data == feeds.data
    ours, theirs = (batch(PICTURES, one, "image", 0) for one in (feeds, copy))
    assert torch.equal(ours.tokens.feats, theirs.tokens.feats)


# The file


def test_a_tasks_own_table_goes_before_that_of_its_medium(tmp_path: Path) -> None:
    write_folder(tmp_path, pictures())
    tables = "[image.a]\nprocedural = 'mixed'\n[captioned.b]\nfolder = 'photos'\n[clip.c]\nprocedural = 'mixed'\n"
    feeds = feeds_of(tmp_path, "most_broken = 0.25\n" + tables, STAGE)
    assert {name: feed.mixture.place(0)[0] for name, feed in feeds.items()} == {
        "image": "a",
        "captioned": "b",
        "clip": "c",
    }
    assert feeds.data.most_broken == 0.25
    assert load_feeds("procedural", STAGE).data.most_broken == 0.1


def test_paths_are_relative_to_the_file_or_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, pictures())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in ("photos", "./photos", str(tmp_path / "photos")):
        assert feeds_of(tmp_path, f"[image.mine]\nfolder = '{folder}'")["image"].draw(Room(0, 1, 16, (0,))).value


def test_one_file_may_serve_all_stages_of_the_curricula(tmp_path: Path) -> None:
    names = {name for stages in CURRICULA.values() for stage in stages.values() for name in stage.used}
    names -= {"part", "surface", "views"}
    (tmp_path / "all.toml").write_text("".join(f"[{name}.made]\nprocedural = 'mixed'\n" for name in sorted(names)))
    for stages in CURRICULA.values():
        for stage in stages.values():
            feeds = load_feeds(tmp_path / "all.toml", stage)
            assert set(feeds) == set(stage.used) & names


REFUSED = {
    "": "no source for the task image; add a table [image.SOURCE] with folder, shards, table, procedural.",
    "[clip.x]\nprocedural = 'mixed'": "no source for the task image",
    "[image.x": "it is no TOML",
    "sed = 1": "sed is unknown; there are seed, most_broken, and tables for image, clip, asset, captioned",
    "[imag.x]\nprocedural = 'mixed'": "imag is unknown",
    "[surface.x]\nprocedural = 'mixed'": "surface is unknown",
    "seed = -1": "seed must be a whole number from 0 on, not -1.",
    "seed = true": "seed must be a whole number",
    "most_broken = 2": "most_broken must be a number from 0 to 1, not 2.",
    "most_broken = 'all'": "most_broken must be a number from 0 to 1",
    "image = 'photos'": "[image] must hold a table for each source, such as [image.mine].",
    "[image]": "[image] must hold a table for each source",
    "[image]\nfolder = 'photos'": "[image] must hold a table for each source",
    "[image.x]": "[image.x] must have one of folder, shards, table, procedural, not none.",
    "[image.x]\nfolder = 'a'\nshards = 'b'": "must have one of folder, shards, table, procedural, not folder, shards.",
    "[image.x]\nfolder = 'a'\nwieght = 2": "[image.x] has no wieght; there are folder, shards, table",
    "[image.x]\nfolder = 3": "folder of [image.x] must be a path, not 3.",
    "[image.x]\nfolder = ''": "folder of [image.x] must be a path",
    "[image.x]\nfolder = 'a'\nweight = 0": "weight of [image.x] must be a whole number from 1 on, not 0.",
    "[image.x]\nfolder = 'a'\nweight = 1.5": "weight of [image.x] must be a whole number from 1 on, not 1.5.",
    "[image.x]\nfolder = 'a'\nweight = true": "weight of [image.x] must be a whole number",
    "[image.x]\nprocedural = false": "of [image.x] must be one of mixed, labelled, grounded, scenes, not False.",
    "[image.x]\nprocedural = 'some'": "must be one of mixed, labelled, grounded, scenes, not 'some'",
    "[image.x]\nprocedural = 'labels'": "procedural of [image.x] must be one of",
    "[image.x]\nfolder = 'a'\ncaptions = 'b'": "captions of [image.x] must be the name of a column, of a table only",
    "[image.x]\ntable = 'a'\nmedia = 1": "media of [image.x] must be the name of a column",
    "[image.x]\nfolder = 'missing'": "[image.x]: Cannot list the folder",
    "[image.x]\nshards = 'missing.tar'": "[image.x]: There is no shard",
    "[image.x]\ntable = 'missing.parquet'": "[image.x]: There is no table",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_file_that_cannot_be_meant_gets_one_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"^[^\n]*data\.toml[^\n]*\.$") as refused:
        feeds_of(tmp_path, text, PICTURES)
    assert REFUSED[text] in str(refused.value)


def test_sources_without_captions_are_refused_for_a_task_on_captions(tmp_path: Path) -> None:
    stage, bare = replace(STAGE, mixture={"captioned": 1}), [(key, media, []) for key, media, _ in pictures()]
    with pytest.raises(MediaError, match=r"data\.toml, \[image\.mine\]: none of the first 16 samples has a caption"):
        feeds_of(tmp_path, f"[image.mine]\n{write_folder(tmp_path, bare)}", stage)


def test_a_file_that_cannot_be_read_gets_one_sentence(tmp_path: Path) -> None:
    sentence = r"^Cannot read [^\n]*; name a TOML file or a folder of media, or write procedural\.$"
    with pytest.raises(MediaError, match=sentence):
        read_data(tmp_path / "missing.toml", ())


def test_a_folder_stands_for_the_file_that_names_it(tmp_path: Path) -> None:
    named = feeds_of(tmp_path, f"[image.files]\n{write_folder(tmp_path, pictures())}\n")
    ours, theirs = (batch(PICTURES, feeds, "image", 0) for feeds in (load_feeds(tmp_path / "photos", PICTURES), named))
    assert torch.equal(ours.tokens.feats, theirs.tokens.feats)
    assert ours.captions == theirs.captions


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"\0"])
def test_a_file_that_is_no_text_gets_one_sentence(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_bytes(data)
    with pytest.raises(MediaError, match=r"^Cannot read [^\n]*: it is no (TOML \([^\n]*\)|text; [^\n]*)\.$"):
        read_data(tmp_path / "data.toml", ())
