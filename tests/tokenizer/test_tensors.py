"""Tensors in and out of a tokenizer give the numbers of files in and out; generated latents become tokens."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from atoken import to_grid
from atoken.errors import AtokenError, TensorError
from atoken.io import Video
from atoken.io.token_file import Tokens
from atoken.modalities.pixels import to_uint8, to_values, unpatchify
from atoken.tokenizer import Tokenizer
from tests.model.sizes import small_model
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


def test_nothing_that_leaves_is_an_inference_tensor():
    tok = small_tokenizer()
    tokens = tok.encode(random_frames(33, 20))
    piece = next(tok.encode_stream(Video(random_frames(5, 16, 16))))
    left = [tokens.latents, tokens.coords, tokens.pooled, piece.latents, piece.coords, tok.embed(tokens)]
    assert [tensor.is_inference() for tensor in left] == [False] * len(left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_probe_trains_on_latents(dtype):
    """Which half of an image is brighter: the gradient of a probe on latents finds it."""
    tok = Tokenizer(small_model(), "small").to(dtype)
    images = [random_frames(32, 32, seed=seed) // 4 for seed in range(16)]
    for index, image in enumerate(images):
        image[:, 16 * (index % 2) : 16 * (index % 2) + 16] += 160
    x = torch.stack([tokens.latents.flatten() for tokens in tok.encode_batch(images)]).to(dtype)
    y = torch.arange(16) % 2
    torch.manual_seed(0)
    probe = torch.nn.Linear(x.shape[1], 2).to(dtype)
    optimiser = torch.optim.SGD(probe.parameters(), lr=0.01)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(probe(x).float(), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (probe(x).argmax(1) == y).all()
    assert loss < 0.3


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_tokens_of_changed_latents_keep_what_they_are_like(kind, tmp_path):
    tok = small_tokenizer(kind)
    tokens = tok.encode(Video(random_frames(6, 18, 33), Fraction(12)))
    for latents in (tokens.latents, to_grid(tokens)[0]):
        same = Tokens.from_latents(latents, like=tokens)
        assert torch.equal(same.latents, tokens.latents)
        assert (same.frames, same.size, same.fps, same.pooled) == (6, (18, 33), Fraction(12), None)
    changed = Tokens.from_latents(tokens.latents + 0.1 * torch.randn(tokens.latents.shape), like=tokens)
    changed.save(tmp_path / "a.atok")
    assert torch.equal(Tokens.load(tmp_path / "a.atok").latents, changed.latents)
    assert (tok.decode(changed).frames == tok.decode(Tokens.load(tmp_path / "a.atok")).frames).all()


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize(
    ("grid", "size", "frames"),
    [((3, 2), None, None), ((3, 2), (40, 20), None), ((1, 3, 2), None, 4), ((2, 3, 2), (5, 40, 20), 5)],
)
def test_tokens_of_generated_latents_decode_and_save(kind, grid, size, frames, tmp_path):
    tok = small_tokenizer(kind)
    tokens = Tokens.from_latents(3 * torch.randn(48, *grid), like=tok, size=size, fps=10)
    media = tok.decode(tokens)
    height, width = (size or (48, 32))[-2:]
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    assert (media.pixels if frames is None else media.frames).shape == shape
    tokens.save(tmp_path / "a.atok")
    again = Tokens.load(tmp_path / "a.atok")
    assert torch.equal(again.latents, tokens.latents)
    assert frames is None or again.fps == 10
    with pytest.raises(AtokenError, match="no pooled vector"):
        tok.embed(tokens)


def test_generated_latents_of_a_discrete_model_become_the_nearest_levels():
    tok = small_tokenizer("discrete")
    tokens = Tokens.from_latents(torch.full((48, 1, 1), 0.7), like=tok)
    assert tokens.latents.unique().tolist() == [0.5]  # the highest of -1, -0.5, 0, 0.5
    assert tokens.codes.unique().tolist() == [4**6 - 1]
    exact = tok.encode(random_frames(32, 32))
    assert torch.equal(Tokens.from_latents(exact.latents, like=exact).codes, exact.codes)


def test_latents_that_do_not_fit_get_a_sentence():
    tok = small_tokenizer()
    tokens = tok.encode(random_frames(32, 48))
    with pytest.raises(TensorError, match=r"are \(48, 2, 2\), those of like \(48, 1, 2, 3\)"):
        Tokens.from_latents(torch.zeros(48, 2, 2), like=tokens)
    with pytest.raises(TensorError, match="needed, got 47"):
        Tokens.from_latents(torch.zeros(47, 2, 2), like=tok)
    with pytest.raises(TensorError, match="not finite"):
        Tokens.from_latents(tokens.latents * torch.nan, like=tokens)
    with pytest.raises(TensorError, match=r"\(33, 32\) does not fit"):
        Tokens.from_latents(torch.zeros(48, 2, 2), like=tok, size=(33, 32))
    holes = replace(tokens, latents=tokens.latents[1:], coords=tokens.coords[1:])
    with pytest.raises(TensorError, match="do not fill"):
        Tokens.from_latents(torch.zeros(48, 2, 3), like=holes)
