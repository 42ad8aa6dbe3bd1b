"""Published generators as ours: LightningDiT and TokenBridge. Nothing of their weights may be missing or left over."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from atoken.checkpoint import read_state
from atoken.errors import CheckpointError
from generation.blocks import axial_rotation
from generation.dit import DiT, fixed_positions
from generation.masked_ar import MaskedAR

M = TypeVar("M", bound=nn.Module)
Weights = str | Path | Mapping[str, Tensor]

SAME = 1e-5  # how far stored tables may be from ours
DIT_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}  # published sizes by their width
MAR_HEADS = {768: 12, 1024: 16, 1280: 16}  # of both trunks
CHANNEL_ORDER = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)  # of the published 16 scalars

_BLOCKS = {
    r"\.attn\.proj\.": ".attention.out.",
    r"\.attn\.": ".attention.",
    r"\.mlp\.w12\.": ".mlp.gate_value.",
    r"\.mlp\.w3\.": ".mlp.out.",
    r"\.mlp\.fc1\.": ".mlp.up.",
    r"\.mlp\.fc2\.": ".mlp.down.",
    r"\.adaLN_modulation\.1\.": ".modulation.",
}
LIGHTNINGDIT = _BLOCKS | {
    r"^pos_embed$": "positions",
    r"^x_embedder\.proj\.": "patchify.",
    r"^t_embedder\.mlp\.0\.": "time.up.",
    r"^t_embedder\.mlp\.2\.": "time.out.",
    r"^y_embedder\.embedding_table\.": "labels.",
    r"^final_layer\.norm_final\.": "norm.",
    r"^final_layer\.linear\.": "unpatchify.",
    r"^final_layer\.": "",
}
TOKENBRIDGE = _BLOCKS | {
    r"^class_emb\.": "labels.",
    r"^fake_latent$": "null",
    r"^z_proj\.": "embed.",
    r"^z_proj_ln\.": "embed_norm.",
    r"^decoder_embed\.": "bridge.",
    r"^mask_token$": "mask",
    r"^output_pos_embed$": "places",
    r"^(encoder|decoder)_pos_embed_learned$": r"\1.positions",
    r"^(encoder|decoder)_": r"\1.",
    r"^condition_proj\.": "channels.condition.",
    r"^channel_embed$": "channels.positions",
    r"^timesteps_embeddings$": "channels.steps",
    r"^token_embeddings\.": "channels.embeddings.",
    r"^channel_final\.": "channels.",
    r"^channel_heads\.": "channels.classifiers.",
    r"^channel_": "channels.",
    r"^boundaries$": "digits.boundaries",
    r"^reconstruction_values$": "digits.table",
}


def load_lightningdit(weights: Weights, *, heads: int | None = None) -> DiT:
    """A published LightningDiT of any size and number of channels, its EMA if there is one.

    weights: a ``.pt`` or ``.safetensors`` path, or a state dict. What it is made of is read from names and shapes.
    heads: of sizes that were not published and have no rotary tables. Raises: CheckpointError.
    """
    state = _state(weights)
    with missing("LightningDiT"):
        config = _dit_config(state, heads)
    tables = {name: state.pop(name) for name in [*state] if name.startswith("feat_rope.")}
    grid = (config["side"] // config["patch"],) * 2
    own = {"pos_embed": fixed_positions(grid, config["width"])}
    if config["rope"]:
        turned = axial_rotation(grid, config["width"] // config["heads"])[:, :, 0].repeat_interleave(2, -1)
        own |= {"feat_rope.freqs_cos": turned[0], "feat_rope.freqs_sin": turned[1]}
    for name, table in own.items():
        stored = (state | tables).get(name)
        if stored is None or stored.shape != table.shape or not torch.allclose(stored.float(), table, atol=SAME):
            raise CheckpointError(f"{name} is not the table of a LightningDiT of {grid[0]}x{grid[1]} patches.")
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].flatten(1)
    with torch.device("meta"):
        model = DiT(**config)
    model = filled(model, state, LIGHTNINGDIT)
    model.positions.requires_grad_(False)
    return model


def _dit_config(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    rope, qk_norm = "feat_rope.freqs_cos", "blocks.0.attn.q_norm.weight"
    for name in (rope, qk_norm):
        heads = heads or (width // state[name].shape[-1] if name in state else None)
    if (heads := heads or DIT_HEADS.get(width)) is None:
        raise CheckpointError(f"This LightningDiT of width {width} does not say its number of heads; give it.")
    return {
        "side": round(state["pos_embed"].shape[1] ** 0.5) * patch, "channels": channels, "patch": patch,
        "width": width, "depth": _depth(state, "blocks"), "heads": heads,
        "classes": len(state["y_embedder.embedding_table.weight"]) - 1, "qk_norm": qk_norm in state,
        "rms_norm": "blocks.0.norm1.weight" in state, "swiglu": "blocks.0.mlp.w12.weight" in state,
        "rope": rope in state, "shift": len(state["blocks.0.adaLN_modulation.1.weight"]) == 6 * width,
        "halved": len(state["final_layer.linear.weight"]) == 2 * channels * patch**2,
        "time_scale": 1.0, "data_time": True,
    }  # fmt: skip


def load_tokenbridge(
    weights: Weights,
    *,
    heads: tuple[int, int] | None = None,
    fsq_levels: tuple[int, ...] | None = None,
    order: tuple[int, ...] | None = None,
) -> MaskedAR:
    """A published TokenBridge, its EMA if there is one, to be sampled as published (``step_at_start``).

    weights: as in ``load_lightningdit``. heads: of encoder and decoder, where the size was not published. fsq_levels:
    where it was trained on AToken-D's codes. order: of the scalars in the head, where it is not the published one.
    Raises: CheckpointError.
    """
    state = _state(weights)
    with missing("TokenBridge"):
        config = _masked_config(state, heads, fsq_levels, order)
    state.pop("channel_mask", None)  # which says that the head is causal
    with torch.device("meta"):
        model = MaskedAR(**config)
    return filled(model, state, TOKENBRIDGE)


def _masked_config(
    state: Mapping[str, Tensor],
    heads: tuple[int, int] | None,
    fsq_levels: tuple[int, ...] | None,
    order: tuple[int, ...] | None,
) -> dict[str, Any]:
    widths = [state[name].shape[-1] for name in ("class_emb.weight", "decoder_embed.bias", "condition_proj.bias")]
    depths = [_depth(state, f"{name}_blocks") for name in ("encoder", "decoder", "channel")]
    places, tokens = state["output_pos_embed"].shape[1], state["channel_embed"].shape[1]
    trunks = heads or (MAR_HEADS[widths[0]], MAR_HEADS[widths[1]])
    own = widths[2] // len(state["channel_blocks.0.attn.q_norm.weight"])
    sizes = [tuple(size) for size in zip(widths, depths, (*trunks, own), strict=True)]
    return {
        "side": round(places**0.5), "encoder_size": sizes[0], "decoder_size": sizes[1], "head_size": sizes[2],
        "tokens": tokens, "levels": len(state["channel_heads.0.bias"]), "fsq_levels": fsq_levels,
        "buffer": state["encoder_pos_embed_learned"].shape[1] - places, "classes": len(state["class_emb.weight"]),
        "order": order or (CHANNEL_ORDER if tokens == len(CHANNEL_ORDER) else None), "step_at_start": True,
    }  # fmt: skip


@contextmanager
def missing(what: str) -> Iterator[None]:
    """Names that are looked for and not there are errors of a checkpoint."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"These are not the weights of a {what}: {error} is missing.") from error


def _depth(state: Mapping[str, Tensor], blocks: str) -> int:
    return 1 + max(int(found[1]) for found in map(re.compile(rf"{blocks}\.(\d+)\.").match, state) if found)


def _state(weights: Weights) -> dict[str, Tensor]:
    """A copy, without what DistributedDataParallel puts before names."""
    state = read_state(weights, "ema", "model_ema", "model")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def filled(model: M, state: Mapping[str, Tensor], names: Mapping[str, str]) -> M:
    """The model with copies of weights, which must be all of its own and no others. Raises: CheckpointError."""
    ours = {renamed(name, names): tensor.detach().clone() for name, tensor in state.items()}
    try:
        model.load_state_dict(ours, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise CheckpointError(f"These weights do not fit {type(model).__name__}: {reason}") from error
    return model.eval()


def renamed(name: str, names: Mapping[str, str]) -> str:
    """The name of ours for a published one, by a table such as ``LIGHTNINGDIT``."""
    for pattern, ours in names.items():
        name = re.sub(pattern, ours, name)
    return name
