"""``Tokenizer``, what a user holds: a coder with texts, embeddings and statistics, which moves and saves itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from atoken import checkpoint
from atoken.coder import Coder
from atoken.errors import AtokenError, CheckpointError, MediaError
from atoken.io import Image
from atoken.io.inputs import Frames, Media, tiles
from atoken.io.token_file import Tokens
from atoken.model import ATokenModel
from atoken.placement import checked_device, checked_dtype
from atoken.statistics import NAME, LatentStatistics, measured_in
from atoken.text import TextTokenizer


class Tokenizer(Coder):
    """A model, its name, and its texts.

    texts: the text tokenizer of a model with a text side. folder: where the model came from, if it was a folder or hub
    id. Raises: CheckpointError for a model whose tiles do not divide those of a token file.
    """

    def __init__(
        self, model: ATokenModel, name: str, texts: TextTokenizer | None = None, folder: str | Path | None = None
    ) -> None:
        super().__init__(model, name)
        self.texts = texts
        self.folder = folder

    @cached_property
    def statistics(self) -> LatentStatistics | None:
        """Mean and deviation of each latent channel, which come with the model; None until ``atoken stats`` makes them.

        Raises: CheckpointError (a damaged file, or one of other weights).
        """
        measured = self.folder and measured_in(self.folder, lambda: self.fingerprint)
        return measured.statistics if measured else None

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.model.parameters()) / 1e6
        codes = "" if self.model.quantiser is None else f", levels={self.model.quantiser.levels}"
        texts = "" if self.texts is None else ", with texts"
        return (
            f"Tokenizer({self.name!r}, {weights:.1f} million weights, {self.model.config.latent_channels} channels"
            f"{codes}{texts}, {str(self.model.dtype).removeprefix('torch.')} on {self.device})"
        )

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> Tokenizer:
        """Move the model: ``to("cuda")``, ``to(torch.bfloat16)``, or both. Raises: CheckpointError."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        place = self.device if device is None else checked_device(device)
        self.model.to(place, self.model.dtype if dtype is None else checked_dtype(dtype, place))
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``load`` reads, with texts and statistics if there are; nothing of it if that fails.

        Raises: CheckpointError.
        """
        with checkpoint.model_folder(folder) as part:
            self.model.save_pretrained(part)
            if self.texts is not None:
                self.texts.save(part)
            with suppress(CheckpointError):  # they are of the weights as these were loaded
                measured = self.folder and measured_in(self.folder, lambda: checkpoint.fingerprint(self.model))
                if measured:
                    measured.save(part / NAME)

    def embed(self, media: Media | Tokens) -> Tensor:
        """(D,) fp32 unit vector of an image, a video, an asset, or tokens (whose stored vector is used, no pixel read).

        Raises: as ``encode``; AtokenError for tokens without a vector: a piece of a video, generated latents.
        """
        pooled = (media if isinstance(media, Tokens) else self.encode(media)).pooled
        if pooled is None:
            raise AtokenError(
                "These tokens have no pooled vector, as a piece of a video and generated latents have none; pass the "
                "whole video, or decode the latents first."
            )
        return normalize(pooled, dim=-1)

    def embed_frames(self, frames: Frames, *, max_side: int | None = None) -> Tensor:
        """(D,) fp32 unit vector of a video: the mean of its frames' vectors, each frame seen as an image.

        An alternative to ``embed`` of the whole video, which the paper uses for retrieval. Constant memory. max_side:
        as in ``encode``. Raises: MediaError (no frames).
        """
        total, count = torch.zeros(self.model.config.encoder_width), 0
        for tile in tiles(frames):
            images = [Image(frame) for frame in tile.frames]
            vectors = [self.embed(tokens) for tokens in self.encode_batch(images, max_side=max_side)]
            total, count = total + torch.stack(vectors).sum(0), count + len(vectors)
        if not count:
            raise MediaError("The video has no frames; there is nothing to embed.")
        return normalize(total, dim=-1)

    def embed_text(self, texts: str | Sequence[str]) -> Tensor:
        """(T, D) fp32 unit vectors of T texts, in the space of ``embed``; (1, D) of a single string.

        Raises: AtokenError without a text side, for an empty list, and for what is not a text.
        """
        if self.model.text_tower is None:
            raise AtokenError(
                f"Model {self.name} has no text side; add one with --text of atoken convert, or take another model."
            )
        if self.texts is None:
            raise AtokenError(
                f"Model {self.name} was loaded without a text tokenizer, whose files its folder lacks; save it with "
                "save_pretrained of the Tokenizer, not of its model."
            )
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise AtokenError("embed_text needs a text or a list of at least one text.")
        with torch.inference_mode():
            pooled = self.model.encode_text(self.texts(texts).to(self.device))
        return normalize(pooled, dim=-1).cpu()

    def logits(self, media_VD: Tensor, texts_BD: Tensor) -> Tensor:
        """(V, B): similarities of unit vectors of media and of texts, with the model's scale and bias as in SigLIP2.

        The sigmoid of one is the probability that the two belong together.
        """
        scale, bias = (weight.detach().float().cpu() for weight in (self.model.logit_scale, self.model.logit_bias))
        return media_VD @ texts_BD.T * scale.exp() + bias
