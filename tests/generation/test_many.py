"""Many samples for evaluation: in chunks, on ranks, killed and gone on with, and never those of another generator."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from atoken.errors import AtokenError
from eval.adm import read_labels, read_samples
from generation import many
from generation.pipelines.class_to_image import ClassToImagePipeline
from tests.generation.test_pipeline import LABELS, flow

ASKED = {"num_inference_steps": 2, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random generator, saved."""
    path = tmp_path_factory.mktemp("generator")
    flow().save_pretrained(path)
    return path


@pytest.fixture
def pipeline(folder):
    loaded = ClassToImagePipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def sampled(pipeline, labels, folder, seed=0, **options):
    return many.sample_folder(pipeline, labels, folder, seed, 2, **ASKED | options)


def test_a_file_of_samples_is_as_evaluators_read_it(pipeline, tmp_path):
    path = sampled(pipeline, [2, 0, 1, 2, 2], tmp_path)
    with np.load(path, allow_pickle=False) as file:
        assert file["arr_0"].shape == (5, 48, 48, 3)
        assert file["arr_0"].dtype == np.uint8
        assert np.array_equal(file["arr_0"], np.stack(list(read_samples(path))))
        assert file["arr_1"].tolist() == [2, 0, 1, 2, 2]
        assert tuple(file["classes"]) == LABELS
    assert read_labels(path) == ([2, 0, 1, 2, 2], LABELS)
    images = many.made(pipeline, [2, 0, 1, 2, 2], range(2, 4), 0, "np", **ASKED)
    assert np.array_equal(np.stack(list(read_samples(path)))[2:4], np.rint(images * 255))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["asked.json", "samples.npz"]


def test_balanced_labels_are_even_in_each_split_and_random_ones_depend_on_the_seed():
    balanced = many.labels_of(range(1000), 50_000, 0, random=False)
    assert all((np.bincount(balanced[first : first + 5000]) == 5).all() for first in range(0, 50_000, 5000))
    drawn = [many.labels_of(range(1000), 50_000, seed, random=True) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    counts = np.bincount(drawn[0], minlength=1000)
    assert 40 < counts.var() < 60  # 50 of each on average, as of a fair draw
    assert abs(np.square(counts - 50).sum() / 50 - 999) < 5 * (2 * 999) ** 0.5  # chi squared


def test_an_interrupted_run_goes_on_and_makes_no_chunk_twice(pipeline, tmp_path, monkeypatch):
    labels, calls, whole = [0, 1, 2, 0, 1, 2, 0], [], many.made

    def failing(*given, **options):
        calls.append(given[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*given, **options)

    monkeypatch.setattr(many, "made", failing)
    with pytest.raises(KeyboardInterrupt):
        sampled(pipeline, labels, tmp_path / "killed")
    assert not (tmp_path / "killed/samples.npz").exists()
    path = sampled(pipeline, labels, tmp_path / "killed")
    assert calls == [range(0, 2), range(2, 4), range(4, 6), range(4, 6), range(6, 7)]
    before = path.read_bytes()
    assert sampled(pipeline, labels, tmp_path / "killed").read_bytes() == before
    assert len(calls) == 5
    assert sampled(pipeline, labels, tmp_path / "whole").read_bytes() == before


def test_samples_of_another_generator_or_way_are_not_mixed_in(pipeline, tmp_path):
    sampled(pipeline, [0, 1], tmp_path)
    for change, name in (({"seed": 1}, "seed"), ({"guidance_scale": 2.0}, "guidance_scale")):
        with pytest.raises(AtokenError, match=f"with other {name}; name another folder"):
            sampled(pipeline, [0, 1], tmp_path, **change)
    with pytest.raises(AtokenError, match="other labels"):
        sampled(pipeline, [0, 2], tmp_path)
    with torch.no_grad():
        pipeline.transformer.patchify.weight[0, 0] += 1
    with pytest.raises(AtokenError, match="other weights"):
        sampled(pipeline, [0, 1], tmp_path)


def test_two_ranks_make_what_one_makes(folder, pipeline, tmp_path):
    """As a launcher starts them: each makes its chunks, and the first waits for those of the other."""
    sample = ["-m", "generation", "sample", str(folder), "-n", "7", "--batch", "2", "--steps", "2", "--guidance", "1.5"]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    words = [sys.executable, *launcher, *sample, "--device", "cpu", "-o", str(tmp_path / "two")]
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "two/samples.npz")]
    options = {"guidance_interval": (0.0, 1.0), "solver": "euler", "shift": 1.0, "temperature": 1.0}
    one = sampled(pipeline, [0, 1, 2, 0, 1, 2, 0], tmp_path / "one", **options, top_k=None, top_p=None)
    assert (tmp_path / "two/samples.npz").read_bytes() == one.read_bytes()
