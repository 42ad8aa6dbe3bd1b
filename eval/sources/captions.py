"""Data sets with captions: COCO, Flickr30k, MSR-VTT and MSVD, in their published files."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atoken.errors import MediaError
from eval.sources.entry import Entry, Listing, lines_of, text_of


def coco(root: Path, name: str = "val2017") -> Listing:
    """COCO: the images in ``NAME/``, the captions in ``annotations/captions_NAME.json``. Raises: MediaError."""
    with _Record(root / "annotations" / f"captions_{name}.json") as record:
        captions: dict[int, list[tuple[int, str]]] = {}
        for one in record["annotations"]:
            captions.setdefault(one["image_id"], []).append((one["id"], one["caption"].strip()))
        return Listing(
            tuple(
                Entry(image["file_name"], root / name / image["file_name"], None, _texts(captions.get(image["id"], ())))
                for image in sorted(record["images"], key=lambda image: image["id"])
            )
        )


def split_file(root: Path, name: str, split: str = "test") -> Listing:
    """COCO and Flickr30k as Karpathy and Fei-Fei 2015 split them: the images of one split of ``NAME``, a JSON file.

    An image is in the folder that the file names for it, or else in ``images/``. Raises: MediaError.
    """
    with _Record(root / name) as record:
        chosen = [image for image in record["images"] if image["split"] == split]
        return Listing(
            tuple(
                Entry(
                    image["filename"],
                    root / image.get("filepath", "images") / image["filename"],
                    None,
                    tuple(sentence["raw"].strip() for sentence in image["sentences"]),
                )
                for image in chosen
            )
        )


def msr_vtt(root: Path) -> Listing:
    """MSR-VTT 1k-A (Yu et al. 2018): ``MSRVTT_JSFUSION_test.csv``, a caption for each of ``videos/*.mp4``."""
    path = root / "MSRVTT_JSFUSION_test.csv"
    rows = list(csv.DictReader(text_of(path).splitlines()))
    if not rows or not {"video_id", "sentence"} <= set(rows[0]):
        raise MediaError(f"{path} has no rows with the columns video_id and sentence; use the list of the 1k-A split.")
    return Listing(
        tuple(
            Entry(row["video_id"], root / "videos" / f"{row['video_id']}.mp4", None, (row["sentence"].strip(),))
            for row in rows
        )
    )


def msvd(root: Path) -> Listing:
    """MSVD: names in ``test_list.txt``, files in ``videos/``, captions in one of two published files.

    ``raw-captions.pkl`` (of CLIP4Clip) holds a list of words for each caption of a name; ``captions.txt`` has
    "NAME CAPTION" in its lines. Raises: MediaError.
    """
    packed = root / "raw-captions.pkl"
    captions = _pickled_captions(packed) if packed.exists() else _captions_by_line(root / "captions.txt")
    names = lines_of(root / "test_list.txt")
    return Listing(
        tuple(Entry(name, root / "videos" / f"{name}.avi", None, tuple(captions.get(name, ()))) for name in names)
    )


def _captions_by_line(path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for line in lines_of(path):
        name, _, caption = line.partition(" ")
        if not line.startswith("#"):  # comments at the head of the published list
            captions.setdefault(name, []).append(caption.strip())
    return captions


class _Plain(pickle.Unpickler):
    """Reads built-in values only: a pickle that names a class or a function is refused, so it cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _pickled_captions(path: Path) -> dict[str, list[str]]:
    try:
        with path.open("rb") as file:
            listed = _Plain(file, encoding="utf-8").load()
        return {str(name): [" ".join(words).strip() for words in texts] for name, texts in listed.items()}
    except OSError as error:
        raise MediaError(f"Cannot read {path}, which the data set must have: {error.strerror}.") from error
    except Exception as error:  # damaged pickles raise anything
        raise MediaError(f"{path} is not a table of captions, lists of words by name: {error}.") from error


def _texts(numbered: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    return tuple(text for _, text in sorted(numbered))


class _Record:
    """A JSON file, opened with ``with``: what is missing in it becomes one sentence, a MediaError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        try:
            return json.loads(text_of(self.path))
        except (ValueError, RecursionError) as error:
            raise MediaError(f"{self.path} is damaged: it is not JSON.") from error

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KeyError, TypeError, AttributeError)):
            raise MediaError(f"{self.path} is not the list that this data set must have: it lacks {error}.") from error
