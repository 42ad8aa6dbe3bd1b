"""A run's folder: logs and notes, and what a resumed run takes back of them."""

import json

import pytest

from atoken.errors import CheckpointError
from atoken.train.run_folder import RunFolder
from tests.train.test_checkpoints import no_file_over


def test_rewinding_drops_later_lines_those_cut_short_and_parts(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(4):
        folder.log({"step": step})
    with folder.log_path.open("a") as file:
        file.write('{"step": 0}')  # no end of line
    (tmp_path / ".step-000003.part").mkdir()
    folder.rewind(2)
    assert folder.log_path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert not (tmp_path / ".step-000003.part").exists()


def test_rewinding_drops_images_and_notes_of_what_was_given_up(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "images").mkdir()
    for step in (1, 2, 3):
        (tmp_path / "images" / f"step-{step:06d}.png").touch()
        folder.note(f"start-{step:06d}", {"step": step})
    folder.rewind(2)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["step-000001.png"]
    assert folder.noted("start-") == {"step": 2}


def test_the_last_note_is_that_of_the_largest_number(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.noted("start-") is None
    for step in (999_750, 1_000_000):
        folder.note(f"start-{step:06d}", {"step": step})
    assert folder.noted("start-") == {"step": 1_000_000}


def test_counts_are_those_of_the_last_line_before_a_step(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.counted(3) == {"drawn": 0, "broken": 0}
    for step in range(4):
        folder.log({"step": step, "drawn": 10 * step, "broken": step})
    assert folder.counted(3) == {"drawn": 20, "broken": 2}


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log({"step": 0})
    with pytest.raises(CheckpointError, match=r"Cannot write .*log.jsonl: "), no_file_over(0):
        folder.log({"step": 1})
    assert json.loads(folder.log_path.read_text()) == {"step": 0}
