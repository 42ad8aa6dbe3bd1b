"""Generators against the published code: networks, losses, gradients, whole runs; and published names."""

import json
from pathlib import Path

import pytest
import torch

from atoken.errors import CheckpointError
from benchmarks.golden_generation import checked, fixtures
from generation.blocks import axial_rotation
from generation.dit import fixed_positions
from generation.weights import load_lightningdit, load_tokenbridge

FOLDER = Path(__file__).parents[1] / "data/golden_generation"
LEAST = {
    "ldit-plain-p2": 7,
    "ldit-qknorm": 16,
    "sd35-mmdit": 10,
    "tb-c16": 25,
    "tb-fsq": 18,
    "tb-quantiser": 16,
    "trellis-slatflow": 19,
    "trellis-ssdec": 9,
    "trellis-ssenc": 10,
    "trellis-ssflow-p2": 5,
    "trellis-toysampler": 9,
}  # comparisons


def test_all_fixtures_are_checked():
    assert fixtures(FOLDER).keys() == LEAST.keys()


@pytest.mark.parametrize("name", LEAST)
def test_ours_is_as_published(name):
    found = checked(FOLDER, name)
    assert len(found) >= LEAST[name]
    assert [one for one in found if not one.error <= one.limit] == []


def published(file):
    """Every published size as tensors without memory, with the two tables that are checked."""
    for name, size in json.loads((FOLDER / file).read_text()).items():
        state = {key: torch.empty(shape, device="meta") for key, shape in size["keys"].items()}
        if "pos_embed" in state:
            cosines, sines = axial_rotation((16, 16), 72)[:, :, 0].repeat_interleave(2, -1)
            state |= {"pos_embed": fixed_positions((16, 16), 1152)}
            state |= {"feat_rope.freqs_cos": cosines, "feat_rope.freqs_sin": sines}
        yield name, size, state


@pytest.mark.parametrize(
    ("file", "load"),
    [("lightningdit_xl1_keys.json", load_lightningdit), ("tokenbridge_keys.json", load_tokenbridge)],
)
def test_published_sizes_have_our_names_and_numbers(file, load):
    for name, size, state in published(file):
        assert sum(weight.numel() for weight in load(state).parameters()) == size["parameters"], name


@pytest.mark.parametrize("change", ["missing", "more", "table"])
def test_weights_that_do_not_fit_are_named(change):
    _, _, state = next(published("lightningdit_xl1_keys.json"))
    if change == "missing":
        del state["blocks.3.mlp.w3.bias"]
    elif change == "more":
        state["blocks.3.mlp.w4.bias"] = torch.zeros(1)
    else:
        state["pos_embed"] = state["pos_embed"] + 1e-3
    with pytest.raises(CheckpointError, match="pos_embed" if change == "table" else r"blocks\.3\.mlp"):
        load_lightningdit(state)
    with pytest.raises(CheckpointError, match="not the weights of a LightningDiT"):
        load_lightningdit({})
