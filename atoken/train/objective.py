"""The objective: a batch to its loss and named terms, as one module so that an engine sees every forward pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atoken.model import ATokenModel
from atoken.train.batches import Batch
from atoken.train.losses import Step
from atoken.train.stages import Term


class Objective(nn.Module):
    """Model and loss of one stage."""

    def __init__(self, model: ATokenModel, terms: Mapping[str, tuple[Term, ...]]) -> None:
        super().__init__()
        self.model = model
        self.terms = terms

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term unweighted and detached, by name."""
        encoded, decoded = self.model(batch.tokens)
        step = Step(batch.tokens, batch.values, encoded, decoded)
        named = {term.fn.__name__: (term.weight, term.fn(step)) for term in self.terms[batch.modality]}
        loss = sum(weight * value for weight, value in named.values())
        return loss, {name: value.detach() for name, (_, value) in named.items()}  # type: ignore[return-value]
