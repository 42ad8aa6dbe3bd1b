"""Sampling beside the published code, on the same weights in one run: seconds, and how far the samples are apart.

FOLDER is a checkout of github.com/hustvl/LightningDiT or github.com/YuqingWang1029/TokenBridge; nothing of them is kept
here. What they import and is not installed is replaced: timm, fairscale, torchdiffeq. Weights are random, in fp32 on a
CPU. ``lightningdit``: XL/1 with fewer blocks, Euler with guidance on an interval, with the settings of the published
800 epochs; "equal sampler" computes the null half in every step, as the published one. ``tokenbridge``: L, 16 tokens of
64 levels, the most probable ones, in the same orders. The machine should be otherwise idle: see the seconds of CPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from benchmarks.tables import head, row
from generation.decoding import Decoding, decode
from generation.guidance import Guidance, Velocity, guided
from generation.sampling import sample, sigma_steps
from generation.weights import load_lightningdit, load_tokenbridge

SCALE, SHIFT, START = 6.7, 0.3, 0.125  # configs/reproductions/lightningdit_xl_vavae_f16d32_800ep_cfg.yaml
SCALE_OF_TOKENS = 3.1

Ways = dict[str, Callable[[], Tensor]]  # names, and what makes the samples


class PatchEmbed(nn.Module):
    """What LightningDiT needs of timm's."""

    def __init__(self, side: int, patch: int, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (side // patch) ** 2
        self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """timm's, without dropout."""

    def __init__(self, in_features: int, hidden_features: int, act_layer: Any = nn.GELU, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """timm's, without dropout, by torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """timm's, without dropout."""

    def __init__(self, width: int, heads: int, ratio: float, *, norm_layer: Any, **_: object) -> None:
        super().__init__()
        self.norm1, self.attn = norm_layer(width), Attention(width, heads)
        self.norm2, self.mlp = norm_layer(width), Mlp(width, int(width * ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def odeint(slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, times: Tensor, **_: object) -> Tensor:
    """Euler's method by torchdiffeq: all states."""
    states = [x]
    for here, there in pairwise(times):
        states.append(states[-1] + (there - here) * slope(here, states[-1]))
    return torch.stack(states)


def published(folder: Path, module: str, *, compiled: bool) -> Any:
    """A module of the published code, whose parts are compiled only if asked for."""
    torch._dynamo.config.disable = not compiled
    stand_ins = {
        "timm": MagicMock(), "timm.layers": MagicMock(Mlp=Mlp), "timm.models": MagicMock(),
        "timm.models.vision_transformer": MagicMock(PatchEmbed=PatchEmbed, Mlp=Mlp, Block=Block),
        "torchdiffeq": MagicMock(odeint=odeint),
        **{f"fairscale{name}": MagicMock() for name in (
            "", ".nn", ".nn.model_parallel", ".nn.model_parallel.initialize", ".nn.model_parallel.layers"
        )},
    }  # fmt: skip
    missing = {name for name in stand_ins if importlib.util.find_spec(name.split(".")[0]) is None}
    sys.modules.update({name: stand_ins[name] for name in missing})
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module(module)


def drawn(model: nn.Module) -> nn.Module:
    """Random weights, also those that start as zero; fixed tables stay."""
    torch.manual_seed(0)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.requires_grad:
                gain = weight.ndim == 1 and name == "weight"
                product = isinstance(module, nn.Linear | nn.Conv2d) and weight.ndim > 1
                spread = weight[0].numel() ** -0.5 if product else 0.1 if weight.ndim == 1 else 0.5
                nn.init.normal_(weight, float(gain), spread)
    return model.eval()


def compare(ways: Ways, rounds: int, error: Callable[[Tensor, Tensor], str]) -> None:
    """Print a table: the best of several rounds of each way, and how far its result is from that of the first."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    results: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter(), time.process_time()
            results[name] = work()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    best = {name: [min(column) for column in zip(*pairs, strict=True)] for name, pairs in times.items()}
    first, *_ = before = list(ways)
    head("what", "seconds", "of CPU", "as fast as published", "as the line above", "difference")
    for name, above in zip(ways, [first, *before], strict=False):
        speeds = (
            " (".join(f"{other / own:.2f}" for other, own in zip(best[slower], best[name], strict=True)) + ")"
            for slower in (first, above)
        )
        row(name, *(f"{seconds:.1f}" for seconds in best[name]), *speeds, error(results[name], results[first]))


def lightningdit(asked: argparse.Namespace) -> Ways:
    """The published sampler, ours doing the same work, and ours as it is."""
    code = published(asked.folder, "models.lightningdit", compiled=asked.compiled)
    transport = importlib.import_module("transport")
    model = drawn(code.LightningDiT(
        input_size=16, patch_size=1, in_channels=32, hidden_size=1152, depth=asked.depth or 4, num_heads=16,
        use_swiglu=True, use_rope=True, use_rmsnorm=True,
    ))  # fmt: skip
    loaded, points = load_lightningdit(model.state_dict()), asked.steps or 250
    noise = torch.randn(asked.batch, 32, 16, 16)
    labels, null = torch.arange(asked.batch), torch.full((asked.batch,), 1000)
    guidance, sigmas = Guidance(SCALE, (0.0, 1 - START), channels=3), sigma_steps(points - 1, 1 / SHIFT)
    run = transport.Sampler(transport.create_transport(use_cosine_loss=True, use_lognorm=True)).sample_ode(
        sampling_method="euler", num_steps=points, timestep_shift=SHIFT
    )
    options = {"cfg_scale": SCALE, "cfg_interval": True, "cfg_interval_start": START}

    def theirs() -> Tensor:
        both = run(noise.repeat(2, 1, 1, 1), model.forward_with_cfg, y=torch.cat([labels, null]), **options)[-1]
        return both.chunk(2)[0]

    def equal(x: Tensor, sigma: float) -> Tensor:
        at = torch.full((2 * len(x),), sigma)
        conditional, unconditional = loaded(torch.cat([x, x]), at, torch.cat([labels, null])).chunk(2)
        return guidance.combined(conditional, unconditional) if guidance.applies(sigma) else conditional

    def sampled(velocity: Velocity) -> Tensor:
        return sample(velocity, noise, sigmas)

    return {
        "published": theirs,
        "equal sampler": partial(sampled, equal),
        "ours": partial(sampled, guided(loaded, labels, null, guidance)),
    }


def tokenbridge(asked: argparse.Namespace) -> Ways:
    """The published decoding, and ours."""
    code = published(asked.folder, "models.tokenbridge", compiled=asked.compiled)
    depth = asked.depth or 16
    model = drawn(code.TokenBridge(
        encoder_depth=depth, decoder_depth=depth, channel_embed_dim=1024, channel_depth=max(1, depth // 4),
        quant_levels=64, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ))  # fmt: skip
    loaded = load_tokenbridge(model.state_dict())
    orders = torch.stack([torch.randperm(256) for _ in range(asked.batch)])
    model.sample_orders = lambda _: orders
    labels, iterations = torch.arange(asked.batch), asked.steps or 64
    decoding = Decoding(iterations, SCALE_OF_TOKENS, temperature=0)
    return {
        "published": lambda: model.sample_tokens(
            asked.batch, num_iter=iterations, cfg=SCALE_OF_TOKENS, labels=labels, temperature=0
        ),
        "ours": lambda: loaded.digits.values(decode(loaded, labels, decoding, (), orders_BL=orders)).mT.unflatten(
            2, (16, 16)
        ),
    }


def largest(found: Tensor, reference: Tensor) -> str:
    """The largest difference over the largest value."""
    return f"{float((found - reference).abs().max() / reference.abs().max()):.1e}"


def unequal(found: Tensor, reference: Tensor) -> str:
    """How many tokens differ."""
    return f"{int(((found - reference).abs() > 1e-4).sum())} of {found.numel()} tokens"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lightningdit", "tokenbridge"))
    parser.add_argument("folder", type=Path, help="of the published code")
    parser.add_argument("--depth", type=int, help="blocks (default: 4 of LightningDiT, 16 and 16 of TokenBridge)")
    parser.add_argument("--steps", type=int, help="(default: 250 points of LightningDiT, 64 iterations of TokenBridge)")
    parser.add_argument("--batch", type=int, default=4, help="(default: 4)")
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many counts (default: 1)")
    parser.add_argument("--compiled", action="store_true", help="compile what the published code marks for it")
    asked = parser.parse_args()
    ways, error = (lightningdit, largest) if asked.what == "lightningdit" else (tokenbridge, unequal)
    print(f"{torch.get_num_threads()} threads; speeds by the clock (by seconds of CPU)\n")
    with torch.no_grad():
        compare(ways(asked), asked.rounds, error)


if __name__ == "__main__":
    main()
