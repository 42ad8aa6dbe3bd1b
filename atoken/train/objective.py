"""The objective: a batch to its loss and named terms, as one module so that an engine sees every forward pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from atoken.gaussians import Gaussians
from atoken.model import ATokenModel
from atoken.rasterize import rasterize
from atoken.train.batches import Batch
from atoken.train.losses import Drawn, Placed, Step
from atoken.train.parts import WINDOW, Pictures, Surface
from atoken.train.stages import Term


class Objective(nn.Module):
    """Model and loss of one stage."""

    def __init__(self, model: ATokenModel, terms: Mapping[str, tuple[Term, ...]]) -> None:
        super().__init__()
        self.model = model
        self.terms = terms

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and each term unweighted and detached, by name."""
        step = self._step(batch)
        named = {term.fn.__name__: (term.weight, term.fn(step)) for term in self.terms[batch.modality]}
        loss = sum(weight * value for weight, value in named.values())
        return loss, {name: value.detach() for name, (_, value) in named.items()}  # type: ignore[return-value]

    def _step(self, batch: Batch) -> Step | Placed | Drawn:
        match batch.targets:
            case Surface():
                return Placed(self._gaussians(batch), batch.targets)
            case Pictures():
                drawn = rasterize(self._gaussians(batch).splats, batch.targets.cameras, (WINDOW, WINDOW))
                return Drawn(drawn.rgb, drawn.alpha, batch.targets)
            case _:
                encoded, decoded = self.model(batch.tokens)
                return Step(batch.tokens, batch.values, encoded, decoded)

    def _gaussians(self, batch: Batch) -> Gaussians:
        """Of the original patches, not of decoded ones: the Gaussian decoder is trained apart, as the published one."""
        assert self.model.gaussian_decoder is not None  # the stage's preset has one
        (gaussians,) = self.model.gaussian_decoder(batch.tokens.with_feats(batch.tokens.feats[:, : batch.values]))
        return gaussians
