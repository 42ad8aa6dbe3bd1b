"""Tensors in and out of a tokenizer give the numbers of files in and out."""

import pytest
import torch

from atoken import to_grid
from atoken.modalities.pixels import to_uint8, to_values, unpatchify
from tests.tokenizer.small import KINDS, random_frames, small_tokenizer
from tests.tolerances import TENSORS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(32, 48), (17, 5), (21, 33, 20), (3, 16, 16)])
def test_tensors_give_the_numbers_of_files(kind, shape):
    tok, frames = small_tokenizer(kind), random_frames(*shape)
    x = to_values(frames).movedim(-1, 0)[None]
    tokens = tok.encode(frames)
    with torch.no_grad():
        encoded = tok.encode_pixels(x)
        pixels = tok.decode_latents(to_grid(tokens), sizes=shape)
        patches = tok.model.decode(tokens.packed)
    assert (encoded.latents.feats - tokens.latents).abs().amax() <= TENSORS
    assert torch.equal(encoded.latents.coords, tokens.coords)
    assert (encoded.pooled[0] - tokens.pooled).abs().amax() <= TENSORS
    of_files = unpatchify(patches, tokens.frames, *tokens.size).movedim(-1, 0).reshape(pixels.shape)
    assert (pixels - of_files).abs().amax() <= TENSORS
    media = tok.decode(tokens)
    shown = media.frames if len(shape) == 3 else media.pixels
    assert (to_uint8(pixels[0].movedim(0, -1)) == shown).all()
