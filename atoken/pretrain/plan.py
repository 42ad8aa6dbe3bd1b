"""What a stage will take, before anything is loaded: samples, tokens, FLOPs, memory and time, by ``cost.py``.

Sizes of samples are those of the stage's own first micro-batches (``packing.py``); real images nearly fill their
budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from statistics import fmean

import torch

from atoken.errors import AtokenError
from atoken.model import ATokenConfig, ATokenModel
from atoken.presets import preset
from atoken.pretrain import cost
from atoken.pretrain.objective import decodes
from atoken.pretrain.packing import budgets
from atoken.pretrain.stages import Stage, Task, Term
from atoken.tokens import SparseTokens
from atoken.train.devices import PEAKS

MICRO_BATCHES = 8  # of each task that are looked at
GB = 1e9
NOT_COUNTED = (
    "not counted: teachers, the text side, losses and drawing; in memory also bf16 copies of weights, and what ZeRO "
    "copies, gathers and sends"
)


@dataclass(frozen=True)
class Load:
    """One task. Numbers are of a micro-batch, the mean of those looked at; ``activations``: bytes of the largest.

    share: of all steps that have it. flops: what MFU counts. recomputed: what checkpointing adds.
    """

    task: Task
    share: float
    samples: float
    tokens: float
    flops: float
    recomputed: float
    activations: int


@dataclass(frozen=True)
class Plan:
    """A stage on ``gpus`` of the kind ``gpu``, which reach the share ``mfu`` of their peak."""

    stage: Stage
    loads: Mapping[str, Load]
    parameters: cost.Parameters
    gpus: int
    gpu: str
    mfu: float

    @property
    def pace(self) -> cost.Pace:
        """Of the stage, in the mean over the mixture's cycle."""
        peak = PEAKS[self.gpu]
        tokens, steps = round(self.of_step("tokens")), self.stage.recipe.steps
        return cost.pace(self.of_step("flops"), tokens, steps, peak=peak, mfu=self.mfu, devices=self.gpus)

    def of_step(self, name: str) -> float:
        """A number of ``Load``, over all micro-batches of a step, in the mean over the cycle."""
        return sum(load.share * load.task.micro_batches * getattr(load, name) for load in self.loads.values())

    def memory(self, zero: int) -> cost.Memory:
        """Of each GPU. Engines keep weights in fp32 and compute in the stage's precision."""
        largest = max(load.activations for load in self.loads.values())
        return cost.memory(self.parameters, stage=zero, ranks=self.gpus, activations=largest, dtype=torch.float32)

    def tables(self) -> list[list[list[str]]]:
        """For people: tables as rows of cells."""
        return [self._facts(), self._tasks(), self._losses(), self._memory(), self._pace()]

    def _facts(self) -> list[list[str]]:
        stage, counts = self.stage, self.parameters
        rates = f"rates {stage.recipe.lr:g} to {stage.recipe.final_lr:g}, {stage.encoder_lr:g} of that for the encoder"
        facts = {
            "stage": f"{stage.name}, of preset {stage.preset}",
            "starts from": "what --start names, or anew" if stage.start_from is None else f"stage {stage.start_from}",
            "teachers": ", ".join(sorted(stage.teachers)) or "none",
            "steps": f"{stage.recipe.steps:,}, {stage.recipe.warmup:,} of them to warm up; {rates}",
            "parameters": f"{counts.trained / 1e6:,.1f} million trained, {counts.frozen / 1e6:,.1f} million frozen",
        }
        return [[f"{name:<13}{fact}"] for name, fact in facts.items()]

    def _tasks(self) -> list[list[str]]:
        columns = ("samples", "tokens", "flops", "recomputed")
        rows = [
            [name, load.task.modality, f"{load.share:.0%}", f"{load.task.micro_batches}",
             *(_short(load.task.micro_batches * getattr(load, column)) for column in columns)]
            for name, load in self.loads.items()
        ]  # fmt: skip
        mean = ["mean of steps", "", "", "", *(_short(self.of_step(column)) for column in columns)]
        return [["task", "modality", "of steps", "micro_batches", *columns], *rows, mean]

    def _losses(self) -> list[list[str]]:
        return [[f"loss of {name}: {' + '.join(map(_term, load.task.terms))}"] for name, load in self.loads.items()]

    def _memory(self) -> list[list[str]]:
        names = [*(part.name for part in fields(cost.Memory)), "total"]
        held = {f"ZeRO {zero}": self.memory(zero) for zero in range(4)}
        rows = [[zero, *(f"{getattr(of, name) / GB:,.2f}" for name in names)] for zero, of in held.items()]
        return [["GB on each GPU", *names], *rows]

    def _pace(self) -> list[list[str]]:
        pace = self.pace
        seconds, tokens = _short(pace.seconds_per_step), _short(pace.tokens_per_second)
        hours, of_gpus = _short(pace.hours), _short(pace.hours * self.gpus)
        going = f"{seconds} s a step, {tokens} tokens a second; the stage: {hours} hours, {of_gpus} GPU-hours"
        return [[f"{self.gpus} {self.gpu} at an MFU of {self.mfu:.0%}: {going}"], [NOT_COUNTED]]


def plan(stage: Stage, *, gpus: int, gpu: str, mfu: float) -> Plan:
    """The plan of a stage. Raises: AtokenError (an unknown GPU or MFU, micro-batches that the GPUs cannot share)."""
    if gpu not in PEAKS:
        raise AtokenError(f"The peak of {gpu} is not known; known are {', '.join(PEAKS)}.")
    if gpus < 1 or not 0 < mfu <= 1:
        raise AtokenError(f"A plan needs one GPU or more, and an MFU above 0 and up to 1, not {gpus} and {mfu}.")
    config, dtype = preset(stage.preset), torch.bfloat16 if stage.recipe.mixed_precision else torch.float32
    loads = {name: _load(stage, name, config, dtype) for name in stage.used}
    for name, load in loads.items():
        if load.task.micro_batches % gpus:
            raise AtokenError(
                f"Task {name} has {load.task.micro_batches} micro-batches in a step, which {gpus} GPUs cannot "
                "share evenly; set a "
                f"multiple of {gpus} with --set tasks.{name}.micro_batches."
            )
    with torch.device("meta"):
        model = ATokenModel(config)
    return Plan(stage, loads, cost.parameters(model, stage.frozen), gpus, gpu, mfu)


def _load(stage: Stage, name: str, config: ATokenConfig, dtype: torch.dtype) -> Load:
    task, frozen, again = stage.tasks[name], stage.frozen, stage.recipe.checkpointing
    sizes = [_sizes(stage, name, number, config) for number in range(MICRO_BATCHES)]
    micro_batches = [_parts(task, config, of_micro_batch, dtype) for of_micro_batch in sizes]
    flops = [cost.training_flops(parts, frozen, checkpointing=again) for parts in micro_batches]
    return Load(
        task,
        share=1.0 if name in stage.auxiliary else stage.mixture[name] / sum(stage.mixture.values()),
        samples=fmean(map(len, sizes)),
        tokens=fmean(sum(map(sum, of_micro_batch)) for of_micro_batch in sizes),
        flops=fmean(each.counted for each in flops),
        recomputed=fmean(each.recomputed for each in flops),
        activations=max(cost.activation_bytes(parts, frozen, checkpointing=again) for parts in micro_batches),
    )


def _sizes(stage: Stage, name: str, number: int, config: ATokenConfig) -> list[cost.Tiles]:
    steps = config.steps(config.tile_frames)
    found = budgets(stage.tasks[name], stage.recipe.seed, name, number)
    return [cost.grid_tiles((budget.length, budget.patches, 1), steps) for budget in found]


def _parts(task: Task, config: ATokenConfig, sizes: list[cost.Tiles], dtype: torch.dtype) -> tuple[cost.Part, ...]:
    if task.modality != "surface":
        return cost.model_parts(config, sizes, dtype, decode=decodes(task))
    count = sum(map(sum, sizes))
    place_N = torch.arange(count)  # a sheet, as surfaces are, of so many voxels
    sheet_N4 = torch.stack([place_N * 0, place_N // 64 % 64, place_N % 64, place_N // 64**2], 1)
    return cost.gaussian_parts(config, SparseTokens(torch.empty(count, 0), sheet_N4, (count,)), dtype)


def _short(number: float) -> str:
    """Three digits that count, and from a billion on the power of ten."""
    return f"{number:.2e}" if number >= 1e9 else f"{float(f'{number:.3g}'):,.12g}"


def _term(term: Term) -> str:
    return f"{term.weight:g} {term.fn.__name__}" + (f" (teacher {term.teacher})" if term.teacher else "")
