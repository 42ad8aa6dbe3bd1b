"""``TextToVideoPipeline``: images and videos from texts, by the two-stream transformer; videos of any length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from atoken.errors import AtokenError
from atoken.io.token_file import Tokens
from atoken.media.video import Video
from generation.flow import mixed, shift_of
from generation.guidance import Guidance, guided
from generation.mmdit import MMDiT
from generation.pipelines.of_tokens import OnStepEnd, TokenPipeline, check_output, each_generator, pil_images, unit_of
from generation.sampling import sigma_steps
from generation.text import Encoder, TextFeatures, Texts, encoder_of, load_encoder


@dataclass
class VideoOutput(BaseOutput):
    """``frames``: lists of PIL images, (B, T, H, W, 3) floats, (B, 3, T, H, W), latents, or a list of ``Tokens``."""

    frames: Any


class _Sampling(NamedTuple):
    """What all windows of a call have in common."""

    condition: list[Texts]
    null: list[Texts]
    guidance: Guidance
    sigmas: list[float]
    solver: str
    callback: OnStepEnd | None


class TextToVideoPipeline(TokenPipeline):
    """Videos, and images as videos of one latent frame, of texts.

    text_encoders: names or folders for ``text.load_encoder``; that of the tokenizer is the tokenizer's own text side.
    sample_size: frames, height and width that it was trained for, the defaults; longer videos are made in windows of so
    many frames. guidance: the default scale; the paper's is 9 for 48 channels. The rest is as in ``TokenPipeline``.
    """

    _encoders: list[Encoder] | None = None

    def __init__(
        self,
        transformer: MMDiT,
        text_encoders: list[str] | tuple[str, ...] = ("nano",),
        sample_size: list[int] | tuple[int, ...] = (16, 64, 64),
        guidance: float = 9.0,
        tokenizer: str = "nano",
        fingerprint: str = "",
        latents_mean: list[float] | tuple[float, ...] = (),
        latents_std: list[float] | tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.register_to_config(
            text_encoders=list(text_encoders), sample_size=list(sample_size), guidance=guidance, tokenizer=tokenizer,
            fingerprint=fingerprint, latents_mean=list(latents_mean), latents_std=list(latents_std),
        )  # fmt: skip

    @property
    def encoders(self) -> list[Encoder]:
        """The text encoders, loaded when they are first needed, where the transformer is; may be set."""
        if self._encoders is None:
            self._encoders = [
                encoder_of(self.coder) if name == self.config.tokenizer
                else load_encoder(name).to(self._execution_device) for name in self.config.text_encoders
            ]  # fmt: skip
        return self._encoders

    @encoders.setter
    def encoders(self, encoders: Sequence[Encoder]) -> None:
        self._encoders = list(encoders)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Image.Image | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        solver: str = "euler",
        shift: float | None = None,
        overlap: int | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
    ) -> VideoOutput | tuple[Any]:
        """``num_videos_per_prompt`` videos of each prompt, side by side.

        image: that the videos begin with. num_frames: 1 for images, else a multiple of 4; a video longer than the
        pipeline's own is made in windows, each of which holds ``overlap`` frames of the one before (default: half of a
        window). height, width: multiples of 16 times the patch. shift: of sigma (default: by the number of tokens and
        frames, as in training). generator: one for each video, or one from which theirs are drawn; a video does not
        depend on the others. output_type: ``pil``, ``np``, ``pt`` ([0, 1]), ``latent``, ``tokens``.
        callback_on_step_end: as of ``ClassToImagePipeline``, for each window. Raises: AtokenError.
        """
        check_output(output_type)
        windows = self._windows(
            prompt, image, negative_prompt, (num_frames, height, width), overlap, num_videos_per_prompt, generator,
            partial(self._sampling, num_inference_steps, guidance_scale, guidance_interval, solver, shift,
                    callback_on_step_end),
        )  # fmt: skip
        latents = torch.cat(list(windows), 2)
        single = (num_frames or self.config.sample_size[0]) == 1
        frames = self._output(latents[:, :, 0] if single else latents, output_type)
        return VideoOutput(frames) if return_dict else (frames,)

    @torch.no_grad()
    def stream(
        self,
        prompt: str,
        *,
        image: Image.Image | None = None,
        negative_prompt: str = "",
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        solver: str = "euler",
        shift: float | None = None,
        overlap: int | None = None,
        generator: torch.Generator | None = None,
        fps: float = 24,
    ) -> Iterator[Video]:
        """The video of one prompt, as ``__call__`` makes it, in pieces and in constant memory. Raises: AtokenError."""
        windows = self._windows(
            prompt, image, negative_prompt, (num_frames, height, width), overlap, 1, generator,
            partial(self._sampling, num_inference_steps, guidance_scale, guidance_interval, solver, shift, None),
        )  # fmt: skip
        return self.coder.decode_stream(self._pieces(windows, fps))

    def _pieces(self, windows: Iterator[Tensor], fps: float) -> Iterator[Tokens]:
        """Latents as tokens in whole tiles, which decode in constant memory."""
        tile, first, kept = self.coder.model.config.tile_frames // 4, 0, None
        for window in windows:
            kept = window[0] if kept is None else torch.cat([kept, window[0]], 1)
            whole = kept.shape[1] // tile * tile
            if whole:
                yield self._piece(kept[:, :whole], first, fps)
                first, kept = first + whole, kept[:, whole:]
        if kept is not None and kept.shape[1]:
            yield self._piece(kept, first, fps)

    def _piece(self, latents: Tensor, first: int, fps: float) -> Tokens:
        made = Tokens.from_latents(latents.cpu(), like=self.coder, fps=fps)
        moved = made.coords + torch.tensor([first, 0, 0, 0], dtype=made.coords.dtype)
        return replace(made, coords=moved, first_frame=4 * first)

    def _sampling(
        self, steps: int, scale: float | None, interval: tuple[float, float], solver: str, shift: float | None,
        callback: OnStepEnd | None, condition: list[Texts], null: list[Texts], grid: tuple[int, int, int],
    ) -> _Sampling:  # fmt: skip
        guidance = Guidance(self.config.guidance if scale is None else scale, interval)
        by_tokens = shift_of(grid[0], grid[1] * grid[2] // self.transformer.config.patch**2)
        sigmas = sigma_steps(steps, by_tokens if shift is None else shift)
        return _Sampling(condition, null, guidance, sigmas, solver, callback)

    def _windows(
        self, prompt: str | Sequence[str], image: Image.Image | None, negative: str | Sequence[str],
        size: tuple[int | None, int | None, int | None], overlap: int | None, each: int,
        generator: torch.Generator | Sequence[torch.Generator] | None, sampling: partial[_Sampling],
    ) -> Iterator[Tensor]:  # fmt: skip
        """Latents (B, C, T', H', W') that follow each other, not normalised. What is wrong is said at once."""
        prompts = _texts(prompt, "prompt")
        negatives = _texts(negative, "negative_prompt")
        if not prompts or len(negatives) not in (1, len(prompts)) or each < 1:
            raise AtokenError(
                f"Give at least one prompt, one negative prompt for all or one for each, and at least one video each; "
                f"got {len(prompts)}, {len(negatives)} and {each}."
            )
        steps, rows, columns = self._grid(size)
        window = min(steps, max(1, self.config.sample_size[0] // 4))
        held = (window // 2 if overlap is None else overlap // 4) if steps > window else 0
        if not 0 <= held < window or (overlap or 0) % 4:
            raise AtokenError(f"overlap is a multiple of 4 below the {4 * window} frames of a window, not {overlap}.")
        generators = each_generator(generator, len(prompts) * each, "videos")
        repeated = [text for text in prompts for _ in range(each)]
        unwanted = [text for text in negatives * (len(prompts) // len(negatives)) for _ in range(each)]
        how = sampling(self._encoded(repeated), self._encoded(unwanted), (window, rows, columns))
        known = None if image is None else self._first(image, rows, columns).expand(len(generators), -1, -1, -1, -1)
        return self._made(how, (steps, rows, columns), window, held, known, generators)

    def _made(
        self, how: _Sampling, grid: tuple[int, int, int], window: int, held: int, known: Tensor | None,
        generators: Sequence[torch.Generator],
    ) -> Iterator[Tensor]:  # fmt: skip
        """Windows after windows; the last begins earlier where it would be too long. known: latent frames to hold."""
        shape, begin, end = (self.transformer.config.channels, window, *grid[1:]), 0, 0
        while end < grid[0]:
            noise = torch.stack([torch.randn(shape, generator=one) for one in generators]).to(self._execution_device)
            x = self._window(how, noise, known)
            yield self._denormalised(x[:, :, end - begin :])
            begin, end, before = min(begin + window - held, grid[0] - window), begin + window, begin
            known = x[:, :, begin - before :]

    def _window(self, how: _Sampling, noise: Tensor, known: Tensor | None) -> Tensor:
        """Normalised latents that begin with those that are known: these are on the path to themselves at each step."""
        velocity = guided(self._network, how.condition, how.null, how.guidance, joined=lambda both: [*chain(*both)])

        def hold(number: int, sigma: float, x: Tensor) -> Tensor | None:
            if known is None:
                return None
            count = known.shape[2]
            here = torch.full((len(x),), sigma, device=x.device)
            return torch.cat([mixed(known, noise[:, :, :count], here), x[:, :, count:]], 2)

        return self.flowed(velocity, noise, how.sigmas, how.solver, how.callback, hold)

    def _network(self, x: Tensor, sigma_B: Tensor, texts: list[Texts]) -> Tensor:
        together = tuple(TextFeatures.joined(of_one) for of_one in zip(*texts, strict=True))
        return self.transformer.dense(x.to(self.transformer.dtype), sigma_B, together)

    def _denormalised(self, x: Tensor) -> Tensor:
        return self.statistics.denormalise(x) if self.statistics else x

    def _encoded(self, texts: Sequence[str]) -> list[Texts]:
        """Each text on its own, so that it does not depend on the others."""
        place = self._execution_device, self.transformer.dtype
        found = {text: tuple(encoder([text]).to(*place) for encoder in self.encoders) for text in texts}
        return [found[text] for text in texts]

    def _first(self, image: Image.Image, rows: int, columns: int) -> Tensor:
        """(1, C, 1, H', W'): the normalised latents of an image that stands still for the first four frames."""
        patch = self.coder.model.config.patch_size[1]
        fitted = image.convert("RGB").resize((columns * patch, rows * patch), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).float() / 127.5 - 1
        still = pixels[None, :, None].expand(1, -1, 4, -1, -1).to(self._execution_device)
        latents = self.coder.encode_pixels(still).latents
        grid = latents.feats.mT.reshape(1, -1, 1, rows, columns).float()
        return self.statistics.normalise(grid) if self.statistics else grid

    def _grid(self, size: tuple[int | None, int | None, int | None]) -> tuple[int, int, int]:
        """Latent frames, rows, columns. Raises: AtokenError."""
        frames, height, width = (one or own for one, own in zip(size, self.config.sample_size, strict=True))
        side = self.coder.model.config.patch_size[1] * self.transformer.config.patch
        if frames < 1 or (frames > 1 and frames % 4) or min(height, width) < 1 or height % side or width % side:
            raise AtokenError(
                f"A video has a multiple of 4 frames, or 1 for an image, and sides of multiples of {side} pixels; got "
                f"{frames} of {height}x{width}."
            )
        cells = side // self.transformer.config.patch
        return max(1, frames // 4), height // cells, width // cells

    def _output(self, latents: Tensor, output_type: str) -> Any:
        """Of latents (B, C, T', H', W') of videos, or (B, C, H', W') of images, which get a T of 1."""
        if output_type == "latent":
            return latents
        if output_type == "tokens":
            return [Tokens.from_latents(one, like=self.coder) for one in latents.cpu()]
        pixels = self.coder.decode_latents(latents.float())
        assert isinstance(pixels, Tensor)  # one grid
        unit = unit_of(pixels if pixels.ndim == 5 else pixels[:, :, None])
        if output_type == "pt":
            return unit
        arrays = unit.permute(0, 2, 3, 4, 1).float().cpu().numpy()
        return arrays if output_type == "np" else [pil_images(array) for array in arrays]


def _texts(given: str | Sequence[str], name: str) -> list[str]:
    """Raises: AtokenError."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise AtokenError(f"{name} is a text or a list of texts, got {given!r}.")
    return list(texts)
