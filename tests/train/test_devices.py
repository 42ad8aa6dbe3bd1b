"""What a process says of its memory."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEAK = "from atoken.train.devices import peak_memory; print(peak_memory('cpu'))"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_peak_is_that_of_this_process_and_not_of_the_one_that_started_it():
    parent = f"""
import subprocess, sys
{PEAK}
held = bytearray(1 << 30)
{PEAK}
del held
{PEAK}
subprocess.run([sys.executable, "-c", {PEAK!r}], check=True)
"""
    command = [sys.executable, "-c", parent]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    before, holding, after, child = map(int, done.stdout.split())
    assert holding - before == pytest.approx(1 << 30, rel=0.05)
    assert after == pytest.approx(holding, rel=0.01)
    assert child == pytest.approx(before, rel=0.3)
