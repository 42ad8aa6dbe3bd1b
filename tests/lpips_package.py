"""The lpips package: installed, or in ``build/eval`` beside a CPU build of torch (docs/dependencies.md)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASIDE = ROOT / "build" / "eval"
MISSING = importlib.util.find_spec("lpips") is None and not (ASIDE / "lpips").is_dir()
needs_lpips = pytest.mark.skipif(MISSING, reason="the package lpips is neither installed nor in build/eval")


def last_line(code):
    """The last line that Python prints in a process of its own, which other tests do not see."""
    paths = os.pathsep.join([str(ROOT), str(ASIDE), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
