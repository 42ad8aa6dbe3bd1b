"""The hostile files that ``benchmarks.fuzz`` reads, too: each gives what it must, and errors are one sentence."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

from atoken.errors import AtokenError
from atoken.io import load_media
from atoken.io.token_file import TokenFile
from tests.io.hostile_cases import hostile_token_files
from tests.media import seed_files
from tests.media.damage import damaged, mutate
from tests.media.hostile_cases import hostile_images, hostile_videos, secrets

LARGE = ("64-megapixels.png", "64-megapixels.tga", "8000x8000.avif")  # sound, and 600 MB in memory


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    seed_files.images(folder), seed_files.animations(folder), seed_files.videos(folder), seed_files.token_files(folder)
    return folder


def outcome(path: Path) -> str:
    try:
        if path.suffix == ".atok":
            with TokenFile(path) as file:
                [file.read(index) for index in range(len(file))]
            return "tokens"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return type(load_media(path)).__name__.lower()
    except AtokenError as error:
        return "refused" if re.fullmatch(r"[^\n]+\.", str(error)) else str(error)


def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path: Path, seeds: Path) -> None:
    """A little of what ``benchmarks.fuzz`` does at length; a damaged token file is always refused."""
    for case in damaged(tmp_path, [seeds / name for name in seed_files.IMAGES], 300, 1, mutate):
        assert outcome(case.path) in ("image", "refused"), case.path.name
    for case in damaged(tmp_path, [seeds / name for name in seed_files.ANIMATIONS], 16, 1, mutate):
        assert outcome(case.path) in ("image", "video", "refused"), case.path.name
    for case in damaged(tmp_path, sorted(seeds.glob("*.atok")), 60, 1, mutate):
        assert outcome(case.path) == "refused", case.path.name


def wrong(cases: Iterable[seed_files.Case]) -> dict[str, str]:
    found = {case.path.name: (outcome(case.path), case.expected) for case in cases if case.path.name not in LARGE}
    assert len(found) > 20
    return {name: what for name, (what, expected) in found.items() if expected not in ("", what)}


def test_hostile_images(tmp_path: Path, seeds: Path) -> None:
    assert wrong(hostile_images(tmp_path, seeds)) == {}


def test_hostile_videos(tmp_path: Path, seeds: Path) -> None:
    secrets(tmp_path)
    assert wrong(hostile_videos(tmp_path, seeds, port=9)) == {}


def test_hostile_token_files(tmp_path: Path, seeds: Path) -> None:
    assert wrong(hostile_token_files(tmp_path, seeds)) == {}
