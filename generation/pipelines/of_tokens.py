"""What pipelines on tokens have in common: the tokenizer that decodes, statistics, generators, steps and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import is_accelerate_available
from PIL import Image
from torch import Tensor

import atoken
from atoken.errors import AtokenError, TokenFileError
from atoken.statistics import LatentStatistics
from atoken.tokenizer import Tokenizer
from generation.guidance import Velocity
from generation.presets import folder_of
from generation.sampling import OnStep, sample

OUTPUTS = ("pil", "np", "pt", "latent", "tokens")
OnStepEnd = Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None]


class TokenPipeline(DiffusionPipeline):
    """A pipeline whose configuration has tokenizer, fingerprint, latents_mean and latents_std.

    tokenizer: the name or folder for ``atoken.load``, and its ``fingerprint``: tokens of another one are not decoded.
    latents_mean, latents_std: of the latents that a flow was trained on, by channel.
    """

    model_cpu_offload_seq = "transformer"
    _loaded: Tokenizer | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """By the name of a bundled one, or as diffusers' own; it asks for no accelerate where that is not installed."""
        options.setdefault("low_cpu_mem_usage", is_accelerate_available())
        return super().from_pretrained(str(folder_of(pretrained_model_name_or_path)), **options)

    @classmethod
    def opened(cls, name: str) -> Self:
        """That of a folder, or a bundled one, for a command. Raises: AtokenError."""
        if not (folder_of(name) / "model_index.json").is_file():
            raise AtokenError(
                f"There is no pipeline in {name}: name the folder model of a run, or train the bundled ones with make."
            )
        return cls.from_pretrained(name)

    @property
    def coder(self) -> Tokenizer:
        """The tokenizer that decodes, loaded when it is first needed, where the transformer is.

        Raises: TokenFileError (another one than that of the training).
        """
        if self._loaded is None:
            self._loaded = atoken.load(self.config.tokenizer, device=str(self._execution_device))
        if self.config.fingerprint and self._loaded.fingerprint != self.config.fingerprint:
            raise TokenFileError(
                f"This pipeline was trained on tokens of {self.config.tokenizer} {self.config.fingerprint[:12]}, and "
                f"{self._loaded.name} here is {self._loaded.fingerprint[:12]}; set coder to the one of its training."
            )
        return self._loaded.to(self._execution_device)

    @coder.setter
    def coder(self, tokenizer: Tokenizer) -> None:
        self._loaded = tokenizer

    @property
    def statistics(self) -> LatentStatistics | None:
        """Of the latents that a flow was trained on; None where it has none, as published weights."""
        if not self.config.latents_mean:
            return None
        return LatentStatistics(tuple(self.config.latents_mean), tuple(self.config.latents_std))

    def flowed(
        self, velocity: Velocity, noise: Tensor, sigmas: list[float], solver: str, callback: OnStepEnd | None,
        on_step: OnStep | None = None,
    ) -> Tensor:  # fmt: skip
        """``sample`` with a progress bar; ``on_step`` comes before the user's callback."""
        with self.progress_bar(total=len(sigmas) - 1) as bar:

            def step(number: int, sigma: float, x: Tensor) -> Tensor | None:
                bar.update()
                changed = None if on_step is None else on_step(number, sigma, x)
                if callback is None:
                    return changed
                x = x if changed is None else changed
                return (callback(self, number, sigma, {"latents": x}) or {}).get("latents", x)

            return sample(velocity, noise, sigmas, solver, step)


def check_output(output_type: str) -> None:
    """Raises: AtokenError."""
    if output_type not in OUTPUTS:
        raise AtokenError(f"There is no output type {output_type}; there are {', '.join(OUTPUTS)}.")


def unit_of(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as numbers from 0 to 1."""
    return (pixels.clamp(-1, 1) + 1) / 2


def pil_images(array: np.ndarray) -> list[Image.Image]:
    """(N, H, W, 3) in [0, 1] as PIL images."""
    return [Image.fromarray(np.rint(one * 255).astype(np.uint8)) for one in array]


def each_generator(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int, what: str = "images"
) -> list[torch.Generator]:
    """A generator on the CPU for each sample; one of another device draws its seed. Raises: AtokenError."""
    if isinstance(generator, torch.Generator | None):
        return _seeded(generator, count)
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise AtokenError(f"generator must be torch.Generator().manual_seed(0) or a list of them, got {generator!r}.")
    if len(generator) != count:
        raise AtokenError(f"There are {len(generator)} generators for {count} {what}; give one for each, or one.")
    return [one if one.device.type == "cpu" else _seeded(one, 1)[0] for one in generator]


def _seeded(generator: torch.Generator | None, count: int) -> list[torch.Generator]:
    device = None if generator is None else generator.device
    seeds = torch.randint(2**62, (count,), generator=generator, device=device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]
