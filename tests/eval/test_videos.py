"""Measures of a folder of videos of prompts: closed forms, names, FVD to themselves, the command."""

import json

import numpy as np
import pytest

import atoken
from atoken.data.synthetic.placed import moving_video
from atoken.errors import AtokenError
from atoken.io import Video
from atoken.media.video import write_video
from eval.command import main
from eval.videos import flicker, prompt_of, smoothness, videos_in, videos_row
from tests.eval.plain_network import PlainNetwork


class Plain(PlainNetwork):
    """Of the middle frame of videos."""

    def features(self, frames):
        return super().features(np.stack([video[len(video) // 2] for video in frames])[:, None])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three prompts, two videos of each."""
    made = tmp_path_factory.mktemp("videos")
    for number in range(6):
        found = moving_video(3, 60 * (number // 2), 8, 48, 48)
        write_video(Video(found.frames, 8), made / f"{found.caption}-{number % 2}.mp4")
    return made


def test_smoothness_and_flicker_have_closed_forms():
    still = np.full((5, 4, 4, 3), 7, np.uint8)
    assert (smoothness(still), flicker(still)) == (1, 0)
    rising = (51 * np.arange(6, dtype=np.uint8))[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    assert (smoothness(rising), flicker(rising)) == pytest.approx((1, 0.2), abs=1e-6)
    blinking = np.stack([still[0] * 0, still[0] * 0 + 255, still[0] * 0])
    assert (smoothness(blinking), flicker(blinking)) == (0, 1)
    assert (smoothness(still[:1]), flicker(still[:1])) == (1, 0)


def test_prompts_are_names_without_their_numbers(tmp_path):
    names = ("a ring-0.mp4", "a well-known ring-12.mp4", "a ring.mp4")
    assert [prompt_of(tmp_path / name) for name in names] == ["a ring", "a well-known ring", "a ring"]
    with pytest.raises(AtokenError, match="no file to read"):
        videos_in(tmp_path)


def test_a_row_has_all_numbers_and_no_distance_to_itself(folder):
    row = videos_row(folder, atoken.load("nano"), reference=folder, network=Plain())
    numbers = {name: one["value"] for name, one in row["numbers"].items()}
    assert numbers.keys() == {"text cosine", "text top-1", "smoothness", "flicker", "fvd"}
    assert numbers["fvd"] == pytest.approx(0, abs=1e-6)
    assert -1 <= numbers["text cosine"] <= 1
    assert numbers["text top-1"] * 6 == pytest.approx(round(numbers["text top-1"] * 6))
    assert row["items"]["measured"] == 6


def test_the_command_says_what_is_left_out(folder, tmp_path, capsys):
    assert main(["videos", str(folder), "-o", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (row,) = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert row["skipped"] == {"fvd": "no --reference of real videos was named"}
    assert "text cosine" in capsys.readouterr().out
