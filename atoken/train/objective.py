"""What ``atoken.train`` knows of the thing that it trains: an objective, batches, and where they come from.

An objective is a network together with its loss, one module, so that an engine sees every forward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from atoken.data.mixing import Broken

B = TypeVar("B", bound="Batch")
Given = TypeVar("Given", bound="Batch", covariant=True)
Evaluate = Callable[[Mapping[str, Tensor]], tuple[dict[str, float], np.ndarray | None]]
Export = Callable[[Mapping[str, Tensor], Path], None]


class Batch(Protocol):
    """One micro-batch: the work of one process between two additions to the gradient."""

    @property
    def task(self) -> str:
        """Its task. The loss of a step is the sum over tasks of the mean over their micro-batches."""

    @property
    def samples(self) -> int:
        """How many samples are in it."""

    @property
    def broken(self) -> Sequence[Broken]:
        """Samples that were skipped on the way."""

    def __len__(self) -> int:
        """Tokens, or whatever else the work of a step is counted in."""

    def to(self: B, device: torch.device | str) -> B:
        """The same batch on another device."""


class Source(Protocol[Given]):
    """Where batches come from; it must be picklable, since other processes may make them."""

    def keys(self, step: int) -> Sequence[Any]:
        """The micro-batches of a step, over all ranks: a function of the step alone, so that any step can resume.

        Of w ranks, rank r takes the keys r, r + w, r + 2w, ...
        """

    def batch(self, key: Any) -> Given:
        """The micro-batch of a key: a function of the key alone. Raises: AtokenError."""


class Group(NamedTuple):
    """Parameters that are trained alike.

    names: as ``named_parameters`` has them. lr_scale: times the recipe's learning rate. decay: whether the recipe's
    weight decay applies. muon: whether Muon may update them, where the recipe asks for it; they must be matrices.
    """

    names: tuple[str, ...]
    lr_scale: float = 1.0
    decay: bool = True
    muon: bool = False


class Objective(nn.Module, ABC, Generic[B]):
    """A network and its loss.

    Its state is its parameters: checkpoints hold neither buffers that training changes nor the state of random
    generators, so what it draws must be a function of the batch, or a resumed run would not equal an uninterrupted one.
    """

    @abstractmethod
    def forward(self, batch: B) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what it is made of: terms by name, detached, for the log."""

    def parameter_groups(self) -> Sequence[Group]:
        """What is trained and how; a parameter in no group is frozen. By default all are, and only matrices decay."""
        sizes = {name: parameter.ndim for name, parameter in self.named_parameters()}
        matrices, others = (tuple(n for n, ndim in sizes.items() if (ndim > 1) == matrix) for matrix in (True, False))
        return [group for group in (Group(matrices), Group(others, decay=False)) if group.names]

    def frozen(self) -> dict[str, nn.Parameter]:
        """The parameters in no group, by name."""
        trained = {name for group in self.parameter_groups() for name in group.names}
        return {name: parameter for name, parameter in self.named_parameters() if name not in trained}

    def layout(self, batch: B) -> Hashable:
        """What all ranks must have alike in a step: under ZeRO-3, whatever decides which modules run how often."""
        return None

    @abstractmethod
    def flops(self, batch: B) -> int:
        """FLOPs of a step on it, forward and backward, as MFU counts them: without what is computed twice."""
