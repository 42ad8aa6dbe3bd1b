"""The objective: a batch to its loss and named terms, as one module so that an engine sees every forward pass."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from atoken.errors import CheckpointError
from atoken.gaussians import Gaussians
from atoken.model import ATokenModel
from atoken.pretrain.batches import Batch
from atoken.pretrain.losses import GaussianStep, Step
from atoken.pretrain.stages import Task
from atoken.pretrain.teachers import NO_TEACHERS, WITHOUT, Teachers
from atoken.text import TextTokenizer


class Objective(nn.Module):
    """Model and loss of one stage.

    tasks: those that are trained, by name. teachers: no part of the module, so that nothing registers, shards or saves
    them; who moves the module moves them, too (``Teachers.to``). texts: the tokenizer of the model's text side.
    Raises: CheckpointError where a task lacks a term, a teacher or a text side, or a teacher does not fit the model.
    """

    def __init__(
        self,
        model: ATokenModel,
        tasks: Mapping[str, Task],
        teachers: Teachers = NO_TEACHERS,
        texts: TextTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tasks, self.teachers, self.texts = model, tasks, teachers, texts
        for name, task in tasks.items():
            self._check(name, task)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term unweighted and detached, by name."""
        step = self._step(batch)
        named = {term.fn.__name__: (term.weight, term.fn(step)) for term in self.tasks[batch.task].computed}
        loss = sum(weight * value for weight, value in named.values())
        return loss, {name: value.detach() for name, (_, value) in named.items()}  # type: ignore[return-value]

    def _step(self, batch: Batch) -> Step | GaussianStep:
        if batch.targets is not None:
            return GaussianStep(self._gaussians(batch), batch.targets)
        noise = self._noise(batch) if self.tasks[batch.task].sampled else None
        return Step(self.model, batch.tokens, batch.values, batch.captions, self.teachers, self.texts, noise)

    @staticmethod
    def _noise(batch: Batch) -> torch.Generator:
        """A function of the micro-batch alone, so that a run can resume on any number of ranks."""
        return torch.Generator(batch.tokens.feats.device).manual_seed(batch.noise)

    def _gaussians(self, batch: Batch) -> Gaussians:
        """Of the original patches, not of decoded ones: the Gaussian decoder is trained apart, as the published one."""
        assert self.model.gaussian_decoder is not None  # the stage's preset has one
        (gaussians,) = self.model.gaussian_decoder(batch.tokens.with_feats(batch.tokens.feats[:, : batch.values]))
        return gaussians

    def _check(self, name: str, task: Task) -> None:
        if not task.computed:
            raise CheckpointError(f"All terms of task {name} have weight 0: raise one, or leave the task out.")
        if task.teachers and task.modality != "image":
            raise CheckpointError(f"Task {name} is of modality {task.modality}, and teachers see images alone.")
        for teacher in sorted(task.teachers - self.teachers.names):
            raise CheckpointError(f"Task {name} needs the teacher {teacher}, which was not loaded: load it, {WITHOUT}.")
        if task.texts and (self.texts is None or self.model.text_tower is None):
            raise CheckpointError(
                f"Task {name} needs a text side, which the model lacks: start from one that atoken convert made with "
                "--text."
            )
        if "siglip" in task.teachers:
            self._check_siglip(name)

    def _check_siglip(self, name: str) -> None:
        """Whether the teacher can read our ids, and its vectors are as wide as ours."""
        assert self.model.text_tower is not None
        assert self.teachers.siglip is not None
        ours, theirs = self.model.text_tower.config, self.teachers.siglip.config.text_config
        for size in ("vocab_size", "max_position_embeddings", "projection_size"):
            if getattr(ours, size) != getattr(theirs, size):
                raise CheckpointError(
                    f"The teacher siglip of task {name} has {size} {getattr(theirs, size)} in its text side, the model "
                    f"{getattr(ours, size)}: take the SigLIP2 that the model started from, {WITHOUT}."
                )
