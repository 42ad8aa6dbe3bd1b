"""What a process says of its memory."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEAK = "from atoken.train.devices import peak_memory; print(peak_memory('cpu'))"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_peak_is_that_of_this_process_and_not_of_the_one_that_started_it():
    parent = f"""
import platform
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


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_was_freed_is_used_again_without_new_pages():
    code = """
import resource
from atoken.train.devices import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in range(50):
        bytes([number]) * (1 << 26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
keep_freed_memory()
bytes(1) * (1 << 26)
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
