"""A look into a source before a store is made of it: what its items are like, by a few of them."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from atoken.errors import AtokenError, MissingExtraError, StoreError
from atoken.io.contents import TILE
from atoken.store import pool
from atoken.store.layout import Options
from atoken.store.plan import Measured, count
from atoken.store.reading import given

if TYPE_CHECKING:
    from atoken.store.source import Items

PROBED = 64  # items, evenly over the source
LONG = 1024  # entries in a table of contents of a video whose length is not known: as of ten minutes


class _Seen(NamedTuple):
    """An item: its tokens (None of a long video), entries in a table of contents, seconds of reading; media if kept."""

    tokens: int | None
    tiles: int
    seconds: float
    media: Any


def probe(source: Items, options: Options, most: int = 0) -> tuple[Measured, list[Any]]:
    """Read up to ``PROBED`` items, evenly over the source, and average them; also give media of about ``most`` tokens.

    They are read in another process, since a file may kill its reader. Raises: StoreError (none can be read).
    """
    items = count(source, options)
    probed, found, media, reason = min(items, PROBED), list[_Seen](), list[Any](), "its reader was killed."
    calls = ((number * len(source) // probed, most > 0) for number in range(probed))
    for seen in pool.one_by_one((source, options), _seen, calls):
        if isinstance(seen, str):
            reason = seen
        elif seen:
            if seen.tokens and most > 0:
                media.append(seen.media)
                most -= seen.tokens
            found.append(seen._replace(media=None))
    if not found:
        raise StoreError(f"None of {probed} items of {source.described} can be read: {reason}")
    tokens = sum(seen.tokens or options.batch_tokens for seen in found) / len(found)
    tiles, seconds = (sum(column) / len(found) for column in list(zip(*found, strict=True))[1:3])
    return Measured(items, tokens, tiles, seconds), media


def _seen(index: int, keep: bool) -> _Seen | str:
    """An item of the source of this process, or what is wrong with it. Raises: MissingExtraError."""
    from atoken.store.media import decode

    source, options = given()
    start = perf_counter()
    try:
        item = decode(source[index], options)
    except MissingExtraError:
        raise
    except AtokenError as error:
        return str(error)
    tiles = LONG if item.tokens is None else -(-len(getattr(item.media, "frames", ())) // TILE) or 1
    return _Seen(item.tokens, tiles, perf_counter() - start, item.media if keep and item.tokens else None)
