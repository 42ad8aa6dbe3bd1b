"""Published weights of TRELLIS (Xiang et al. 2024) as ours: flows of structure and of latents, and the autoencoder.

Its convention is ours: sigma is its time, the network sees 1000 sigma, and its noise of deviation ``sigma_min`` in data
is data of ours. Its ``cfg_strength`` s is a guidance scale of 1 + s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atoken.checkpoint import read_state
from atoken.errors import CheckpointError
from atoken.gaussian_decoder import positions
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE
from generation.weights import SAME, filled, missing

FLOW = {
    r"^t_embedder\.mlp\.0\.": "trunk.time.up.",
    r"^t_embedder\.mlp\.2\.": "trunk.time.out.",
    r"^adaLN_modulation\.1\.": "trunk.modulation.",
    r"^blocks\.": "trunk.blocks.",
    r"^input_layer\.": "inputs.",
    r"^out_layer\.": "out.",
    r"^input_blocks\.": "downs.",
    r"^out_blocks\.": "ups.",
    r"\.self_attn\.to_": ".attention.",
    r"\.cross_attn\.to_": ".cross.",
    r"\.self_attn\.": ".attention.",
    r"\.cross_attn\.": ".cross.",
    r"\.([qk])_rms_norm\.gamma$": r".\1_norm.gain_HK",
    r"\.mlp\.mlp\.0\.": ".mlp.up.",
    r"\.mlp\.mlp\.2\.": ".mlp.down.",
    r"\.adaLN_modulation\.1\.": ".modulation.",
    r"\.norm1\.": ".norm.",
    r"\.conv\.": ".",
    r"\.emb_layers\.1\.": ".modulation.",
    r"\.skip_connection\.": ".project.",
}
AUTOENCODER = {
    r"^input_layer\.": "inputs.",
    r"^middle_block\.": "middle.",
    r"^out_layer\.0\.": "norm.",
    r"^out_layer\.2\.": "out.",
}
AUTOENCODERS = {"SparseStructureEncoder": "encoder", "SparseStructureDecoder": "decoder"}


def load_trellis(path: str | Path) -> StructureFlow | SlatFlow | StructureVAE:
    """One of the published networks: a ``.safetensors`` file, with its ``.json`` beside it. Raises: CheckpointError."""
    weights = Path(path).with_suffix(".safetensors")
    try:
        described = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        name, options = described["name"], described["args"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{weights.with_suffix('.json')} does not say which network of TRELLIS this is: {error}; it comes with the "
            "weights."
        ) from error
    return trellis_model(name, options, read_state(weights))


def trellis_model(
    name: str, options: Mapping[str, Any], state: Mapping[str, Tensor]
) -> StructureFlow | SlatFlow | StructureVAE:
    """A network of TRELLIS by the name of its class there, its options and weights. Raises: CheckpointError."""
    state, kind = dict(state), name.removeprefix("Elastic")
    if options.get("pe_mode", "ape") != "ape" or not options.get("use_skip_connection", True):
        raise CheckpointError("Networks of TRELLIS have fixed positions and skips here, as all published ones.")
    with missing(f"TRELLIS {name}"), torch.device("meta"):
        if kind == "SparseStructureFlowModel":
            side = options["resolution"] // options["patch_size"]
            _check_table(state.pop("pos_emb"), side, options["model_channels"])
            flow = StructureFlow(
                side=options["resolution"], channels=options["in_channels"], patch=options["patch_size"],
                **_trunk(options),
            )  # fmt: skip
            return filled(flow, state, FLOW)
        if kind == "SLatFlowModel":
            slat = SlatFlow(
                channels=options["in_channels"], io_channels=tuple(options["io_block_channels"]),
                io_blocks=options["num_io_res_blocks"], published_pooling=True, **_trunk(options),
            )  # fmt: skip
            flat = {key: weight.flatten(1, 3) if weight.ndim == 5 else weight for key, weight in state.items()}
            return filled(slat, flat, FLOW)
        if (part := AUTOENCODERS.get(kind)) is not None:
            channels = tuple(options["channels"])
            autoencoder = StructureVAE(
                channels=channels if part == "encoder" else channels[::-1], latents=options["latent_channels"],
                blocks=options["num_res_blocks"], middle=options["num_res_blocks_middle"], halves=(part,),
            )  # fmt: skip
            names = AUTOENCODER | {r"^": f"{part}."}
            return filled(autoencoder, state, names)
    known = ("SparseStructureFlowModel", "SLatFlowModel", *AUTOENCODERS)
    raise CheckpointError(f"There is no network {name} of TRELLIS here; there are {', '.join(known)}.")


def _trunk(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "width": options["model_channels"], "depth": options["num_blocks"],
        "heads": options.get("num_heads") or options["model_channels"] // options.get("num_head_channels", 64),
        "hidden": float(options.get("mlp_ratio", 4)), "condition": options["cond_channels"],
        "qk_norm": options.get("qk_rms_norm", False), "cross_qk_norm": options.get("qk_rms_norm_cross", False),
        "shared": options.get("share_mod", False),
    }  # fmt: skip


def _check_table(stored: Tensor, side: int, width: int) -> None:
    fits = stored.shape == (side**3, width)
    if fits and stored.device.type != "meta":
        cells_N3 = torch.cartesian_prod(*(torch.arange(side, device="cpu") for _ in range(3)))
        fits = torch.allclose(stored.float().cpu(), positions(cells_N3, width), atol=SAME)
    if not fits:
        raise CheckpointError(f"pos_emb is not the table of positions of a TRELLIS of {side}^3 patches.")
