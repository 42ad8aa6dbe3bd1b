"""Numerical parity with the published inference code, on tensors it computed (tests/data/golden/README.md)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from atoken.modalities.pixels import patchify
from atoken.tokens import SparseTokens
from tests.model.golden import GOLDEN, INPUTS, VARIANTS, gaussian_pairs, indices, pairs, relative_error
from tests.tolerances import RELEASED

THOROUGH = Path(__file__).parents[3] / "shared" / "golden"
FOLDERS = [
    pytest.param(GOLDEN, id="pocket"),
    pytest.param(
        THOROUGH,
        id="thorough",
        marks=pytest.mark.skipif(
            not THOROUGH.is_dir(), reason="the larger set of tensors is not next to this checkout"
        ),
    ),
]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tag", INPUTS)
def test_every_published_tensor(folder, variant, tag):
    errors = {name: relative_error(prediction, target) for name, prediction, target in pairs(folder, variant, tag)}
    assert {"features", "moments", "pooled", "decoded"} <= errors.keys()
    assert ("decoded_kv12_4" in errors) == tag.startswith("video")
    assert {name: error for name, error in errors.items() if error > RELEASED} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_published_tensor_of_the_gaussian_decoder(folder):
    errors = {name: relative_error(prediction, target) for name, prediction, target in gaussian_pairs(folder)}
    published = load_file(folder / "gs-tiny.io.safetensors").keys() - {"coords", "feats"}
    assert errors.keys() == published
    assert {name: error for name, error in errors.items() if error > RELEASED} == {}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("tag", INPUTS)
def test_fsq_indices_away_from_rounding_boundaries(folder, tag):
    prediction, target = indices(folder, tag)
    assert len(prediction) > 60
    assert torch.equal(prediction, target)


def test_patches_are_those_of_the_published_code():
    io = load_file(GOLDEN / "soc-tiny.io.safetensors")
    tokens = SparseTokens.pack([patchify(io[f"images.pixels.{i}"][None]) for i in range(2)])
    assert torch.equal(tokens.feats, io["images.patches"])
    assert torch.equal(tokens.coords, io["images.coords"][:, 1:])
