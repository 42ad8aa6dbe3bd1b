"""What every source gives, a ``Sample`` by its number, and what sources share: suffixes, captions, file lists."""

from __future__ import annotations

import json
import os
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any, Protocol

from atoken.errors import AtokenWarning, MediaError
from atoken.media.source import translated
from atoken.modalities import MODALITIES

SUFFIXES = frozenset().union(*(modality.suffixes for modality in MODALITIES.values()))

MOST_MEDIA = 1 << 30  # bytes of the media of one sample that are brought into memory
MOST_TEXT = 1 << 20  # bytes of the captions of one sample
TIMEOUT = 120.0  # seconds without progress: long, so that a sample does not depend on how busy the machine is


@dataclass(frozen=True)
class Sample:
    """``media``: a file, or its contents; ``suffix``: lower case, with the dot; ``key``: unique in its source.

    ``record``: what a ``.json`` file, a ``.cls`` member or the columns of a table say of it.
    """

    key: str
    media: Path | bytes
    suffix: str
    captions: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What readers call it in messages; the suffix says which format it is where its bytes do not."""
        return str(self.media) if isinstance(self.media, Path) else self.key + self.suffix

    @property
    def label(self) -> str | None:
        """The class: ``label`` of the record, or ``cls``, a text or a whole number; None without one."""
        stated = (text_of(self.record.get(name)) for name in ("label", "cls"))
        return next((text for text in stated if text is not None), None)


class Source(Protocol):
    """Samples by number, in an order that never changes; small when pickled for worker processes."""

    def __len__(self) -> int:
        """Number of samples, at least 1."""

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``. Raises: AtokenError (this sample is broken), IndexError (not 0 <= index < len)."""


class Templated:
    """The samples of a source with captions from their records: "a photo of a {label}" of ``{"label": "shirt"}``.

    A template whose field is missing in a record, or is not a text there, gives no caption.
    Raises: MediaError (something between braces that is not a plain name).
    """

    def __init__(self, source: Source, templates: Sequence[str]) -> None:
        self._source = source
        self._templates = [(template, fields_of(template)) for template in templates]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        sample = self._source[index]
        texts = {key: value for key, value in sample.record.items() if isinstance(value, str)}
        filled = [template.format_map(texts) for template, fields in self._templates if fields <= texts.keys()]
        return replace(sample, captions=tuple(dict.fromkeys([*sample.captions, *filled])))


def text_of(value: object) -> str | None:
    """A text that is not empty, or a whole number, as a text; None of anything else."""
    number = isinstance(value, int) and not isinstance(value, bool)
    return value.strip() or None if isinstance(value, str) else str(value) if number else None


def fields_of(template: str) -> set[str]:
    """The names between the braces of a template. Raises: MediaError (something else is between them)."""
    try:
        found = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        found = [""]
    if not all(map(str.isidentifier, found)):
        raise MediaError(f"{template!r} is not a template; write names in braces: 'a photo of a {{label}}'.")
    return set(found)


def captions_in(text: bytes | None, described: bytes | None, what: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """Captions of a ``.txt`` (one a line), then ``captions`` or ``caption`` of a ``.json``; and the record in that.

    Without duplicates. Raises: MediaError (not UTF-8, not JSON, or captions that are not texts).
    """
    try:
        lines = (text or b"").decode("utf-8-sig").split("\n")
        record = json.loads(described or b"{}")
    except (ValueError, RecursionError) as error:
        raise MediaError(f"The captions of {what} are damaged: they are not UTF-8 or not JSON.") from error
    record = record if isinstance(record, dict) else {}
    stated = record.get("captions", record.get("caption"))
    return tuple(dict.fromkeys(clean_captions(lines, what) + clean_captions(stated, what))), record


def clean_captions(stated: object, what: str) -> tuple[str, ...]:
    """Captions from None, one text or a list of texts, stripped, without empty ones.

    Raises: MediaError (anything else, or invalid Unicode).
    """
    texts = [] if stated is None else [stated] if isinstance(stated, str) else stated
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise MediaError(f"The captions of {what} are neither a text nor a list of texts.")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise MediaError(f"The captions of {what} are damaged: they are not valid Unicode.") from error
    return tuple(filter(None, map(str.strip, texts)))


def files_below(folder: Path, suffixes: Iterable[str]) -> list[str]:
    """Names, relative to ``folder``, of all files below it with one of the suffixes, sorted, without hidden ones.

    Links to files are followed. Links to folders are not, because they may lead in a circle; an AtokenWarning says so.
    Raises: MediaError (no such folder, one that cannot be listed, nothing found).
    """
    links: list[str] = []
    try:
        found = sorted(_walk(folder, tuple(suffixes), links))
    except OSError as error:
        raise MediaError(f"Cannot list the folder {folder}: {error.strerror}.") from error
    if links:
        more = f"{len(links)} links to folders, such as {links[0]}, are not followed; name these folders themselves."
        warnings.warn(more, AtokenWarning, stacklevel=2)
    if not found:
        wanted = ", ".join(sorted(suffixes))
        raise MediaError(f"The folder {folder} has no file to read; put files with these suffixes there: {wanted}.")
    return found


def _walk(folder: Path, suffixes: tuple[str, ...], links: list[str]) -> Iterator[str]:
    """Links to folders are added to ``links``."""
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{name}" for name in _walk(Path(entry), suffixes, links))
        elif entry.is_symlink() and entry.is_dir():
            links.append(printable(entry.path))
        elif entry.name.lower().endswith(suffixes):
            yield entry.name


def files_at(path: Path, suffixes: Iterable[str]) -> list[tuple[str, Path]]:
    """Name and path of the file ``path``, or of each file with one of the suffixes below the folder ``path``.

    Raises: MediaError.
    """
    try:
        whole_folder = path.is_dir()
    except OSError as error:  # the name is too long, or a folder above it may not be read
        raise MediaError(f"Cannot read {path}: {error.strerror}.") from error
    if whole_folder:
        return [(printable(name), path / name) for name in files_below(path, suffixes)]
    return [(printable(path.name), path)]


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Size and time of change of a file, by which a change is noticed."""
    return status.st_size, status.st_mtime_ns


def printable(name: str) -> str:
    """The name of a file as valid Unicode: bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def located(ends: Sequence[int], index: int) -> tuple[int, int]:
    """Which of several parts sample ``index`` is in, and its number there. ``ends``: samples up to each part's end.

    Raises: IndexError.
    """
    if not 0 <= index < ends[-1]:
        raise IndexError(f"There is no sample {index} among {ends[-1]}.")
    part = bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


@contextmanager
def reading(sample: Sample) -> Iterator[None]:
    """Whatever reading the media of a sample raises is an AtokenError; without warnings, as in ``quiet``."""
    with translated(f"Cannot use {sample.key}"), quiet():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of what is not read (an audio track, a coarser grid), which would fill a run's log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AtokenWarning)
        yield
