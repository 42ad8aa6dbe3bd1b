"""The tokenizer's objective: a batch to its loss and named terms, and what of the model is trained how."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from atoken.errors import CheckpointError
from atoken.gaussians import Gaussians
from atoken.layers import Block
from atoken.model import ATokenModel
from atoken.pretrain import cost
from atoken.pretrain.batches import Batch
from atoken.pretrain.losses import GaussianStep, Step
from atoken.pretrain.stages import Stage, Task
from atoken.pretrain.teachers import NO_TEACHERS, WITHOUT, Teachers
from atoken.text import TextTokenizer
from atoken.train import objective
from atoken.train.objective import Group


class Objective(objective.Objective[Batch]):
    """Model and loss of one stage.

    teachers: no part of the module, so that nothing registers, shards or saves them. texts: the tokenizer of the
    model's text side. Raises: CheckpointError where a task lacks a term, a teacher or a text side, or a teacher does
    not fit the model.
    """

    def __init__(
        self, model: ATokenModel, stage: Stage, teachers: Teachers = NO_TEACHERS, texts: TextTokenizer | None = None
    ) -> None:
        super().__init__()
        self.model, self.stage, self.teachers, self.texts = model, stage, teachers, texts
        for name, task in stage.used.items():
            self._check(name, task)
        self._of_texts = False
        if stage.code_kept:
            self._keep_code()
        if stage.recipe.checkpointing:
            # Its name since transformers 5.23, which warns of the other.
            new = getattr(model, "activation_checkpointing_enable", None)
            (new or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def _keep_code(self) -> None:
        """Make constants, in passes for texts alone, of the channels of the encoder's stream that carry the code."""
        count, encoder = self.model.config.latent_channels, self.model.encoder

        def keep(_: Any, __: Any, x_ND: Tensor) -> Tensor | None:
            return torch.cat([x_ND[:, :count].detach(), x_ND[:, count:]], 1) if self._of_texts else None

        blocks = [block for block in encoder.blocks if isinstance(block, Block)]
        written: list[nn.Module] = [*(block.attention.out for block in blocks), *(block.mlp.down for block in blocks)]
        for module in (encoder.inputs, encoder.position, *written, encoder.norm):
            module.register_forward_hook(keep)

    def to(self, *arguments: Any, **options: Any) -> Self:
        """As of any module; the teachers are moved, too."""
        super().to(*arguments, **options)
        self.teachers = self.teachers.to(self.model.device)
        return self

    def parameter_groups(self) -> list[Group]:
        """The encoder at its own rate; only matrices decay; Muon may update those of blocks."""
        found: defaultdict[tuple[bool, bool, bool], list[str]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if not name.startswith(self.stage.frozen):
                muon = parameter.ndim == 2 and ".blocks." in name
                found[name.startswith("encoder."), parameter.ndim > 1, muon].append(f"model.{name}")
        return [
            Group(tuple(names), self.stage.encoder_lr if encoder else 1.0, decay, muon)
            for (encoder, decay, muon), names in found.items()
        ]

    def layout(self, batch: Batch) -> int:
        """Passes through the encoder: one for each tile of the longest sample."""
        return len(batch.tokens.time_windows(self._tile_steps))

    @property
    def _tile_steps(self) -> int:
        return self.model.config.steps(self.model.config.tile_frames)

    def flops(self, batch: Batch) -> int:
        """Of the network without its text side, as ``cost.py`` counts them."""
        read = cost.reads(self.stage.tasks[batch.task])
        found = cost.flops(self.model.config, self.stage.frozen, read, batch.tokens)
        return found.forward + found.backward

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term unweighted and detached, by name."""
        step, computed = self._step(batch), self.stage.tasks[batch.task].computed
        self._of_texts = all(term.texts for term in computed)
        named = {term.fn.__name__: (term.weight, term.fn(step)) for term in computed}
        loss = sum(weight * value for weight, value in named.values())
        return loss, {name: value.detach() for name, (_, value) in named.items()}  # type: ignore[return-value]

    def _step(self, batch: Batch) -> Step | GaussianStep:
        if batch.targets is not None:
            return GaussianStep(self._gaussians(batch), batch.targets)
        noise = None
        if self.stage.tasks[batch.task].sampled:  # of the micro-batch alone, so that any number of ranks can resume
            noise = torch.Generator(batch.tokens.feats.device).manual_seed(batch.noise)
        return Step(self.model, batch.tokens, batch.captions, self.teachers, self.texts, noise, batch.noise)

    def _gaussians(self, batch: Batch) -> Gaussians:
        """Of the original patches, not of decoded ones: the Gaussian decoder is trained apart, as the published one."""
        assert self.model.gaussian_decoder is not None  # the stage's preset has one
        (gaussians,) = self.model.gaussian_decoder(batch.tokens)
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
        """Raises: CheckpointError where the teacher reads other ids, or its vectors are of another width."""
        assert self.model.text_tower is not None
        assert self.teachers.siglip is not None
        own, teacher = self.model.text_tower.config, self.teachers.siglip.config.text_config
        for size in ("vocab_size", "max_position_embeddings", "projection_size"):
            if getattr(own, size) != getattr(teacher, size):
                raise CheckpointError(
                    f"The teacher siglip of task {name} has {size} {getattr(teacher, size)} in its text side, the "
                    f"model {getattr(own, size)}: take the SigLIP2 that the model started from, {WITHOUT}."
                )
