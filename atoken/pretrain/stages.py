"""What a stage of training the tokenizer is, as data: which tasks are seen how often, what is summed, from where, how.

The stages themselves are values in ``atoken/pretrain/curriculum.py``. A **task** is one kind of micro-batch: a
modality, its sizes, and the terms of its loss. A step has one task of the mixture, and all auxiliary tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from msgspec import Meta
from torch import Tensor

from atoken.train.recipe import Count, NotNegative, Recipe

MATCHING = ("pool.", "logit_", "text_tower.")  # parameters that only matching with texts reads
Range = tuple[Count, Count]  # fewest and most
Modality = Literal["image", "video", "asset", "crop", "surface"]


@dataclass(frozen=True)
class Term:
    """One summand of the loss: the function itself, not its name, and which frozen network it needs.

    texts: it reads the captions, so its task wants samples that have some.
    """

    fn: Callable[[Any], Tensor]
    weight: float
    teacher: str | None = None
    texts: bool = False


@dataclass(frozen=True)
class Task:
    """One kind of micro-batch. Sizes are in patches of 16 x 16 pixels, lengths in time steps of 4 frames.

    modality: ``image``; ``video``; ``asset``, voxels of whole 3D assets; ``crop``, those in a cube of one asset;
    ``surface``, the same with the points of the surface that the crop's Gaussians must show.
    """

    modality: Modality
    terms: tuple[Term, ...]
    tokens: Count = 1024  # budget of one micro-batch
    micro_batches: Count = 1  # of a step, over all ranks
    patches: Range = (16, 256)  # of an image, of one time step of a video; voxels of an asset
    length: Range = (1, 1)  # of a video
    strides: Annotated[tuple[Range, ...], Meta(min_length=1)] = ((1, 3), (4, 12))  # frames between two that are taken
    fps: Annotated[float, Meta(ge=1e-3, le=1e6)] | None = None  # frames a second that are taken, in place of a stride
    aspect: Annotated[float, Meta(ge=1, le=1e6)] = 4.0  # longest side over shortest, at most, of generated media
    stream: str = ""  # name of its random stream, where that is not the task's own name
    sampled: bool = False  # what is decoded is a draw from the posterior, not its mean (of a continuous model)

    @property
    def computed(self) -> tuple[Term, ...]:
        """Its terms without those that need a frozen network but have weight 0."""
        return tuple(term for term in self.terms if term.weight or not term.teacher)

    @property
    def texts(self) -> bool:
        """Whether it wants samples with captions."""
        return any(term.texts for term in self.computed)

    @property
    def teachers(self) -> set[str]:
        """The frozen networks that its terms need."""
        return {term.teacher for term in self.computed if term.teacher}


@dataclass(frozen=True)
class Stage:
    """One stage. The loss of a step is the sum over its tasks of the mean over their micro-batches."""

    name: str
    preset: str
    tasks: Mapping[str, Task]
    mixture: Mapping[str, int]  # steps of each task in a cycle
    auxiliary: tuple[str, ...] = ()  # tasks of every step, beside that of the mixture
    start_from: str | None = None  # a stage whose weights this one starts with; None: ``pretrain/start/begin.py``
    frozen: tuple[str, ...] = ()  # beginnings of the names of parameters that are not trained
    encoder_lr: NotNegative = 1.0  # times lr; 0.1 where the encoder is already trained (paper section 3.5)
    code_kept: bool = False  # terms of texts do not change what carries the code of a linear start (recipe.md)
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share of the images of each folder that only measure
    recipe: Recipe = field(default_factory=Recipe)

    def tasks_of(self, step: int) -> list[tuple[str, int]]:
        """The tasks of a step, and how often each came before: one of the mixture's cycle, and the auxiliary ones."""
        slots = [
            (turn / share, self.tasks[name].stream or name, name)
            for name, share in self.mixture.items()
            for turn in range(1, share + 1)
        ]
        order = [name for *_, name in sorted(slots)]
        cycle, turn = divmod(step, len(order))
        name = order[turn]
        before = cycle * self.mixture[name] + order[:turn].count(name)
        return [(name, before), *((other, step) for other in self.auxiliary)]

    @property
    def used(self) -> dict[str, Task]:
        """The tasks that its steps have."""
        return {name: self.tasks[name] for name in (*self.mixture, *self.auxiliary)}

    @property
    def teachers(self) -> set[str]:
        """The frozen networks that it needs."""
        return set().union(*(task.teachers for task in self.used.values()))

    def without_teachers(self) -> Stage:
        """The same stage without the terms that need a frozen network, and without tasks that are nothing but those."""
        left = {n: replace(t, terms=tuple(x for x in t.terms if not x.teacher)) for n, t in self.tasks.items()}
        tasks = {name: task for name, task in left.items() if task.terms}
        mixture = {name: share for name, share in self.mixture.items() if name in tasks}
        bare = replace(self, tasks=tasks, mixture=mixture, auxiliary=tuple(n for n in self.auxiliary if n in tasks))
        matched = any(task.texts for task in bare.used.values())
        return bare if matched else replace(bare, frozen=(*self.frozen, *MATCHING))
