"""``ATokenAutoencoder`` in the hands of unmodified diffusers: training steps, pipelines and their folders, habits."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

import atoken
from atoken.errors import CheckpointError, MissingExtraError
from atoken.model import ATokenModel
from atoken.statistics import ALL, NAME, LatentStatistics, Measured
from tests.model.sizes import small_config, small_model
from tests.tokenizer.small import random_frames
from tests.tolerances import BF16_FORWARD, BF16_GRADIENT, FP32

diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
EMAModel = pytest.importorskip("diffusers.training_utils").EMAModel

ROOT = Path(__file__).parents[2]
CHANNELS = 48
STATISTICS = LatentStatistics(
    tuple(np.linspace(-1, 1, CHANNELS).tolist()), tuple(np.linspace(0.5, 4, CHANNELS).tolist())
)
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = {"image": (2, 3, 32, 48), "video": (2, 3, 8, 32, 32)}
LATENTS = {"image": (2, CHANNELS, 2, 3), "video": (2, CHANNELS, 2, 2, 2)}


def autoencoder(dtype=torch.float32, **changes):
    return atoken.ATokenAutoencoder(small_model(**changes), STATISTICS).to(dtype).eval()


def pixels(shape, dtype=torch.float32, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


# ------------------------------------------------------------------------------------------------------ encode, decode


def test_encode_and_decode_are_those_of_files():
    vae, frames = autoencoder(), random_frames(9, 32, 48)
    tok = atoken.Tokenizer(vae.model, "small")
    for media, shown in ((frames[0], frames[:1]), (frames, frames)):
        x = torch.from_numpy(shown).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        x = x[:, :, 0] if len(shown) == 1 else x
        tokens = tok.encode(media)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
            back = vae(x).sample
        packed = z.flatten(2)[0].T
        torch.testing.assert_close(packed, tokens.latents, atol=FP32, rtol=FP32)
        decoded = tok.decode(tokens)
        expected = decoded.pixels if len(shown) == 1 else decoded.frames
        actual = ((back[0] + 1) * 127.5).round().clamp(0, 255).movedim(0, -1).byte().numpy()
        assert np.abs(actual.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("modality", SHAPES)
def test_shapes_and_dtypes(modality, dtype):
    vae, x = autoencoder(dtype), pixels(SHAPES[modality], dtype)
    posterior = vae.encode(x).latent_dist
    assert isinstance(posterior, diffusers.models.autoencoders.vae.DiagonalGaussianDistribution)
    for one in (posterior.mean, posterior.std, posterior.logvar, posterior.mode(), posterior.sample()):
        assert (one.shape, one.dtype) == (LATENTS[modality], dtype)
    sample = vae.decode(posterior.mode()).sample
    assert (sample.shape, sample.dtype) == (x.shape, dtype)
    assert torch.equal(vae.encode(x, return_dict=False)[0].mean, posterior.mean)
    assert torch.equal(vae.decode(posterior.mode(), return_dict=False)[0], sample)
    assert torch.equal(vae(x).sample, sample)


def test_bf16_is_fp32_but_for_rounding():
    x = pixels(SHAPES["image"])
    wanted, found = (autoencoder(dtype).encode(x).latent_dist.mean.float() for dtype in DTYPES)
    assert (found - wanted).abs().max() <= 4 * BF16_FORWARD * wanted.abs().max()  # of two layers of random weights


def test_the_distribution_is_the_posterior():
    vae, x = autoencoder(), pixels(SHAPES["image"])
    expected, posterior = vae.model.encode_pixels(x).posterior, vae.encode(x).latent_dist
    assert torch.equal(posterior.logvar.flatten(2).mT.flatten(0, 1), expected.logvar)
    torch.testing.assert_close(posterior.kl(), expected.kl().view(2, -1).sum(1))
    first, second = (posterior.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(first, posterior.mean + noise * posterior.std)
    assert not torch.equal(first, posterior.sample(torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("why", ["it quantises", "no deviation was trained"])
def test_a_certain_posterior_gives_its_latents_however_it_is_asked(why):
    model = small_model(**({"fsq_levels": (4,) * 6} if why == "it quantises" else {}))
    if why == "no deviation was trained":
        with torch.no_grad():
            model.to_latent.weight[CHANNELS:] = 0
    vae, x = atoken.ATokenAutoencoder(model).eval(), pixels(SHAPES["image"])
    posterior = vae.encode(x).latent_dist
    latents = model.encode_pixels(x).latents.feats
    for one in (posterior.mean, posterior.mode(), posterior.sample()):
        assert torch.equal(one.flatten(2).mT.flatten(0, 1), latents)
    assert posterior.std.abs().max() == 0
    assert float(posterior.kl()) == 0


@pytest.mark.parametrize("shape", [(1, 3, 17, 33), (1, 3, 5, 17, 33), (1, 3, 1, 16, 16)])
def test_forward_gives_the_size_of_the_input(shape):
    assert autoencoder()(pixels(shape)).sample.shape == shape


def test_slicing_and_tiling_change_no_number():
    vae, x = autoencoder(), pixels(SHAPES["video"])
    plain = vae(x).sample
    vae.enable_slicing()
    vae.enable_tiling()
    assert len(vae._slices(x)) == 2
    torch.testing.assert_close(vae(x).sample, plain, atol=FP32, rtol=FP32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_gradients_reach_the_pixels_and_not_frozen_weights(kind, dtype):
    vae = autoencoder(dtype, **({"fsq_levels": (4,) * 6} if kind == "discrete" else {})).requires_grad_(False)
    x = pixels(SHAPES["image"], dtype).requires_grad_()
    F.mse_loss(vae(x).sample, torch.zeros_like(x)).backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_gradient_checkpointing_changes_no_gradient():
    plain = autoencoder().train()
    saving = copy.deepcopy(plain)
    saving.enable_gradient_checkpointing()
    assert saving.is_gradient_checkpointing
    for vae in (plain, saving):
        vae(pixels(SHAPES["image"])).sample.square().sum().backward()
    pairs = [(one.grad, other.grad) for one, other in zip(plain.parameters(), saving.parameters(), strict=True)]
    assert len([one for one, _ in pairs if one is not None]) > 20
    assert all((one is None) == (other is None) for one, other in pairs)
    for one, other in pairs:
        assert one is None or torch.equal(one, other)


def test_offloaded_weights_are_brought_back():
    class Hook:
        calls = 0

        def pre_forward(self, module):
            self.calls += 1

    vae = autoencoder()
    vae._hf_hook = Hook()
    vae.decode(vae.encode(pixels(SHAPES["image"])).latent_dist.mode())
    assert vae._hf_hook.calls == 2


# ---------------------------------------------------------------------------------------------------------- the config


def test_the_config_is_what_pipelines_read():
    vae = autoencoder()
    config = vae.config
    assert (config.latent_channels, config.spatial_compression_ratio, config.temporal_compression_ratio) == (48, 16, 4)
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (16, 4)
    assert 2 ** (len(config.block_out_channels) - 1) == 16  # the vae_scale_factor of image pipelines
    assert (config.latents_mean, config.latents_std) == ([*STATISTICS.mean], [*STATISTICS.std])
    assert vae.statistics == STATISTICS
    mean, std = STATISTICS.overall
    assert (config.shift_factor, config.scaling_factor) == (mean, 1 / std)
    bare = atoken.ATokenAutoencoder(small_model()).config
    assert (bare.latents_mean, bare.latents_std, bare.shift_factor, bare.scaling_factor) == (None, None, 0, 1)


def test_a_new_model_of_the_same_config():
    vae = autoencoder()
    new = atoken.ATokenAutoencoder.from_config(vae.config)
    assert {**new.config} == {**vae.config}
    assert [one.shape for one in new.parameters()] == [one.shape for one in vae.parameters()]


def test_an_average_of_diffusers_is_saved_and_loaded(tmp_path):
    vae = autoencoder()
    average = EMAModel(vae.parameters(), decay=0.5, model_cls=atoken.ATokenAutoencoder, model_config=vae.config)
    with torch.no_grad():
        vae.model.to_patch.weight.add_(1)
    average.optimization_step = 100  # at its start the average follows the weights
    average.step(vae.parameters())
    average.save_pretrained(tmp_path)
    again = EMAModel.from_pretrained(tmp_path, atoken.ATokenAutoencoder)
    assert (again.decay, again.optimization_step) == (0.5, 101)
    for one, other in zip(again.shadow_params, average.shadow_params, strict=True):
        assert torch.equal(one, other)
    assert atoken.ATokenAutoencoder.from_pretrained(tmp_path).statistics == STATISTICS


# ------------------------------------------------------------------------------------------------------ a training step


def unet():
    return diffusers.UNet2DModel(
        sample_size=4, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1, block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=8,
    )  # fmt: skip


def dit(**changes):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "sample_size": 4, "patch_size": 1}
    return diffusers.DiTTransformer2DModel(in_channels=CHANNELS, out_channels=CHANNELS, norm_num_groups=8, **sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("denoiser", [unet, dit])
def test_an_unmodified_training_step(denoiser, dtype):
    """The inner loop of diffusers' examples/text_to_image/train_text_to_image.py, without the text."""
    torch.manual_seed(0)
    vae = autoencoder(dtype)
    vae.requires_grad_(False)
    network = denoiser().train()
    classes = {"class_labels": torch.tensor([1, 2])} if denoiser is dit else {}
    noise_scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    batch, losses = {"pixel_values": pixels((2, 3, 64, 64))}, []
    for _ in range(8):
        latents = vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample(torch.Generator().manual_seed(1))
        latents = latents * vae.config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
        timesteps = torch.tensor([300, 700])
        noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            model_pred = network(noisy_latents, timesteps, return_dict=False, **classes)[0]
        loss = F.mse_loss(model_pred.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert latents.shape == (2, CHANNELS, 4, 4)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is None for parameter in vae.parameters())


# ------------------------------------------------------------------------------------------------------------ pipelines

GENERATE = """
import sys, torch
from atoken import ATokenAutoencoder
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=getattr(torch, sys.argv[2]))
assert type(pipe).__name__ == "DiTPipeline"
images = pipe([3, 5], num_inference_steps=2, generator=torch.Generator().manual_seed(7), output_type="pt").images
torch.save(images, sys.argv[3])
"""


def generated(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe([3, 5], num_inference_steps=2, generator=torch.Generator().manual_seed(7), output_type="pt").images


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    return diffusers.DiTPipeline(dit(), autoencoder(), diffusers.DDIMScheduler(num_train_timesteps=1000))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_pipeline_folder_generates_the_same_in_a_new_process(dtype, pipeline, tmp_path):
    pipeline = copy.deepcopy(pipeline).to(dtype)
    pipeline.save_pretrained(tmp_path / "pipe")
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["vae"] == ["atoken.autoencoder", "ATokenAutoencoder"]
    arguments = [str(tmp_path / "pipe"), str(dtype).removeprefix("torch."), str(tmp_path / "images.pt")]
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    images, expected = torch.load(tmp_path / "images.pt", weights_only=True), generated(pipeline)
    assert images.shape == (2, 3, 64, 64)
    torch.testing.assert_close(images, expected, atol=FP32 if dtype == torch.float32 else BF16_GRADIENT, rtol=0)


def test_a_pipeline_reads_the_scaling_factor(pipeline):
    changed = copy.deepcopy(pipeline)
    changed.vae.register_to_config(scaling_factor=2 * pipeline.vae.config.scaling_factor)
    assert not torch.allclose(generated(changed), generated(pipeline), atol=1e-3)


def test_a_video_pipeline_denormalises_with_the_statistics():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=CHANNELS, num_layers=1,
        out_channels=CHANNELS, text_dim=16, freq_dim=32, ffn_dim=32, rope_max_seq_len=32,
    )  # fmt: skip
    vae = autoencoder()
    pipe = diffusers.WanPipeline(None, None, vae, diffusers.FlowMatchEulerDiscreteScheduler(), transformer)
    pipe.set_progress_bar_config(disable=True)
    prompt, shape = torch.zeros(1, 4, 16), {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    latents, frames = (
        pipe(
            prompt_embeds=prompt, negative_prompt_embeds=prompt, output_type=kind,
            generator=torch.Generator().manual_seed(0), **shape,
        ).frames
        for kind in ("latent", "pt")
    )  # fmt: skip
    assert latents.shape == (1, CHANNELS, 2, 2, 2)
    with torch.no_grad():
        expected = vae.decode(STATISTICS.denormalise(latents)).sample
    assert frames.shape == (1, 8, 3, 32, 32)
    torch.testing.assert_close(frames.movedim(2, 1), (expected / 2 + 0.5).clamp(0, 1), atol=FP32, rtol=FP32)


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_saved_folder_is_a_vae_and_a_tokenizer(tmp_path):
    vae = autoencoder()
    vae.register_to_config(scaling_factor=0.5)  # what somebody trained a generator with
    vae.save_pretrained(tmp_path / "vae")
    Measured("here", "another", {ALL: STATISTICS}).save(tmp_path / "vae" / NAME)  # not read beside those of a generator
    again = atoken.ATokenAutoencoder.from_pretrained(tmp_path / "vae")
    assert {**again.config} == {name: value for name, value in vae.config.items() if name[0] != "_"}
    x = pixels(SHAPES["image"])
    assert torch.equal(again.encode(x).latent_dist.mean, vae.encode(x).latent_dist.mean)
    assert not again.training
    tok = atoken.load(tmp_path / "vae", device="cpu")
    assert tok.fingerprint == atoken.Tokenizer(vae.model, "small").fingerprint
    below = atoken.ATokenAutoencoder.from_pretrained(tmp_path, subfolder="vae", torch_dtype=torch.bfloat16)
    assert below.dtype == torch.bfloat16
    assert below.config.scaling_factor == 0.5


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"Cannot write .*file: .*\.$"):
        autoencoder().save_pretrained(tmp_path / "file")


def test_a_models_folder_is_a_vae_with_the_statistics_in_it(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    assert atoken.ATokenAutoencoder.from_pretrained(tmp_path).config.latents_mean is None
    fingerprint = atoken.Tokenizer(model, "small").fingerprint
    Measured("here", fingerprint, {ALL: STATISTICS}).save(tmp_path / NAME)
    for dtype in (None, torch.float16, torch.bfloat16):
        vae = atoken.ATokenAutoencoder.from_pretrained(tmp_path, torch_dtype=dtype)
        assert vae.config.latents_std == [*STATISTICS.std]
    Measured("here", "another", {ALL: STATISTICS}).save(tmp_path / NAME)
    with pytest.raises(CheckpointError, match="other weights"):
        atoken.ATokenAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["nano", "nano-d"])
def test_the_bundled_models_are_at_hand(name):
    vae = atoken.ATokenAutoencoder.from_pretrained(name)
    assert vae.statistics.normalise(vae.encode(pixels((1, 3, 32, 32))).latent_dist.sample()).shape == (1, 48, 2, 2)
    assert vae.deterministic


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match=r"Cannot load a model from .*"):
        atoken.ATokenAutoencoder.from_pretrained(tmp_path)


def test_without_diffusers_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    spec = importlib.util.spec_from_file_location("elsewhere", ROOT / "atoken" / "autoencoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # importing it is no error
    with pytest.raises(MissingExtraError, match=r"pip install 'atoken\[diffusers\]'"):
        module.ATokenAutoencoder(ATokenModel(small_config()))
