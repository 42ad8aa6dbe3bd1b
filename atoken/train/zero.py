"""The engine of many processes: DeepSpeed's ZeRO, stages 0 to 3. The only file that knows DeepSpeed.

| ZeRO | a rank holds its share of |
| --- | --- |
| 0 | nothing: all of everything, gradients are averaged |
| 1 | moments, averages and one copy of the weights |
| 2 | and of the gradients |
| 3 | and of the weights that the network computes with |

Numbers are those of the plain engine: weights are kept, and gradients summed, in fp32, products are autocast.
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from atoken.errors import AtokenError, CheckpointError, MissingExtraError
from atoken.train.engine import PlainEngine
from atoken.train.objective import Batch, Objective
from atoken.train.recipe import Recipe
from atoken.train.run_folder import RunFolder

KEPT_WHOLE = 100_000  # numbers of a parameter below which ZeRO-3 does not bother to cut it up


class ZeroEngine(PlainEngine):
    """One rank's share of a stage. All ranks make the same calls; the numbers that come back are equal on all.

    What ``state`` gives is that of the plain engine, so that a run may go on with another number of ranks, another
    ZeRO stage, or none. It is gathered on rank 0 tensor by tensor (elsewhere it is empty): there it needs host memory
    for 16 bytes a parameter, which suits models of some billion parameters. A run of a thousand GPUs would rather have
    every rank write its shards.
    """

    def __init__(self, objective: Objective[Any], recipe: Recipe, device: str, zero: int) -> None:
        """``device``: "cpu" or "cuda", the rank's own. Raises: MissingExtraError, and as ``check_whole``."""
        check_whole(recipe)
        self.zero = zero
        self.deepspeed = _join(device)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        super().__init__(objective, recipe, f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device)

    def _masters(self) -> dict[str, Tensor]:
        """DeepSpeed's fp32 weights: flat vectors of many parameters each, of which this rank has a piece."""
        (optimiser,) = self.optimisers
        self.shapes = {name: parameter.shape for name, parameter in self.objective.named_parameters()}
        for parameter in self.objective.parameters():
            parameter.data = parameter.data.reshape(parameter.shape or 1)  # DeepSpeed cannot broadcast a scalar
        self.engine = self.deepspeed.initialize(model=self.objective, optimizer=optimiser, config=self._config())[0]
        if self.zero == 0:
            return super()._masters()
        flat = "single_partition_of_fp32_groups" if self.zero < 3 else "fp32_partitioned_groups_flat"
        masters = {f"shard {i}": shard for i, shard in enumerate(getattr(self.engine.optimizer, flat))}
        self.owners = dict.fromkeys(masters, optimiser)
        return masters

    def _config(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,  # of our batches
            "gradient_clipping": self.recipe.clip,
            "zero_optimization": {"stage": self.zero, "stage3_param_persistence_threshold": KEPT_WHOLE},
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {"enabled": self.recipe.mixed_precision, "dtype": "bfloat16"},
        }

    def train(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One step on this rank's micro-batches; the loss is the mean over those of all ranks.

        Raises: AtokenError, on all ranks, where they disagree on what to run, and as the plain engine.
        """
        self._check_order(batches)
        if self.zero == 3:
            # DeepSpeed keeps the gradient of a parameter that a step does not use as it was in an earlier step, be
            # it NaN, and would apply it again.
            for parameter in self.parameters.values():
                shard: Any = parameter
                self.deepspeed.utils.safe_set_local_grad(shard, torch.zeros_like(shard.ds_tensor))
        return super().train(batches)

    def _check_order(self, batches: Sequence[Batch]) -> None:
        """Ranks that do not run the same modules in the same order would wait for each other for ever."""
        order = [(batch.task, self.objective.layout(batch) if self.zero == 3 else None) for batch in batches]
        number = zlib.crc32(repr(order).encode())
        ends = torch.tensor([number, -number], device=self.device)
        distributed.all_reduce(ends, distributed.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise AtokenError(
                f"The ranks have different work at step {self.step}: all must have micro-batches of the same tasks in "
                "the same order and, under ZeRO-3, of the same layout (videos of as many tiles, for example)."
            )

    def _backward(self, batch: Batch, share: float, *, last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        self.engine.set_gradient_accumulation_boundary(last)
        loss, terms = self.engine(batch)
        self.engine.backward(loss * share)
        return loss, terms

    def _update(self) -> float:
        if self.zero == 0:
            return super()._update()  # the gradients are whole; DeepSpeed would apply those that are not finite
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else math.nan

    def _over_ranks(self, means: Tensor) -> Tensor:
        distributed.all_reduce(means)
        return means / self.world

    def total(self, numbers: Sequence[int]) -> list[int]:
        """Sums over ranks, the same answer on all."""
        found = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        distributed.all_reduce(found)
        return [int(number) for number in found.tolist()]

    def save(self, run_folder: RunFolder) -> None:
        """Write a checkpoint from rank 0. Raises: CheckpointError, on all ranks."""
        state, failure = self.state(), [""]
        if self.rank == 0:
            try:
                run_folder.save(*state)
            except CheckpointError as error:
                failure = [str(error)]
        distributed.broadcast_object_list(failure)
        if failure[0]:
            raise CheckpointError(failure[0])

    def _frozen(self) -> dict[str, Tensor]:
        whole: dict[str, Tensor] = {}
        for name, parameter in self.objective.named_parameters():
            if name not in self.parameters:
                with self.deepspeed.zero.GatheredParameters(parameter):
                    whole |= self._whole(name, parameter)
        return whole

    def _whole(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """A whole tensor by its name, in host memory; nothing but on rank 0."""
        return {name: tensor.detach().reshape(self.shapes[name]).to("cpu", copy=True)} if self.rank == 0 else {}

    @torch.no_grad()
    def _gathered(self, shards: dict[str, Tensor]) -> dict[str, Tensor]:
        """On rank 0. DeepSpeed gathers weights, so the shards take their place for a while."""
        if not shards:
            return {}
        whole: dict[str, Tensor] = {}
        weights = {name: master.clone() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            master.copy_(shards[name])
        for name, parameter in self.parameters.items():
            found = self.deepspeed.utils.safe_get_full_fp32_param(parameter)
            whole |= self._whole(name, parameter if found is None else found)
        for name, master in self.masters.items():
            master.copy_(weights[name])
        return whole

    def _scattered(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        self._load(whole)
        return {name: master.detach().clone() for name, master in self.masters.items()} if whole else {}

    def _load(self, whole: dict[str, Tensor]) -> None:
        for name, parameter in self.objective.named_parameters():
            if name in whole:
                with self.deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                    parameter.copy_(whole[name])
        if self.zero:
            self.engine.optimizer.refresh_fp32_params()


def check_whole(recipe: Recipe) -> None:
    """Raises: AtokenError for a recipe with Muon."""
    if recipe.muon:
        raise AtokenError(
            "Muon needs whole matrices, and ZeRO cuts them up; train in one process without DeepSpeed, or set muon=0."
        )


def _join(device: str) -> Any:
    """Enter the launcher's group of processes, or a group of one. Returns DeepSpeed. Raises: MissingExtraError."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("deepspeed", "zero", "Training with ZeRO") from error
    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and takes a compiler
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not distributed.is_initialized():
        launched = "RANK" in os.environ
        alone: Any = {} if launched else {"store": distributed.HashStore(), "rank": 0, "world_size": 1}
        distributed.init_process_group("nccl" if device == "cuda" else "gloo", **alone)
    deepspeed.init_distributed()
    return deepspeed
