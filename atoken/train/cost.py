"""What training costs: FLOPs, bytes kept for the gradient, memory under ZeRO, and the plan of a run that they make.

FLOPs and bytes are counted by running an objective on the meta device, where nothing takes memory: parameters and
features are there, coordinates and the like on the host. One multiplication with its addition is 2 FLOPs; what is no
matrix product (norms, activations) has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
import torch.nn.attention.varlen  # tells FlopCounterMode about its kernels
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F  # noqa: N812 - the usual name
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from atoken.errors import AtokenError
from atoken.train.devices import PEAKS
from atoken.train.objective import Batch
from atoken.train.recipe import Recipe

FP32 = 4  # bytes of one number
NOT_COUNTED = "not counted: gradients of activations, bf16 copies of weights, what ZeRO copies, gathers and sends"


class Flops(NamedTuple):
    """FLOPs of a step. MFU counts ``forward + backward`` (Chowdhery et al. 2022, appendix B).

    recomputed: of activation checkpointing, which is work but no progress.
    """

    forward: int
    backward: int
    recomputed: int


def parameters(objective: nn.Module) -> tuple[int, int]:
    """How many are trained, and how many are frozen."""
    sizes = [(parameter.requires_grad, parameter.numel()) for parameter in objective.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for trained, size in sizes if not trained)


def count(objective: nn.Module, batch: Any, checkpointed: Collection[nn.Module] = ()) -> Flops:
    """FLOPs of a step on one micro-batch; frozen parameters must not require a gradient.

    checkpointed: modules that are to be computed again for the gradient; the objective itself must not do it. torch
    leaves out the last product of each, which is not deducted.
    """
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        loss, _ = objective(batch)
        forward = Counter({name: sum(kernels.values()) for name, kernels in counter.get_flop_counts().items()})
        if loss.requires_grad:
            loss.backward()
    objective.zero_grad()
    counts = counter.get_flop_counts()
    total = Counter({name: sum(kernels.values()) for name, kernels in counts.items()})
    # Of the five products in attention's backward kernels, the first computes the logits again.
    kernels = [(str(kernel), flops) for kernel, flops in counts["Global"].items()]
    logits = sum(flops // 5 for name, flops in kernels if "att" in name and name.endswith("backward"))
    named = objective.named_modules()
    names = [f"{type(objective).__name__}.{name}" for name, module in named if module in checkpointed]
    recomputed = sum(forward[name] for name in names if total[name] > forward[name])  # the others have no gradient
    return Flops(forward["Global"], total["Global"] - forward["Global"] - logits, recomputed)


def activations(objective: nn.Module, batch: Any, checkpointed: Collection[nn.Module] = ()) -> int:
    """Bytes that a forward pass keeps for the gradient: each storage once, without parameters and buffers.

    checkpointed: as in ``count``. Of these, inputs are kept, and all that the largest keeps when it is computed again.
    """
    own = {tensor.untyped_storage() for tensor in chain(objective.parameters(), objective.buffers())}
    kept: list[WeakSet[Any]] = [WeakSet()]  # storages that are still held; while a checkpointed module runs, its own
    again = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in own and storage not in kept[0]:
            kept[-1].add(storage)
        return tensor

    def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept.append(WeakSet())

    def leave(module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if inside := kept.pop():
            kept[0].update(x.untyped_storage() for x in inputs if isinstance(x, Tensor))
            again.append(sum(storage.nbytes() for storage in inside - kept[0]))

    hooks = [module.register_forward_pre_hook(enter) for module in checkpointed]
    hooks += [module.register_forward_hook(leave) for module in checkpointed]
    with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor), _GPUKernels():
        _loss, _ = objective(batch)  # which holds what is kept
    for hook in hooks:
        hook.remove()
    return sum(storage.nbytes() for storage in kept[0]) + max(again)


class _GPUKernels(TorchFunctionMode):
    """RMSNorm and attention are several kernels on the meta device, but one on a GPU, which keeps less.

    Of RMSNorm it keeps what LayerNorm keeps, of attention no logits.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.rms_norm:
            return F.layer_norm(args[0], args[1], kwargs["weight"])
        if function is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask")
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], mask, True)[0]
        return function(*args, **kwargs)


class Load(NamedTuple):
    """A task: the share of all steps that have it, and what its micro-batches in such a step take in the mean."""

    share: float
    micro_batches: float
    samples: float
    tokens: float
    flops: float
    recomputed: float

    @staticmethod
    def of(batches: Sequence[Batch], flops: Sequence[Flops], share: float = 1.0, micro_batches: float = 1) -> Load:
        """By some of its micro-batches and their FLOPs."""
        numbers = ([b.samples for b in batches], [len(b) for b in batches],
                   [sum(f[:2]) for f in flops], [f.recomputed for f in flops])  # fmt: skip
        return Load(share, micro_batches, *(micro_batches * fmean(column) for column in numbers))


@dataclass(frozen=True)
class Plan:
    """Training by a recipe on ``gpus`` of the name ``gpu``, which reach the share ``mfu`` of their peak.

    loads: by task. trained, frozen: parameters. activations: bytes that the largest micro-batch keeps. facts: lines
    about what is trained. labels: further columns of the table of tasks. remarks: lines below it.
    Raises: AtokenError (a GPU that is not known, no GPU, an MFU that cannot be).
    """

    recipe: Recipe
    loads: Mapping[str, Load]
    trained: int
    frozen: int
    activations: int
    gpus: int = 1
    gpu: str = "H100"
    mfu: float = 0.45
    facts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.gpu not in PEAKS:
            raise AtokenError(f"The peak of {self.gpu} is not known; known are {', '.join(PEAKS)}.")
        if self.gpus < 1 or not 0 < self.mfu <= 1:
            wanted = "A plan needs one GPU or more, and an MFU above 0 and up to 1"
            raise AtokenError(f"{wanted}, not {self.gpus} and {self.mfu}.")

    def of_step(self, column: str) -> float:
        """A number of ``Load`` in the mean over all steps."""
        return sum(load.share * getattr(load, column) for load in self.loads.values())

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.of_step("flops") / (PEAKS[self.gpu] * self.mfu * self.gpus)

    def memory(self, zero: int) -> dict[str, int]:
        """Bytes on each GPU under a stage of ZeRO, by what they hold (Rajbhandari et al. 2020, section 5).

        Adam's moments and the EMA are split among GPUs from stage 1 on, gradients from 2 on, weights at 3; what is
        frozen has weights alone. All are in fp32, so that there is no master beside the weights.
        """

        def held(numbers: int, split_from: int) -> int:
            return FP32 * (-(-numbers // self.gpus) if zero >= split_from else numbers)

        trained = self.trained
        parts = {
            "weights": held(trained + self.frozen, 3), "gradients": held(trained, 2), "master": 0,
            "moments": 2 * held(trained, 1), "ema": held(trained, 1), "activations": self.activations,
        }  # fmt: skip
        return parts | {"total": sum(parts.values())}

    def tables(self) -> list[list[list[str]]]:
        """For people: tables as rows of cells."""
        recipe, columns = self.recipe, Load._fields[2:]
        facts = {
            **self.facts, "steps": f"{recipe.steps:,}, {recipe.warmup:,} of them to warm up",
            "rates": f"{recipe.lr:g} to {recipe.final_lr:g}",
            "parameters": f"{self.trained / 1e6:,.1f} million trained, {self.frozen / 1e6:,.1f} million frozen",
        }  # fmt: skip
        tasks = [
            [name, *(label[name] for label in self.labels.values()), f"{load.share:.0%}", f"{load.micro_batches:g}",
             *map(_short, load[2:])]
            for name, load in self.loads.items()
        ]  # fmt: skip
        mean = [*("" for _ in self.labels), "", "", *(_short(self.of_step(column)) for column in columns)]
        held = {f"ZeRO {zero}": self.memory(zero) for zero in range(4)}
        hours = recipe.steps * self.seconds / 3600
        pace = f"{_short(self.seconds)} s a step, {_short(self.of_step('tokens') / self.seconds)} tokens a second"
        taken = f"all steps: {_short(hours)} hours, {_short(hours * self.gpus)} GPU-hours"
        return [
            [[f"{name:<13}{fact}"] for name, fact in facts.items()],
            [["task", *self.labels, "of steps", "micro_batches", *columns], *tasks, ["mean of steps", *mean]],
            [[remark] for remark in self.remarks],
            [["GB on each GPU", *held["ZeRO 0"]],
             *([zero, *(f"{size / 1e9:,.2f}" for size in parts.values())] for zero, parts in held.items())],
            [[f"{self.gpus} {self.gpu} at an MFU of {self.mfu:.0%}: {pace}; {taken}"], [NOT_COUNTED]],
        ]  # fmt: skip


def _short(number: float) -> str:
    """Three significant digits, and from a billion on the power of ten."""
    return f"{number:.2e}" if number >= 1e9 else f"{float(f'{number:.3g}'):,.12g}"
