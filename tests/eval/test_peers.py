"""Peers: small random autoencoders of diffusers against calls of their own, and TorchScript modules made here."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from atoken.autoencoder import ATokenAutoencoder
from atoken.errors import AtokenError, CheckpointError
from atoken.io import Video
from atoken.loading import load
from eval.contract import Item
from eval.models.autoencoders import Autoencoder, Shape
from eval.models.tokenizer import AToken
from eval.models.torchscript import TorchScriptModel
from tests.eval.media import greatest_difference, pixels, synthetic_image, synthetic_video
from tests.model.sizes import small_model
from tests.tolerances import PIXEL

diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")


def saved(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():  # not near zero, so that mistakes show
            if parameter.ndim > 1:
                parameter.normal_(std=(parameter[0].numel()) ** -0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    """Three levels: 4 pixels a side for one latent, which the config does not state."""
    torch.manual_seed(0)
    levels = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, **levels
    )
    return saved(model, tmp_path_factory.mktemp("sd") / "small-sd")


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[5.0] * 4,
        latents_std=[0.1] * 4,
        scale_factor_spatial=4,
    )
    return saved(model, tmp_path_factory.mktemp("wan") / "small-wan")


def through(folder, kind, frames):
    """(T, H, W, 3): the model's own forward on padded frames; an image model takes them as a batch."""
    values = torch.from_numpy(frames).float() / 127.5 - 1
    values = values.permute(3, 0, 1, 2)[None] if kind == "AutoencoderKLWan" else values.permute(0, 3, 1, 2)
    with torch.inference_mode():
        back = getattr(diffusers, kind).from_pretrained(folder).eval()(values).sample
    back = back[0].permute(1, 2, 3, 0) if kind == "AutoencoderKLWan" else back.permute(0, 2, 3, 1)
    return ((back + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def edged(frames, count, height, width):
    more = [(0, size - now) for size, now in zip((count, height, width), frames.shape, strict=False)]
    return np.pad(frames, [*more, (0, 0)], mode="edge")


# --------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize(("size", "whole"), [((32, 48), (32, 48)), ((17, 33), (20, 36)), ((1, 1), (4, 4))])
def test_a_image_model_pads_to_its_multiple_and_cuts_again(sd, size, whole):
    item, model = synthetic_image(*size), Autoencoder(sd, device="cpu")
    [sample] = model.reconstruct([item])
    expected = through(sd, "AutoencoderKL", edged(pixels(item), 1, *whole))[:, : size[0], : size[1]]
    assert model.shape == Shape(video=False, block=(1, 4, 4))
    assert np.array_equal(sample.target, pixels(item))
    assert greatest_difference(sample.prediction, expected) <= PIXEL
    assert sample.size == whole[0] // 4 * (whole[1] // 4) * 4 * 4  # latents, channels, bytes
    assert model.name == "small-sd"


def test_a_video_is_a_batch_of_frames_to_a_image_model(sd):
    item = synthetic_video(18, 16, 20)  # more than go through at once
    [sample] = Autoencoder(sd, device="cpu").reconstruct([item])
    assert greatest_difference(sample.prediction, through(sd, "AutoencoderKL", pixels(item))) <= PIXEL
    assert sample.size == 18 * 4 * 5 * 4 * 4


@pytest.mark.parametrize(("frames", "whole"), [(1, 1), (2, 5), (5, 5), (6, 9)])
def test_a_video_model_takes_images_and_videos_of_any_length(wan, frames, whole):
    item, model = synthetic_video(frames, 15, 18), Autoencoder(wan, device="cpu")
    [sample] = model.reconstruct([item])
    expected = through(wan, "AutoencoderKLWan", edged(pixels(item), whole, 16, 20))[:frames, :15, :18]
    assert model.shape == Shape(video=True, block=(4, 4, 4), causal=True)
    assert greatest_difference(sample.prediction, expected) <= PIXEL
    assert sample.size == (1 + (whole - 1) // 4) * 4 * 5 * 4 * 4
    image = synthetic_image(15, 18)
    [of_image] = model.reconstruct([image])
    expected = through(wan, "AutoencoderKLWan", edged(pixels(image), 1, 16, 20))[:, :15, :18]
    assert greatest_difference(of_image.prediction, expected) <= PIXEL


def test_images_together_are_as_alone_and_in_order(sd):
    items = [synthetic_image(16, 16, n) for n in range(3)] + [synthetic_image(17, 16), synthetic_video(2, 16, 16)]
    model = Autoencoder(sd, device="cpu")
    for item, sample in zip(items, model.reconstruct(items), strict=True):
        [alone] = model.reconstruct([item])
        assert sample.item is item
        assert sample.size == alone.size
        assert greatest_difference(sample.prediction, alone.prediction) <= PIXEL


@pytest.mark.parametrize("model", ["sd", "wan"])
def test_draws_belong_to_seed_and_key(model, request):
    folder = request.getfixturevalue(model)
    items = [synthetic_image(16, 16, n) for n in range(3)] + [synthetic_video(5, 16, 16)]
    one, other = (Autoencoder(folder, device="cpu", sample=seed) for seed in (0, 1))
    whole = one.reconstruct(items)
    for item, sample, differently in zip(items, whole, other.reconstruct(items), strict=True):
        assert greatest_difference(sample.prediction, one.reconstruct([item])[0].prediction) <= PIXEL
        assert greatest_difference(sample.prediction, differently.prediction) > 8
    assert {name: one.record[name] for name in ("latents", "seed")} == {"latents": "sample", "seed": "0"}


def test_scaling_for_a_generator_changes_nothing(sd, tmp_path):
    other = shutil.copytree(sd, tmp_path / "scaled")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"scaling_factor": 3.0, "shift_factor": 1.0}))
    [one], [same] = (Autoencoder(path, device="cpu").reconstruct([synthetic_image()]) for path in (sd, other))
    assert np.array_equal(one.prediction, same.prediction)


def test_a_pipeline_is_taken_by_its_vae(sd, tmp_path):
    shutil.copytree(sd, tmp_path / "pipeline" / "vae")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    model = Autoencoder(tmp_path / "pipeline", device="cpu")
    assert model.name == "pipeline"
    assert model.record["fingerprint"] == Autoencoder(sd, device="cpu").record["fingerprint"]


def test_a_tiny_autoencoder_has_latents_and_no_posterior(tmp_path):
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3,
    )  # fmt: skip
    folder = saved(model, tmp_path / "tiny")
    [sample] = Autoencoder(folder, device="cpu").reconstruct([synthetic_image(17, 16)])
    assert sample.prediction.shape == (1, 17, 16, 3)
    assert sample.size == 9 * 8 * 3 * 4
    with pytest.raises(AtokenError, match="no posterior to draw from"):
        Autoencoder(folder, device="cpu", sample=0).reconstruct([synthetic_image(16, 16)])


def test_a_drop_in_vae_of_atoken_is_measured_as_a_tokenizer(tmp_path):
    folder, item = tmp_path / "own", synthetic_image(17, 33)
    ATokenAutoencoder(small_model()).save_pretrained(folder)
    with pytest.raises(CheckpointError, match="pass the folder alone, without diffusers:"):
        Autoencoder(folder, device="cpu")
    model = AToken(load(folder, device="cpu"))
    assert model.reconstruct([item])[0].prediction.shape == (1, 17, 33, 3)


def test_what_cannot_be_measured_is_one_sentence(sd, tmp_path):
    def altered(name, **config):
        folder = shutil.copytree(sd, tmp_path / name)
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))
        return folder

    unsafe = altered("unsafe")
    torch.save({}, unsafe / "diffusion_pytorch_model.bin")
    (unsafe / "diffusion_pytorch_model.safetensors").unlink()
    lacking = altered("lacking", layers_per_block=2)
    for folder, words in (
        (tmp_path / "nothing", "no config.json"),
        (altered("unknown", _class_name="AutoencoderOfTomorrow"), "no such autoencoder"),
        (altered("other", _class_name="UNet2DModel"), "no such autoencoder"),
        (altered("refused", _class_name="ConsistencyDecoderVAE"), "draws random numbers"),
        (unsafe, "no complete AutoencoderKL in safetensors"),
        (altered("wrong", latent_channels=5), "no complete AutoencoderKL in safetensors"),
        (lacking, r"lacks \d+ weights"),
    ):
        with pytest.raises(CheckpointError, match=words):
            Autoencoder(folder, device="cpu")
    with pytest.raises(CheckpointError, match="dtype must be one of"):
        Autoencoder(sd, device="cpu", dtype="int8")
    with pytest.raises(AtokenError, match="no vectors"):
        Autoencoder(sd, device="cpu").embed([synthetic_image()])


# ------------------------------------------------------------------------------------------------------- TorchScript


class Unshuffle(nn.Module):
    """Pixels to blocks of 4x4, and nothing lost; beside it what an encoder may also return."""

    def forward(self, values):
        return nn.functional.pixel_unshuffle(values, 4), torch.zeros(1)


class Shuffle(nn.Module):
    def forward(self, latents):
        return nn.functional.pixel_shuffle(latents, 4)


class Index(nn.Module):
    """Blocks of 4x4 to one of 256 greys, as indices (B, h, w)."""

    def forward(self, values):
        mean = nn.functional.avg_pool2d(values.mean(1), 4)
        return (mean.add(1).mul(127.5)).round().to(torch.int32), mean


class LookUp(nn.Module):
    def forward(self, indices):
        grey = indices.float() / 127.5 - 1
        return grey.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1)


class FirstFrame(nn.Module):
    """A video (B, 3, T, H, W) of which only the first frame is kept."""

    def forward(self, values):
        return values[:, :, :1].expand_as(values).contiguous()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cosmos") / "Small-CI4x4"
    folder.mkdir()
    for kind in (Unshuffle, Shuffle, Index, LookUp, FirstFrame, nn.Identity):
        torch.jit.script(kind()).save(folder / f"{kind.__name__}.jit")
    return folder


@pytest.mark.parametrize("size", [(16, 20), (1, 1), (17, 33)])
def test_an_identity_gives_every_pixel_back(scripts, size):
    items = [synthetic_image(*size), synthetic_video(3, *size)]
    model = TorchScriptModel(
        scripts / "Unshuffle.jit", scripts / "Shuffle.jit", trust=True, device="cpu", block=(1, 4, 4)
    )
    for item, sample in zip(items, model.reconstruct(items), strict=True):
        assert np.array_equal(sample.prediction, pixels(item))
        assert sample.size == len(pixels(item)) * -(-size[0] // 4) * -(-size[1] // 4) * 48 * 4
        assert sample.codes is None
    assert model.name == "Small-CI4x4"


def test_one_autoencoder_does_not_say_its_bytes(scripts):
    [sample] = TorchScriptModel(scripts / "Identity.jit", trust=True, device="cpu").reconstruct(
        [synthetic_image(17, 33)]
    )
    assert np.array_equal(sample.prediction, sample.target)
    assert sample.size is None


@pytest.mark.parametrize(("codebook", "width"), [(256, 1), (257, 2), (64_000, 2), (65_537, 3)])
def test_indices_are_codes_in_the_fewest_whole_bytes(scripts, codebook, width):
    paths = scripts / "Index.jit", scripts / "LookUp.jit"
    item = synthetic_image(17, 20)
    [sample] = TorchScriptModel(*paths, trust=True, device="cpu", block=(1, 4, 4), codebook=codebook).reconstruct(
        [item]
    )
    assert sample.codes.shape == (25, 1)
    assert sample.size == 25 * width
    greys = sample.codes.reshape(5, 5).repeat(4, 0).repeat(4, 1)[:17]
    assert np.array_equal(sample.prediction[0], np.repeat(greys[..., None], 3, axis=2))


def test_indices_beyond_the_codebook_are_an_error(scripts):
    paths = scripts / "Index.jit", scripts / "LookUp.jit"
    with pytest.raises(AtokenError, match="not below 3; state its codebook"):
        TorchScriptModel(*paths, trust=True, device="cpu", block=(1, 4, 4), codebook=3).reconstruct([synthetic_image()])


@pytest.mark.parametrize("window", [1, 5, 49])
def test_windows_of_a_video_do_not_know_each_other(scripts, window):
    item = synthetic_video(12, 16, 16)
    model = TorchScriptModel(
        scripts / "FirstFrame.jit", trust=True, device="cpu", video=True, block=(4, 16, 16), window=window
    )
    [sample] = model.reconstruct([item])
    assert np.array_equal(sample.prediction, pixels(item)[np.arange(12) // window * window])


def test_nothing_is_loaded_without_trust(scripts, tmp_path):
    with pytest.raises(AtokenError, match="pass --trust if you trust its maker"):
        TorchScriptModel(tmp_path / "missing.jit")
    (tmp_path / "damaged.jit").write_bytes(b"PK\x03\x04 no program")
    for name in ("missing.jit", "damaged.jit"):
        with pytest.raises(CheckpointError, match="cannot be loaded as TorchScript"):
            TorchScriptModel(tmp_path / name, trust=True, device="cpu")


def test_a_module_that_fails_or_gives_too_little_is_one_sentence(scripts):
    with pytest.raises(AtokenError, match=r"Small-CI4x4 failed on torch\.float32 of shape \(1, 3, 17, 17\)"):
        TorchScriptModel(
            scripts / "Unshuffle.jit", scripts / "Shuffle.jit", trust=True, device="cpu", block=(1, 1, 1)
        ).reconstruct([synthetic_image(17, 17)])
    with pytest.raises(AtokenError, match="gave 1 frames of 8x8 back for 1 of 17x17"):
        TorchScriptModel(scripts / "Unshuffle.jit", scripts / "Identity.jit", trust=True, device="cpu").reconstruct(
            [Item("video", Video(np.zeros((1, 17, 17, 3), np.uint8)))]
        )
