"""Parity with the published inference code, tensor by tensor: ``python -m tests.model.golden [--folder DIR]``.

The folder has weights, inputs and results of the published code at a small size (default: ``tests/data/golden``, with a
README). Prints the largest absolute difference of each tensor, relative to its largest absolute value; of FSQ indices
away from a rounding boundary, how many differ.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from atoken import gaussian_decoder
from atoken.bottleneck import FSQ
from atoken.checkpoint import load_official
from atoken.modalities.pixels import patchify
from atoken.model import ATokenModel
from atoken.tokens import SparseTokens
from benchmarks.tables import head, row

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VARIANTS = ("soc-tiny", "sod-tiny")
INPUTS = ("images", "videos", "video_single", "voxels")
TARGET, MARGIN = 1e-4, 1e-4  # relative error; distance to a rounding boundary


def released(folder: Path, variant: str) -> tuple[ATokenModel, dict[str, Tensor]]:
    """Our model with the published weights, and the results of the published code."""
    config, gaussians = (json.loads((folder / f"{name}.config.json").read_text()) for name in (variant, "gs-tiny"))
    weights, gaussian_weights = (folder / f"{name}.weights.safetensors" for name in ("soc-tiny", "gs-tiny"))
    model = load_official(weights, config, gaussian_weights, gaussians)
    return model, load_file(folder / f"{variant}.io.safetensors")


def packed(io: dict[str, Tensor], tag: str) -> SparseTokens:
    """The input as the published code packed it, at its own positions (columns batch, t, row, column, z)."""
    coords = io[f"{tag}.coords"]
    lengths = tuple(torch.bincount(coords[:, 0]).tolist())
    if tag == "voxels":
        rgb = 2 * io["voxels.rgb_patches"] - 1
        feats = torch.cat([rgb, rgb.new_zeros(len(rgb), 3072 - 768)], dim=1)
    else:
        names = ["videos.pixels.0"] if tag == "video_single" else [f"{tag}.pixels.{i}" for i in range(len(lengths))]
        videos = [io[name] if io[name].ndim == 4 else io[name][None] for name in names]
        feats = torch.cat([patchify(video).feats for video in videos])
    return SparseTokens(feats, coords[:, 1:], lengths)


@torch.inference_mode()
def pairs(folder: Path, variant: str, tag: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, result and reference of every tensor of one input."""
    model, io = released(folder, variant)
    encoded = model.encode(packed(io, tag))
    yield "features", encoded.features.feats, io[f"{tag}.features"]
    yield "moments", torch.cat([encoded.posterior.mean, encoded.posterior.logvar], dim=1), io[f"{tag}.moments"]
    yield "pooled", normalize(encoded.pooled, dim=-1), io[f"{tag}.pooled"]
    latents = encoded.latents
    if model.quantiser:
        yield "codes of their indices", model.quantiser.from_codes(io[f"{tag}.indices"]), io[f"{tag}.codes"]
        latents = latents.with_feats(io[f"{tag}.codes"])
    yield "decoded", model.decode(latents).feats, io[f"{tag}.decoded"]
    if f"{tag}.decoded_kv12_4" in io:
        cached = model.decode(latents, tile_frames=12, cache_frames=4).feats
        yield "decoded_kv12_4", cached, io[f"{tag}.decoded_kv12_4"]


@torch.inference_mode()
def gaussian_pairs(folder: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """As ``pairs``, for the tensors of the Gaussian decoder: raw, in the published layout, and activated."""
    model, (voxels, io) = released(folder, "soc-tiny")[0], voxels_and_results(folder)
    decoder = model.gaussian_decoder
    assert decoder is not None
    outputs = voxels.with_feats(decoder.outputs(voxels)).unpack()
    for i, (sample, found) in enumerate(zip(outputs, decoder(voxels), strict=True)):
        raw = {name: values.flatten(0, 1) for name, values in gaussian_decoder.by_name(sample.feats).items()}
        yield f"{i}.raw_xyz", found.means + 0.5, io[f"{i}.raw_xyz"]  # the published code works in [0, 1]^3 until then
        yield f"{i}.raw_features_dc", raw["colors"][:, None], io[f"{i}.raw_features_dc"]
        yield f"{i}.raw_scaling", raw["scales"], io[f"{i}.raw_scaling"]
        yield f"{i}.raw_rotation", gaussian_decoder.ROTATION_RATE * raw["quats"], io[f"{i}.raw_rotation"]
        yield f"{i}.raw_opacity", raw["opacities"], io[f"{i}.raw_opacity"]
        yield f"{i}.xyz", found.means, io[f"{i}.xyz"]
        yield f"{i}.scaling", found.scales, io[f"{i}.scaling"]
        yield f"{i}.rotation", found.quats, io[f"{i}.rotation"]
        yield f"{i}.opacity", found.opacities[:, None], io[f"{i}.opacity"]
        yield f"{i}.features_dc", (found.colors - 0.5) / gaussian_decoder.SH_0, io[f"{i}.features_dc"]


def voxels_and_results(folder: Path) -> tuple[SparseTokens, dict[str, Tensor]]:
    """The Gaussian decoder's input at t = 0 (published: columns batch, x, y, z), and the published results."""
    io = load_file(folder / "gs-tiny.io.safetensors")
    sample, positions = io["coords"][:, 0], io["coords"][:, 1:]
    coords = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return SparseTokens(io["feats"], coords, tuple(torch.bincount(sample).tolist())), io


@torch.inference_mode()
def indices(folder: Path, tag: str) -> tuple[Tensor, Tensor]:
    """FSQ indices and their reference, of groups whose values are all away from a rounding boundary."""
    model, io = released(folder, "sod-tiny")
    encoded = model.encode(packed(io, tag))
    away = (distance(model.quantiser, encoded.posterior.mean) > MARGIN).unflatten(1, (-1, 6)).all(-1)
    assert encoded.codes is not None
    return encoded.codes[away], io[f"{tag}.indices"].long()[away]


def distance(quantiser: FSQ | None, values: Tensor) -> Tensor:
    """Distance of values (..., C) from the nearest rounding boundary, in steps."""
    assert quantiser is not None
    bounded = quantiser.bound(values)
    return (bounded - bounded.floor() - 0.5).abs()


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest value. Raises ValueError if the shapes differ."""
    if found.shape != reference.shape:
        raise ValueError(f"The shapes differ: {tuple(found.shape)}, and {tuple(reference.shape)} in the reference.")
    return float((found - reference).abs().max() / reference.abs().max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=GOLDEN)
    folder = parser.parse_args().folder
    head("model", "input", "tensor", f"relative error (target {TARGET:.0e})")
    for variant in VARIANTS:
        for tag in INPUTS:
            for name, found, reference in pairs(folder, variant, tag):
                row(variant, tag, name, f"{relative_error(found, reference):.1e}")
    for name, found, reference in gaussian_pairs(folder):
        row("gs-tiny", "voxels", name, f"{relative_error(found, reference):.1e}")
    for tag in INPUTS:
        found, reference = indices(folder, tag)
        row("sod-tiny", tag, "indices", f"{int((found != reference).sum())} of {found.numel()} differ")


if __name__ == "__main__":
    main()
