"""Corrupted and hostile input: whatever a file holds, the answer is its content or one sentence.

``python -m benchmarks.fuzz`` makes valid images, videos and token files, damages them (bits, bytes, blocks of 512
bytes, header fields, cut, inserted or repeated parts), adds the hostile files of ``fuzz_crafted`` and ``fuzz_tokens``,
and reads each through the public API in another process. A row of its table is one type of file:

* read, refused in one sentence: what may happen. Images and videos have no check sums, so that damage may go unseen;
* crashes and hangs: the reading process ended, or took over 10 s;
* foreign exceptions: anything but an ``AtokenError`` of one sentence;
* silently wrong: a damaged token file that is read as something else than was written, or a hostile file that is read
  where it must be refused or the other way round. Resealed token files have right check sums again, as an attacker
  would make them, so that being read as something else is allowed there;
* foreign opens: any process opened another file than the damaged one (inotify) or called a port of this machine; the
  playlists and references among the hostile files name both;
* slowest: seconds of one file, its decoder process started and ended; RSS growth: of the reading process over all
  files of the row, above its peak for valid ones. Images of up to 64 megapixels are allowed and count.

Exit code 1 if a column that must be zero is not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import fuzz_seeds
from benchmarks.fuzz_crafted import hostile_images, hostile_videos, secrets
from benchmarks.fuzz_reader import Answer, Reader, Watch
from benchmarks.fuzz_seeds import Case
from benchmarks.fuzz_tokens import hostile_token_files, resealed

READ, FAULTS = ("image", "video", "tokens"), ("crash", "hang", "foreign")
HEAD = ["input", "tried", "refused in one sentence", "read", "crashes", "hangs", "foreign exceptions", "silently wrong",
        "foreign opens", "slowest s", "RSS growth MB"]  # fmt: skip
ODD_VALUES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass
class Tally:
    """What became of the files of one type."""

    name: str
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
            self.faults.append(
                f"{self.name}: {case.path.name}: {', '.join(faults)}: {' '.join(answer.detail.split())[:200]}"
            )

    def row(self) -> str:
        """The line of the table."""
        read = sum(self.outcomes[what] for what in READ)
        bad = [self.outcomes[what] for what in FAULTS]
        wrong = self.wrong if self.judged else "-"
        figures = [self.outcomes.total(), self.outcomes["refused"], read, *bad, wrong, self.opens]
        return _line([self.name, *map(str, figures), f"{self.slowest:.2f}", f"{self.growth_mb:.0f}"])


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
    at = (
        int(rng.integers(min(len(data), 256)))
        if rng.random() < 0.7
        else -int(rng.integers(1, min(len(data), 1024) + 1))
    )
    value = int(rng.choice(ODD_VALUES)).to_bytes(4, "little" if rng.random() < 0.5 else "big")
    return data[:at] + value + data[len(data[:at]) + 4 :]


def damaged(folder: Path, seeds: Sequence[Path], count: int, seed: int, contents: dict[Path, str]) -> Iterator[Case]:
    """``count`` damaged copies of ``seeds`` in turn; ``contents`` is what those must hold that are still read."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        source = seeds[index % len(seeds)]
        path = folder / f"{index}-{source.name}"
        path.write_bytes(mutate(source.read_bytes(), rng))
        yield Case(path, contents=contents.get(source, ""))


def damaged_and_resealed(folder: Path, seeds: Sequence[Path], count: int, seed: int) -> Iterator[Case]:
    """``count`` damaged token files with right check sums."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        path = folder / f"{index}-resealed-{seeds[index % len(seeds)].name}"
        path.write_bytes(resealed(seeds[index % len(seeds)].read_bytes(), rng, mutate))
        yield Case(path)


def run(name: str, warm_up: Sequence[Path], cases: Iterable[Case], watch: Watch) -> Tally:
    """Read every case; their files are removed afterwards."""
    tally = Tally(name)
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
    """One type of file after another."""
    seeds, cases = folder / "seeds", folder / "cases"
    seeds.mkdir(), cases.mkdir()
    watch = Watch(secrets(cases))
    images, videos, files = fuzz_seeds.images(seeds), fuzz_seeds.videos(seeds), fuzz_seeds.token_files(seeds)
    with closing(Reader(())) as reader:
        contents = {path: reader.ask(path).detail for path in files}
    seed = options.seed
    yield run("images", images, damaged(cases, images, options.images, seed, {}), watch)
    yield run("videos", videos, damaged(cases, videos, options.videos, seed, {}), watch)
    yield run("token files", files, damaged(cases, files, options.token_files, seed, contents), watch)
    yield run("token files, resealed", files, damaged_and_resealed(cases, files, options.token_files, seed), watch)
    yield run("hostile images", images, hostile_images(cases, seeds), watch)
    yield run("hostile videos", videos, hostile_videos(cases, seeds, watch.port), watch)
    yield run("hostile token files", files, hostile_token_files(cases, seeds), watch)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table, and below it every file that was not treated as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--token-files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
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
