"""Layouts of data sets, from tiny folders made here."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from atoken.data.synthetic import labelled, placed, procedural
from atoken.errors import MediaError
from atoken.io import Image, Video, write_image, write_video
from eval.prepare import Preparation
from eval.sources import captions, folders, synthetic
from eval.sources.entry import Entry, Prepared


def drawn(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Image(np.full((4, 5, 3), value, np.uint8)), path)


def keys(listing):
    return [entry.key for entry in listing.entries]


def test_a_folder_of_files_is_sorted_and_hidden_ones_are_passed_over(tmp_path):
    for name in ("b.png", "a/c.PNG", ".hidden/x.png", "notes.txt", "a/.y.png"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("")
        else:
            drawn(tmp_path / name.lower())
            (tmp_path / name.lower()).rename(tmp_path / name)
    assert keys(folders.images(tmp_path)) == ["a/c.PNG", "b.png"]


def test_list_txt_chooses(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        drawn(tmp_path / name)
    (tmp_path / "list.txt").write_text("c.png\n\na.png\n")
    assert keys(folders.images(tmp_path)) == ["a.png", "c.png"]
    (tmp_path / "list.txt").write_text("d.png\n")
    with pytest.raises(MediaError, match=r"names 1 files that are not there, such as d\.png"):
        folders.images(tmp_path)


def test_a_local_folder_is_split_by_modality(tmp_path):
    drawn(tmp_path / "photo.png")
    (tmp_path / "video.mp4").write_bytes(b"x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "chair.glb").write_bytes(b"x")
    found = folders.local(tmp_path)
    assert {kind: keys(listing) for kind, listing in found.items()} == {
        "image": ["photo.png"], "video": ["video.mp4"], "asset": ["deep/chair.glb"],
    }  # fmt: skip
    with pytest.raises(MediaError, match="There is no folder"):
        folders.local(tmp_path / "none")


def test_a_folder_of_views_is_one_asset(tmp_path):
    """And what lies in it is not measured beside it."""
    for name in ("a.png", "chair/000.png", "chair/depth/000.png"):
        drawn(tmp_path / name)
    (tmp_path / "chair" / "transforms.json").write_text("{}")
    found = folders.local(tmp_path)
    assert {kind: keys(listing) for kind, listing in found.items()} == {"image": ["a.png"], "views": ["chair"]}
    assert found["views"] == folders.views(tmp_path)
    assert keys(folders.local(tmp_path / "chair")["views"]) == ["chair"]
    before = found["views"].entries[0].line()
    (tmp_path / "chair" / "000.png").write_bytes(b"1")
    assert found["views"].entries[0].line() != before
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "old_transforms.json").write_text("{}")
    with pytest.raises(MediaError, match="holds no image, video, 3D asset or folder of views"):
        folders.local(tmp_path / "none")


def test_folders_of_frames_are_videos(tmp_path):
    for video, frames in (("bear", 3), ("bear-b", 2), ("deep/car", 2)):
        for number in range(frames):
            drawn(tmp_path / video / f"{number:05d}.png", 10 * number)
    listing = folders.frame_folders(tmp_path)
    assert keys(listing) == ["bear", "bear-b", "deep/car"]
    item = Prepared(listing.entries, Preparation())[0]
    assert item.media.frames[:, 0, 0, 0].tolist() == [0, 10, 20]


def class_tree(root):
    for name in ("n02/x.png", "n01/b.png", "n01/a.png"):
        drawn(root / name)
    return root


def test_class_folders_without_a_list_are_the_classes(tmp_path):
    drawn(tmp_path / "big_cat" / "a.png")
    drawn(tmp_path / "ant" / "a.png")
    listing = folders.class_folders(tmp_path)
    assert listing.classes == ("ant", "big cat")
    assert [(entry.key, entry.label) for entry in listing.entries] == [("ant/a.png", 0), ("big_cat/a.png", 1)]


def test_class_folders_by_a_list_of_synsets(tmp_path):
    root = class_tree(tmp_path / "val")
    classes = tmp_path / "classes.txt"
    classes.write_text("n00 tench, Tinca tinca\nn01 great white shark, white shark\nn02 kite\n")
    listing = folders.class_folders(root, classes)
    assert listing.classes == ("tench", "great white shark", "kite")
    assert [entry.label for entry in listing.entries] == [1, 1, 2]
    assert Prepared(listing.entries, Preparation())[2].label == 2


def test_class_folders_that_are_numbers_count_the_lines_of_the_list(tmp_path):
    for number in (10, 2):
        drawn(tmp_path / "v2" / str(number) / "a.png")
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"n{number} name{number}\n" for number in range(11)))
    assert [entry.label for entry in folders.class_folders(tmp_path / "v2", classes).entries] == [10, 2]
    classes.write_text("n0 a\nn1 b\n")
    with pytest.raises(MediaError, match="has no line for the folder"):
        folders.class_folders(tmp_path / "v2", classes)


def test_faults_of_class_lists_are_one_sentence(tmp_path):
    root = class_tree(tmp_path / "val")
    classes = tmp_path / "classes.txt"
    with pytest.raises(MediaError, match="which the data set must have"):
        folders.class_folders(root, classes)
    classes.write_text("n01 a\nn02\n")
    with pytest.raises(MediaError, match=r"Line 2 .* has no name"):
        folders.class_folders(root, classes)
    drawn(root / "stray.png")
    with pytest.raises(MediaError, match="is in no folder of a class"):
        folders.class_folders(root)


def test_coco_has_its_captions_by_number(tmp_path):
    record = {
        "images": [{"id": 7, "file_name": "7.png"}, {"id": 3, "file_name": "3.png"}],
        "annotations": [
            {"image_id": 7, "id": 2, "caption": "second "},
            {"image_id": 7, "id": 1, "caption": "first"},
            {"image_id": 3, "id": 9, "caption": "other"},
        ],
    }
    drawn(tmp_path / "val2017" / "7.png")
    drawn(tmp_path / "val2017" / "3.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(record))
    listing = captions.coco(tmp_path)
    assert [(e.key, e.captions) for e in listing.entries] == [("3.png", ("other",)), ("7.png", ("first", "second"))]
    assert Prepared(listing.entries, Preparation())[1].captions == ("first", "second")


@pytest.mark.parametrize("text", ["[]", "{", '{"images": 3, "annotations": []}', '{"images": [{}], "annotations": []}'])
def test_a_damaged_record_is_one_sentence(tmp_path, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(text)
    with pytest.raises(MediaError, match=r"captions_val2017\.json"):
        captions.coco(tmp_path)


def test_a_split_file_gives_its_test_images(tmp_path):
    def image(name, split, **more):
        return {"filename": name, "split": split, "sentences": [{"raw": f" of {name}"}]} | more

    images = [image("b.png", "test"), image("a.png", "train"), image("c.png", "test", filepath="val2014")]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    drawn(tmp_path / "images" / "b.png", 1)
    drawn(tmp_path / "val2014" / "c.png", 2)
    source = Prepared(captions.split_file(tmp_path, "dataset.json").entries, Preparation())
    assert [(source[i].media.pixels[0, 0, 0], source[i].captions) for i in (0, 1)] == [
        (1, ("of b.png",)), (2, ("of c.png",)),
    ]  # fmt: skip


def test_msr_vtt_and_msvd_lists(tmp_path):
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text(
        'key,vid_key,video_id,sentence\nret0,msr9770,video9770,"a person, connecting"\nret1,msr7,video7,a girl\n'
    )
    (tmp_path / "videos").mkdir()
    write_video(Video(np.zeros((3, 16, 16, 3), np.uint8)), tmp_path / "videos" / "video9770.mp4")
    source = Prepared(captions.msr_vtt(tmp_path).entries, Preparation(frames=2))
    assert (source.key(0), source[0].captions, len(source[0].media.frames)) == (
        "video9770", ("a person, connecting",), 2,
    )  # fmt: skip
    with pytest.raises(MediaError, match=r"video7\.mp4"):
        source[1]
    (tmp_path / "test_list.txt").write_text("v2\nv1\n")
    (tmp_path / "captions.txt").write_text("# a remark\nv1 a cat\nv1 the cat runs\nv2 a dog\n")
    assert [(e.key, e.captions) for e in captions.msvd(tmp_path).entries] == [
        ("v2", ("a dog",)), ("v1", ("a cat", "the cat runs")),
    ]  # fmt: skip
    (tmp_path / "raw-captions.pkl").write_bytes(pickle.dumps({"v1": [["a", "cat"]], "v2": [["a", "dog"], ["barks"]]}))
    assert [e.captions for e in captions.msvd(tmp_path).entries] == [("a dog", "barks"), ("a cat",)]
    (tmp_path / "MSRVTT_JSFUSION_test.csv").write_text("a,b\n1,2\n")
    with pytest.raises(MediaError, match="columns video_id and sentence"):
        captions.msr_vtt(tmp_path)


@pytest.mark.parametrize(
    "what", [pickle.dumps({"v": [[print]]}), b"", b"\x80", pickle.dumps([1]), pickle.dumps({"v": 1})]
)
def test_a_pickle_of_captions_runs_nothing(tmp_path, what):
    (tmp_path / "raw-captions.pkl").write_bytes(what)
    with pytest.raises(MediaError, match="is not a table of captions"):
        captions.msvd(tmp_path)


def test_the_names_of_imagenet_are_pinned():
    """1000 synsets in their order; names by which a class is known to CLIP."""
    text = folders.IMAGENET.read_text()
    pairs = [line.split(" ", 1) for line in text.splitlines()]
    assert pairs == sorted(pairs)
    assert len({synset for synset, _ in pairs}) == 1000
    assert (pairs[0], pairs[134], pairs[999]) == (
        ["n01440764", "tench"], ["n02012849", "crane bird"], ["n15075141", "toilet paper"],
    )  # fmt: skip
    assert hashlib.sha256(text.encode()).hexdigest().startswith("89e0b642c6697a3a")


def test_the_line_of_an_entry_changes_with_everything_that_counts(tmp_path):
    (tmp_path / "a.png").write_bytes(b"12")
    (tmp_path / "b.png").write_bytes(b"123")
    plain = Entry("a.png", tmp_path / "a.png", 1, ("x",))
    others = [
        Entry("A.png", tmp_path / "a.png", 1, ("x",)), Entry("a.png", tmp_path / "b.png", 1, ("x",)),
        Entry("a.png", tmp_path / "a.png", 2, ("x",)), Entry("a.png", tmp_path / "a.png", 1, ("x", "y")),
        Entry("a.png", tmp_path / "gone.png", 1, ("x",)), Entry("a.png", (tmp_path / "a.png",) * 2, 1, ("x",)),
    ]  # fmt: skip
    assert len({plain.line(), *(other.line() for other in others)}) == 7
    assert "\n" not in Entry("a\nb", tmp_path / "a.png").line()


def test_synthetic_data_is_that_of_the_generators(tmp_path):
    images, videos = synthetic.images(synthetic.SEED, many=3), synthetic.videos(synthetic.SEED)
    wanted = procedural.make_image(synthetic.SEED, 2, 256, 256).frames[0]
    assert np.array_equal(Prepared(images.entries, Preparation())[2].media.pixels, wanted)
    assert Prepared(videos.entries, Preparation())[1].media.frames.shape == (16, 128, 128, 3)
    named = synthetic.labelled_images(synthetic.SEED)
    item = Prepared(named.entries, Preparation())[50]
    assert (item.label, named.classes[item.label]) == (2, labelled.FIGURE_PROMPTS[2])
    assert np.array_equal(item.media.pixels, labelled.labelled_image(synthetic.SEED, 50, 64, 64).frames[0])
    assert (
        synthetic.labelled_videos(synthetic.SEED).entries[4].key == f"labelled-video/{synthetic.SEED}/00004/12x128x128"
    )
    assert synthetic.labelled_assets(synthetic.SEED).classes == labelled.SOLID_PROMPTS


def test_synthetic_captions_all_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "TEXTS", 12)
    for listing in (synthetic.captioned_images(synthetic.SEED), synthetic.scenes(synthetic.SEED)):
        texts = [entry.captions[0] for entry in listing.entries]
        assert len(set(texts)) == len(texts) == 12
        assert not set(texts) & set(labelled.FIGURE_PROMPTS)
    item = Prepared(listing.entries, Preparation())[0]
    assert " left of " in item.captions[0]


QUESTIONS = {  # and how many answers each has
    synthetic.motions: 9, synthetic.directions: 4, synthetic.speeds: 2, synthetic.counts: 4, synthetic.relations: 4,
    synthetic.orders: 2,
}  # fmt: skip


@pytest.mark.parametrize(("listing", "answers"), QUESTIONS.items())
def test_a_question_has_the_caption_of_its_item_among_its_answers(listing, answers):
    entries = listing(synthetic.SEED).entries
    for entry in entries[::7]:
        series, seed, number, size = entry.key.split("/")
        sample = synthetic_maker(series)(int(seed), int(number), *map(int, size.split("x")))
        assert sample.caption.startswith(entry.captions[entry.label])
        assert len(set(entry.captions)) == len(entry.captions) == answers
    right = [entry.label for entry in entries]
    if listing is not synthetic.orders:  # whose words are the same: the place of the right one tells nothing
        assert {right.count(label) for label in range(answers)} == {len(entries) // answers}


def synthetic_maker(series):
    return {"moving": placed.moving_video, "counted": placed.counted_image, "placed": placed.placed_image}[series]


def test_answers_differ_in_what_is_asked():
    first = {listing: listing(synthetic.SEED).entries[0].captions for listing in QUESTIONS}
    assert first[synthetic.directions] == tuple(
        f"a red circle moving {way} slowly" for way in ("left", "right", "up", "down")
    )
    assert first[synthetic.speeds] == ("a red circle moving left slowly", "a red circle moving left fast")
    assert first[synthetic.motions][8] == "a red circle standing still"
    assert first[synthetic.counts] == ("one red circle", "two red circles", "three red circles", "four red circles")
    assert first[synthetic.relations][1:3] == ("a red circle right of a red square", "a red circle above a red square")
    assert first[synthetic.orders] == ("a red circle left of a red square", "a red square left of a red circle")


def test_each_motion_comes_in_every_length():
    lengths = {(entry.label, entry.key.split("/")[3].split("x")[0]) for entry in synthetic.motions(0).entries}
    assert len(lengths) == 9 * len(synthetic.LENGTHS)


def test_the_photographs(tmp_path):
    pytest.importorskip("skimage")
    source = Prepared(synthetic.photographs().entries, Preparation())
    assert len(source) == 7
    assert source[0].media.pixels.shape == (512, 512, 3)
