"""The engine of many processes: DeepSpeed's ZeRO, stages 0 to 3. The only file that knows DeepSpeed.

| ZeRO | a rank holds its share of |
| --- | --- |
| 0 | nothing: each has all of it |
| 1 | moments, EMA and fp32 weights |
| 2 | and gradients |
| 3 | and the weights that the network computes with |

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

from atoken.errors import AtokenError, MissingExtraError
from atoken.train.checkpoints import Checkpoint
from atoken.train.engine import Piece, PlainEngine
from atoken.train.objective import Batch, Objective
from atoken.train.recipe import Recipe

KEPT_WHOLE = 100_000  # numbers of a parameter below which ZeRO-3 does not bother to cut it up
BUCKET = 20_000_000  # numbers of gradients that are sent together


class ZeroEngine(PlainEngine):
    """One rank's share of a run. All ranks make the same calls; the numbers that come back are equal on all.

    Its checkpoints are those of the plain engine, in pieces, so that a run may resume with another number of ranks,
    another ZeRO stage, or none.
    """

    def __init__(
        self, objective: Objective[Any], recipe: Recipe, device: str, zero: int, saved: Checkpoint | None = None
    ) -> None:
        """``device``: "cpu" or "cuda", the rank's own. Raises: AtokenError (no DeepSpeed, Muon), CheckpointError."""
        check_whole(recipe)
        self.zero = zero
        self.deepspeed = _join(device)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        of_rank = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
        super().__init__(objective, recipe, of_rank, saved)

    def _masters(self) -> dict[str, Tensor]:
        """DeepSpeed's fp32 weights: flat vectors of many parameters each, of which this rank has a piece."""
        (optimiser,) = self.optimisers
        self.shapes = {name: parameter.shape for name, parameter in self.objective.named_parameters()}
        for parameter in self.objective.parameters():
            parameter.data = parameter.data.reshape(parameter.shape or 1)  # DeepSpeed cannot broadcast a scalar
        self.engine = self.deepspeed.initialize(model=self.objective, optimizer=optimiser, config=self._config())[0]
        if self.zero == 0:
            return super()._masters()
        zero = self.engine.optimizer
        shards = zero.fp32_partitioned_groups_flat if self.zero == 3 else zero.single_partition_of_fp32_groups
        if self.zero == 3:
            for shard, weights in zip(shards, zero.fp16_partitioned_groups_flat, strict=True):
                if shard.dtype == weights.dtype:
                    shard.data = weights.data  # as DeepSpeed means to, or weights in fp32 would be there twice
        masters = {f"shard {number}": shard for number, shard in enumerate(shards)}
        self.owners = dict.fromkeys(masters, self.optimisers[0])
        return masters

    def _pieces(self) -> dict[str, Piece]:
        """Where DeepSpeed has put them; a rank may hold none of a parameter."""
        if self.zero == 0:
            return super()._pieces()
        found = {}
        for name, parameter in self.parameters.items():
            of: Any = parameter
            if self.zero == 3:
                shard, at, size = self.engine.optimizer.grad_position[self.engine.optimizer.get_param_id(of)]
                start = self.rank * size
                count = min(size, of.ds_numel - start)
            elif of._hp_mapping is None:
                continue
            else:
                shard, here = of._hp_mapping.param_group_index, of._hp_mapping.hp_fragment_address
                at, start, count = here.start, of._hp_mapping.lp_fragment_address.start, here.numel
            if count > 0:
                found[name] = Piece(f"shard {shard}", at, start, count)
        return found

    def _share(self) -> dict[str, Piece]:
        pieces = list(self.pieces.items())
        return dict(pieces[self.rank :: self.world] if self.zero == 0 else pieces)

    def _config(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,  # of our batches
            "gradient_clipping": self.recipe.clip,
            "zero_optimization": {
                "stage": self.zero,
                "stage3_param_persistence_threshold": KEPT_WHOLE,
                "reduce_bucket_size": BUCKET,
            },
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {"enabled": self.recipe.mixed_precision, "dtype": "bfloat16"},
        }

    def train(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One step on this rank's micro-batches; the loss is the mean over those of all ranks.

        Raises: AtokenError, on all ranks, where they disagree on what to run, and as the plain engine.
        """
        self._check_order(batches)
        if self.zero < 3:
            return super().train(batches)
        # DeepSpeed keeps the gradient of a parameter that a step does not use as it was in an earlier step, be it NaN,
        # and would apply it again. Between steps, the memory is for evaluations and checkpoints.
        gradients = self.engine.optimizer.grad_partitions_flat_buffer
        gradients.untyped_storage().resize_(gradients.nbytes)
        gradients.zero_()
        row = super().train(batches)
        gradients.untyped_storage().resize_(0)
        return row

    def _check_order(self, batches: Sequence[Batch]) -> None:
        """Ranks that do not run the same modules in the same order would wait for each other for ever."""
        order = [(batch.task, self.objective.layout(batch) if self.zero == 3 else None) for batch in batches]
        number = zlib.crc32(repr((self.step, order)).encode())
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

    def _summed(self, numbers: Tensor) -> Tensor:
        distributed.all_reduce(numbers)
        return numbers

    def exchange(self, text: str) -> list[str]:
        """Every rank's text, on all ranks."""
        found = [""] * self.world
        distributed.all_gather_object(found, text)
        return found

    @torch.no_grad()
    def ema_weights(self) -> dict[str, Tensor]:
        """As of the plain engine, in host memory; only on rank 0, where they are gathered one by one."""
        whole = {}
        for name, parameter in self.objective.named_parameters():
            if self.zero and name in self.parameters:
                tensor = torch.zeros(self.shapes[name].numel(), device=self.device)
                if piece := self.pieces.get(name):
                    held = self.ema[piece.master][piece.at : piece.at + piece.size]
                    tensor[piece.start : piece.start + piece.size] = held
                distributed.reduce(tensor, 0)
            else:
                with self.deepspeed.zero.GatheredParameters(parameter):
                    tensor = self.ema.get(name, parameter).detach().clone()
            if self.rank == 0:
                whole[name] = tensor.reshape(self.shapes[name]).cpu()
        return whole


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
    if device == "cpu":  # else DeepSpeed runs numactl in every backward pass
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1"))
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
