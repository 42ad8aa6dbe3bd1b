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
from tests.media.hostile_cases import hostile_images, hostile_videos, secrets

LARGE = ("64-megapixels.png",)  # sound, and 600 MB in memory


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds")
    seed_files.images(folder), seed_files.videos(folder), seed_files.token_files(folder)
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
