"""DeepSpeed's ZeRO against the plain engine, on one rank and on two, and runs that change from one to another."""

import json
import math
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atoken.errors import AtokenError
from atoken.train.run_folder import RunFolder
from atoken.train.zero import ZeroEngine
from tests.tolerances import BF16_FORWARD, EXACT, FP32
from tests.train.zero_worker import (
    ADAMW,
    ONE,
    POISONED,
    SAVED,
    STEPS,
    THREE,
    TWINS,
    ZEROS,
    engine_of,
    go,
    objective,
)

pytest.importorskip("deepspeed", reason="the extra zero is not installed")

ROOT = Path(__file__).parents[2]
TWIN = FP32 / 10  # between weights that have moved alike for some steps
PATIENCE = 600  # seconds for all ranks of a launch

pytestmark = pytest.mark.timeout(2 * PATIENCE)
levels = pytest.mark.parametrize("level", ZEROS, ids=lambda level: f"ZeRO {level}")
worlds = pytest.mark.parametrize("world", [1, 2], ids=["1 rank", "2 ranks"])


def plain(name="adamw", **changes):
    return engine_of(name, **changes)


def launch(world, folder):
    """Run every rank of a group to its end; a group of one has no launcher."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)} if world > 1 else {}
    command = [sys.executable, "-m", "tests.train.zero_worker", str(folder)]
    ranks = []
    for rank in range(world):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {}
        with (folder / f"said by {rank} of {world}").open("w") as said:
            ranks.append(subprocess.Popen(command, cwd=ROOT, env=quiet | group | place, stdout=said, stderr=said))
    try:
        codes = [rank.wait(PATIENCE) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * world, "".join(file.read_text()[-3000:] for file in folder.glob(f"said by * of {world}"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What all ranks have found: two go on where the plain engine was, then one where two were."""
    folder = tmp_path_factory.mktemp("zero")
    engine = plain()
    go(engine, ONE, until=SAVED[0])
    engine.save(RunFolder(folder / "plain"))
    for world in (2, 1):
        launch(world, folder)
    return folder


def found(folder, name):
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


@cache
def twin(name, case, until=STEPS, **changes):
    """What the plain engine has after a run, and its rows."""
    engine = plain(name, **changes)
    rows = go(engine, case, until=until)
    return engine.state()[0], rows


def apart(ours, theirs, *kinds):
    """The largest difference between two states, in tensors of some kinds."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours if name.startswith(kinds))


def rows_apart(ours, theirs, key):
    """The largest difference between two logs, relative above 1; what is not finite in one is not in the other."""
    pairs = [(one[key], other[key]) for one, other in zip(ours, theirs, strict=True)]
    assert all(math.isfinite(one) == math.isfinite(other) for one, other in pairs)
    return max(abs(one - other) / max(1, abs(other)) for one, other in pairs if math.isfinite(one))


@worlds
@levels
@pytest.mark.parametrize(("name", "case"), TWINS, ids=[", ".join(twin) for twin in TWINS])
def test_every_zero_stage_trains_as_the_plain_engine(name, case, level, world, folder):
    (expected, rows), (tensors, numbers) = twin(name, case), found(folder, f"{name} {case} {level} {world}")
    if name == "sgd":
        assert apart(tensors, expected, "weights/", "ema/") <= TWIN
    assert rows_apart(numbers["rows"], rows, "loss") <= FP32
    assert rows_apart(numbers["rows"], rows, "norm") <= FP32
    assert [set(row) for row in numbers["rows"]] == [set(row) for row in rows]


@worlds
@levels
def test_what_is_not_finite_on_one_rank_is_skipped_on_all_and_only_then(level, world, folder):
    numbers = found(folder, f"sgd not finite {level} {world}")[1]
    skipped = [step for step, row in enumerate(numbers["rows"]) if not math.isfinite(row["norm"])]
    assert skipped == list(POISONED)
    assert (numbers["step"], numbers["applied"], numbers["skipped"]) == (STEPS, STEPS - len(POISONED), len(POISONED))


@worlds
@levels
def test_mixed_precision_is_that_of_the_plain_engine(level, world, folder):
    rows, exact = (twin("adamw", THREE, 3, mixed_precision=mixed)[1] for mixed in (True, False))
    numbers = found(folder, f"bf16 {level} {world}")[1]
    assert rows_apart(numbers["rows"], rows, "loss") <= BF16_FORWARD
    assert rows_apart(exact, rows, "loss") > 0


@levels
def test_a_run_goes_on_with_other_ranks_another_zero_stage_or_the_plain_engine(level, folder):
    uninterrupted = twin("adamw", ONE)[0]
    engine = plain()
    engine.restore(*RunFolder(folder / f"saved {level}").newest())
    assert engine.step == SAVED[1]
    go(engine, ONE)
    assert apart(engine.state()[0], uninterrupted, "") <= TWIN
    for name in (f"uninterrupted {level} 2", f"resumed {level} 2", f"resumed {level} 1"):
        tensors, numbers = found(folder, name)
        assert apart(tensors, uninterrupted, "") <= TWIN
        assert (numbers["step"], numbers["applied"]) == (STEPS, STEPS)
    again, before = (found(folder, f"{name} {level} 2")[0] for name in ("resumed", "uninterrupted"))
    assert apart(again, before, "") == EXACT


@levels
def test_ranks_that_disagree_or_cannot_save_all_say_so(level, folder):
    ours, theirs = (json.loads((folder / f"refusals {level} {rank}.json").read_text()) for rank in (0, 1))
    assert ours == theirs
    tasks, tiles, disk = ours
    assert "The ranks have different work at step 0" in tasks
    assert (tiles is not None) == (level == 3)
    assert "Cannot write" in disk


def test_muon_is_refused_before_anything_starts():
    with pytest.raises(AtokenError, match="Muon needs whole matrices"):
        ZeroEngine(objective(), replace(ADAMW, muon=1.0), "cpu", 1)
