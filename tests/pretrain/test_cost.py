"""The tokenizer's costs: the meta device counts what a CPU multiplies, and FLOPs of any tokens follow from a few."""

import random

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from atoken import layers
from atoken.presets import preset
from atoken.pretrain import losses
from atoken.pretrain.cost import GAUSSIANS, Network, flops, grids, reads
from atoken.pretrain.curriculum import CODE, CURRICULA, TUNING, UNUSED
from atoken.pretrain.stages import Task, Term
from atoken.tokens import SparseTokens
from atoken.train.cost import activations, count, parameters
from tests.model.sizes import small_config, small_model

DECODER = {"gaussian_decoder": {"width": 44, "layers": 3, "heads": 4, "mlp": 60, "neighborhood": 3}}
UNEVEN = {"encoder_layers": 3, "decoder_layers": 1, "encoder_width": 120, "encoder_heads": 5, "encoder_mlp": 77}
PATCHES, POOLED, BOTH = frozenset(["patches"]), frozenset(["pooled"]), frozenset(["patches", "pooled"])
CASES = {  # changes of the model, what is frozen, what is read
    "all": (UNEVEN, (), BOTH),
    "posterior": ({}, (), frozenset(["posterior"])),
    "cache": ({"cache_frames": 8}, (), PATCHES),
    "longer cache": ({"cache_frames": 32}, (), PATCHES),
    "frozen encoder": ({}, ("encoder.",), BOTH),
    "frozen decoder": ({}, ("decoder.", "to_patch.", "encoder.inputs."), BOTH),
    "frozen first layers": ({"decoder_layers": 4}, CODE, PATCHES),
    "unused": ({}, UNUSED, PATCHES),
    "pooled": ({}, (), POOLED),
}


def shapes(seed):
    draws = random.Random(seed)
    return [
        (draws.choice([1, 1, 3, 5, 9]), draws.randint(1, 5), draws.randint(1, 5)) for _ in range(draws.randint(1, 4))
    ]


def on_cpu(case, shapes):
    """The network of a case, and tokens for it."""
    changes, frozen, read = CASES[case]
    network, tokens = Network(small_config(**changes), frozen, read), grids(shapes, 3072)
    network.model = small_model(**changes)
    for name, parameter in network.model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    return network, tokens.with_feats(torch.randn(tokens.feats.shape))


@pytest.mark.parametrize("case", CASES)
def test_flops_of_any_tokens_are_exactly_those_that_are_counted_and_that_a_cpu_multiplies(case, monkeypatch):
    monkeypatch.setattr(layers, "takes_onednn", lambda x: False)  # torch's counter does not know oneDNN's products
    changes, frozen, read = CASES[case]
    config = small_config(**changes)
    network = Network(config, frozen, read)
    for seed in range(2):
        for values in (768, 3072):
            found = count(network, grids(shapes(seed), values), network.blocks())
            assert flops(config, frozen, read, grids(shapes(seed), values)) == found
            assert min(found) > 0
    real, tokens = on_cpu(case, shapes(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real(tokens)[0].backward()
    assert found.forward + found.backward == counter.get_total_flops()


def voxels(*xyz):
    coords_N4 = F.pad(torch.tensor(xyz), (1, 0))
    return SparseTokens(torch.empty(len(xyz), 768, device="meta"), coords_N4, (len(xyz) - 1, 0, 1))


def test_attention_of_gaussians_stays_in_windows():
    config, draws = small_config(**DECODER), random.Random(0)
    network = Network(config, ("gaussian_decoder.inputs.",), GAUSSIANS)
    scattered = voxels(*([draws.randrange(20) for _ in range(3)] for _ in range(300)))
    found = count(network, scattered, network.blocks())
    assert flops(config, ("gaussian_decoder.inputs.",), GAUSSIANS, scattered) == found
    apart, together = (flops(config, (), GAUSSIANS, voxels([0, 0, 0], [x, 0, 0], [9, 9, 9])) for x in (20, 1))
    passes, layers, width = 3, 3, 44  # forward, and twice that backward
    assert sum(together[:2]) - sum(apart[:2]) == passes * layers * 4 * width * (4 - 2)


def one_kernel(self, x):
    """What RMSNorm keeps on a GPU."""
    return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), None, self.eps)


@pytest.mark.parametrize("case", ["all", "cache", "frozen encoder"])
def test_kept_bytes_are_those_that_autograd_keeps_on_a_cpu(case, monkeypatch):
    changes, frozen, read = CASES[case]
    sample, kept = [(9, 4, 5)], {}  # one: a CPU joins the results of several
    found = activations(Network(small_config(**changes), frozen, read), grids(sample, 3072))
    monkeypatch.setattr(layers.RMSNorm, "forward", one_kernel)
    network, tokens = on_cpu(case, sample)
    own = {parameter.untyped_storage() for parameter in network.parameters()}
    with saved_tensors_hooks(lambda x: kept.setdefault(x.untyped_storage(), x), lambda x: x):
        network(tokens)
    assert found == pytest.approx(sum(storage.nbytes() for storage in kept if storage not in own), rel=0.03)


def test_so400m_has_the_parameters_of_its_layers_and_costs_what_they_multiply():
    width, hidden, values, latents, table, length = 1152, 4304, 3072, 48, 256, 16_384
    matrices = 4 * width * width + 2 * width * hidden
    biases, norms, gains = 5 * width + hidden, 4 * width, 2 * width
    encoder = values * width + width + table * width + 27 * (matrices + biases + norms) + 2 * width
    decoder = latents * width + table * width + 27 * (matrices + 2 * width + gains) + width
    pool, ends = width + matrices + biases + 2 * width, 2 * latents * width + values * width + 2
    config = preset("so400m-c")
    assert parameters(Network(config, ("encoder.",), PATCHES)) == (decoder + pool + ends, encoder)
    found = flops(config, (), PATCHES, grids([(1, 128, 128)], values))
    assert found.recomputed == 54 * (2 * length * matrices + 4 * length**2 * width)
    assert found.forward == pytest.approx(found.recomputed + 2 * length * width * (2 * values + 3 * latents), rel=1e-3)
    assert found.backward == pytest.approx(2 * found.forward, rel=3e-3)


def test_no_stage_freezes_a_layer_beyond_the_first():
    stages = [stage for stages in (*CURRICULA.values(), TUNING) for stage in stages.values()]
    assert {name for stage in stages for name in stage.frozen if ".blocks." in name} == {"decoder.blocks.0."}


@pytest.mark.parametrize(
    ("names", "read"),
    [(("l1", "lpips", "gram", "clip"), "patches"), (("kl",), "posterior"), (("semantics", "alignment"), "pooled")],
)
def test_terms_read_patches_posterior_or_pooled_vectors(names, read):
    for name in names:
        assert reads(Task("image", (Term(getattr(losses, name), 1.0),))) == {read}
    assert reads(Task("surface", (Term(losses.color, 1.0),))) == GAUSSIANS
