"""The guarantees of the README; one test each, named as in the README."""

import subprocess
import sys
import weakref
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from atoken.data.synthetic.procedural import make_asset
from atoken.doctor import GROWTH
from atoken.errors import AtokenError, TokenFileError
from atoken.io import Image, Video
from atoken.io.token_file import TokenFile, TokenFileWriter, Tokens
from atoken.modalities.views import render_views
from atoken.patches import grid
from atoken.tokenizer import Tokenizer
from tests.model.sizes import small_model
from tests.model.test_model import away_from_boundaries
from tests.tokenizer.small import KINDS, exact_tokenizer, random_frames, small_tokenizer
from tests.tolerances import FP32

ROOT = Path(__file__).parents[2]
SWITCHES = {"fsq_levels": None, "tile_frames": 16, "cache_frames": 0}
EDGES = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]
LENGTHS = [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 36, 37]


def shapes():
    """Every edge of H and W in 1..70 with its partner at random, every length at an edge, and a random sample."""
    rng = np.random.default_rng(0)
    chosen = [(1, side, int(rng.integers(1, 71))) for side in EDGES]
    chosen += [(1, int(rng.integers(1, 71)), side) for side in EDGES]
    chosen += [(length, int(rng.choice(EDGES)), int(rng.integers(1, 71))) for length in LENGTHS]
    chosen += [tuple(int(rng.integers(1, top + 1)) for top in (37, 70, 70)) for _ in range(25)]
    return [*chosen, (1, 1, 1), (37, 70, 70), (37, 1, 1)]


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_nothing_is_silently_lost(kind, tmp_path):
    tokenizer = small_tokenizer(kind)
    for frames, height, width in shapes():
        pixels = random_frames(frames, height, width)
        media = Image(pixels[0]) if frames == 1 else Video(pixels, Fraction(12))
        tokens = tokenizer.encode(media)
        assert len(tokens.latents) == np.prod(grid(frames, height, width))
        back = tokenizer.decode(tokens)
        assert type(back) is type(media)
        assert (back.pixels[None] if frames == 1 else back.frames).shape == pixels.shape


def test_every_pixel_comes_back_where_it_was(tmp_path):
    """With a model that passes patches through, alone, in a batch, from files, and as streams."""
    tokenizer, chosen = exact_tokenizer(), shapes()
    originals = [random_frames(*shape, seed=seed) for seed, shape in enumerate(chosen)]
    batch = [Image(pixels[0]) if len(pixels) == 1 else Video(pixels, 12) for pixels in originals]
    together = tokenizer.encode_batch(batch)
    for number, (media, pixels, tokens) in enumerate(zip(batch, originals, together, strict=True)):
        alone = tokenizer.encode(media)
        assert torch.equal(alone.latents, tokens.latents)
        assert np.array_equal(np.atleast_3d(frames_of(tokenizer.decode(alone))).reshape(pixels.shape), pixels)
        if isinstance(media, Video):
            pieces = list(tokenizer.encode_stream(media))
            assert np.array_equal(np.concatenate([v.frames for v in tokenizer.decode_stream(pieces)]), pixels)
            assert np.array_equal(tokenizer.decode(Tokens.join(pieces)).frames, pixels)
        if number % 4 == 0 and pixels.size < 200_000:
            alone.save(tmp_path / "x.atok")
            assert torch.equal(Tokens.load(tmp_path / "x.atok").latents, alone.latents)
    for pixels, back in zip(originals, tokenizer.decode_batch(together), strict=True):
        assert np.array_equal(frames_of(back).reshape(pixels.shape), pixels)


def test_alpha_rate_and_time_stamps_are_kept(tmp_path):
    tokenizer = small_tokenizer()
    alpha = random_frames(19, 35)[..., 0]
    image = tokenizer.encode(Image(random_frames(19, 35), alpha))
    image.save(tmp_path / "a.atok")
    assert np.array_equal(tokenizer.decode(Tokens.load(tmp_path / "a.atok")).alpha, alpha)
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.2, 21))
    alpha = random_frames(21, 18, 20)[..., 1]
    original = Video(random_frames(21, 18, 20), Fraction(30000, 1001), times - times[0], alpha)
    tokenizer.encode(original).save(tmp_path / "c.atok")
    with TokenFileWriter(tmp_path / "d.atok") as writer:
        writer.add(tokenizer.encode_stream(original))
    for name in ("c.atok", "d.atok"):
        back = tokenizer.decode(Tokens.load(tmp_path / name))
        assert back.fps == Fraction(30000, 1001)
        assert np.array_equal(back.timestamps, times - times[0])
        assert np.array_equal(back.alpha, alpha)
    frames = np.concatenate([original.frames, alpha[..., None]], -1)  # as people hold them: RGBA
    assert np.array_equal(tokenizer.encode(frames).alpha, alpha)
    assert np.array_equal(Tokens.join(tokenizer.encode_stream(iter(frames))).alpha, alpha)
    opaque = [*tokenizer.encode_stream(iter(frames[:16])), *tokenizer.encode_stream(iter(original.frames[:5]))]
    opaque[1] = replace(opaque[1], first_frame=16, coords=opaque[1].coords + torch.tensor([4, 0, 0, 0]).int())
    joined = Tokens.join([replace(opaque[0], pooled=None), opaque[1]])
    assert np.array_equal(joined.alpha, [*alpha[:16], *np.full((5, 18, 20), 255)])
    with TokenFile(tmp_path / "c.atok") as file:
        pieces = list(tokenizer.decode_stream(file.stream()))
        assert np.array_equal(np.concatenate([piece.alpha for piece in pieces]), alpha)
        assert np.array_equal(tokenizer.decode(file.read(0, (16, 21))).alpha, alpha[16:])


@pytest.mark.parametrize("kind", KINDS)
def test_alone_equals_in_a_batch(kind):
    tokenizer = small_tokenizer(kind)
    media = [
        Image(random_frames(20, 40)),
        Video(random_frames(21, 17, 33)),
        Image(random_frames(1, 1)),
        Video(random_frames(3, 50, 5)),
    ]
    together = tokenizer.encode_batch(media)
    decoded = tokenizer.decode_batch(together)
    for one, tokens, back in zip(media, together, decoded, strict=True):
        alone = tokenizer.encode(one)
        if tokens.codes is None:
            torch.testing.assert_close(alone.latents, tokens.latents, atol=FP32, rtol=FP32)
        else:
            assert (alone.codes == tokens.codes).float().mean() > 0.99
        torch.testing.assert_close(alone.pooled, tokens.pooled, atol=FP32, rtol=FP32)
        actual = tokenizer.decode(tokens)
        difference = np.abs(frames_of(actual).astype(int) - frames_of(back))
        assert difference.max() <= 1  # two values on either side of a rounding boundary of uint8
        assert (difference > 0).mean() < 1e-3


def frames_of(media):
    return media.pixels if isinstance(media, Image) else media.frames


@pytest.mark.parametrize("kind", KINDS)
def test_twice_is_the_same_and_sampling_is_a_switch(kind):
    tokenizer = small_tokenizer(kind)
    video = Video(random_frames(20, 24, 24))
    first, second = tokenizer.encode(video), tokenizer.encode(video)
    assert torch.equal(first.latents, second.latents)
    assert np.array_equal(tokenizer.decode(first).frames, tokenizer.decode(second).frames)
    if kind == "discrete":
        with pytest.raises(AtokenError, match="generator"):
            tokenizer.encode(video, generator=torch.Generator())
    else:
        drawn = [tokenizer.encode(video, generator=torch.Generator().manual_seed(s)).latents for s in (1, 1, 2)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])
        assert not torch.equal(drawn[0], first.latents)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 16, 17, 37, 50])
def test_streaming_equals_the_whole_call(kind, frames):
    tokenizer = small_tokenizer(kind)
    video = Video(random_frames(frames, 20, 33), 10)
    whole, pieces = tokenizer.encode(video), list(tokenizer.encode_stream(video))
    joined = Tokens.join(pieces)
    assert len(pieces) == -(-frames // 16)
    if whole.codes is None:
        torch.testing.assert_close(joined.latents, whole.latents, atol=FP32, rtol=FP32)
    else:
        assert (joined.codes == whole.codes).float().mean() > 0.99
    assert torch.equal(joined.coords, whole.coords)
    torch.testing.assert_close(joined.pooled, whole.pooled, atol=FP32, rtol=FP32)
    assert (joined.frames, joined.size, joined.fps) == (whole.frames, whole.size, whole.fps)
    streamed = np.concatenate([piece.frames for piece in tokenizer.decode_stream(pieces)])
    difference = np.abs(streamed.astype(int) - tokenizer.decode(joined).frames)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_streaming_takes_frames_one_by_one_and_refuses_none():
    tokenizer = small_tokenizer()
    frames = random_frames(18, 16, 16)
    joined = Tokens.join(tokenizer.encode_stream(iter(frames), fps=5))
    torch.testing.assert_close(joined.latents, tokenizer.encode(Video(frames)).latents, atol=FP32, rtol=FP32)
    assert joined.fps == 5
    with pytest.raises(AtokenError, match="no frames"):
        next(tokenizer.encode_stream([]))


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_memory_does_not_grow_with_the_video(kind):
    assert growth(**KINDS[kind]) <= GROWTH


KEPT = {
    "frames": ("_encode_tile", "kept.append(arguments[1])"),
    "tokens": ("_encode_tile", "kept.append(result)"),
    "videos": ("_unpatchified", "kept.append(result)"),
}


@pytest.mark.parametrize("what", KEPT)
def test_a_stream_that_keeps_what_it_has_done_is_found_out(what):
    method, keep = KEPT[what]
    patch = f"""
from atoken.tokenizer import Tokenizer
kept, method = [], Tokenizer.{method}
def keeping(*arguments):
    result = method(*arguments)
    {keep}
    return result
Tokenizer.{method} = keeping
"""
    assert growth(patch) > 2 * GROWTH


def growth(patch="", **switches):
    """How far the peak memory of a process of its own rises while it streams a long video."""
    code = f"{patch}\nfrom atoken.doctor import streamed_growth\nprint(streamed_growth(**{SWITCHES | switches!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_a_stream_holds_one_piece_at_a_time():
    """What was yielded is free as soon as its receiver lets go of it."""
    tokenizer, alive = small_tokenizer(), []

    def watched(pieces):
        for piece in pieces:
            alive.append(weakref.ref(piece))
            assert sum(ref() is not None for ref in alive) <= 4  # on each side this one and the one before
            yield piece

    frames = iter(random_frames(16 * 6, 16, 16))
    for _ in watched(tokenizer.decode_stream(watched(tokenizer.encode_stream(frames)))):
        pass
    assert len(alive) == 12


def test_a_frame_range_of_a_file_decodes_to_those_frames_of_the_whole(tmp_path):
    from atoken.io.token_file import TokenFile

    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(Video(random_frames(50, 20, 20)))
    tokens.save(tmp_path / "video.atok")
    whole = tokenizer.decode(tokens).frames
    with TokenFile(tmp_path / "video.atok") as file:
        piece = file.read(0, frames=(20, 30))
    assert (piece.first_frame, piece.frames) == (16, 16)
    difference = np.abs(tokenizer.decode(piece).frames.astype(int) - whole[16:32])
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_with_a_decoder_cache_a_piece_from_the_middle_is_refused():
    tokenizer = small_tokenizer("cached")
    pieces = list(tokenizer.encode_stream(Video(random_frames(40, 16, 16))))
    with pytest.raises(AtokenError, match="from its start"):
        tokenizer.decode(pieces[1])
    with pytest.raises(AtokenError, match="from its start"):
        next(tokenizer.decode_stream(pieces[1:]))
    with pytest.raises(TokenFileError, match="followed by"):
        list(tokenizer.decode_stream([pieces[0], pieces[2]]))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_a_saved_file_is_bit_for_bit_decoding_the_tokens(kind, tmp_path):
    tokenizer = small_tokenizer(kind)
    for name, media in (("image", Image(random_frames(31, 47))), ("video", Video(random_frames(35, 17, 16)))):
        tokens = tokenizer.encode(media)
        tokens.save(tmp_path / name)
        loaded = Tokens.load(tmp_path / name)
        assert torch.equal(loaded.latents, tokens.latents)
        assert np.array_equal(frames_of(tokenizer.decode(loaded)), frames_of(tokenizer.decode(tokens)))
        tokens.save(tmp_path / name, dtype="float16")
        half = Tokens.load(tmp_path / name)
        expected = tokens.latents if kind == "discrete" else tokens.latents.half().float()
        assert torch.equal(half.latents, expected)


def test_an_asset_comes_back_as_gaussians_at_its_voxels(tmp_path):
    pytest.importorskip("embreex", reason="the extra 3d is not installed")
    sizes = {"width": 48, "layers": 2, "heads": 4, "mlp": 64}
    tokenizer = Tokenizer(small_model(gaussian_decoder=sizes), "small-assets")
    views = render_views(make_asset(0, 4).mesh, 4, 64)
    tokens, image = tokenizer.encode_batch([views, Image(random_frames(20, 40))])
    torch.testing.assert_close(tokenizer.encode(views).latents, tokens.latents, atol=FP32, rtol=FP32)
    tokens.save(tmp_path / "a.atok")
    gaussians, _ = tokenizer.decode_batch([tokens, image])
    alone, again = tokenizer.decode(tokens), tokenizer.decode(Tokens.load(tmp_path / "a.atok"))
    for name in ("means", "scales", "quats", "opacities", "colors"):
        assert torch.equal(getattr(again, name), getattr(alone, name))
        torch.testing.assert_close(getattr(alone, name), getattr(gaussians, name), atol=FP32, rtol=FP32)
    assert len(gaussians) == 32 * len(tokens.coords)
    centres = (tokens.coords[:, 1:] + 0.5) / 64 - 0.5
    assert (gaussians.means.unflatten(0, (-1, 32)) - centres[:, None]).abs().max() <= 0.75 / 64 + FP32


def test_a_token_file_of_another_model_is_refused_by_name(tmp_path):
    tokens = small_tokenizer().encode(Image(random_frames(16, 16)))
    with pytest.raises(TokenFileError, match=r"small-continuous.*small-cached"):
        small_tokenizer("cached").decode(tokens)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 5), np.uint8), 7, None,
        np.zeros((3, 4, 4, 1), np.uint8), torch.zeros(3, 4, 4), "no/such/file.png", [np.zeros((4, 4, 3), np.uint8)],
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_gets_one_sentence(bad):
    with pytest.raises(AtokenError) as error:
        small_tokenizer().encode(bad)
    assert "\n" not in str(error.value)


def test_arrays_pil_images_and_files_are_one_and_the_same(tmp_path):
    import PIL.Image

    tokenizer = small_tokenizer()
    pixels = random_frames(21, 34)
    pil = PIL.Image.fromarray(pixels)
    pil.save(tmp_path / "x.png")
    plain = tokenizer.encode(pixels)
    for same in (pil, tmp_path / "x.png", str(tmp_path / "x.png"), Image(pixels)):
        assert torch.equal(tokenizer.encode(same).latents, plain.latents)
    rgba = np.dstack([pixels, random_frames(21, 34)[..., 0]])
    assert np.array_equal(tokenizer.encode(rgba).alpha, rgba[..., 3])


def test_embeddings_are_unit_vectors_and_tokens_hold_theirs(tmp_path):
    tokenizer = small_tokenizer()
    image = Image(random_frames(40, 20))
    vector = tokenizer.embed(image)
    torch.testing.assert_close(vector.norm(), torch.tensor(1.0), atol=FP32, rtol=0)
    tokenizer.encode(image).save(tmp_path / "x.atok")
    assert torch.equal(tokenizer.embed(Tokens.load(tmp_path / "x.atok")), vector)
    logits = tokenizer.logits(vector[None], vector[None])
    torch.testing.assert_close(logits, torch.tensor([[np.exp(4.8438) - 15.5625]]).float(), atol=1e-3, rtol=0)


def test_a_discrete_tokens_latents_are_what_its_codes_stand_for():
    tokenizer = small_tokenizer("discrete")
    tokens = tokenizer.encode(Image(random_frames(64, 64)))
    assert torch.equal(tokenizer.model.quantiser.from_codes(tokens.codes), tokens.latents)
    with torch.no_grad():
        assert away_from_boundaries(tokenizer.model, torch.zeros(2, 48)).all()
