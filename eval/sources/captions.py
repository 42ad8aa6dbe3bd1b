"""Data sets with captions: COCO, Flickr30k, MSR-VTT and MSVD, in their published files."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atoken.errors import MediaError
from eval.sources.entry import Entry, Listing, lines_of, text_of


def coco(root: Path, name: str = "val2017") -> Listing:
    """COCO: the images in ``NAME/``, the captions in ``annotations/captions_NAME.json``. Raises: MediaError."""
    with _record(root / "annotations" / f"captions_{name}.json") as record:
        captions: dict[int, list[str]] = {image["id"]: [] for image in record["images"]}
        for one in sorted(record["annotations"], key=lambda one: one["id"]):
            captions.setdefault(one["image_id"], []).append(one["caption"].strip())
        images = sorted(record["images"], key=lambda image: image["id"])
        files = [(image["file_name"], tuple(captions[image["id"]])) for image in images]
    return Listing([Entry(file, root / name / file, None, texts) for file, texts in files])


def split_file(root: Path, name: str, split: str = "test") -> Listing:
    """COCO and Flickr30k as Karpathy and Fei-Fei 2015 split them: the images of one split of ``NAME``, a JSON file.

    An image is in the folder that the file names for it, or else in ``images/``. Raises: MediaError.
    """
    entries = []
    with _record(root / name) as record:
        for image in (image for image in record["images"] if image["split"] == split):
            path = root / image.get("filepath", "images") / image["filename"]
            texts = tuple(sentence["raw"].strip() for sentence in image["sentences"])
            entries.append(Entry(image["filename"], path, None, texts))
    return Listing(entries)


def msr_vtt(root: Path) -> Listing:
    """MSR-VTT 1k-A (Yu et al. 2018): ``MSRVTT_JSFUSION_test.csv``, a caption for each of ``videos/*.mp4``."""
    path = root / "MSRVTT_JSFUSION_test.csv"
    rows = list(csv.DictReader(text_of(path).splitlines()))
    if not rows or not {"video_id", "sentence"} <= set(rows[0]):
        raise MediaError(f"{path} has no rows with the columns video_id and sentence; use the list of the 1k-A split.")
    pairs = [(row["video_id"], row["sentence"].strip()) for row in rows]
    return Listing([Entry(name, root / "videos" / f"{name}.mp4", None, (text,)) for name, text in pairs])


def msvd(root: Path) -> Listing:
    """MSVD: names in ``test_list.txt``, files in ``videos/``, captions in one of two published files.

    ``raw-captions.pkl`` (of CLIP4Clip) holds a list of words for each caption of a name; ``captions.txt`` has
    "NAME CAPTION" in its lines. Raises: MediaError.
    """
    packed = root / "raw-captions.pkl"
    captions = _pickled_captions(packed) if packed.exists() else _captions_by_line(root / "captions.txt")
    names = lines_of(root / "test_list.txt")
    return Listing(
        [Entry(name, root / "videos" / f"{name}.avi", None, tuple(captions.get(name, ()))) for name in names]
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


@contextmanager
def _record(path: Path) -> Iterator[Any]:
    """A JSON file; what is missing in it becomes one sentence, a MediaError."""
    try:
        yield json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise MediaError(f"{path} is damaged: it is not JSON.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise MediaError(f"{path} is not the list that this data set must have: it lacks {error}.") from error
