"""``ATokenImageProcessor``: images of any size as pixels or patches, with the habits of transformers' processors.

It needs Pillow and no torchvision. The sides become multiples of 16 by resizing, so nothing is cropped away.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from einops import rearrange
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import ImagesKwargs

from atoken.media.image import from_pil

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without importing Pillow


class ATokenImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg] # transformers is not followed
    """What may be set for a processor and for a single call, besides transformers' own keywords."""

    patch_size: int
    min_pixels: int
    max_pixels: int


class ATokenImageProcessor(PilBackend):
    """Images (PIL, uint8 arrays, tensors, paths) in; ``pixel_values`` in [-1, 1] out.

    An image keeps its aspect ratio within one patch; ``min_pixels`` and ``max_pixels`` are limits of its area.
    Images of one size after resizing give (B, 3, H, W). Images of several sizes give the padded patches of SigLIP2
    (NaFlex): ``pixel_values`` (B, L, 768), ``spatial_shapes`` (B, 2) in patches and ``pixel_attention_mask`` (B, L);
    without ``return_tensors`` they give a list of (3, H, W). ``ATokenVisionModel`` takes either form.
    Raises ValueError if ``max_pixels`` is less than one patch or than ``min_pixels``.
    """

    valid_kwargs = ATokenImageKwargs
    model_input_names = ("pixel_values", "spatial_shapes", "pixel_attention_mask")
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    resample = BICUBIC
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    patch_size = 16
    min_pixels = 64**2  # the smallest images of the tokenizer's training (paper section 4.1)
    max_pixels = 1536**2  # of the language model's images (paper Table 9)

    def process_image(self, image: Any, **options: Any) -> np.ndarray:
        """One image as (3, H, W), as ``Tokenizer.encode`` reads it: upright, without alpha, 16 bits by the same rule.

        Arrays of which the last axis is 3 or 4 are (H, W, 3) or (H, W, 4) unless ``input_data_format`` says otherwise.
        """
        if hasattr(image, "getbands"):
            image = from_pil(image).pixels
        if isinstance(image, np.ndarray) and image.shape[2:] in ((3,), (4,)) and not options.get("input_data_format"):
            image, options["input_data_format"] = image[..., :3], "channels_last"
        return super().process_image(image, **options)

    def target_size(
        self, height: int, width: int, *, patch_size: int | None = None, min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Height and width in pixels after resizing. Arguments default to the processor's own."""
        side = patch_size or self.patch_size
        least, most = min_pixels or self.min_pixels, max_pixels or self.max_pixels
        if not max(least, side * side) <= most:
            raise ValueError(f"max_pixels {most} must be at least min_pixels {least} and one patch of {side * side}.")
        rows, columns = max(1, round(height / side)), max(1, round(width / side))
        if rows * columns * side * side > most:
            scale = math.sqrt(most / (height * width)) / side
            rows, columns = max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
        elif rows * columns * side * side < least:
            scale = math.sqrt(least / (height * width)) / side
            rows, columns = math.ceil(height * scale), math.ceil(width * scale)
        cells = most // (side * side)  # a strip of one patch would still be too long
        rows = min(rows, cells // min(columns, cells))
        return rows * side, min(columns, cells // rows) * side

    def _validate_preprocess_kwargs(self, **options: Any) -> None:
        options.pop("do_resize", None)  # which would need ``size``
        super()._validate_preprocess_kwargs(**options)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        do_rescale: bool,
        do_normalize: bool,
        patch_size: int,
        return_tensors: Any,
        **options: Any,
    ) -> BatchFeature:
        done = []
        for image in images:
            if do_resize:
                limits = {name: options[name] for name in ("min_pixels", "max_pixels")}
                height, width = self.target_size(*image.shape[-2:], patch_size=patch_size, **limits)
                image = self.resize(image, SizeDict(height=height, width=width), resample=options["resample"])
            if do_rescale:
                image = self.rescale(image, options["rescale_factor"])
            if do_normalize:
                image = self.normalize(image, options["image_mean"], options["image_std"])
            done.append(image)
        if return_tensors is None or len({image.shape for image in done}) <= 1:
            return BatchFeature({"pixel_values": done}, tensor_type=return_tensors)
        return BatchFeature(_padded_patches(done, patch_size), tensor_type=return_tensors)


def _padded_patches(images: list[np.ndarray], side: int) -> dict[str, Any]:
    """Images (3, H, W) of several sizes in SigLIP2's form; a patch is flattened in the order row, column, channel."""
    odd = [image.shape[1:] for image in images if image.shape[1] % side or image.shape[2] % side]
    if odd:
        raise ValueError(
            f"Images of several sizes need sides that are multiples of {side}, got {odd[0]}; set do_resize."
        )
    folded = [rearrange(image, "c (h p) (w q) -> (h w) (p q c)", p=side, q=side) for image in images]
    longest = max(map(len, folded))
    return {
        "pixel_values": [np.pad(patches, ((0, longest - len(patches)), (0, 0))) for patches in folded],
        "spatial_shapes": [(image.shape[1] // side, image.shape[2] // side) for image in images],
        "pixel_attention_mask": [(np.arange(longest) < len(patches)).astype(np.int64) for patches in folded],
    }
