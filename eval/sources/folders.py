"""Data sets that are folders: of files, of folders of frames, of one folder for each class.

Nothing is downloaded. Where a folder has a ``list.txt``, only the files whose names (relative to the folder) are lines
of it count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from atoken.data.sources.sample import files_below, printable
from atoken.errors import MediaError
from atoken.media.views import TRANSFORMS
from atoken.modalities import ASSET, IMAGE, MODALITIES, VIDEO, Modality
from eval.sources.entry import Entry, Listing, lines_of

# Synsets, each with the name that OpenAI chose for CLIP, which open_clip and most papers use. Two names (missile,
# sunglasses) belong to two classes each: these tie, and a tie is a miss.
IMAGENET = Path(__file__).with_name("imagenet_classes.txt")


def files(root: Path, modality: Modality) -> Listing:
    """Every file of a modality below ``root``, by its path. Raises: MediaError."""
    return _of_files(root, _names(root, modality.suffixes))


images, videos, meshes = (partial(files, modality=modality) for modality in (IMAGE, VIDEO, ASSET))


def views(root: Path) -> Listing:
    """Every folder of views, one with a ``transforms.json``, below ``root`` or ``root`` itself: TRELLIS's renders."""
    return _views(root, _homes(_names(root, (TRANSFORMS,))))


def local(root: Path) -> dict[str, Listing]:
    """What is in a user's folder, by modality, and its folders of views. Raises: MediaError where there is nothing.

    Files inside a folder of views are part of that one asset.
    """
    names = _names(root, frozenset({TRANSFORMS}).union(*(modality.suffixes for modality in MODALITIES.values())))
    homes = _homes(names)
    alone = [name for name in names if homes.isdisjoint(PurePosixPath(name).parents)]
    found = {
        name: _of_files(root, [file for file in alone if PurePosixPath(file).suffix.lower() in modality.suffixes])
        for name, modality in MODALITIES.items()
    } | {"views": _views(root, homes)}
    if not any(listing.entries for listing in found.values()):
        raise MediaError(f"The folder {root} holds no image, video, 3D asset or folder of views; put some there.")
    return {name: listing for name, listing in found.items() if listing.entries}


def _of_files(root: Path, names: Iterable[str]) -> Listing:
    return Listing([Entry(printable(name), root / name) for name in names])


def _homes(names: Iterable[str]) -> set[PurePosixPath]:
    """The folders that have a list of views."""
    paths = map(PurePosixPath, names)
    return {path.parent for path in paths if path.name == TRANSFORMS}


def _views(root: Path, homes: Iterable[PurePosixPath]) -> Listing:
    keys = {home: str(home) if home.name else root.resolve().name for home in sorted(homes)}
    return Listing([Entry(printable(key), root / home) for home, key in keys.items()])


def frame_folders(root: Path) -> Listing:
    """Every folder of images below ``root`` as a video, its frames by name: DAVIS."""
    ordered = sorted(_names(root, IMAGE.suffixes), key=lambda name: (PurePosixPath(name).parts[:-1], name))
    parts = groupby(ordered, key=lambda name: PurePosixPath(name).parent.as_posix())
    return Listing([Entry(printable(name), tuple(root / frame for frame in part)) for name, part in parts])


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


def class_folders(root: Path, classes: Path | None = None, modality: Modality = IMAGE) -> Listing:
    """Files in one folder for each class: ImageNet, ImageNet-v2, Toys4k.

    classes: a list with a line for each class, the name of its folder and then its names after commas, as ImageNet's
    list of synsets has them ("n01440764 tench, Tinca tinca"); the first name counts. Folders that are numbers count
    its lines from 0. Without it the classes are the folders, by name, "_" read as a space. Raises: MediaError.
    """
    names = _names(root, modality.suffixes)
    folders = sorted({PurePosixPath(name).parts[0] for name in names})
    if stray := next((name for name in names if "/" not in name), None):
        raise MediaError(f"{root / stray} is in no folder of a class; put it into one.")
    known, titles = labels_of_folders(folders, classes)
    entries = [Entry(printable(name), root / name, known[PurePosixPath(name).parts[0]]) for name in names]
    return Listing(entries, titles)


def labels_of_folders(folders: Sequence[str], path: Path | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Label of each folder, and name of each label, by a list of classes, as ``class_folders`` has it.

    Raises: MediaError.
    """
    if path is None:
        titles = tuple(printable(name).replace("_", " ") for name in folders)
        return {name: label for label, name in enumerate(folders)}, titles
    lines = [line.partition(" ")[::2] for line in lines_of(path)]
    titles = tuple(names.partition(",")[0].strip() for _, names in lines)
    known = {folder: label for label, (folder, _) in enumerate(lines)}
    if all(name.isdecimal() for name in folders):
        known = {name: int(name) for name in folders}
    if wrong := next((name for name in folders if known.get(name, len(titles)) >= len(titles)), None):
        raise MediaError(f"The list of classes {path} has no line for the folder {wrong}; add one.")
    if "" in titles:
        raise MediaError(f"Line {titles.index('') + 1} of {path} has no name after that of the folder; add one.")
    return known, titles
