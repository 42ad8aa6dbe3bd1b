"""What a store is made of, item by item: ``open_source`` opens what a user names, in an order that never changes.

It is one of these; paths may begin with ``fetched:``, for the cache of ``atoken fetch``:

- a folder of images, videos and 3D assets, or one such file. The label of a file is the name of the first folder in
  which it lies; where all of these are splits, as in ``train/n01440764/x.JPEG`` of ImageNet, of the second;
- WebDataset shards (``.tar``) or tables (``.parquet``, ``.arrow``, ``.feather``), one or a folder of them;
- a data file of training (``.toml``): all its sources, each once, in the order of the file, and so many ``items`` of a
  series of the generator. ``label`` ("{word}") makes labels as templates make captions; what the file says of training
  is not used;
- ``procedural`` or ``procedural:SERIES`` (of images), ``procedural:video/SERIES``: the generator.

Captions and records come from where they come from in training (``atoken/data/sources``). A label is ``label`` or
``cls`` of the record, before the name of a folder.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from atoken.data.sources import SUFFIXES, FolderSource, Sample, ShardSource, Source, TableSource, Templated
from atoken.data.sources.sample import fields_of, files_at, files_below, located, printable, text_of
from atoken.data.sources.shards import RECORD, TEXT
from atoken.data.sources.table import TABLES
from atoken.errors import AtokenWarning, MediaError
from atoken.media.source import missing, translated
from atoken.modalities import MODALITIES
from atoken.store.layout import Options

if TYPE_CHECKING:
    from atoken.pretrain.data_file import Data, Origin

GENERATOR = "procedural"
GENERATED = ".procedural"  # suffix of a sample that is to be made; its record says which
SIDE = 256  # of generated images, where neither --resize nor --crop says otherwise
SHARDS = (".tar",)
SIDECARS = (TEXT, RECORD)  # files beside media, in a folder
SPLITS = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
)  # fmt: skip


class Entry(NamedTuple):
    """An item of a source: ``key``, unique in all of it; its media, captions and record; the name of its class.

    first_frame: an animated image is an image, as the data file says, and not a video.
    """

    key: str
    sample: Sample
    label: str | None
    first_frame: bool = False


@dataclass(frozen=True)
class Opened:
    """A source, and how its items are called.

    digest: of names and sizes of its files. prefix: of keys. label: a template. depth: which of the folders that a
    file lies in is its class, counted from 0; None where none is.
    """

    source: Source
    digest: str
    prefix: str = ""
    label: str | None = None
    depth: int | None = None
    first_frame: bool = False

    def entry(self, index: int) -> Entry:
        """Item ``index``. Raises: AtokenError (it is broken)."""
        sample = self.source[index]
        if self.label is not None:
            texts = {name: text_of(sample.record.get(name)) for name in fields_of(self.label)}
            label = None if None in texts.values() else self.label.format_map(texts)
        else:
            label = sample.label
            folders = sample.key.split("/")[:-1]
            if label is None and self.depth is not None and self.depth < len(folders):
                label = folders[self.depth]
        return Entry(self.prefix + sample.key, sample, label, self.first_frame)


class Items:
    """All items of a source by number; small when pickled for worker processes.

    digest: SHA-256 of names and sizes of all files and of how they are read; not of their contents. described: for
    people, without the folder that it lies in.
    """

    def __init__(self, sources: Sequence[Opened], described: str) -> None:
        self._sources, self.described = tuple(sources), described
        self._ends = list(accumulate(len(opened.source) for opened in sources))
        self.digest = _hashed([opened.digest, opened.prefix, opened.label, opened.first_frame] for opened in sources)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Entry:
        """Item ``index``. Raises: AtokenError (this item is broken), IndexError."""
        number, inside = located(self._ends, index)
        return self._sources[number].entry(inside)


def open_source(text: str, options: Options) -> Items:
    """Open what a user names, as this module says. Warns of what is left out.

    Raises: MediaError (nothing there, several things in one folder, nothing to read, a series without a number of
    items), MissingExtraError (tables without pyarrow).
    """
    if text.partition(":")[0] == GENERATOR:
        return _generated(text.partition(":")[2], options)
    from atoken.metrics import pinned

    path = pinned.located(text, Path())
    pinned.check_fetched(path)
    with translated(f"Cannot read {text}"):  # a name that is too long
        there = path.exists()
    if not there:
        raise MediaError(
            f"Cannot read {text}: {missing(text)}; name a folder, a file, shards (.tar), a table (.parquet, .arrow), a "
            f"data file (.toml), or {GENERATOR}:SERIES."
        )
    name = printable(path.resolve().name)
    if path.suffix.lower() == ".toml":
        return Items(list(_of_data_file(path)), f"data file {name}")
    opened, what = _found(path)
    return Items([opened], f"{what} {name}")


def _found(path: Path) -> tuple[Opened, str]:
    """A file or folder as the source that it is, and in a word what that is."""
    known = {*SUFFIXES, *SHARDS, *TABLES, *SIDECARS}
    names = files_below(path, known) if path.is_dir() else [path.name]
    media, shards, tables = (_only(names, suffixes) for suffixes in (SUFFIXES, SHARDS, TABLES))
    stems = {Path(name).stem for name in shards}
    tables = [name for name in tables if Path(name).stem not in stems]  # img2dataset writes 00000.parquet of 00000.tar
    if sum(map(bool, (media, shards, tables))) > 1:
        raise MediaError(
            f"The folder {path} holds {_counted(media, 'media')}, {_counted(shards, 'shards')} and "
            f"{_counted(tables, 'tables')}; name a folder or file with one of these, or a data file that names several."
        )
    if shards:
        return Opened(ShardSource(path), _digest_of(path, SHARDS)), "shards"
    if tables:
        return Opened(TableSource(path), _digest_of(path, TABLES)), "table"
    return (_of_folder(path, names), "folder") if path.is_dir() else (_of_folder(path.parent, names), "file")


def _only(names: Iterable[str], suffixes: Iterable[str]) -> list[str]:
    ends = tuple(suffixes)
    return [name for name in names if name.lower().endswith(ends)]


def _counted(names: Sequence[str], what: str) -> str:
    return f"{len(names) or 'no'} {what}" + (f" ({printable(names[0])})" if names else "")


def _of_folder(folder: Path, names: Sequence[str], suffixes: Iterable[str] = SUFFIXES) -> Opened:
    """Of the files of these names those with the suffixes, and captions and records beside them."""
    media = _only(names, suffixes)
    if not media:
        raise MediaError(f"{folder} has no file to read; known suffixes: {', '.join(sorted(suffixes))}.")
    escaped = [shown for name in media if "\\" in (shown := printable(name))]
    if len({*escaped}) < len(escaped):
        raise MediaError(f"Two files below {folder} differ only in bytes that are not UTF-8; rename one of them.")
    tops = {name.partition("/")[0].lower() for name in media if "/" in name}
    beside = [*media, *_only(names, SIDECARS)]
    digest = _hashed([printable(name), _size(folder / name)] for name in beside)
    return Opened(FolderSource.of(folder, media), digest, depth=1 if tops <= SPLITS else 0)


def _digest_of(path: Path, suffixes: Iterable[str]) -> str:
    """Of one file, whatever its name, or of all in a folder."""
    return _hashed([name, _size(file)] for name, file in files_at(path, suffixes))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nothing, which is an item that cannot be read
        return -1


def _hashed(rows: Iterable[object]) -> str:
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


@dataclass(frozen=True)
class Series:
    """``count`` samples of a series of the generator, which ``atoken.store.media`` makes; ``side``: pixels."""

    modality: str
    series: str
    count: int
    side: int | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        from atoken.data.synthetic.series import class_name

        label = class_name(self.modality, self.series, index)
        record: dict[str, object] = {"modality": self.modality, "series": self.series, "index": index}
        if self.side is not None:
            record["side"] = self.side
        if label is not None:
            record |= {"label": label, "class": label.split(" ", 1)[1]}  # "a red ring", "red ring"
        return Sample(f"{self.modality}/{self.series}/{index:09d}", b"", GENERATED, (), record)


def _generated(text: str, options: Options) -> Items:
    modality, series = _series(text or "mixed")
    if options.items is None:
        raise MediaError("A series of the generator has no end; say how many items with --items.")
    opened = Opened(Series(modality, series, options.items), _hashed([f"{modality}/{series}"]))
    return Items([opened], f"generated {modality}/{series}")


def _series(text: str) -> tuple[str, str]:
    """Modality and name of a series, of images where ``text`` does not say. Raises: MediaError (an unknown one)."""
    from atoken.data.synthetic.series import MAKERS

    modality, _, series = text.rpartition("/")
    known = [of for of in MAKERS if series in MAKERS[of] and modality in ("", of)]
    if not known:
        every = ", ".join(f"{of}/{name}" for of, makers in MAKERS.items() for name in makers)
        raise MediaError(f"The generator has no series {text}; it has {every}.")
    return known[0], series


def _of_data_file(path: Path) -> Iterator[Opened]:
    """The sources of a data file, each once, though several tables name it."""
    from atoken.pretrain.data_file import planned, read_data

    data = read_data(path, ())
    found: dict[object, tuple[str, str, Origin]] = {}
    for table, origins in data.tables.items():
        for name, origin in origins.items():
            modality = "image" if origin.filmed else table if table in MODALITIES else planned()[table]
            read_as = (modality, origin.folder, origin.procedural) if origin.folder or origin.procedural else None
            same = (read_as, origin.side, origin.shards, origin.table, origin.media)
            if not origin.procedural or origin.items:
                first, _, other = found.get(same, (f"{table}.{name}", modality, origin))
                found[same] = first, modality, _union(other, origin)
    _warn(data, bool(found))
    for name, modality, origin in found.values():
        try:
            opened = _of_origin(origin, modality)
        except MediaError as error:
            raise MediaError(f"{path}, [{name}]: {error}") from error
        yield replace(opened, prefix=f"{name}/", label=origin.label, first_frame=modality == "image")


def _union(first: Origin, other: Origin) -> Origin:
    templates = (*dict.fromkeys((*first.templates, *other.templates)),)
    captions, label = first.captions or other.captions, first.label or other.label
    return replace(first, templates=templates, captions=captions, label=label)


def _warn(data: Data, some: bool) -> None:
    origins = [origin for table in data.tables.values() for origin in table.values()]
    if not some:
        raise MediaError(
            f"{data.file} names the generator alone; say how many items of a series there are (items = 1000), or name "
            f"the series instead: {GENERATOR}:SERIES."
        )
    if any(origin.procedural and not origin.items for origin in origins):
        text = f"Series of the generator in {data.file} without a number of items are left out."
        warnings.warn(text, AtokenWarning, stacklevel=4)
    if any(origin.filmed or origin.cropped for origin in origins):
        text = f"filmed and cropped in {data.file} are for training; the images are tokenised as they are."
        warnings.warn(text, AtokenWarning, stacklevel=4)


def _of_origin(origin: Origin, modality: str) -> Opened:
    origin.check_fetched()
    if origin.folder:
        folder, suffixes = Path(origin.folder), MODALITIES[modality].suffixes
        opened = _of_folder(folder, files_below(folder, {*suffixes, *SIDECARS}), suffixes)
    elif origin.procedural:
        series = Series(*_series(f"{modality}/{origin.procedural}"), origin.items or 0, origin.side)
        sized = [] if origin.side is None else [origin.side]
        opened = Opened(series, _hashed([f"{modality}/{series.series}", len(series), *sized]))
    elif origin.shards:
        opened = Opened(ShardSource(origin.shards), _digest_of(Path(origin.shards), SHARDS))
    else:
        path = Path(origin.table or "")
        opened = Opened(TableSource(path, origin.media, origin.captions, origin.fields), _digest_of(path, TABLES))
    digest = _hashed([opened.digest, origin.media, origin.captions, origin.templates])
    return replace(opened, source=Templated(opened.source, origin.templates), digest=digest)
