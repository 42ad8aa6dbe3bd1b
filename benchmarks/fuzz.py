"""Corrupted and hostile input: whatever a file holds, the answer is its content or one sentence.

``python -m benchmarks.fuzz`` makes valid images, videos, token files and meshes, damages them and what meshes refer to
(bits, bytes, blocks of 512 bytes, header fields, numbers in text, cut, inserted or repeated parts), adds the hostile
files of the tests, and reads each through the public API in another process. A row of its table is one type of file:

* read, refused in one sentence: what may happen. Images and videos have no check sums, so that damage may go unseen;
* crashes and hangs: the reading process ended, or took over 10 s;
* foreign exceptions: anything but an ``AtokenError`` of one sentence;
* silently wrong: a damaged token file or store that is read as something else than was written, or a hostile file that
  is read where it must be refused or the other way round. Resealed token files have right check sums again, as an
  attacker would make them, so that being read as something else is allowed there. Of a store one file is damaged, lost,
  exchanged or too many; "checked" ones are read after ``atoken store verify``;
* foreign opens: any process opened a file that is not the damaged one's (inotify) or called a port of this machine,
  both of which the hostile files name;
* slowest: seconds of one file, its decoder process started and ended; RSS growth: of the reading process over all
  files of the row, above its peak for valid ones. Images of up to 64 megapixels are allowed and count. Meshes may take
  300 MB and four times the largest file.

Exit code 1 if a column that must be zero is not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.io.hostile_cases import hostile_token_files, resealed
from tests.media import mesh_cases, seed_files
from tests.media.damage import damage_mesh, damaged, damaged_resources, hostile_meshes, mutate
from tests.media.hostile_cases import hostile_images, hostile_videos, secrets
from tests.media.reading_process import CHECKED, READ, STORE, Answer, Reader, Watch
from tests.media.seed_files import Case
from tests.store.damaged_stores import damaged_stores, sound_store

FAULTS = ("crash", "hang", "foreign")
HEAD = ["input", "tried", "refused in one sentence", "read", "crashes", "hangs", "foreign exceptions",
        "silently wrong", "foreign opens", "slowest s", "RSS growth MB"]  # fmt: skip
ALLOWED_MB, ALLOWED_TIMES = 300, 4  # of meshes


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
            detail = " ".join(answer.detail.split())[:200]
            self.faults.append(f"{self.name}: {case.path.name}: {', '.join(faults)}: {detail}")

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
    return (
        "read as something else"
        if answer.what in ("tokens", "store") and case.contents not in ("", answer.detail)
        else ""
    )


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
            elif case.path.suffix in (STORE, CHECKED):
                shutil.rmtree(case.path)
        tally.growth_mb = reader.growth_mb
    return tally


def tallies(folder: Path, options: argparse.Namespace) -> Iterator[Tally]:
    """One type of file after another."""
    seeds, cases, sound, seed = folder / "seeds", folder / "cases", folder / "sound meshes", options.seed
    for path in (seeds, cases, sound):
        path.mkdir()
    watch = Watch(secrets(cases))
    images, videos, files = seed_files.images(seeds), seed_files.videos(seeds), seed_files.token_files(seeds)
    animations = seed_files.animations(seeds)
    with closing(Reader(())) as reader:
        contents = {path: reader.ask(path).detail for path in files}
    yield run("images", images, damaged(cases, images, options.images, seed, mutate), watch)
    yield run("animated images", animations, damaged(cases, animations, options.animations, seed, mutate), watch)
    yield run("videos", videos, damaged(cases, videos, options.videos, seed, mutate), watch)
    yield run("token files", files, damaged(cases, files, options.token_files, seed, mutate, contents), watch)

    def reseal(data: bytes, rng: np.random.Generator) -> bytes:
        return resealed(data, rng, mutate)

    yield run("token files, resealed", files, damaged(cases, files, options.token_files, seed, reseal), watch)
    yield run("hostile images", images, hostile_images(cases, seeds), watch)
    yield run("hostile videos", videos, hostile_videos(cases, seeds, watch.port), watch)
    yield run("hostile token files", files, hostile_token_files(cases, seeds), watch)
    store = sound_store(seeds)
    with closing(Reader(())) as reader:
        held = reader.ask(store).detail
    for name, suffix in (("token stores", STORE), ("token stores, checked", CHECKED)):
        yield run(name, [store], damaged_stores(cases, store, suffix, options.stores, seed, held), watch)

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
            tally.faults.append(f"{tally.name}: RSS grew by {tally.growth_mb:.0f} MB.")
        yield tally


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Print the table, and below it every file that was not treated as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, count in (
        ("images", 2000),
        ("animations", 300),
        ("videos", 300),
        ("token-files", 300),
        ("stores", 300),
        ("meshes", 1000),
        ("seed", 0),
    ):
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
