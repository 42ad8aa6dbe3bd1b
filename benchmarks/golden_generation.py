"""Generators against what the published code computed: every fixture of a folder, and the worst error of each.

A fixture NAME is NAME.config.json, NAME.weights.safetensors and NAME.io.safetensors, as those of LightningDiT
(``ldit-``), TokenBridge (``tb-``), SD3 (``sd3``, ``sd35``) and TRELLIS (``trellis-``); shapes, seeds and step counts
are read from them. An error is the largest absolute difference over the largest absolute value of the reference. Exit
code 1 if a value is more than 2e-5 off, a gradient more than 1e-4, or a token is not equal.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.golden_comparisons import GRADIENTS, TOKENS, VALUES, Found, equal, gradients, value
from benchmarks.golden_sd3 import sd3
from benchmarks.golden_trellis import trellis
from benchmarks.tables import head, row
from generation.decoding import Decoding, Drawn, decode
from generation.digits import ScalarValues
from generation.flow import flow_loss, mixed
from generation.guidance import Guidance, guided
from generation.masked_ar import MaskedAR, masked_first
from generation.sampling import sample, sigma_steps
from generation.weights import LIGHTNINGDIT, TOKENBRIDGE, load_lightningdit, load_tokenbridge


def lightningdit(config: dict[str, Any], weights: dict[str, Tensor], io: dict[str, Tensor]) -> Iterator[Found]:
    """Forward, guidance, loss with gradients, and whole runs of Euler."""
    model, settings = load_lightningdit(weights, heads=config["arch"]["num_heads"]), config["cfg"]
    scale, allowed = settings["scale"], (0.0, 1 - settings["start"])  # their time is 1 - sigma, their velocity reversed
    with torch.no_grad():
        yield value("forward", -model(io["fwd.x"], 1 - io["fwd.t"], io["fwd.y"]), io["fwd.out"])
        forms = {
            "upstream": Guidance(scale, channels=3),
            "upstream_interval": Guidance(scale, allowed, 3),
            "all_channels": Guidance(scale),
        }
        labels, null = io["cfg.y"], torch.full_like(io["cfg.y"], config["null_class"])
        for tag in ("lo", "hi"):
            sigma = 1 - float(io[f"cfg.{tag}.t"])
            for form, guidance in forms.items():
                found = -guided(model, labels, null, guidance)(io["cfg.x"], sigma)
                yield value(f"guidance, {tag}, {form}", found, io[f"cfg.{tag}.{form}"][: len(labels)])
    if "loss.x1" not in io:
        return
    data, noise, sigma_B = io["loss.x1"], io["loss.x0"], 1 - io["loss.t"]
    point = mixed(data, noise, sigma_B)
    yield value("loss: the point of the path", point, io["loss.xt"])
    loss = flow_loss(model(point, sigma_B, io["loss.y"]), data, noise)
    yield value("loss: mean square", loss.square, io["loss.mse"])
    yield value("loss: cosine", loss.cosine, io["loss.cos"])
    yield value("loss", loss.total[None], io["loss.total"])
    loss.total.backward()
    yield gradients(model, io, "loss.grad.", LIGHTNINGDIT)
    sigmas = sigma_steps(settings["points"] - 1, 1 / settings["shift"])
    yield value("the times of a run", 1 - torch.tensor(sigmas).float(), io["ode.t_grid"])
    labels, null = io["ode.y"], torch.full_like(io["ode.y"], config["null_class"])
    forms = {
        "upstream": forms["upstream_interval"],
        "all_channels": Guidance(scale, allowed),
        "no_guidance": Guidance(),
    }
    for form, guidance in forms.items():
        states = [io["ode.z"]]
        sample(guided(model, labels, null, guidance), io["ode.z"], sigmas, on_step=_kept(states))
        yield value(f"a run of Euler, {form}", torch.stack(states), io[f"ode.{form}.latents"])


def tokenbridge(config: dict[str, Any], weights: dict[str, Tensor], io: dict[str, Tensor]) -> Iterator[Found]:
    """Quantiser, features, logits, loss with gradients, and whole sampling runs."""
    arch, fsq = config["arch"], config.get("fsq_levels")
    heads = (arch["encoder_num_heads"], arch["decoder_num_heads"])
    order = tuple(config["channel_order"])
    model = load_tokenbridge(weights, heads=heads, fsq_levels=fsq and tuple(fsq), order=order)
    if "quant.x" in io:
        yield from _quantised(model.digits, io, "quant.")
        yield equal("training tokens", model.digits.tokens(io["train.latents"].flatten(2).mT), io["train.indices"])
    tokens, labels = io["train.indices"].long(), io["train.labels"]
    masked = masked_first(io["train.orders"], math.ceil(tokens.shape[1] * float(io["train.mask_rate"])))
    yield equal("mask", masked, io["train.mask"].bool())
    null = torch.full_like(labels, model.config.classes)
    every = torch.ones_like(masked)
    yield value("features", model.features(tokens, masked, labels, every), io["train.z"])
    yield value("features of the null condition", model.features(tokens, masked, null, every), io["train.z_null"])
    yield value("logits", model.logits(tokens, masked, labels), io["train.logits"])
    loss = model.loss(tokens, masked, labels)
    yield value("loss", loss[None], io["train.loss"])
    loss.backward()
    yield gradients(model, io, "train.grad.", TOKENBRIDGE)
    yield from _decoded(model, config["sampling"], io)


def _decoded(model: MaskedAR, settings: dict[str, Any], io: dict[str, Tensor]) -> Iterator[Found]:
    greedy, drawn = settings["iterations_greedy"], settings["iterations_gumbel"]
    modes = {
        "greedy": Decoding(greedy, settings["cfg"], temperature=0),
        "greedy_constant": Decoding(greedy, settings["cfg"], "constant", temperature=0),
        "greedy_nocfg": Decoding(greedy, 1.0, temperature=0),
        "gumbel": Decoding(drawn, settings["cfg"], temperature=settings["temperature_gumbel"]),
    }
    for mode, decoding in modes.items():
        steps, noise = list[Drawn](), io["samp.gumbel.noise"] if mode == "gumbel" else None
        found = decode(
            model, io["samp.labels"], decoding, (), orders_BL=io["samp.orders"], noise_BLVK=noise,
            on_iteration=lambda _, step, steps=steps: steps.append(step),
        )  # fmt: skip
        name = f"samp.{mode}."
        yield equal(f"{mode}: tokens", found, io[name + "tokens"])
        yield value(f"{mode}: guidance", torch.tensor([step.scale for step in steps]), io[name + "scale"])
        if name + "mask" in io:
            yield equal(f"{mode}: masks", torch.stack([step.masked for step in steps]), io[name + "mask"].bool())
        if name + "guided" in io:
            features = torch.zeros_like(io[name + "guided"])
            for step in steps:
                features[step.decided] = step.features.flatten(0, 1)
            yield value(f"{mode}: features", features, io[name + "guided"])
        if name + "latents" in io:
            latents = io[name + "latents"]
            yield value(f"{mode}: latents", model.digits.values(found).mT.reshape(latents.shape), latents)


def quantisers(config: dict[str, Any], _: dict[str, Tensor], io: dict[str, Tensor]) -> Iterator[Found]:
    """Tables of several sizes, as stored, and how far ours are from them."""
    scale = config["quant_max"] / config["std_range"]
    for levels in config["levels"]:
        name = f"levels{levels}."
        digits = ScalarValues(levels, scale)
        yield value(f"{levels} levels: boundaries", digits.boundaries, io[name + "boundaries"])
        yield value(f"{levels} levels: values", digits.table, io[name + "values"])
        digits.load_state_dict({"boundaries": io[name + "boundaries"], "table": io[name + "values"]})
        yield from _quantised(digits, io, name)


def _quantised(digits: Any, io: dict[str, Tensor], name: str) -> Iterator[Found]:
    yield equal(f"{name}tokens", digits.tokens(io[name + "x"]), io[name + "indices"])
    yield value(f"{name}values", digits.values(io[name + "indices"].long()), io[name + "dequantised"])


def _kept(states: list[Tensor]) -> Callable[[int, float, Tensor], None]:
    return lambda _, sigma, x: states.append(x)


CHECKS: Mapping[str, Callable[..., Iterator[Found]]] = {
    "tb-quantiser": quantisers,
    "ldit-": lightningdit,
    "tb-": tokenbridge,
    "sd3": sd3,
    "trellis-": trellis,
}


def fixtures(folder: Path) -> dict[str, Callable[..., Iterator[Found]]]:
    """The names of those that are checked, and what checks them."""
    names = sorted(path.name.removesuffix(".config.json") for path in folder.glob("*.config.json"))
    known = {name: next((check for start, check in CHECKS.items() if name.startswith(start)), None) for name in names}
    return {name: check for name, check in known.items() if check is not None}


def checked(folder: Path, name: str) -> list[Found]:
    """All comparisons of a fixture."""
    config = json.loads((folder / f"{name}.config.json").read_text(encoding="utf-8"))
    weights = folder / f"{name}.weights.safetensors"
    return list(fixtures(folder)[name](
        config, load_file(weights) if weights.is_file() else {}, load_file(folder / f"{name}.io.safetensors")
    ))  # fmt: skip


def main() -> None:
    """A line for each fixture; what is over its limit is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    names = fixtures(folder)
    if not names:
        sys.exit(f"There are no fixtures in {folder}.")
    head("fixture", "comparisons", "worst value", "gradients", "tokens that differ")
    wrong = []
    for name in names:
        found = checked(folder, name)
        worst = [max((one.error for one in found if one.limit == limit), default=math.nan)
                 for limit in (VALUES, GRADIENTS, TOKENS)]  # fmt: skip
        row(name, len(found), *(f"{error:.1e}" for error in worst[:2]), f"{worst[2]:.0f}")
        wrong += [f"{name}, {one.what}: {one.error:.2g}" for one in found if not one.error <= one.limit]
    others = sorted({path.name.removesuffix(".config.json") for path in folder.glob("*.config.json")} - names.keys())
    if others:
        print(f"\nNot checked: {', '.join(others)}.")
    if wrong:
        sys.exit("Too far off:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
