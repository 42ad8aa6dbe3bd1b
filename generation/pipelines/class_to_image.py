"""``ClassToImagePipeline``: images of classes, by a flow on continuous tokens or a masked model of discrete ones."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from atoken.errors import AtokenError
from atoken.io.token_file import Tokens
from generation.decoding import Decoding, Drawn, decode
from generation.dit import DiT
from generation.guidance import Guidance, guided
from generation.masked_ar import MaskedAR, masked_counts
from generation.pipelines.of_tokens import OnStepEnd, TokenPipeline, check_output, each_generator, pil_images, unit_of
from generation.sampling import sigma_steps

Label = int | str  # its number, of any integer type, or its name


@dataclass
class ImageOutput(BaseOutput):
    """``images``: PIL images, (B, H, W, 3) floats, (B, 3, H, W), latents (B, C, H', W'), or a list of ``Tokens``."""

    images: Any


class ClassToImagePipeline(TokenPipeline):
    """Images of labels, which are given by name or number.

    transformer: a ``DiT`` or a ``MaskedAR``. labels: names, by number. The rest is as in ``TokenPipeline``.
    """

    def __init__(
        self,
        transformer: DiT | MaskedAR,
        labels: list[str] | tuple[str, ...] = (),
        tokenizer: str = "nano",
        fingerprint: str = "",
        latents_mean: list[float] | tuple[float, ...] = (),
        latents_std: list[float] | tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.register_to_config(
            labels=list(labels), tokenizer=tokenizer, fingerprint=fingerprint,
            latents_mean=list(latents_mean), latents_std=list(latents_std),
        )  # fmt: skip

    @torch.no_grad()
    def __call__(
        self,
        labels: Label | Sequence[Label] | np.ndarray | Tensor,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.65,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_schedule: Literal["linear", "constant"] = "linear",
        cfg_channels: int | None = None,
        solver: str = "euler",
        shift: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> ImageOutput | tuple[Any]:
        """One image for each label.

        num_inference_steps: of the solver, or iterations of a masked model. guidance_scale: 1 is none. A flow reads
        guidance_interval (of sigma), cfg_channels, solver, shift and latents (the noise to start from); a masked model
        guidance_schedule, temperature, top_k and top_p. generator: one for each image, or one from which theirs are
        drawn; an image does not depend on the others. output_type: ``pil``, ``np`` ([0, 1]), ``pt`` ([0, 1]),
        ``latent``, ``tokens``. callback_on_step_end: gets the pipeline, the number of the step, its sigma (or the share
        of positions still masked) and ``{"latents": ...}``; of a flow, the latents of the dictionary that it returns go
        on, if it returns one. Raises: AtokenError.
        """
        check_output(output_type)
        asked = labels.tolist() if isinstance(labels, np.ndarray | np.generic | Tensor) else labels
        several = isinstance(asked, Sequence) and not isinstance(asked, str)
        numbers = [self.label_id(label) for label in (asked if several else [asked])]
        if not numbers:
            raise AtokenError("There are no labels; give at least one.")
        labels_B = torch.tensor(numbers, device=self._execution_device)
        generators = each_generator(generator, len(numbers))
        if isinstance(self.transformer, MaskedAR):
            if latents is not None:
                raise AtokenError("A masked model starts from no latents; leave them out.")
            drawing = Decoding(
                num_inference_steps, guidance_scale, guidance_schedule, temperature, top_k, top_p
            )  # fmt: skip
            result = self._from_masked(labels_B, drawing, generators, callback_on_step_end)
        else:
            guidance = Guidance(guidance_scale, guidance_interval, cfg_channels)
            noise = self._noise(generators) if latents is None else self._checked(latents, len(numbers))
            sigmas = sigma_steps(num_inference_steps, shift)
            result = self._from_flow(labels_B, noise, sigmas, guidance, solver, callback_on_step_end)
        images = self._output(result, output_type, labels_B)
        return ImageOutput(images) if return_dict else (images,)

    def label_id(self, label: Label) -> int:
        """The number of a label. Raises: AtokenError (an unknown one, what is neither name nor number)."""
        names, classes = list(self.config.labels), self.transformer.config.classes
        if isinstance(label, str):
            if label not in names:
                shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
                raise AtokenError(f"This pipeline has no label {label!r}; it has {shown}.")
            return names.index(label)
        try:
            number = operator.index(label)
        except TypeError as error:
            raise AtokenError(f"A label is a name or a whole number, got {label!r}.") from error
        if not 0 <= number < classes:
            raise AtokenError(f"This pipeline has the labels 0 to {classes - 1}, and none of number {number}.")
        return number

    def _noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        config = self.transformer.config
        shape = (config.channels, config.side, config.side)
        return torch.stack([torch.randn(shape, generator=one) for one in generators]).to(self._execution_device)

    def _checked(self, latents: Tensor, count: int) -> Tensor:
        """Noise that a user gives. Raises: AtokenError."""
        config = self.transformer.config
        size = tuple(latents.shape)
        if len(size) != 4 or size[:2] != (count, config.channels) or size[2] % config.patch or size[3] % config.patch:
            raise AtokenError(
                f"latents must be noise of shape ({count}, {config.channels}, {config.side}, {config.side}) for these "
                f"labels, or of other sides, multiples of {config.patch}; got {size}."
            )
        return latents.to(self._execution_device)

    def _from_flow(
        self, labels_B: Tensor, noise: Tensor, sigmas: list[float], guidance: Guidance, solver: str,
        callback: OnStepEnd | None,
    ) -> Tensor:  # fmt: skip
        """Latents (B, C, H, W), not normalised."""
        null_B = torch.full_like(labels_B, self.transformer.config.classes)
        velocity = guided(self._network, labels_B, null_B, guidance)
        normalised = self.flowed(velocity, noise, sigmas, solver, callback)
        return self.statistics.denormalise(normalised) if self.statistics else normalised

    def _network(self, x: Tensor, sigma_B: Tensor, labels_B: Tensor) -> Tensor:
        return self.transformer(x.to(self.transformer.dtype), sigma_B, labels_B)

    def _from_masked(
        self, labels_B: Tensor, decoding: Decoding, generators: Sequence[torch.Generator], callback: OnStepEnd | None
    ) -> Tensor:
        """Codes (B, L, V)."""
        counts = masked_counts(self.transformer.config.side**2, decoding.iterations)
        with self.progress_bar(total=len(counts)) as bar:

            def on_iteration(number: int, drawn: Drawn) -> None:
                bar.update()
                if callback is not None:
                    left = float((drawn.masked & ~drawn.decided).float().mean())
                    callback(self, number, left, {"latents": self._grid(drawn.tokens)})

            return decode(self.transformer, labels_B, decoding, generators, on_iteration=on_iteration)

    def _grid(self, codes_BLV: Tensor) -> Tensor:
        side = self.transformer.config.side
        return self.transformer.digits.values(codes_BLV).mT.unflatten(2, (side, side))

    def _output(self, result: Tensor, output_type: str, labels_B: Tensor) -> Any:
        latents = self._grid(result) if isinstance(self.transformer, MaskedAR) else result
        if output_type == "latent":
            return latents
        if output_type == "tokens":
            names = [self.label_name(number) for number in labels_B.tolist()]
            made = [Tokens.from_latents(one, like=self.coder) for one in latents.cpu()]
            return [replace(tokens, name=name) for tokens, name in zip(made, names, strict=True)]
        pixels = self.coder.decode_latents(latents.float())
        assert isinstance(pixels, Tensor)  # one grid
        unit = unit_of(pixels)
        if output_type == "pt":
            return unit
        array = unit.permute(0, 2, 3, 1).float().cpu().numpy()
        return array if output_type == "np" else pil_images(array)

    def label_name(self, number: int) -> str:
        """The name of a label, or its number where labels have no names."""
        return self.config.labels[number] if number < len(self.config.labels) else str(number)
