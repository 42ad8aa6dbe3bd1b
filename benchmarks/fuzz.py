"""Corrupted and hostile input: whatever a file holds, the answer is its content or one sentence.

``python -m benchmarks.fuzz`` makes valid images, videos, token files and meshes, damages them and what meshes refer to
(bits, bytes, blocks of 512 bytes, header fields, numbers in text, cut, inserted or repeated parts), adds the hostile
files of the tests, and reads each through the public API in another process. A row of its table is one kind of file:

* read, refused in one sentence: what may happen. Images and videos have no check sums, so that damage may go unseen;
* crashes and hangs: the reading process ended, or took over 10 s;
* foreign exceptions: anything but an ``AtokenError`` of one sentence;
* silently wrong: a damaged token file that is read as something else than was written, or a hostile file that is read
  where it must be refused or the other way round. Resealed token files have right check sums again, as an attacker
  would make them, so that being read as something else is allowed there;
* foreign opens: any process opened a file that is not the damaged one's (inotify) or called a port of this machine,
  both of which the hostile files name;
* slowest: seconds of one file, its decoder process started and ended; RSS growth: of the reading process over all
  files of the row, above its peak for valid ones. Images of up to 64 megapixels are allowed and count. Meshes may take
  300 MB and four times the largest file.

Exit code 1 if a column that must be zero is not.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.io.hostile_cases import hostile_token_files, resealed
from tests.media import mesh_cases, seed_files
from tests.media.hostile_cases import hostile_images, hostile_videos, secrets
from tests.media.reading_process import READ, Answer, Reader, Watch
from tests.media.seed_files import Case, not_files

FAULTS = ("crash", "hang", "foreign")
HEAD = ["input", "tried", "refused in one sentence", "read", "crashes", "hangs", "foreign exceptions",
        "silently wrong", "foreign opens", "slowest s", "RSS growth MB"]  # fmt: skip
ODD_VALUES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ODD = (b"-1", b"0", b"1", b"3", b"255", b"65536", b"4294967295", b"1e999", b"1e-320", b"-0.5", b"NaN", b'"x"', b"[]")
_NUMBER = re.compile(rb"(?<![\w.])-?\d+(\.\d+)?(?![\w.])")
_REFERRING = ("model.gltf", "textured.obj", "textured.ply")  # seeds that name other files
ALLOWED_MB, ALLOWED_TIMES = 300, 4  # of meshes

Damage = Callable[[bytes, np.random.Generator], bytes]


@dataclass
class Tally:
    """What became of the files of one kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # a line each
    judged: int = 0  # files of which something is expected
    wrong: int = 0
    opens: int = 0
    slowest: float = 0.0
    growth_mb: float = 0.0

    def add(self, case: Case, answer: Answer, *, alarmed: bool) -> None:
        """Count one answer."""
        self.outcomes[answer.what] += 1
        self.judged += case != Case(case.path)
        self.opens += alarmed
        self.slowest = max(self.slowest, answer.seconds)
        faults = [answer.what] * (answer.what in FAULTS) + ["foreign open"] * alarmed
        if not faults and (wrong := _wrong(case, answer)):
            self.wrong += 1
            faults = [wrong]
        if faults:
            detail = " ".join(answer.detail.split())[:200]
            self.faults.append(f"{self.kind}: {case.path.name}: {', '.join(faults)}: {detail}")

    def row(self) -> str:
        """The line of the table."""
        read = sum(self.outcomes[what] for what in READ)
        bad = [self.outcomes[what] for what in FAULTS]
        wrong = self.wrong if self.judged else "-"
        figures = [self.outcomes.total(), self.outcomes["refused"], read, *bad, wrong, self.opens]
        return _line([self.kind, *map(str, figures), f"{self.slowest:.2f}", f"{self.growth_mb:.0f}"])


def _wrong(case: Case, answer: Answer) -> str:
    """What is wrong with an answer that looks right, if anything."""
    if case.expected not in ("", answer.what):
        return f"{answer.what}, must be {case.expected}"
    return "read as something else" if answer.what == "tokens" and case.contents not in ("", answer.detail) else ""


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage ``data`` in one of seven ways; the result always differs from it."""
    result = data
    while result == data:
        way = rng.choice([_flip, _overwrite, _block, _cut, _insert, _repeat, _header])
        result = bytes(way(bytearray(data), rng))
    return result


def _flip(data: bytearray, rng: np.random.Generator) -> bytearray:
    for bit in rng.integers(8 * len(data), size=rng.integers(1, 9)):
        data[bit // 8] ^= 1 << bit % 8
    return data


def _overwrite(data: bytearray, rng: np.random.Generator) -> bytearray:
    for at in rng.integers(len(data), size=rng.integers(1, 17)):
        data[at] = rng.integers(256)
    return data


def _block(data: bytearray, rng: np.random.Generator) -> bytearray:
    at, length = int(rng.integers(len(data))), len(data)
    data[at : at + 512] = rng.bytes(512) if rng.random() < 0.5 else bytes(512)
    return data[:length]


def _cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def _insert(data: bytearray, rng: np.random.Generator) -> bytearray:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(rng.integers(1, 65)) + data[at:]


def _repeat(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, stop = sorted(rng.integers(len(data) + 1, size=2))
    return data[:stop] + data[start:stop] + data[stop:]


def _header(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Set a number near the start or the end, where headers and indexes lie, to an odd value."""
    at = -int(rng.integers(1, min(len(data), 1024) + 1))
    if rng.random() < 0.7:
        at = int(rng.integers(min(len(data), 256)))
    value = int(rng.choice(ODD_VALUES)).to_bytes(4, "little" if rng.random() < 0.5 else "big")
    return data[:at] + value + data[len(data[:at]) + 4 :]


def damage_mesh(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file, or set a few numbers in its text (of a GLB, in its header) to odd values."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    if data[:4] != b"glTF":
        return _odd_numbers(data, rng)
    length = struct.unpack_from("<I", data, 12)[0]
    text = _odd_numbers(data[20 : 20 + length], rng)
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def _odd_numbers(data: bytes, rng: np.random.Generator) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return mutate(data, rng)
    for index in sorted(rng.choice(len(found), min(len(found), int(rng.integers(1, 4))), replace=False), reverse=True):
        data = data[: found[index].start()] + ODD[rng.integers(len(ODD))] + data[found[index].end() :]
    return data


def damaged(
    folder: Path, seeds: Sequence[Path], count: int, seed: int, damage: Damage, contents: dict[Path, str] | None = None
) -> Iterator[Case]:
    """``count`` damaged copies of ``seeds`` in turn; ``contents`` is what those must hold that are still read."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        source = seeds[index % len(seeds)]
        path = folder / f"{index}-{source.name}"
        path.write_bytes(damage(source.read_bytes(), rng))
        yield Case(path, contents=(contents or {}).get(source, ""))


def damaged_resources(folder: Path, seeds: Sequence[Path], count: int, seed: int) -> Iterator[Case]:
    """``count`` times a sound mesh, one of the files that it names damaged."""
    rng = np.random.default_rng(seed)
    mains = [path for path in seeds if path.name in _REFERRING]
    others = sorted(set(mains[0].parent.iterdir()) - set(seeds))
    for index in range(count):
        source, other = mains[index % len(mains)], others[rng.integers(len(others))]
        sound = other.read_bytes()
        (folder / other.name).write_bytes(damage_mesh(sound, rng))
        path = folder / f"{index}-{source.name}"
        path.write_bytes(source.read_bytes())
        yield Case(path)
        (folder / other.name).write_bytes(sound)


def hostile_meshes(folder: Path, port: int) -> Iterator[Case]:
    """The hostile files of the tests, two that are small and hold much, and what is no file at all."""
    for name, (data, _) in mesh_cases.hostile(folder, port).items():
        (folder / name).write_bytes(data)
        yield Case(folder / name, "refused")
    for name, data in seed_files.heavy().items():
        (folder / name).write_bytes(data)
        yield Case(folder / name)
    yield from not_files(folder, ".glb")


def run(kind: str, warm_up: Sequence[Path], cases: Iterable[Case], watch: Watch) -> Tally:
    """Read every case; their files are removed afterwards."""
    tally = Tally(kind)
    with closing(Reader(warm_up)) as reader:
        watch.alarmed()
        for case in cases:
            answer = reader.ask(case.path)
            tally.add(case, answer, alarmed=watch.alarmed())
            if case.path.is_file():
                case.path.unlink()
        tally.growth_mb = reader.growth_mb
    return tally


def tallies(folder: Path, options: argparse.Namespace) -> Iterator[Tally]:
    """One kind of file after another."""
    seeds, cases, sound, seed = folder / "seeds", folder / "cases", folder / "sound meshes", options.seed
    for path in (seeds, cases, sound):
        path.mkdir()
    watch = Watch(secrets(cases))
    images, videos, files = seed_files.images(seeds), seed_files.videos(seeds), seed_files.token_files(seeds)
    with closing(Reader(())) as reader:
        contents = {path: reader.ask(path).detail for path in files}
    yield run("images", images, damaged(cases, images, options.images, seed, mutate), watch)
    yield run("videos", videos, damaged(cases, videos, options.videos, seed, mutate), watch)
    yield run("token files", files, damaged(cases, files, options.token_files, seed, mutate, contents), watch)

    def reseal(data: bytes, rng: np.random.Generator) -> bytes:
        return resealed(data, rng, mutate)

    yield run("token files, resealed", files, damaged(cases, files, options.token_files, seed, reseal), watch)
    yield run("hostile images", images, hostile_images(cases, seeds), watch)
    yield run("hostile videos", videos, hostile_videos(cases, seeds, watch.port), watch)
    yield run("hostile token files", files, hostile_token_files(cases, seeds), watch)

    cases = folder / "meshes"
    watch = Watch(mesh_cases.secrets(cases))
    meshes = seed_files.meshes(sound)
    for path in set(sound.iterdir()) - set(meshes):
        (cases / path.name).write_bytes(path.read_bytes())
    few = options.meshes // 10
    most = max(len(data) for data, _ in mesh_cases.hostile(cases, watch.port).values())
    for tally, largest in (
        (run("meshes", meshes, damaged(cases, meshes, options.meshes - few, seed, damage_mesh), watch), 0),
        (run("files that meshes refer to", meshes, damaged_resources(cases, meshes, few, seed), watch), 0),
        (run("hostile meshes", meshes, hostile_meshes(cases, watch.port), watch), most),
    ):
        if tally.growth_mb > ALLOWED_MB + ALLOWED_TIMES * largest / 1e6:
            tally.faults.append(f"{tally.kind}: RSS grew by {tally.growth_mb:.0f} MB.")
        yield tally


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table, and below it every file that was not treated as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, count in (("images", 500), ("videos", 300), ("token-files", 300), ("meshes", 1000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    print(_line(HEAD) + "\n" + _line(["---"] * len(HEAD)))
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for tally in tallies(Path(folder), options):
            print(tally.row(), flush=True)
            faults += tally.faults
    print("\n".join(["", *faults[:40]]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
