"""The two-stream transformer against diffusers' SD3, in our layout: all but its positions, which ours has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from einops import rearrange
from torch import Tensor
from torch.nn.functional import silu

from benchmarks.golden_comparisons import GRADIENTS, Found, error, value
from generation.mmdit import TIME_SCALE, Layout, MMDiT, packed
from generation.text import TextFeatures
from generation.weights import renamed

NAMES = {
    r"^transformer_blocks\.": "blocks.",
    r"\.attn2\.norm_": ".alone.norm_",
    r"\.attn2\.": ".alone.",
    r"\.attn\.norm_added_": ".text.attention.norm_",
    r"\.attn\.to_add_out\.": ".text.attention.out.",
    r"\.attn\.add_qkv\.": ".text.attention.qkv.",
    r"\.attn\.": ".image.attention.",
    r"\.norm_([qk])\.": r".\1_norm.",
    r"\.to_out\.0\.": ".out.",
    r"\.to_qkv\.": ".qkv.",
    r"\.ff\.net\.0\.proj\.": ".image.mlp.up.",
    r"\.ff\.net\.2\.": ".image.mlp.down.",
    r"\.ff_context\.net\.0\.proj\.": ".text.mlp.up.",
    r"\.ff_context\.net\.2\.": ".text.mlp.down.",
    r"\.norm1\.linear\.": ".image.modulation.",
    r"\.norm1_context\.linear\.": ".text.modulation.",
    r"^norm_out\.linear\.": "modulation.",
    r"^proj_out\.": "unpatchify.",
    r"^pos_embed\.proj\.": "patchify.",
    r"^context_embedder\.": "texts.0.",
    r"^time_text_embed\.timestep_embedder\.linear_1\.": "time.up.",
    r"^time_text_embed\.timestep_embedder\.linear_2\.": "time.out.",
    r"^time_text_embed\.text_embedder\.linear_1\.": "pooled.0.",
    r"^time_text_embed\.text_embedder\.linear_2\.": "pooled.2.",
}


def sd3(config: dict[str, Any], weights: dict[str, Tensor], io: dict[str, Tensor]) -> Iterator[Found]:
    """Conditions, patches, each block and the output; gradients of its mean square."""
    arch, patch = config["arch"], config["arch"]["patch_size"]
    model = MMDiT(
        channels=arch["in_channels"], patch=patch, width=arch["caption_projection_dim"], depth=arch["num_layers"],
        heads=arch["num_attention_heads"], text_widths=(arch["joint_attention_dim"],),
        pooled_widths=(arch["pooled_projection_dim"],), qk_norm=arch["qk_norm"] is not None,
        dual=len(arch["dual_attention_layers"]),
    )  # fmt: skip
    all_weights, weights = weights, dict(weights)
    side = arch["pos_embed_max_size"]
    table = weights.pop("pos_embed.pos_embed").unflatten(1, (side, side))
    model.load_state_dict(mapped(weights, arch["num_layers"]))
    text, grid = io["encoder_hidden_states"], [size // patch for size in io["hidden_states"].shape[2:]]
    texts = (TextFeatures(text.flatten(0, 1), (text.shape[1],) * len(text), io["pooled_projections"]),)
    tokens = packed(io["hidden_states"][:, :, None], patch)
    row, column = ((side - size) // 2 for size in grid)
    positions = table[0, row : row + grid[0], column : column + grid[1]].flatten(0, 1)
    condition_BD = model.condition(io["timestep"] / TIME_SCALE, texts)
    image_ND = model.patchify(tokens.feats) + positions.repeat(len(text), 1)
    text_MD = model.texts[0](texts[0].tokens)
    yield value("condition", condition_BD, io["block0.in.temb"])
    yield value("patches", image_ND, io["block0.in.hidden_states"].flatten(0, 1))
    yield value("text", text_MD, io["block0.in.encoder_hidden_states"].flatten(0, 1))
    layout, activated_BD = Layout.of(tokens, texts, None), silu(condition_BD)
    for number, block in enumerate(model.blocks):
        image_ND, text_MD = block(image_ND, text_MD, activated_BD, layout)
        name = f"block{number}.out."
        yield value(f"block {number}: image", image_ND, io[name + "hidden_states"].flatten(0, 1))
        if name + "encoder_hidden_states" in io:
            yield value(f"block {number}: text", text_MD, io[name + "encoder_hidden_states"].flatten(0, 1))
    out = rearrange(
        model.output(image_ND, activated_BD, layout), "(b h w) (p q c) -> b c (h p) (w q)",
        h=grid[0], w=grid[1], p=patch, q=patch,
    )  # fmt: skip
    yield value("output", out, io["out"])

    out.square().mean().backward()
    yield Found("gradients", _gradients_off(model, config["arch"], all_weights, io), GRADIENTS)


def _gradients_off(model: MMDiT, arch: dict[str, Any], weights: dict[str, Tensor], io: dict[str, Tensor]) -> float:
    """The worst error of a gradient, beside those that diffusers computes here and now."""
    theirs = SD3Transformer2DModel(**arch)
    theirs.load_state_dict(weights)
    inputs = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    theirs(**{name: io[name] for name in inputs}).sample.square().mean().backward()
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in theirs.named_parameters()
    }
    expected, ours = mapped(found, arch["num_layers"]), {name: one.grad for name, one in model.named_parameters()}
    # The last block's texts ask nothing: gradients of 0 in both.
    return max(
        error(ours[name], grad) if grad.any() else float(ours[name].abs().max()) for name, grad in expected.items()
    )


def mapped(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Weights by our names: queries, keys and values in one; shifts before scales; channels of a patch side by side."""
    whole = dict(weights)
    for names in (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")):
        for name in [name for name in whole if f".{names[0]}." in name]:
            parts = [whole.pop(name.replace(names[0], other)) for other in names]
            whole[name.replace(names[0], names[0].split("_")[0] + "_qkv")] = torch.cat(parts)
    for norm in (f"transformer_blocks.{depth - 1}.norm1_context.linear", "norm_out.linear"):
        for part in ("weight", "bias"):
            scale, shift = whole[f"{norm}.{part}"].chunk(2)
            whole[f"{norm}.{part}"] = torch.cat([shift, scale])
    patches = "pos_embed.proj.weight"
    whole[patches] = rearrange(whole[patches], "d c p q -> d (p q c)")
    return {renamed(name, NAMES): weight for name, weight in whole.items()}
