"""Costs of training: products and kept bytes of small networks in closed form, ZeRO and plans by literals."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.nn.attention.varlen import varlen_attn

from atoken.errors import AtokenError
from atoken.train.cost import Flops, Load, Plan, activations, count, parameters
from tests.train.flow import RECIPE, Flow, Shapes

N, D, H, F32 = 10, 8, 24, 4  # tokens, width, hidden width, bytes of a number
TOKENS = torch.empty(N, D, device="meta")


class MLP(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.norm, self.up, self.down = norm(D), nn.Linear(D, H), nn.Linear(H, D)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Attention(nn.Module):
    """Over two samples of 3 and 7 tokens, or over all."""

    def __init__(self, packed):
        super().__init__()
        self.qkv, self.out, self.packed = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False), packed

    def forward(self, x):
        qkv, bounds = self.qkv(x).unflatten(-1, (3, 2, D // 2)).unbind(1), torch.tensor([0, 3, N], dtype=torch.int32)
        if self.packed:
            return self.out(varlen_attn(*qkv, bounds, bounds, 7, 7).flatten(1))
        attended = F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in qkv))
        return self.out(attended[0].transpose(0, 1).flatten(1))


class Summed(nn.Sequential):
    """An objective: the sum of what its layers make."""

    def forward(self, batch):
        return super().forward(batch).sum(), {}


LINEAR, TWO = [nn.Linear(D, H)], [nn.Linear(D, H), nn.Linear(H, D)]
# The input of a norm with two statistics, its output, what goes into GELU and what comes out.
IN_MLP = N * (D + 2 + D + 2 * H) * F32
# Inputs of both layers, q, k and v in one storage, and 16 bytes for the state of a random generator.
IN_ATTENTION = N * (D + 3 * D + D) * F32 + 16


@pytest.mark.parametrize(
    ("layers", "forward", "backward", "kept"),
    [
        (LINEAR, 2 * N * D * H, 2 * N * D * H, N * D * F32),  # the batch needs no gradient
        (TWO, 4 * N * D * H, 6 * N * D * H, N * (D + H) * F32),
        ([MLP()], 4 * N * D * H, 8 * N * D * H, IN_MLP),  # the gain of its norm needs one
        ([MLP(nn.RMSNorm)], 4 * N * D * H, 8 * N * D * H, IN_MLP),
        # Of logits, the normalisers of two heads are kept; and the bounds.
        ([Attention(True)], 8 * N * D * D + 4 * 58 * D, 10 * N * D * D + 8 * 58 * D, IN_ATTENTION + 2 * N * F32 + 12),
        ([Attention(False)], 8 * N * D * D + 400 * D, 10 * N * D * D + 800 * D, IN_ATTENTION + 2 * 32 * F32),  # padded
    ],
    ids=["linear", "two", "mlp", "rms", "packed", "attention"],
)
def test_closed_forms(layers, forward, backward, kept):
    network = Summed(*layers).to("meta")
    assert count(network, TOKENS) == Flops(forward, backward, 0)
    with torch.no_grad():
        assert activations(network, TOKENS) == kept


def test_what_is_frozen_has_no_gradient_but_passes_it_on():
    network = Summed(nn.Linear(D, H), nn.Linear(H, D)).to("meta")
    network[1].requires_grad_(False)
    assert count(network, TOKENS) == Flops(4 * N * D * H, 4 * N * D * H, 0)
    assert parameters(network) == (D * H + H, D * H + D)
    network.requires_grad_(False)
    assert (count(network, TOKENS), activations(network, TOKENS)) == (Flops(4 * N * D * H, 0, 0), 0)
    network[1].requires_grad_(True)
    assert count(network, TOKENS).backward == 2 * N * D * H


def test_checkpointed_modules_keep_their_inputs_and_the_largest_is_there_whole_again():
    network = Summed(nn.Linear(D, D), MLP(), MLP(), MLP()).to("meta")
    blocks, plain = [network[1], network[2]], count(network, TOKENS)
    assert count(network, TOKENS, blocks) == plain._replace(recomputed=2 * 4 * N * D * H)
    one_input = N * D * F32
    assert activations(network, TOKENS, blocks) == 3 * one_input + IN_MLP + (IN_MLP - one_input)
    assert activations(network, TOKENS) == one_input + 3 * IN_MLP
    network[:3].requires_grad_(False)
    assert (count(network, TOKENS, blocks).recomputed, activations(network, TOKENS, blocks)) == (0, IN_MLP)


PLAN = Plan(RECIPE, {"a": Load(0.25, 2, 6, 100, 8e9, 0), "b": Load(1, 3, 3, 50, 2e9, 1e9)}, 6400, 1601, 77, gpus=8)
WHOLE = {"weights": 8001, "gradients": 6400, "master": 0, "moments": 12_800, "ema": 6400}
SHARDS = [[], ["moments", "ema"], ["moments", "ema", "gradients"], WHOLE]


@pytest.mark.parametrize("zero", range(4))
def test_zero_splits_states_then_gradients_then_weights(zero):
    held = {name: 4 * (-(-numbers // 8) if name in SHARDS[zero] else numbers) for name, numbers in WHOLE.items()}
    assert PLAN.memory(zero) == {**held, "activations": 77, "total": sum(held.values()) + 77}
    assert replace(PLAN, gpus=1).memory(zero) == PLAN.memory(0)


def test_a_step_is_the_mean_over_steps_and_time_is_work_over_speed():
    assert [PLAN.of_step(column) for column in ("samples", "tokens", "flops", "recomputed")] == [4.5, 75, 4e9, 1e9]
    assert replace(PLAN, gpu="A100", mfu=0.25).seconds == pytest.approx(4e9 / (8 * 0.25 * 312e12), rel=1e-12)
    facts, tasks, remarks, _, pace = PLAN.tables()
    assert tasks[1:] == [
        ["a", "25%", "2", "6", "100", "8.00e+09", "0"], ["b", "100%", "3", "3", "50", "2.00e+09", "1.00e+09"],
        ["mean of steps", "", "", "4.5", "75", "4.00e+09", "1.00e+09"],
    ]  # fmt: skip
    assert (facts[0], remarks) == (["steps        12, 2 of them to warm up"], [])
    assert pace[0][0].startswith("8 H100 at an MFU of 45%: 1.12e-06 s a step, 66,800,000 tokens a second; all steps: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"gpu": "RTX"}, "The peak of RTX is not known; known are B200, H200, "), ({"gpus": 0}, "one GPU or more"),
     ({"mfu": 0.0}, "MFU above 0"), ({"mfu": float("nan")}, "MFU above 0")],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused_in_one_sentence(change, words):
    with pytest.raises(AtokenError, match=words):
        replace(PLAN, **change)


def test_a_third_objective_is_planned():
    flow, source, width, rows = Flow().to("meta"), Shapes(), 16, 64
    for parameter in flow.frozen().values():
        parameter.requires_grad_(False)
    batches = [source.batch(key).to("meta") for key in source.keys(0)]
    load = Load.of(batches, [count(flow, batch) for batch in batches], 0.5, 2)
    plan = Plan(RECIPE, {"ring": load}, *parameters(flow), activations(flow, batches[0]))
    forward = 2 * rows * width * (3 + 3 * width + 2)
    backward = 2 * rows * width * (width + 2 * 2 * width + 2 * 2)  # what goes into the first layer needs no gradient
    assert load == Load(0.5, 2, 64, rows, forward + backward, 0)
    assert (plan.of_step("flops"), plan.frozen) == ((forward + backward) / 2, 3 * width)
    assert plan.tables()[1][1][:5] == ["ring", "50%", "2", "64", "64"]
