"""Where results are written: files, links, pipes, devices, file objects, and places that take nothing."""

import io
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from atoken.atomic import atomic_path, called, suffix_of
from atoken.errors import AtokenError, MediaError
from atoken.gaussians import Gaussians
from atoken.io import Image, Video, VideoWriter, load_media
from atoken.io.token_file import TokenFile, TokenFileWriter, Tokens, read_items

ROOT = Path(__file__).parents[1]
IMAGE = Image(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
VIDEO = Video(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8), Fraction(12))
CLOUD = Gaussians(torch.zeros(2, 3), torch.ones(2, 3), torch.eye(4)[:2], torch.full((2,), 0.5), torch.ones(2, 3))
TOKENS = Tokens(
    latents=torch.ones(1, 4), codes=None, coords=torch.zeros(1, 4, dtype=torch.int32), modality="image", size=(9, 7),
    pooled=None, model="small", fingerprint="ab" * 32, name="a.png", levels=None,
)  # fmt: skip
EACH = {".png": IMAGE, ".mp4": VIDEO, ".ply": CLOUD, ".atok": TOKENS}

# Run in a mount namespace of its own: every kind of result, into a folder that takes none.
NOTHING_FITS = """
import sys, torch, numpy as np
from tests.test_atomic import EACH, as_large_as
for suffix, one in as_large_as(int(sys.argv[2])).items():
    try:
        one.save(f"{sys.argv[1]}/x{suffix}")
        print("written")
    except Exception as error:
        print(type(error).__mro__[1].__name__, error)
"""


def as_large_as(side):
    """Each kind of result; noise of ``side`` pixels a side, so that no codec makes them small."""
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    many = side * side // 10
    cloud = Gaussians(*(part[:1].repeat(many, *[1] * (part.ndim - 1)) for part in CLOUD.splats))
    latents = torch.rand((side // 16) ** 2, 1024)
    coords = torch.cartesian_prod(*map(torch.arange, (1, side // 16, side // 16, 1))).int().reshape(-1, 4)
    fields = {**vars(TOKENS), "latents": latents, "coords": coords, "size": (side, side)}
    return {".png": Image(noise[0]), ".mp4": Video(noise), ".ply": cloud, ".atok": Tokens(**fields)}


def arrays(suffix, source):
    """What a written file holds."""
    if suffix == ".ply":
        return Gaussians.load(source).splats
    if suffix == ".atok":
        return [Tokens.load(source).latents]
    return [value for value in vars(load_media(source)).values() if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("suffix", EACH)
def test_file_objects_take_and_give_all_that_files_do(tmp_path, suffix):
    EACH[suffix].save(tmp_path / f"a{suffix}")
    file = io.BytesIO()
    EACH[suffix].save(file)
    assert file.getvalue() == (tmp_path / f"a{suffix}").read_bytes()
    file.seek(0)
    found, expected = arrays(suffix, file), arrays(suffix, tmp_path / f"a{suffix}")
    assert len(found) == len(expected) > 0
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    with (tmp_path / f"b{suffix}").open("wb") as opened:
        EACH[suffix].save(opened)
    assert (tmp_path / f"b{suffix}").read_bytes() == file.getvalue()


def test_a_file_object_gets_the_format_that_is_asked_for():
    for format, magic in {"jpg": b"\xff\xd8", ".PNG": b"\x89PNG", "webp": b"RIFF", "tif": b"II"}.items():
        file = io.BytesIO()
        IMAGE.save(file, format=format)
        assert file.getvalue().startswith(magic)
    file = io.BytesIO()
    CLOUD.save(file, format="png")
    assert load_media(file.getvalue()).pixels.shape == (512, 512, 3)
    seen = replace(VIDEO, alpha=np.tile(np.arange(0, 256, 16, dtype=np.uint8), (3, 16, 1)))
    for format, exact in ((None, False), ("mov", True)):  # without a word, WebM, which keeps alpha
        file = io.BytesIO()
        seen.save(file, format=format)
        found = load_media(file.getvalue())
        assert np.abs(found.alpha.astype(int) - seen.alpha).max() <= (0 if exact else 24)
        assert np.array_equal(found.frames, seen.frames) or not exact


def test_token_files_in_memory_hold_several_items():
    file = io.BytesIO()
    with TokenFileWriter(file) as writer:
        writer.add([TOKENS])
        writer.add([TOKENS])
    assert len(read_items(file.getvalue())) == 2
    with TokenFile(io.BytesIO(file.getvalue())) as tokens:
        assert torch.equal(tokens.read(1).latents, TOKENS.latents)
        with pytest.raises(AtokenError, match="<file> has no item 2"):
            tokens.read(2)
    with pytest.raises(AtokenError, match="<bytes> is damaged"):
        TokenFile(file.getvalue()[:-1])


@pytest.mark.parametrize("target", [None, 3, io.StringIO()], ids=["nothing", "number", "text"])
def test_what_takes_no_bytes_is_refused(target):
    for one in EACH.values():
        with pytest.raises(AtokenError, match="pass a path, or a file opened with mode 'wb'"):
            one.save(target)


def test_a_failure_leaves_a_file_object_untouched():
    file = io.BytesIO()
    with pytest.raises(AtokenError, match="no item"), TokenFileWriter(file):
        pass
    with pytest.raises(AtokenError, match="at least one frame"), VideoWriter(file, 24, size=(8, 8)):
        pass
    assert file.getvalue() == b""


@pytest.mark.parametrize("suffix", EACH)
def test_links_stay_and_what_they_lead_to_is_written(tmp_path, suffix):
    target, link, chain = (tmp_path / f"{name}{suffix}" for name in ("folder/real", "link", "chain"))
    target.parent.mkdir()
    link.symlink_to(target)
    chain.symlink_to(link.name)
    for _ in range(2):  # the file that the link leads to may be there or not
        EACH[suffix].save(chain)
        assert chain.is_symlink()
        assert link.is_symlink()
        assert len(arrays(suffix, target)) > 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([chain.name, "folder", link.name, target.name])


@pytest.mark.parametrize("suffix", EACH)
def test_pipes_are_written_into(tmp_path, suffix):
    EACH[suffix].save(tmp_path / f"a{suffix}")
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    EACH[suffix].save(pipe)
    reader.join(10)
    assert got == [(tmp_path / f"a{suffix}").read_bytes()]
    assert pipe.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_devices_are_written_into(tmp_path):
    for name, number in (("null", 3), ("full", 7)):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, number))
    for one in EACH.values():
        one.save(tmp_path / "null")
        with pytest.raises(AtokenError, match=r"^Cannot write \S+full: No space left on device\.$"):
            one.save(tmp_path / "full")
    assert all((tmp_path / name).is_char_device() for name in ("null", "full"))


@pytest.mark.parametrize("suffix", EACH)
def test_what_cannot_be_written_is_said_in_one_sentence(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / "file").touch()
    for name, reason in {
        f"absent/a{suffix}": "No such file or directory", f"folder{suffix}": "Is a directory",
        f"loop{suffix}": "Too many levels of symbolic links", f"file/a{suffix}": "Not a directory",
    }.items():  # fmt: skip
        with pytest.raises(AtokenError, match=rf"^Cannot write \S+{name}: {reason}\.$"):
            EACH[suffix].save(tmp_path / name)


def test_a_folder_without_permission(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        for suffix, one in EACH.items():
            with pytest.raises(AtokenError, match=r"^Cannot write \S+: Permission denied\.$"):
                one.save(locked / f"a{suffix}")
    finally:
        os.seteuid(user)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize(
    ("mounted", "side", "reason"),
    [("mount -t tmpfs -o ro t {0}", 16, "Read-only file system"),
     ("mount -t tmpfs -o size=64k t {0}", 512, "No space left on device")],
    ids=["read-only", "full"],
)  # fmt: skip
def test_file_systems_that_take_nothing(tmp_path, mounted, side, reason):
    script = f'{mounted.format(tmp_path)} || exit 9; "$@"; ls -A {tmp_path}'
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", NOTHING_FITS, tmp_path, str(side)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode == 9 or "unshare failed" in done.stderr:
        pytest.skip("mounting is not allowed here")
    errors = {".png": "MediaError", ".mp4": "MediaError", ".ply": "MediaError", ".atok": "TokenFileError"}
    lines = [f"AtokenError Cannot write {tmp_path}/x{suffix}: {reason}." for suffix in errors]
    assert done.stdout.splitlines() == lines, done.stderr


def test_the_format_is_that_of_a_name():
    file = io.BytesIO()
    assert suffix_of("a/b.JPG", ".png") == ".jpg"
    assert suffix_of("a/b", ".png") == ""
    assert suffix_of(file, ".png") == ".png"
    file.name = "c.webp"
    assert (suffix_of(file, ".png"), called(file)) == (".webp", "c.webp")
    assert called(io.BytesIO()) == "the file object"
    with pytest.raises(MediaError, match=r"^Cannot write the file object: "), atomic_path(io.BytesIO(), MediaError):
        pass  # nothing was put at the temporary path
