"""Terms of the tokenizer's loss: closed forms, second implementations, and what each of them runs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.bottleneck import Posterior
from atoken.checkpoint import from_siglip2, with_text
from atoken.metrics import vgg
from atoken.modalities.pixels import patchify
from atoken.pretrain import losses
from atoken.pretrain.losses import Step
from atoken.pretrain.teachers import siglip_images, siglip_texts
from atoken.tokens import SparseTokens
from tests.model.sizes import small_config
from tests.pretrain.small_teachers import MEAN, STD, parameters, small_teachers
from tests.tokenizer.texts import small_texts_model, words
from tests.tolerances import BF16_FORWARD, EXACT, FP32

SIZES = [(48, 32), (16, 64), (32, 32)]
CAPTIONS = ("a red box", "two spheres", "the green cone")
PERCEPTUAL = (losses.lpips, losses.gram, losses.clip, losses.stlpips, losses.stlpips_gram)
RECONSTRUCTION = (losses.l1, losses.kl, *PERCEPTUAL)
UNDERSTANDING = (losses.semantics, losses.alignment, losses.label_alignment)


def frames(sizes=SIZES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, *size, 3, generator=generator) * 2 - 1 for size in sizes]


def packed(images):
    """As in a batch, without the empty frames."""
    tokens = SparseTokens.pack([patchify(image) for image in images])
    return tokens.with_feats(tokens.feats[:, :768])


@pytest.fixture(scope="module")
def teachers():
    return small_teachers()


@pytest.fixture
def make(teachers):
    """A step of a small model, whose reconstruction is ``prediction`` where that is given."""

    def made(images=None, captions=CAPTIONS, prediction=None):
        inputs = packed(frames() if images is None else images)
        step = Step(small_texts_model(), inputs, captions, teachers, words())
        if prediction is not None:
            vars(step)["decoded"] = prediction
        return step

    return made


def by_hand(tokens, sizes=SIZES):
    """Images of packed patches, put together patch by patch."""
    found, feats = [], iter(tokens.feats[:, :768])
    for height, width in sizes:
        image = torch.empty(3, height, width)
        for row in range(0, height, 16):
            for column in range(0, width, 16):
                image[:, row : row + 16, column : column + 16] = next(feats).reshape(16, 16, 3).permute(2, 0, 1)
        found.append(image)
    return found


def at_224(images):
    made = [F.interpolate(x[None], (224, 224), mode="bilinear", antialias=True, align_corners=False) for x in images]
    return torch.cat(made)


# Reconstruction


def test_l1_is_the_mean_over_values_and_tokens():
    inputs = SparseTokens(torch.zeros(5, 768), torch.zeros(5, 4, dtype=torch.int32), (5,))
    result = torch.tensor([0.5, -0.25]).repeat(5, 384)
    assert losses.l1(SimpleNamespace(inputs=inputs, decoded=inputs.with_feats(result))).item() == 0.375


def test_kl_is_the_divergence_to_the_unit_gaussian_summed_over_channels():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 7, 48, generator=generator)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    result = losses.kl(SimpleNamespace(encoded=SimpleNamespace(posterior=Posterior(mean, logvar))))
    torch.testing.assert_close(result, expected, rtol=FP32, atol=0)
    zeros = Posterior(torch.zeros(3, 48), torch.zeros(3, 48))
    assert losses.kl(SimpleNamespace(encoded=SimpleNamespace(posterior=zeros))) == 0


def test_a_step_encodes_and_decodes_as_the_model_does(make):
    step = make()
    encoded, decoded = step.model(step.inputs)
    assert torch.equal(step.encoded.latents.feats, encoded.latents.feats)
    torch.testing.assert_close(step.decoded.feats, decoded.feats[:, :768], rtol=FP32, atol=FP32)


def test_perceptual_networks_see_images_of_any_size_on_224_pixels(make):
    step = make()
    result, expected = step.images
    assert torch.equal(expected, at_224([image[0].permute(2, 0, 1) for image in frames()]))
    assert torch.equal(result, at_224(by_hand(step.decoded)))
    assert result.shape == (3, 3, 224, 224)
    assert (result.requires_grad, expected.requires_grad) == (True, False)


def test_lpips_and_gram_are_those_of_images_put_together_by_hand(make, teachers):
    step = make()
    features = [teachers.vgg(at_224(by_hand(tokens))) for tokens in (step.decoded, step.inputs)]
    expected = vgg.lpips(*features, teachers.heads).mean(), vgg.gram(*features).mean()
    assert min(expected) > 100 * FP32
    torch.testing.assert_close((losses.lpips(step), losses.gram(step)), expected, rtol=FP32, atol=0)


def test_clip_is_the_angle_between_features_of_its_tower(make, teachers):
    step = make()
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    shown = [(at_224(by_hand(tokens)) + 1) / 2 for tokens in (step.decoded, step.inputs)]
    result, expected = (teachers.clip.model(pixel_values=(x - mean) / std).image_embeds for x in shown)
    cosines = torch.linalg.vecdot(result, expected) / (result.norm(dim=1) * expected.norm(dim=1))
    assert cosines.max() < 1 - 100 * FP32
    torch.testing.assert_close(losses.clip(step), 1 - cosines.mean(), rtol=0, atol=FP32)


def test_st_lpips_sees_the_same_random_square_of_both_images_at_their_resolution(make, teachers):
    sizes = [(96, 160), (80, 64), (32, 48)]
    inputs = packed(frames(sizes))
    noisy = inputs.with_feats(inputs.feats + 0.3 * torch.randn(inputs.feats.shape))
    values = set()
    for seed in range(3):
        step = replace(make(frames(sizes)), seed=seed)
        vars(step)["decoded"] = noisy
        places, expected = np.random.default_rng(seed), []
        for shown, wanted in zip(by_hand(noisy, sizes), by_hand(inputs, sizes), strict=True):
            top, left = (places.integers(max(0, size - 64) + 1) for size in wanted.shape[1:])
            pieces = [x[None, :, top : top + 64, left : left + 64] for x in (shown, wanted)]
            if min(wanted.shape[1:]) < 64:
                pieces = [F.interpolate(x, (64, 64), mode="bilinear", align_corners=False) for x in pieces]
            expected.append(teachers.stlpips(*pieces))
        value = losses.stlpips(step)
        torch.testing.assert_close(value, torch.cat(expected).mean(), rtol=FP32, atol=FP32)
        values.add(value.item())
    assert len(values) == 3


def test_a_batch_of_several_sizes_is_the_mean_of_its_images(make):
    whole, alone = make(), [make([image]) for image in frames()]
    for term in PERCEPTUAL:
        torch.testing.assert_close(term(whole), torch.stack([term(x) for x in alone]).mean(), rtol=FP32, atol=FP32)


def test_a_perfect_reconstruction_costs_nothing_and_is_left_alone(make):
    result = packed(frames())
    result.feats.requires_grad_()
    step = make(prediction=result)
    values = [term(step) for term in (losses.l1, *PERCEPTUAL)]
    assert max(values) < FP32
    sum(values).backward()
    assert result.feats.grad.abs().max() < FP32


def test_a_step_of_one_frame_is_that_of_patches_whose_other_frames_are_empty(make):
    step = make()
    whole = step.inputs.with_feats(F.pad(step.inputs.feats, (0, 3072 - 768)))
    encoded = step.model.encode(whole)
    decoded = step.model.decode(encoded.latents).feats[:, :768]
    for found, expected in ((step.encoded.pooled, encoded.pooled), (step.decoded.feats, decoded)):
        torch.testing.assert_close(found, expected, rtol=FP32, atol=FP32)


# Understanding


def similarities(visual_BE, text_TE, log_scale):
    cosines = torch.einsum("be,te->bt", F.normalize(visual_BE.double(), dim=1), text_TE.double())
    return cosines * log_scale.exp().double()


def divergence(step, kept):
    """The KL divergence of semantics, written out: every image, the texts that are kept, temperature 2."""
    siglip = step.teachers.siglip
    text = siglip_texts(siglip, words()([step.captions[i] for i in kept]))
    visual = siglip_images(siglip, step.inputs), step.encoded.pooled
    scores = (similarities(x, text, siglip.logit_scale) for x in visual)
    expected, result = (score.div(2.0).softmax(1) for score in scores)
    return (expected * (expected / result).log()).sum(1).mean().float()


@pytest.mark.parametrize("captions", [CAPTIONS, ("", *CAPTIONS[:2])])
def test_semantics_is_the_divergence_of_similarities_from_the_teachers(make, captions):
    step = make(captions=captions)
    expected = divergence(step, [i for i, caption in enumerate(captions) if caption])
    assert expected > 100 * FP32
    torch.testing.assert_close(losses.semantics(step), expected, rtol=0, atol=FP32)


def test_a_tokenizer_that_starts_as_its_teacher_has_nothing_to_learn_from_it(make, teachers):
    model = with_text(from_siglip2(teachers.siglip.vision_model, small_config(rope=False)), teachers.siglip.text_model)
    step = replace(make(), model=model)
    value = losses.semantics(step)
    assert value.item() == pytest.approx(0, abs=FP32)
    (gradient,) = torch.autograd.grad(value, step.encoded.pooled)
    (other,) = torch.autograd.grad(losses.semantics(far := make()), far.encoded.pooled)
    assert gradient.abs().max() < 1e-3 * other.abs().max()


def test_alignment_is_the_sigmoid_loss_of_the_full_matrix(make):
    step = make(captions=(CAPTIONS[0], "", CAPTIONS[2]))
    model, kept = step.model, [0, 2]
    text = F.normalize(model.text_tower(words()([step.captions[i] for i in kept])).pooler_output.double(), dim=1)
    logits = similarities(step.encoded.pooled[kept], text, model.logit_scale) + model.logit_bias
    signs = 2 * torch.eye(2) - 1
    expected = -torch.log(torch.sigmoid(signs * logits)).sum() / 2
    torch.testing.assert_close(losses.alignment(step), expected.float(), rtol=FP32, atol=FP32)


def test_samples_with_the_same_caption_match_where_captions_are_labels(make):
    step = make(captions=(CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]))
    text = F.normalize(step.model.text_tower(words()(step.captions)).pooler_output.double(), dim=1)
    logits = similarities(step.encoded.pooled, text, step.model.logit_scale) + step.model.logit_bias
    signs = torch.tensor([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
    expected = -torch.log(torch.sigmoid(signs * logits)).sum() / 3
    torch.testing.assert_close(losses.label_alignment(step), expected.float(), rtol=FP32, atol=FP32)
    other = make()
    assert losses.label_alignment(other).item() == losses.alignment(other).item()


@pytest.mark.parametrize("term", UNDERSTANDING)
def test_without_any_caption_the_loss_is_zero_and_its_gradient_there(make, term):
    step = make(captions=("", "", ""))
    value = term(step)
    value.backward()
    assert value.item() == EXACT
    assert not step.model.pool.out.weight.grad.any()


def test_a_frozen_text_side_gets_no_gradient_and_a_free_one_does(make):
    for free in (True, False):
        step = make()
        step.model.text_tower.requires_grad_(free)
        losses.alignment(step).backward()
        assert all((parameter.grad is not None) == free for parameter in step.model.text_tower.head.parameters())
        assert step.model.logit_scale.grad.abs() > 0
        assert step.model.logit_bias.grad.abs() > 0


# What runs


def calls(module):
    """Grows with every forward pass."""
    found = []
    module.register_forward_hook(lambda *_: found.append(1))
    return found


def test_terms_share_the_passes_that_they_need_and_run_no_other(make, teachers):
    step = make()
    model = step.model
    trunk = teachers.stlpips.slices[0]
    modules = model.encoder, model.pool.q, model.decoder, model.text_tower, teachers.vgg, trunk
    counts = [calls(module) for module in modules]
    for term in UNDERSTANDING:
        term(step)
    assert [len(count) for count in counts] == [1, 1, 0, 1, 0, 0]
    for term in RECONSTRUCTION:
        term(step)
    assert [len(count) for count in counts] == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("captions", [CAPTIONS, ("", "", "")])
def test_what_runs_does_not_depend_on_captions(make, captions):
    step = make(captions=captions)
    tower = calls(step.model.text_tower)
    losses.alignment(step)
    assert len(tower) == 1


@pytest.mark.parametrize("term", [*PERCEPTUAL, *UNDERSTANDING])
def test_gradients_reach_the_model_and_no_teacher(make, teachers, term):
    step = make()
    term(step).backward()
    model = step.model
    assert model.encoder.blocks[0].mlp.up.weight.grad.abs().sum() > 0
    reconstructs = term in PERCEPTUAL
    assert (model.pool.probe.grad is None) == reconstructs
    assert (model.to_patch.weight.grad is not None) == reconstructs
    trained = model.to_patch.weight if reconstructs else model.pool.probe
    assert trained.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in parameters(teachers))


def test_under_autocast_terms_are_fp32_and_near_those_without(make):
    plain, step, values = make(), make(), []
    for term in (*RECONSTRUCTION, *UNDERSTANDING):
        with torch.autocast("cpu", torch.bfloat16):
            values.append(term(step))
        assert values[-1].dtype == torch.float32
        # Gram is of the fourth order in features, and has the error of each.
        torch.testing.assert_close(values[-1], term(plain), rtol=4 * BF16_FORWARD, atol=BF16_FORWARD)
    sum(values).backward()
    gradients = [parameter.grad for parameter in step.model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
