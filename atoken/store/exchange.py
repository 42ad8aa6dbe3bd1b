"""What comes out of the files of other programs: the tokens of an item, and what an index says of it."""

from __future__ import annotations

from dataclasses import dataclass

from atoken.io.token_file import Tokens


@dataclass(frozen=True)
class Labelled:
    """Tokens and the columns of ``layout.Row`` that do not follow from them."""

    key: str
    label: str | None
    captions: tuple[str, ...]
    flipped: bool
    draw: int
    tokens: Tokens
