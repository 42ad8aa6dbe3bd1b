"""Vision-language models trained by one process and by two under ZeRO, and runs that are killed: the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atoken.train.checkpoints import Checkpoints
from mllm import training
from mllm.data.mixture import read_mixture
from mllm.objective import AnswerObjective
from tests.mllm.vl_data import write_sources
from tests.mllm.vl_ranks import RUNS, STEPS, how_of
from tests.tolerances import FP32
from tests.train.kept import contents

pytest.importorskip("deepspeed", reason="the extra zero is not installed")
pytest.importorskip("peft", reason="the extra mllm is not installed")

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds for all groups of ranks, on a machine that is busy with ten other things
pytestmark = pytest.mark.timeout(PATIENCE + 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All runs."""
    folder = write_sources(tmp_path_factory.mktemp("vl_ranks"), "qwen3")  # which is tied
    command = [sys.executable, "-m", "tests.mllm.vl_ranks", str(folder)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


def start(folder, name):
    how = how_of(RUNS[name][0])
    return how, *training.model_of(how, str(folder / "language"), str(folder / "tower"), None, in_fp32=True)


def held(folder, name):
    """All tensors of the last checkpoint."""
    return contents(Checkpoints(folder / name).newest(), AnswerObjective(start(folder, name)[1]))


def rows(folder, name):
    found = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in found] == list(range(STEPS))
    return found


def test_in_some_step_one_rank_has_media_and_the_other_has_none(folder):
    how, _, processor = start(folder, "lora")
    source = training.batches_of(read_mixture(folder / "mix.yaml"), processor, how, 0.1, 2)
    steps = [[bool(source.batch(key).media) for key in source.keys(step)] for step in range(STEPS)]
    assert any(set(step) == {True, False} for step in steps)


@pytest.mark.parametrize("name", [name for name in RUNS if " " in name and "killed" not in name])
def test_ranks_train_as_one_process_does(folder, name):
    plain, ranks = (rows(folder, run) for run in (name.split()[0], name))
    for one, other in zip(plain, ranks, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=FP32, abs=FP32)
        assert other["norm"] == pytest.approx(one["norm"], rel=10 * FP32)
    one, other = (held(folder, run) for run in (name.split()[0], name))
    assert one.keys() == other.keys()
    apart = {key: float((one[key] - other[key]).abs().max()) for key in one}
    assert max(apart.values()) <= FP32, max(apart, key=apart.get)


@pytest.mark.parametrize("name", [name for name in RUNS if "killed" in name])
def test_a_run_that_was_killed_ends_as_one_that_was_not(folder, name):
    whole = name.removesuffix(" killed")
    starts = sorted(path.name for path in (folder / name).glob("start-*.json"))
    assert starts == ["start-000000.json", "start-000004.json"]
    one, other = (held(folder, run) for run in (whole, name))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["loss"] for row in rows(folder, whole)] == [row["loss"] for row in rows(folder, name)]
    exported = [folder / run / "model/model.safetensors" for run in (whole, name)]
    assert exported[0].read_bytes() == exported[1].read_bytes()
