"""The generators of assets: published weights and what does not fit; samples that do not depend on others."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from atoken.errors import CheckpointError
from atoken.tokens import SparseTokens
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE
from generation.trellis import load_trellis, trellis_model
from tests.generation.test_cells import CHANNELS, occupied
from tests.tolerances import FP32

FOLDER = Path(__file__).parents[1] / "data/golden_generation"
PUBLISHED = json.loads((FOLDER / "trellis_keys.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_our_names_and_numbers(name):
    size = PUBLISHED[name]
    state = {key: torch.empty(shape, device="meta") for key, shape in size["keys"].items()}
    model = trellis_model(size["model"], size["args"], state)
    assert sum(weight.numel() for weight in model.parameters()) == size["parameters"]


def small():
    """Name, options and weights of a small dense flow."""
    config = json.loads((FOLDER / "trellis-ssflow-p2.config.json").read_text())
    return config["model"], config["arch"], load_file(FOLDER / "trellis-ssflow-p2.weights.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", r"trunk\.blocks\.1\.mlp\.up\.bias"),
        ("more", r"trunk\.blocks\.1\.mlp\.more"),
        ("table", "table of positions"),
        ("rotary", "fixed positions"),
        ("mesh", "no network SLatMeshDecoder"),
        ("option", "'patch_size' is missing"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, said):
    name, options, state = small()
    if change == "missing":
        del state["blocks.1.mlp.mlp.0.bias"]
    elif change == "more":
        state["blocks.1.mlp.more"] = torch.zeros(1)
    elif change == "table":
        state["pos_emb"] = state["pos_emb"] + 1e-3
    elif change == "rotary":
        options["pe_mode"] = "rope"
    elif change == "mesh":
        name = "SLatMeshDecoder"
    else:
        del options["patch_size"]
    with pytest.raises(CheckpointError, match=said):
        trellis_model(name, options, state)


def test_a_published_file_has_its_description_beside_it(tmp_path):
    name, options, state = small()
    save_file(state, tmp_path / "flow.safetensors")
    with pytest.raises(CheckpointError, match=r"flow\.json does not say"):
        load_trellis(tmp_path / "flow.safetensors")
    (tmp_path / "flow.json").write_text(json.dumps({"name": name, "args": options}))
    model = load_trellis(tmp_path / "flow")
    assert isinstance(model, StructureFlow)
    torch.testing.assert_close(model.out.weight, state["out_layer.weight"])


SIZE = {"width": 24, "depth": 2, "heads": 2, "condition": 12}


def stirred(model):
    """With random weights where a new model has zeros."""
    torch.manual_seed(2)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def slat():
    return SlatFlow(channels=CHANNELS, io_channels=(8, 16), **SIZE)


def test_new_flows_start_from_a_velocity_of_zero():
    sigma_B, condition = torch.tensor([0.2, 0.7]), torch.randn(2, 3, 12)
    assert not slat()(occupied(9, 4), sigma_B, condition).any()
    flow = StructureFlow(side=4, channels=3, **SIZE)
    assert not flow(torch.randn(2, 3, 4, 4, 4), sigma_B, condition).any()


@torch.no_grad()
def test_an_asset_does_not_depend_on_others_nor_on_the_order_of_its_voxels():
    model, voxels = stirred(slat()), occupied(40, 0, 25)
    sigma_B, condition = torch.tensor([0.2, 0.7, 0.9]), torch.randn(3, 4, 12)
    together = model(voxels, sigma_B, condition).split(voxels.lengths)
    for number, one in enumerate(voxels.unpack()):
        here = slice(number, number + 1)
        alone = model(one, sigma_B[here], condition[here])
        torch.testing.assert_close(alone, together[number], rtol=FP32, atol=FP32)
    mixed = torch.randperm(40)
    one = voxels.unpack()[0]
    again = model(SparseTokens(one.feats[mixed], one.coords[mixed], (40,)), sigma_B[:1], condition[:1])
    torch.testing.assert_close(again, together[0][mixed], rtol=FP32, atol=FP32)
    assert model(occupied(0), sigma_B[:1], condition[:1]).shape == (0, CHANNELS)


@torch.no_grad()
def test_what_is_saved_is_what_is_loaded(tmp_path):
    voxels, sigma_B, condition = occupied(10), torch.tensor([0.4]), torch.randn(1, 4, 12)
    cube = torch.randn(1, 1, 8, 8, 8)
    vae = StructureVAE(channels=(4, 6), latents=3, blocks=1, middle=1)
    for model, run in ((stirred(slat()), lambda it: it(voxels, sigma_B, condition)),
                       (stirred(vae), lambda it: it.decode(it.encode(cube)[0]))):  # fmt: skip
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder, low_cpu_mem_usage=False)
        assert torch.equal(run(again), run(model))
    assert vae.encode(cube)[0].shape == (1, 3, 4, 4, 4)


def test_checkpointing_gives_the_same_gradients():
    model, voxels = stirred(slat()), occupied(20)
    gradients = []
    for enabled in (False, True):
        model.trunk.gradient_checkpointing = enabled
        loss = model(voxels, torch.tensor([0.4]), torch.ones(1, 4, 12)).square().sum()
        gradients.append(torch.autograd.grad(loss, tuple(model.parameters()), allow_unused=True))
    torch.testing.assert_close(*gradients)
