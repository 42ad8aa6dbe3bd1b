"""Both forms of a conversation say the same; slots and media match, or one sentence says what does not."""

from pathlib import Path

import numpy as np
import pytest

from atoken.errors import AtokenError
from mllm.conversation import Conversation, MediaItem, Message, Text, from_messages, read

SAME = Conversation(
    "k",
    (
        Message("system", (Text("Be brief."),)),
        Message("user", (MediaItem("image", Path("in/a.jpg")), Text("And "), MediaItem("video", Path("in/b.mp4")))),
        Message("assistant", (Text("Two\n<image>s."),)),
    ),
)


def test_both_forms_are_read_alike():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "image", "path": "a.jpg"}, {"type": "text", "text": "And "}, {"type": "video", "url": "b.mp4"},
        ]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two\n<image>s."}]},
    ]  # fmt: skip
    assert read({"messages": messages}, "k", "in") == SAME
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nAnd \n<video>"},
        {"role": "assistant", "content": "Two"},
    ]
    found = read({"image": "a.jpg", "video": ["b.mp4"], "conversations": turns}, "k", "in")
    assert found.messages[:2] == SAME.messages[:2]
    assert found.media == SAME.media


def test_image_is_the_slot_of_whatever_a_record_has():
    def only(**media):
        (message,) = read({**media, "conversations": [{"from": "human", "value": "<image>\n?"}]}, "k").messages
        return message.content[0]

    assert only(image="a.png") == MediaItem("image", Path("a.png"))
    assert only(video="a.mp4") == MediaItem("video", Path("a.mp4"))
    assert only(asset="/data/a.glb") == MediaItem("asset", Path("/data/a.glb"))


def test_sources_stand_under_any_name_or_in_the_lists_of_a_record():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    content = [
        {"type": "mesh", "mesh": "a.glb"}, {"type": "video", "video": frames, "fps": 2},
        {"type": "video", "path": ["0.png", "1.png"]}, {"type": "image"}, {"type": "image", "url": "https://x.org/a.png"},
    ]  # fmt: skip
    found = read({"messages": [{"role": "user", "content": content}], "images": ["b.png"]}, "k", "in").media
    assert [one.modality for one in found] == ["asset", "video", "video", "image", "image"]
    assert found[0].source == Path("in/a.glb")
    assert found[1].source is frames
    assert found[1].options == {"fps": 2}
    assert found[2].source == [Path("in/0.png"), Path("in/1.png")]
    assert found[3].source == Path("in/b.png")
    assert found[4].source == "https://x.org/a.png"
    assert from_messages([{"role": "user", "content": content[:1]}]).media == (MediaItem("asset", Path("a.glb")),)


def llava(value="<image>\n?", role="human", **media):
    return {**media, "conversations": [{"from": role, "value": value}]}


def entry(role="user", **values):
    return {"messages": [{"role": role, "content": [values]}]}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (llava(), "slot <image> with no media left"),
        (llava("<image><image>", image="a.png"), "slot <image> with no media left"),
        (llava("<video>", image="a.png"), "slot <video> with no media left"),
        (llava("?", image=["a.png", "b.png"]), "2 images without a slot"),
        (llava(image="a.png", video="b.mp4"), "1 video without a slot"),
        (llava("<image>", "gpt", image="a.png"), "slot <image> in an answer"),
        (llava(role="narrator", image="a.png"), "role 'narrator'; there are human, gpt"),
        (llava(3), "whose text is a int"),
        ({"conversations": []}, "no messages"),
        ({"conversations": ["?"]}, "no messages"),
        ({}, "either conversations"),
        ([], "either conversations"),
        ({"conversations": [], "messages": []}, "either conversations"),
        (entry(type="audio", path="a.wav"), "type 'audio'; there are text, image, video, asset, mesh"),
        (entry(type="image"), "slot for image with no media left"),
        (entry("assistant", type="image", path="a.png"), "slot for image in an answer"),
        ({**entry(type="text", text="?"), "images": ["a.png"]}, "1 image without a slot"),
        ({"messages": [{"role": "user", "content": None}]}, "neither a text nor a list"),
        ({"messages": [{"role": "user", "content": [3]}]}, "type None"),
    ],
)
def test_what_does_not_fit_is_said_with_the_key(record, said):
    with pytest.raises(AtokenError, match=f"^record 7 .*{said}"):
        read(record, "record 7")
