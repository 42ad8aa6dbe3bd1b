"""The digest of the code that measures: it covers all that numbers come from, and changes with every byte of it."""

import json
import shutil
import subprocess
import sys

import pytest

from eval import code
from eval.code import APART, MEASURING, ROOT, closure, code_digest, code_version

# Packages that measuring runs through, whole; and modules that imports alone would not tell.
WHOLE = ("atoken.data.synthetic", "atoken.metrics", "eval.metrics", "eval.probes", "eval.sources")
READERS = ("atoken.media.image", "atoken.media.mesh_worker", "atoken.media.video_decoder", "atoken.media.video_worker")
OTHERS = (
    "atoken.cameras", "atoken.modalities.pixels", "atoken.modalities.views", "atoken.modalities.voxels",
    "atoken.rasterize", "eval.assets", "eval.networks", "eval.prepare",
)  # fmt: skip


def covered():
    return closure(MEASURING, APART)


def test_the_code_that_measures_is_covered_and_models_and_reports_are_not():
    found = covered()
    for package in WHOLE:
        names = {f"{package}.{path.stem}" for path in (ROOT / package.replace(".", "/")).glob("*.py")}
        # Of the metrics, principal components are a model's; the table of series is for training and stores.
        others = {"atoken.metrics.pca", "atoken.data.synthetic.series"}
        missing = {name for name in names if not name.endswith("__init__")} - found.keys() - others
        assert missing == set()
    assert {*READERS, *OTHERS} <= found.keys()
    assert not [
        name for name in found if name.startswith(("eval.models", "eval.report", "atoken.model", "eval.command"))
    ]


def test_every_byte_of_it_changes_the_digest(tmp_path):
    """In a copy."""
    for package in ("atoken", "eval", "mllm"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    plain = code_digest(MEASURING, APART, tmp_path)
    assert plain == code_digest(MEASURING, APART)
    seen = {plain}
    for name, path in closure(MEASURING, APART, tmp_path).items():
        text = path.read_text()
        path.write_text(f"{text}\n# {name}\n")
        changed = code_digest(MEASURING, APART, tmp_path)
        assert changed not in seen, name
        seen.add(changed)
        path.write_text(text)
    (tmp_path / "eval/commands.py").write_text("")
    (tmp_path / "eval/prepare.py").write_bytes((ROOT / "eval/prepare.py").read_bytes().replace(b"\n", b"\r\n"))
    assert code_digest(MEASURING, APART, tmp_path) == plain  # as git checks files out on Windows


RUN = """
import json, sys
from pathlib import Path
import numpy as np
from atoken.io import Image, Video, write_image, write_video
from eval.command import main
folder = Path(sys.argv[1])
write_image(Image(np.full((32, 32, 3), 9, np.uint8)), folder / "a.png")
write_video(Video(np.zeros((2, 32, 32, 3), np.uint8)), folder / "b.mp4")
(folder / "c.obj").write_bytes(b"v 0 0 0\\nv 1 0 0\\nv 0 1 0\\nf 1 2 3\\n")
main(["reconstruct", str(folder), "--model", "h264:30", "-o", str(folder / "out")])
main(["run", "procedural-images-zero-shot", "--items", "1", "--model", "nano", "-o", str(folder / "zero")])
print(json.dumps([name for name in sys.modules if name.partition(".")[0] in ("atoken", "eval")]))
"""
# What a run loads besides: its command, the model under test, reports, and what writes results.
BESIDES = (
    "atoken.attention", "atoken.bottleneck", "atoken.checkpoint", "atoken.cli", "atoken.coder", "atoken.foreign",
    "atoken.gaussian_decoder", "atoken.image_processor", "atoken.io", "atoken.layers", "atoken.lmms", "atoken.loading",
    "atoken.media.scaling", "atoken.metrics.pca", "atoken.model", "atoken.onednn", "atoken.placement",
    "atoken.presets", "atoken.pretrain", "atoken.report", "atoken.rope", "atoken.statistics", "atoken.text",
    "atoken.tokenizer", "atoken.train", "atoken.transformer", "eval.actions", "eval.command", "eval.commands",
    "eval.compare", "eval.lmms", "eval.models", "eval.published", "eval.rate", "eval.rate_report", "eval.report",
    "eval.tasks", "eval.videos",
)  # fmt: skip


def test_whatever_a_run_loads_is_covered_or_does_not_measure(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert {"eval.metrics.zero_shot", "atoken.data.synthetic.labelled", "atoken.metrics.pixels"} <= loaded
    rest = loaded - covered().keys()
    assert [name for name in rest if not f"{name}.".startswith(tuple(f"{other}." for other in BESIDES))] == []


@pytest.mark.parametrize(
    "line", ["import atoken.rope", "from atoken import rope", "def f():\n    import atoken.rope", "x = 'atoken.rope'"]
)
def test_every_way_to_import_counts(tmp_path, line):
    for name in ("atoken/__init__.py", "atoken/rope.py", "atoken/model.py", "eval/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("from atoken import model\n")
    (tmp_path / "eval/a.py").write_text(f"import torch\n{line}\n")
    assert closure(["eval"], (), tmp_path).keys() == {"atoken", "atoken.rope", "atoken.model", "eval", "eval.a"}
    assert closure(["eval.a"], ["atoken.rope"], tmp_path).keys() <= {"atoken", "eval", "eval.a", "atoken.model"}


def test_the_version_names_atoken_and_the_digest():
    assert code_version() == f"{code.atoken.__version__}+{code_digest(MEASURING, APART)}"
