"""How questions are asked: the phrases of ``phrases.toml``."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import numpy as np


@cache
def phrases() -> dict[str, dict[str, list[str]]]:
    """All phrases, by type and by what they ask."""
    return tomllib.loads(Path(__file__).with_name("phrases.toml").read_text(encoding="utf-8"))


def phrased(key: str, words: dict[str, str], rng: np.random.Generator) -> str:
    """One of the phrases of ``type.what``, filled with words."""
    about, what = key.rsplit(".", 1)
    choices = phrases()[about][what]
    return choices[int(rng.integers(len(choices)))].format_map(words)
