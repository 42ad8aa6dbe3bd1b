"""Labelled photographs of clothes and groceries out of two git repositories: made smaller, split, packed as shards.

Each split has a shard for each of the two, ``photos/test/clothes.tar`` and so on, so that one path names one of them,
and a folder both. The ``.json`` of a photograph has its ``label``, the ``group`` of that, its ``source``, and
``a_label`` and ``a_group``, which are the same with the articles that they need.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import tarfile
import tempfile
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from PIL import Image

from atoken.atomic import atomic_path
from atoken.data.synthetic.words import article
from atoken.errors import AtokenError
from atoken.metrics.pinned import cache

CLOTHES = "https://github.com/alexeygrigorev/clothing-dataset", "7ed86a9cc56763b6acb35e41cb35184e43a5d218"
GROCERIES = "https://github.com/marcusklasson/GroceryStoreDataset", "fc80ba90f803d79d0383df52c5a4ac5de99ff6fc"
SHARDS = "photos-*.tar"  # of both, made smaller already: four of train and validation, one of test
SHARDS_SHA256 = "708963b38544e26527932368eecd162646a5d50f429d522aa4dcd81779eaf978"  # of all, one after the other
SIDE = 256  # pixels of the shorter side, at most
_QUALITY = 86  # of WebP

COUNTS = {
    "train/clothes": 3864, "train/groceries": 2640, "validation/clothes": 232, "validation/groceries": 296,
    "test/clothes": 381, "test/groceries": 627,
}  # fmt: skip
LABELS = {  # "Not sure", "Other" and "Skip" are left out
    "Blazer": "blazer", "Blouse": "blouse", "Body": "baby bodysuit", "Dress": "dress", "Hat": "hat", "Hoodie": "hoodie",
    "Longsleeve": "long-sleeved shirt", "Outwear": "jacket", "Pants": "pair of pants", "Polo": "polo shirt",
    "Shirt": "shirt", "Shoes": "pair of shoes", "Shorts": "pair of shorts", "Skirt": "skirt", "T-Shirt": "t-shirt",
    "Top": "top", "Undershirt": "undershirt",
}  # fmt: skip
_WITHOUT_ARTICLE = {
    "asparagus", "carrots", "clothing", "garlic", "ginger", "juice", "milk", "oat milk", "oatghurt", "satsumas",
    "sour cream", "sour milk", "soy milk", "soyghurt", "yoghurt",
}  # fmt: skip
# Numbers of the photographs for validation in the ready shards, which say nothing of senders: their differences.
_VALIDATION = (
    "eNoNkEluE1EUAPXmP/fwf7ftdmIHu20rELJwEEJix4IF4gbc/x74AlWq2oKQl3zXlGVG8B4HaUzvDnGm9RAxh522UPxeJs9lmZLozOICjpT5bxdW"
    "p8mwZwlBG8oXGsy/jrgcEBzw0rpGKyjDGLTe0H5vz9f+wodyY6LjvzbKyBAHwCOAQOHDfZXAwvAdgMELLuM3wH4/23LubTPr8OT4jV7Leu75Yp/5"
    "OEusgdilh/0jmvkhJtlwcvk0kAaLzjqi3j6wRDff+bmGmURR64kY9ijJxQ+g2EnU5/ALkAPokxHSToNzFaHCkol79fXsiu+2gtP1J+cJ31NWTK5n"
    "QqQAvY05TDoRwiA+PfoTVArBbD464bBHIJcAtqYP+mM2jQ/89WXM4CswloBN+k9rpUqNCvzQQenrxu/RbHcKvFFotqyQC+aScp4MeWfQlB2x7MrY"
    "jUM26jgm6uBGXZQWFGffB4oOL7yVAt5FHv68AUymnNvVPMJMqC8VlMLwH10WG1c="
)


class Photo(NamedTuple):
    """``where``: its split and source, ``test/clothes``; ``image``: the bytes of a WebP file."""

    where: str
    image: bytes
    label: str
    group: str
    origin: str

    def record(self) -> dict[str, str]:
        """What the ``.json`` says: "royal gala" of the group "apple" is "a royal gala apple"."""
        clothing = self.group == "clothing"
        label = self.label if clothing or self.group in self.label else f"{self.label} {self.group}"
        bare = self.group in _WITHOUT_ARTICLE
        return {
            "label": self.label, "group": self.group, "source": self.origin,
            "a_label": label if bare and not clothing else article(label),
            "a_group": self.group if bare else article(self.group),
        }  # fmt: skip


class Photographs:
    """What ``atoken fetch photos`` brings."""

    what = "8,040 labelled photographs of clothes and groceries (clothing-dataset, GroceryStoreDataset)"
    licence = "CC0 (clothes), MIT (groceries)"
    megabytes = 285

    def files(self) -> list[Path]:
        """The shards, of which ``train`` is what is trained on, and ``test`` is read once, at the end."""
        return [cache() / f"photos/{where}.tar" for where in COUNTS]

    def is_there(self) -> bool:
        """Whether all shards are in the cache."""
        return all(path.is_file() for path in self.files())

    def bring(self, source: str | Path | None) -> None:
        """Clone and resize, for some minutes. Raises: AtokenError.

        source: a folder with clones ``clothing-dataset`` and ``GroceryStoreDataset``, or one of ready shards, whose
        photographs are not encoded again.
        """
        if source is not None and (shards := sorted(Path(source).glob(SHARDS))):
            _pack(_sorted(shards))
            return
        with tempfile.TemporaryDirectory(prefix="atoken-") as folder:
            clones = Path(source or folder)
            names = [PurePosixPath(address).name for address, _ in (CLOTHES, GROCERIES)]
            if source is not None and (missing := [name for name in names if not (clones / name).is_dir()]):
                raise AtokenError(f"There is no {clones / missing[0]}: clone {' and '.join(names)} into {clones}.")
            if source is None:
                for address, commit in (CLOTHES, GROCERIES):
                    clone = str(clones / PurePosixPath(address).name)
                    _git("init", "--quiet", clone)
                    _git("-C", clone, "fetch", "--quiet", "--depth", "1", address, commit)
            _pack(_cloned(clones))


def _pack(photos: Iterator[Photo]) -> None:
    """Write the shards, all or none, if each has as many photographs as it must have; in the order of their hashes."""
    hashed = sorted((sha256(photo.image).hexdigest()[:16], photo) for photo in photos)
    counts = Counter(photo.where for _, photo in hashed)
    if counts != COUNTS:
        raise AtokenError(f"The photographs are not those that are meant: {dict(counts)} instead of {COUNTS}.")
    with ExitStack() as stack:
        shards = {where: stack.enter_context(_shard(cache() / f"photos/{where}.tar")) for where in COUNTS}
        for key, photo in hashed:
            for suffix, data in ((".webp", photo.image), (".json", json.dumps(photo.record()).encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                shards[photo.where].addfile(member, io.BytesIO(data))


@contextmanager
def _shard(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AtokenError(f"Cannot write {path}: {error.strerror}.") from error
    with atomic_path(path, AtokenError) as temporary, tarfile.open(temporary, "w") as shard:
        yield shard


def _sorted(shards: list[Path]) -> Iterator[Photo]:
    """The photographs of the ready shards, test before train."""
    if sha256(b"".join(path.read_bytes() for path in shards)).hexdigest() != SHARDS_SHA256:
        raise AtokenError(f"The shards in {shards[0].parent} are not those that are meant: their SHA-256 is another.")
    kept = {number - 1 for number in accumulate(zlib.decompress(b64decode("".join(_VALIDATION))))}
    for path in shards:
        with tarfile.open(path) as shard:
            names = [name.removesuffix(".json") for name in shard.getnames() if name.endswith(".json")]
            for name in names:
                image, about = (_read(shard.extractfile(name + suffix)) for suffix in (".webp", ".json"))
                record = json.loads(about)
                split = "test" if "test" in path.name else "validation" if int(name) in kept else "train"
                source = "clothes" if record["group"] == "clothing" else "groceries"
                yield Photo(f"{split}/{source}", image, record["label"], record["group"], record["source"])


def _cloned(clones: Path) -> Iterator[Photo]:
    yield from _clothes(clones / PurePosixPath(CLOTHES[0]).name)
    yield from _groceries(clones / PurePosixPath(GROCERIES[0]).name)


def _clothes(clone: Path) -> Iterator[Photo]:
    """Who sent a photograph decides about its split, so that nobody's clothes are in two of them.

    Below 0.08 is a photograph that was sent twice, by two people who are both in train now.
    """
    rows: dict[str, dict[str, str]] = {}
    for path, data in _committed(clone, CLOTHES[1], "images.csv", "images"):
        if path.name == "images.csv":
            rows = {row["image"]: row for row in csv.DictReader(io.StringIO(data.decode()))}
        elif (row := rows.get(path.stem)) and (label := LABELS.get(row["label"])):
            share = _share(f"sender{row['sender_id']}")
            split = "validation" if 0.08 <= share < 0.2 else "train" if share < 0.86 else "test"
            if share < 0.93:  # the others may be a test that nobody has looked at
                yield Photo(f"{split}/clothes", _smaller(data), label, "clothing", clone.name)


def _groceries(clone: Path) -> Iterator[Photo]:
    """The splits of the data set; of its test photographs a quarter."""
    groups: dict[str, str] = {}
    paths = ("classes.csv", "test", "train", "val")
    for path, data in _committed(clone, GROCERIES[1], *(f"dataset/{path}" for path in paths)):
        if path.name == "classes.csv":
            rows = csv.DictReader(io.StringIO(data.decode()))
            groups = {row["Class Name (str)"]: row["Coarse Class Name (str)"] for row in rows}
            continue
        path = path.relative_to("dataset")  # test/Fruit/Apple/Royal-Gala/Royal-Gala_001.jpg
        split = {"val": "validation"}.get(path.parts[0], path.parts[0])
        if split != "test" or _share(str(path)) < 0.25:
            label, group = (name.replace("-", " ").lower() for name in (path.parent.name, groups[path.parent.name]))
            yield Photo(f"{split}/groceries", _smaller(data), label, group, clone.name)


def _share(text: str) -> float:
    """A number in [0, 1) that a text stands for."""
    return int(sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def _smaller(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale, file = min(1, SIDE / min(image.size)), io.BytesIO()
    width, height = (round(scale * side) for side in image.size)
    image.resize((width, height), Image.Resampling.LANCZOS).save(file, "WEBP", quality=_QUALITY)
    return file.getvalue()


def _committed(clone: Path, commit: str, *paths: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Name and contents of each file below paths of a commit, which is a hash of them; the work tree is not read."""
    with tempfile.TemporaryFile() as file:
        _git("-C", str(clone), "archive", "--format=tar", commit, *paths, stdout=file)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                if member.isfile():
                    yield PurePosixPath(member.name), _read(archive.extractfile(member))


def _read(file: IO[bytes] | None) -> bytes:
    assert file is not None  # the archive was checked
    return file.read()


def _git(*arguments: str, stdout: Any = subprocess.DEVNULL) -> None:
    try:
        done = subprocess.run(["git", *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise AtokenError("git is needed for these photographs; install it.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise AtokenError(
            f"Cannot get {arguments[-1]} by git ({said}); pass a folder with clones of both repositories with --from."
        )
