"""DeepSpeed's ZeRO against the plain engine, on one rank and on two, and runs that change from one to another."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from atoken.errors import AtokenError
from atoken.train.checkpoints import Checkpoints
from atoken.train.engine import PlainEngine
from atoken.train.zero import ZeroEngine
from tests.tolerances import BF16_FORWARD, EXACT, FP32
from tests.train.flow import RECIPE, Flow
from tests.train.kept import contents, saved
from tests.train.zero_worker import KILLS, LEVELS, SAVED, SOURCES, TOKENIZER, WORLDS, Media, go, tokenizer

pytest.importorskip("deepspeed", reason="the extra zero is not installed")

ROOT = Path(__file__).parents[2]
TWIN = FP32 / 10  # between weights that have moved alike for some steps
PATIENCE = 900  # seconds for all groups of ranks, on a machine that is busy with ten other things

pytestmark = pytest.mark.timeout(PATIENCE + 60)
levels = pytest.mark.parametrize("level", LEVELS, ids=lambda level: f"ZeRO {level}")
worlds = pytest.mark.parametrize("world", WORLDS, ids=["1 rank", "2 ranks"])


def plain(resumed=None, **changes):
    return PlainEngine(Flow(), replace(RECIPE, **changes), "cpu", resumed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What all ranks have found."""
    folder = tmp_path_factory.mktemp("zero")
    engine = plain()
    go(engine, SOURCES["one task a step"], SAVED)
    saved(engine, folder / "plain")
    command = [sys.executable, "-m", "tests.train.zero_worker", str(folder)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


@cache
def twin(name, until=RECIPE.steps, **changes):
    """The rows of the plain engine, and the engine after a run."""
    engine = plain(**changes)
    return go(engine, SOURCES[name], until), engine


def held(folder, name, objective=Flow):
    return contents(Checkpoints(folder / name).newest(), objective())


def rows_of(folder, name):
    return json.loads((folder / name / "rows.json").read_text())


def apart(left, right):
    """The largest difference between two states."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def rows_apart(left, right, key):
    """The largest difference between two logs, relative above 1; what is not finite in one is not in the other."""
    pairs = [(one[key], other[key]) for one, other in zip(left, right, strict=True)]
    assert all(math.isfinite(one) == math.isfinite(other) for one, other in pairs)
    return max(abs(one - other) / max(1, abs(other)) for one, other in pairs if math.isfinite(one))


@worlds
@levels
@pytest.mark.parametrize("name", SOURCES)
def test_every_zero_stage_trains_as_the_plain_engine(name, level, world, folder, tmp_path):
    rows, engine = twin(name)
    found = f"{name} {level} {world}"
    assert apart(held(folder, found), contents(saved(engine, tmp_path), Flow())) <= TWIN
    assert apart(load_file(folder / found / "flow.safetensors"), engine.ema_weights()) <= TWIN
    left = rows_of(folder, found)
    assert rows_apart(left, rows, "loss") <= FP32
    assert rows_apart(left, rows, "norm") <= FP32
    assert [set(row) for row in left] == [set(row) for row in rows]


@worlds
@levels
def test_what_is_not_finite_on_one_rank_is_skipped_on_all_and_only_then(level, world, folder):
    found, poisoned = f"not finite {level} {world}", SOURCES["not finite"].not_finite
    skipped = [step for step, row in enumerate(rows_of(folder, found)) if not math.isfinite(row["norm"])]
    assert skipped == list(poisoned)
    numbers = Checkpoints(folder / found).newest().numbers
    assert numbers == {"step": RECIPE.steps, "applied": RECIPE.steps - len(poisoned)}


@worlds
@levels
def test_mixed_precision_is_that_of_the_plain_engine(level, world, folder):
    mixed, exact = (twin("two tasks a step", 3, mixed_precision=mixed)[0] for mixed in (True, False))
    assert rows_apart(rows_of(folder, f"bf16 {level} {world}"), mixed, "loss") <= BF16_FORWARD
    assert rows_apart(exact, mixed, "loss") > 0


@cache
def tokenizer_twin():
    engine = PlainEngine(tokenizer(), TOKENIZER.recipe, "cpu")
    return go(engine, Media(), TOKENIZER.recipe.steps), engine


@worlds
@levels
def test_the_tokenizer_trains_as_with_the_plain_engine(level, world, folder):
    (rows, engine), left = tokenizer_twin(), rows_of(folder, f"tokenizer {level} {world}")
    assert rows_apart(left, rows, "loss") <= FP32
    assert rows_apart(left, rows, "norm") <= FP32
    exported = load_file(folder / f"tokenizer {level} {world}" / "flow.safetensors")
    assert apart(exported, engine.ema_weights()) <= FP32


@levels
def test_a_run_resumes_with_other_ranks_another_engine_or_the_same(level, folder, tmp_path):
    uninterrupted = contents(saved(twin("one task a step")[1], tmp_path / "a"), Flow())
    for name in ("from one to two", "from two to one", *(f"{how} {level} {world}" for world in WORLDS for how in ())):
        assert apart(held(folder, f"{name} {level}"), uninterrupted) <= TWIN
    for world in WORLDS:
        assert apart(held(folder, f"from plain {level} {world}"), uninterrupted) <= TWIN
        again, before = (held(folder, f"{how} {level} {world}") for how in ("on the same", "from plain"))
        assert apart(again, before) == EXACT
        engine = plain(Checkpoints(folder / f"half way {level} {world}").newest())
        assert engine.step == SAVED + 3
        go(engine, SOURCES["one task a step"])
        assert apart(contents(saved(engine, tmp_path / f"{world}"), Flow()), uninterrupted) <= TWIN


@levels
def test_each_rank_writes_what_it_holds_and_nothing_twice(level, folder):
    trained = sum(p.numel() for name, p in Flow().named_parameters() if name != "frequencies")
    (checkpoint,) = Checkpoints(folder / f"from plain {level} 2").folders()
    files = [load_file(file) for file in sorted(checkpoint.glob("rank-*.safetensors"))]
    sizes = [sum(tensor.numel() for tensor in tensors.values()) for tensors in files]
    assert len(sizes) == 2
    assert sum(sizes) == 4 * trained
    assert max(sizes) <= 0.65 * sum(sizes)


@levels
def test_ranks_that_disagree_all_say_so(level, folder):
    left, right = (json.loads((folder / f"refusals {level} 2 {rank}.json").read_text()) for rank in (0, 1))
    assert left == right
    tasks, layout = left
    assert "The ranks have different work at step 0" in tasks
    assert (layout is not None) == (level == 3)


@pytest.mark.parametrize("number", range(len(KILLS)), ids=[" ".join(map(str, (k[0], *k[2:]))) for k in KILLS])
def test_a_run_of_which_a_rank_is_killed_resumes_as_if_nothing_had_been(number, folder):
    level, world = KILLS[number][3:5]
    killed, whole = folder / f"killed {number}", folder / f"whole {level} {world}"
    files = [(run / "model" / "flow.safetensors").read_bytes() for run in (killed, whole)]
    assert files[0] == files[1]
    assert apart(held(folder, killed.name), held(folder, whole.name)) == EXACT
    losses, evaluations = (
        [[json.loads(line)[key] for line in (run / f"{name}.jsonl").open()] for run in (killed, whole)]
        for name, key in (("log", "loss"), ("evaluation", "ring/distance"))
    )
    assert losses[0] == losses[1]
    assert evaluations[0] == evaluations[1]
    assert len(losses[0]) == RECIPE.steps


def test_muon_is_refused_before_anything_starts():
    with pytest.raises(AtokenError, match="Muon needs whole matrices"):
        ZeroEngine(Flow(), replace(RECIPE, muon=1.0), "cpu", 1)
