"""A page of tables, charts and images: one HTML file that needs nothing but itself, or Markdown without the figures.

What stands in a page is text and never markup, whatever it holds.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

from atoken.atomic import atomic_path
from atoken.errors import ReportError

IMAGES = 12 << 20  # bytes of images on a page, at most: mail has limits


@dataclass(frozen=True)
class Table:
    """Cells as text, in rows as long as ``head``; the last ``numbers`` columns stand to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int = 0


@dataclass(frozen=True)
class Figure:
    """A chart (SVG, which has its title inside) or an image (PNG). words: what it shows. width: pixels on the page."""

    title: str
    data: str | bytes
    words: str = ""
    width: int | None = None


@dataclass(frozen=True)
class Figures:
    """Charts or images, one after another."""

    title: str
    figures: Sequence[Figure]


Block = str | Table | Figures  # a text is a paragraph


def fitting(images: Iterable[tuple[str, Figure]], limit: int) -> Iterator[Block]:
    """Images under the titles that come with them, as many as fit into ``limit`` bytes; then how many were left out."""
    titled, left_out = defaultdict[str, list[Figure]](list), 0
    for title, image in images:
        if len(image.data) <= limit:
            titled[title].append(image)
            limit -= len(image.data)
        else:
            left_out += 1
    yield from (Figures(title, of) for title, of in titled.items())
    if left_out:
        yield f"{left_out:,} more images, too large for this page, are in the folder of the results."


def write(path: Path, title: str, sections: Mapping[str, Sequence[Block]]) -> None:
    """Write blocks by the title of their section, atomically; as Markdown if the path ends in ``.md``.

    Raises: ReportError.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    templates.filters |= {"plain": _plain, "base64": lambda data: b64encode(data).decode()}
    template = templates.get_template("page.md" if path.suffix == ".md" else "page.html")
    save(path, template.render(title=title, sections=sections))


def save(path: Path, text: str) -> None:
    """Write a text file atomically; lone surrogates, which names of files may have, become references."""
    with atomic_path(path, ReportError) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def _plain(text: str) -> str:
    """As plain text of Markdown, in one line."""
    return re.sub(r"([\\`*_<>\[\]|])", r"\\\1", " ".join(text.split()))
