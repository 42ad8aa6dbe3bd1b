"""Generators trained by one process and by two under ZeRO, and runs that are killed: the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import atoken
from atoken.cli import main as atoken_main
from atoken.train.checkpoints import Checkpoints
from generation.training import objective_of, training
from tests.generation.generator_ranks import CHANGES, RUNS, SIZED, STEPS
from tests.tolerances import FP32
from tests.train.kept import contents

pytest.importorskip("deepspeed", reason="the extra zero is not installed")
pytest.importorskip("pyarrow", reason="the extra store is not installed")

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds for all groups of ranks, on a machine that is busy with ten other things
pytestmark = pytest.mark.timeout(PATIENCE + 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of latents and codes, and all runs on it."""
    folder = tmp_path_factory.mktemp("ranks")
    words = ["--items", "24", "--crop", "48", "--model", "nano-d", "--workers", "1"]
    assert atoken_main(["tokenize", "procedural:image/labelled", "-o", str(folder / "store"), *words]) == 0
    command = [sys.executable, "-m", "tests.generation.generator_ranks", str(folder)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def held(folder, name):
    """All tensors of the last checkpoint."""
    kind = RUNS[name][0]
    store, how = atoken.TokenStore(folder / "store"), training(kind, "tiny", (*CHANGES, SIZED[kind]))
    return contents(Checkpoints(folder / name).newest(), objective_of(kind, "tiny", store, how))


def rows(folder, name):
    found = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == list(range(STEPS))
    return found


@pytest.mark.parametrize("name", [name for name in RUNS if " " in name and "killed" not in name])
def test_ranks_train_as_one_process_does(folder, name):
    plain, ranks = (rows(folder, run) for run in (RUNS[name][0], name))
    for one, other in zip(plain, ranks, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=FP32, abs=FP32)
        assert other["norm"] == pytest.approx(one["norm"], rel=10 * FP32)
    one, other = (held(folder, run) for run in (RUNS[name][0], name))
    assert one.keys() == other.keys()
    apart = {key: float((one[key] - other[key]).abs().max()) for key in one}
    assert max(apart.values()) <= FP32, max(apart, key=apart.get)


def test_a_launcher_without_a_stage_is_zero_1(folder):
    (note,) = (folder / "dit on two ranks").glob("start-*.json")
    assert json.loads(note.read_text())["launch"]["zero"] == 1
    sizes = [len(load_file(file)) for file in (folder / "dit on two ranks").glob("step-000008/rank-*.safetensors")]
    assert len(sizes) == 2


@pytest.mark.parametrize("name", RUNS)
def test_what_is_exported_are_the_averaged_weights(folder, name):
    exported = load_file(folder / name / "model/transformer/diffusion_pytorch_model.safetensors")
    state = held(folder, name)
    averaged = {key.removeprefix("ema/model."): tensor for key, tensor in state.items() if key.startswith("ema/")}
    fixed = {"positions"} if name.startswith("dit") else set()
    assert {key for key in exported if not key.startswith("digits.")} == averaged.keys() | fixed
    assert all(torch.equal(exported[key].flatten(), tensor.bfloat16()) for key, tensor in averaged.items())
    assert any(not torch.equal(tensor, state[f"weights/model.{key}"]) for key, tensor in averaged.items())


@pytest.mark.parametrize("name", [name for name in RUNS if "killed" in name])
def test_a_run_that_was_killed_ends_as_one_that_was_not(folder, name):
    whole = name.removesuffix(" killed")
    starts = sorted(path.name for path in (folder / name).glob("start-*.json"))
    assert starts == ["start-000000.json", "start-000006.json"]
    one, other = (held(folder, run) for run in (whole, name))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["loss"] for row in rows(folder, whole)] == [row["loss"] for row in rows(folder, name)]
    exported = [folder / run / "model/transformer/diffusion_pytorch_model.safetensors" for run in (whole, name)]
    assert exported[0].read_bytes() == exported[1].read_bytes()
