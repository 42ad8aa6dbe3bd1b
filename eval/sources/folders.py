"""Data sets that are folders: of files, of folders of frames, of one folder for each class.

Nothing is downloaded. Where a folder has a ``list.txt``, only the files whose names (relative to the folder) are lines
of it count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath

from atoken.data.sources.sample import SUFFIXES, files_below, printable
from atoken.errors import MediaError
from atoken.media.views import TRANSFORMS
from atoken.modalities import ASSET, IMAGE, MODALITIES, VIDEO
from eval.sources.entry import Entry, Listing, lines_of

# Synsets, each with the name that OpenAI chose for CLIP, which open_clip and most papers use. Two names (missile,
# sunglasses) belong to two classes each: these tie, and a tie is a miss.
IMAGENET = Path(__file__).with_name("imagenet_classes.txt")


def files(root: Path, suffixes: Iterable[str] = SUFFIXES) -> Listing:
    """Every file below ``root`` with one of the suffixes, by its path. Raises: MediaError."""
    return Listing(tuple(Entry(printable(name), root / name) for name in _names(root, suffixes)))


def images(root: Path) -> Listing:
    """Every image below ``root``."""
    return files(root, IMAGE.suffixes)


def videos(root: Path) -> Listing:
    """Every video below ``root``, TokenBench's folder of MP4s for one."""
    return files(root, VIDEO.suffixes)


def meshes(root: Path) -> Listing:
    """Every 3D asset below ``root``."""
    return files(root, ASSET.suffixes)


def views(root: Path) -> Listing:
    """Every folder of views, one with a ``transforms.json``, below ``root`` or ``root`` itself: TRELLIS's renders."""
    return _views(root, _homes(_names(root, (TRANSFORMS,))))


def local(root: Path) -> dict[str, Listing]:
    """What is in a user's folder, by modality. Raises: MediaError where there is nothing.

    Files inside a folder of views are part of that one asset.
    """
    names = _names(root, SUFFIXES | {TRANSFORMS})
    homes = _homes(names)
    alone = [name for name in names if homes.isdisjoint(PurePosixPath(name).parents)]
    found = {
        name: Listing(tuple(Entry(printable(file), root / file) for file in alone if _suffix(file) in of.suffixes))
        for name, of in MODALITIES.items()
    } | {"views": _views(root, homes)}
    if not any(listing.entries for listing in found.values()):
        raise MediaError(f"The folder {root} holds no image, video, 3D asset or folder of views; put some there.")
    return {kind: listing for kind, listing in found.items() if listing.entries}


def _homes(names: Iterable[str]) -> set[PurePosixPath]:
    """The folders that have a list of views."""
    paths = map(PurePosixPath, names)
    return {path.parent for path in paths if path.name == TRANSFORMS}


def _views(root: Path, homes: Iterable[PurePosixPath]) -> Listing:
    keys = {home: str(home) if home.name else root.resolve().name for home in sorted(homes)}
    return Listing(tuple(Entry(printable(key), root / home) for home, key in keys.items()))


def frame_folders(root: Path) -> Listing:
    """Every folder of images below ``root`` as a video, its frames by name: DAVIS."""
    ordered = sorted(_names(root, IMAGE.suffixes), key=lambda name: (PurePosixPath(name).parts[:-1], name))
    parts = groupby(ordered, key=lambda name: PurePosixPath(name).parent.as_posix())
    return Listing(tuple(Entry(printable(name), tuple(root / frame for frame in part)) for name, part in parts))


def _names(root: Path, suffixes: Iterable[str]) -> list[str]:
    if not root.is_dir():
        raise MediaError(f"There is no folder {root}; name the one that holds the data.")
    names, chosen = files_below(root, suffixes), root / "list.txt"
    if not chosen.is_file():
        return names
    wanted = set(lines_of(chosen))
    if missing := wanted.difference(names):
        raise MediaError(f"{chosen} names {len(missing):,} files that are not there, such as {min(missing)}.")
    return [name for name in names if name in wanted]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def class_folders(root: Path, classes: Path | None = None, suffixes: Iterable[str] = IMAGE.suffixes) -> Listing:
    """Files in one folder for each class: ImageNet, ImageNet-v2, Toys4k.

    classes: a list with a line for each class, the name of its folder and then its names after commas, as ImageNet's
    list of synsets has them ("n01440764 tench, Tinca tinca"); the first name counts. Folders that are numbers count
    its lines from 0. Without it the classes are the folders, by name, "_" read as a space. Raises: MediaError.
    """
    names = _names(root, suffixes)
    folders = sorted({PurePosixPath(name).parts[0] for name in names})
    if stray := next((name for name in names if "/" not in name), None):
        raise MediaError(f"{root / stray} is in no folder of a class; put it into one.")
    known, titles = _classes(folders, classes)
    entries = [Entry(printable(name), root / name, known[PurePosixPath(name).parts[0]]) for name in names]
    return Listing(tuple(entries), titles)


def meshes_by_class(root: Path) -> Listing:
    """Meshes in one folder for each class: Toys4k."""
    return class_folders(root, None, ASSET.suffixes)


def _classes(folders: Sequence[str], path: Path | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label of each folder, and name of each label."""
    if path is None:
        return {name: label for label, name in enumerate(folders)}, tuple(
            printable(name).replace("_", " ") for name in folders
        )
    lines = [line.partition(" ")[::2] for line in lines_of(path)]
    titles = tuple(names.partition(",")[0].strip() for _, names in lines)
    known = {folder: label for label, (folder, _) in enumerate(lines)}
    if all(name.isdecimal() for name in folders):
        known = {name: int(name) for name in folders}
    if wrong := next((name for name in folders if known.get(name, len(titles)) >= len(titles)), None):
        raise MediaError(f"The list of classes {path} has no line for the folder {wrong}; add one.")
    if "" in titles:
        raise MediaError(f"Line {titles.index('') + 1} of {path} has no name behind the folder's; add one.")
    return known, titles
