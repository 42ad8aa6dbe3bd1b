"""A folder of images, videos and 3D assets, with captions in files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Self

from atoken.data.sources.sample import MOST_TEXT, SUFFIXES, Sample, captions_in, files_below, printable
from atoken.errors import MediaError


class FolderSource:
    """Every file below ``folder`` with one of the ``suffixes``, sorted by path; hidden files are ignored.

    The captions of ``photo.jpg`` are the lines of ``photo.txt`` and ``captions`` of ``photo.json``, if these exist.
    For 3D assets with their textures beside them as images, use ``suffixes=ASSET.suffixes``.
    Raises: MediaError (no such folder, nothing in it; for a sample: damaged captions).
    """

    def __init__(self, folder: str | Path, suffixes: Iterable[str] = SUFFIXES) -> None:
        self.folder = Path(folder)
        self.names: Sequence[str] = files_below(self.folder, suffixes)

    @classmethod
    def of(cls, folder: Path, names: Sequence[str]) -> Self:
        """A source of files that were listed before: names relative to the folder, sorted."""
        source = cls.__new__(cls)
        source.folder, source.names = folder, names
        return source

    def split(self, share: float) -> tuple[FolderSource, FolderSource]:
        """A source of a share of the files, at least one, which their names choose, and one of the others.

        There must be two files or more.
        """
        drawn = sorted(self.names, key=lambda name: blake2b(os.fsencode(name)).digest())
        chosen = {*drawn[: max(round(share * len(drawn)), 1)]}
        held, others = ([name for name in self.names if (name in chosen) is held] for held in (True, False))
        return FolderSource.of(self.folder, held), FolderSource.of(self.folder, others)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no sample {index} among {len(self)}.")
        path = self.folder / self.names[index]
        text, described = (_contents(path.with_suffix(suffix)) for suffix in (".txt", ".json"))
        captions, record = captions_in(text, described, str(path))
        return Sample(printable(self.names[index]), path, path.suffix.lower(), captions, record)


def _contents(path: Path) -> bytes | None:
    try:
        if not path.is_file():  # opening a pipe could wait forever
            return None
        with path.open("rb") as file:
            data = file.read(MOST_TEXT + 1)
    except OSError as error:
        raise MediaError(f"Cannot read {path}: {error.strerror}.") from error
    if len(data) > MOST_TEXT:
        raise MediaError(f"The captions in {path} are longer than {MOST_TEXT:,} bytes; shorten them.")
    return data
