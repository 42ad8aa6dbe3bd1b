"""TRELLIS's networks, losses and samplers against what the published code computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from atoken.tokens import SparseTokens
from benchmarks.golden_comparisons import Found, equal, gradients, value
from generation.cells import Cells, pooled
from generation.flow import data_of, mixed, noise_of
from generation.guidance import Guidance, guided
from generation.sampling import sample, sigma_steps
from generation.slat import SlatFlow
from generation.structure import StructureFlow, StructureVAE
from generation.trellis import FLOW, trellis_model

Run = Callable[..., Tensor]  # x, sigma and condition -> velocity


def trellis(config: dict[str, Any], weights: dict[str, Tensor], io: dict[str, Tensor]) -> Iterator[Found]:
    """A network at each of its parts, its loss with gradients, and whole runs of the sampler."""
    if "model" not in config:
        yield from _toy(config["sampler"], io)
        return
    model = trellis_model(config["model"], config["arch"], weights)
    if isinstance(model, StructureVAE):
        yield from _autoencoder(model, io)
        return
    run, sample_of = _run(model, io), (io["coords"][:, 0].long() if "coords" in io else slice(None))
    parts = _parts(model, io)
    # In fp64, so that a thousand times sigma is the time that they gave.
    with _Seen(parts) as seen, torch.no_grad():
        found = run(io["fwd.x"], io["fwd.t"].double() / 1000, io["fwd.cond"])
    for name in parts:
        yield value(name, seen[name].reshape(io[name].shape), io[name])
    if isinstance(model, SlatFlow):
        fine, coarse = Cells.sizes(_packed(io, io["fwd.pool_input"]), 2)
        found_M4 = torch.cat([coarse.tokens.sample_N[:, None], coarse.tokens.coords[:, 1:]], 1)
        yield equal("cells of twice the side", found_M4, io["fwd.input_block1.coords"])
        yield value("fwd.pooled", pooled(io["fwd.pool_input"], fine, published=True), io["fwd.pooled"])
    yield value("output", found, io["fwd.out"])
    if "loss.x0" in io:
        data, noise = _data(config["sampler"], io), io["loss.noise"]
        point = mixed(data, noise, io["loss.t"][sample_of])
        yield value("loss: the point of the path", point, io["loss.xt"])
        yield value("loss: the velocity", noise - data, io["loss.target"])
        prediction = run(point, io["loss.model_t"].double() / 1000, io["loss.cond"])
        yield value("loss: the prediction", prediction, io["loss.pred"])
        loss = mse_loss(prediction, noise - data)
        yield value("loss", loss[None], io["loss.loss"])
        loss.backward()
        yield gradients(model, io, "loss.grad.", FLOW)
    if "samp.noise" in io:
        yield from _sampled(run, config["sampler"], io, "samp.")


def _autoencoder(model: StructureVAE, io: dict[str, Tensor]) -> Iterator[Found]:
    half = model.encoder or model.decoder
    assert half is not None
    parts = {"mid.input": half.inputs, "mid.middle": half.middle}
    parts |= {f"mid.block{number}": block for number, block in enumerate(half.blocks) if f"mid.block{number}" in io}
    with _Seen(parts) as seen, torch.no_grad():
        outputs = dict(zip(("mean", "logvar"), model.encode(io["x"]), strict=True)) if model.encoder else {
            "out": model.decode(io["x"])
        }  # fmt: skip
    for name, found in (seen | outputs).items():
        yield value(name, found, io[name])
    if "out" in outputs:
        yield equal("occupied", outputs["out"] > 0, io["out"] > 0)


def _run(model: StructureFlow | SlatFlow, io: dict[str, Tensor]) -> Run:
    """Dense latents as they are; packed ones with their coordinates, of as many samples as there are conditions."""
    if isinstance(model, StructureFlow):
        return model
    return lambda x_NC, sigma_B, condition_BLE: model(_packed(io, x_NC), sigma_B, condition_BLE)


def _packed(io: dict[str, Tensor], x_NC: Tensor) -> SparseTokens:
    """Features of the voxels of a fixture, once or twice."""
    coords = io["coords"].long()
    times, lengths = len(x_NC) // len(coords), tuple(torch.bincount(coords[:, 0]).tolist())
    return SparseTokens(x_NC, coords.repeat(times, 1), times * lengths)


def _parts(model: StructureFlow | SlatFlow, io: dict[str, Tensor]) -> dict[str, nn.Module]:
    parts = {"fwd.t_emb": model.trunk.time, "fwd.input": model.inputs}
    parts |= {f"fwd.block{number}": block for number, block in enumerate(model.trunk.blocks)}
    if isinstance(model, SlatFlow):
        parts |= {f"fwd.input_block{number}": block for number, block in enumerate(model.downs)}
        parts |= {f"fwd.out_block{number}": block for number, block in enumerate(model.ups)}
    return {name: part for name, part in parts.items() if name in io}


class _Seen(dict[str, Tensor]):
    """What modules give while this is open, by name."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.hooks = [part.register_forward_hook(partial(self._keep, name)) for name, part in parts.items()]

    def _keep(self, name: str, _: nn.Module, __: tuple[Any, ...], found: Tensor) -> None:
        self[name] = found.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def _data(settings: dict[str, Any], io: dict[str, Tensor]) -> Tensor:
    """Their path from data and noise is ours from data with a little of that noise in it."""
    return io["loss.x0"] + settings["sigma_min"] * io["loss.noise"]


def _sampled(run: Run, settings: dict[str, Any], io: dict[str, Tensor], name: str) -> Iterator[Found]:
    sigmas = sigma_steps(settings["steps"], settings["rescale_t"])
    yield value("the times of a run", torch.tensor(sigmas), io["samp.t_seq"])
    guidance = Guidance(1 + settings["cfg_strength"], tuple(settings["cfg_interval"]))
    yield from _steps(run, settings, io, name, sigmas, guidance, "samp.")


def _steps(
    run: Run, settings: dict[str, Any], io: dict[str, Tensor], name: str, sigmas: list[float], guidance: Guidance,
    inputs: str,
) -> Iterator[Found]:  # fmt: skip
    """All states of a run of Euler, and the data that is expected at each."""
    velocity, slopes = guided(run, io[inputs + "cond"], io[inputs + "neg_cond"], guidance), list[Tensor]()
    states = [io[inputs + "noise"]]

    def noted(x: Tensor, sigma: float) -> Tensor:
        slopes.append(velocity(x, sigma))
        return slopes[-1]

    sample(noted, states[0], sigmas, on_step=lambda _, __, x: states.append(x))
    expected = []
    for x, slope, sigma in zip(states, slopes, sigmas, strict=False):
        at, least = torch.full((len(x),), sigma), settings["sigma_min"]
        expected.append(data_of(x, slope, at) - least * noise_of(x, slope, at))
    yield value(f"{name} states", torch.stack(states[1:]), io[name + "x_t"])
    yield value(f"{name} expected data", torch.stack(expected), io[name + "pred_x0"])


def _toy(settings: dict[str, Any], io: dict[str, Tensor]) -> Iterator[Found]:
    """The sampler alone, on a formula in place of a network."""
    for key in (key for key in io if key.startswith("t_seq.")):
        steps, shift = key.removeprefix("t_seq.steps").split(".rescale")
        yield value(key, torch.tensor(sigma_steps(int(steps), float(shift)), dtype=torch.float64), io[key])
    scale = 1 + settings["cfg_strength"]
    rescaled = sigma_steps(settings["steps"], settings["rescale_t"])
    forms = {
        "interval.": (rescaled, Guidance(scale, tuple(settings["cfg_interval"]))),
        "cfg.": (rescaled, Guidance(scale)),
        "plain.": (sigma_steps(settings["steps"]), Guidance()),
    }

    def run(x: Tensor, sigma_B: Tensor, condition: Tensor) -> Tensor:
        return 0.3 * x + condition - 0.5 * sigma_B[:, None, None]

    for form, (sigmas, guidance) in forms.items():
        yield from _steps(run, settings, io, form, sigmas, guidance, "")
