"""``ClassToImagePipeline`` with small random models: generators, labels, outputs, callbacks, saving."""

import warnings

import numpy as np
import pytest
import torch
from diffusers.utils import logging

import atoken
from atoken.errors import AtokenError, TokenFileError
from generation.dit import DiT
from generation.masked_ar import MaskedAR
from generation.pipelines.class_to_image import ClassToImagePipeline

LABELS = ("red ring", "blue star", "apple")


def flow():
    torch.manual_seed(0)
    model = DiT(side=3, channels=48, width=32, depth=2, heads=2, classes=3)
    for weight in model.parameters():  # a fresh model gives zeros
        torch.nn.init.normal_(weight, std=0.05)
    nano = atoken.load("nano")
    statistics = nano.statistics
    return ClassToImagePipeline(model, LABELS, "nano", nano.fingerprint, statistics.mean, statistics.std)


def masked():
    torch.manual_seed(0)
    model = MaskedAR(
        side=3, encoder_size=(32, 1, 2), decoder_size=(32, 1, 2), head_size=(16, 1, 2), buffer=2, classes=3
    )  # fmt: skip
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return ClassToImagePipeline(model.eval(), LABELS, "nano-d", atoken.load("nano-d").fingerprint)


@pytest.fixture(scope="module", params=[flow, masked])
def pipeline(request):
    made = request.param()
    made.set_progress_bar_config(disable=True)
    return made


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def images(pipeline, labels, seeds, **options):
    return pipeline(labels, generator=generators(*seeds), num_inference_steps=4, output_type="np", **options).images


def test_an_image_depends_on_its_label_and_generator_alone(pipeline):
    together = images(pipeline, [0, 1, "apple"], (5, 6, 7))
    assert together.shape == (3, 48, 48, 3)
    alone = images(pipeline, "apple", (7,))
    np.testing.assert_allclose(alone[0], together[2], atol=1e-4)
    assert np.abs(images(pipeline, "apple", (8,))[0] - alone[0]).max() > 1e-3
    np.testing.assert_array_equal(images(pipeline, "apple", (7,)), alone)


def test_outputs_are_of_one_image(pipeline):
    seeds = (3, 4)
    unit = images(pipeline, [0, 1], seeds)
    asked = {"labels": [0, 1], "num_inference_steps": 4}
    pt = pipeline(**asked, generator=generators(*seeds), output_type="pt").images
    assert np.array_equal(pt.permute(0, 2, 3, 1).numpy(), unit)
    pil = pipeline(**asked, generator=generators(*seeds)).images
    assert np.array_equal(np.stack([np.asarray(one) for one in pil]), np.rint(unit * 255))
    (latents,) = pipeline(**asked, generator=generators(*seeds), output_type="latent", return_dict=False)
    assert latents.shape == (2, 48, 3, 3)
    tokens = pipeline(**asked, generator=generators(*seeds), output_type="tokens").images
    assert [one.name for one in tokens] == ["red ring", "blue star"]
    decoded = np.stack([pipeline.coder.decode(one).pixels for one in tokens])
    assert np.abs(decoded.astype(int) - np.rint(unit * 255)).max() <= 1


def test_saved_and_loaded_it_gives_the_same(pipeline, tmp_path):
    before = images(pipeline, [0, 2], (1, 2))
    pipeline.save_pretrained(tmp_path)
    loaded = ClassToImagePipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(images(loaded, ["red ring", "apple"], (1, 2)), before)


def test_tokens_of_another_tokenizer_are_refused(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    other = ClassToImagePipeline.from_pretrained(tmp_path, fingerprint="0" * 64)
    other.set_progress_bar_config(disable=True)
    with pytest.raises(TokenFileError, match="was trained on tokens of"):
        images(other, 0, (1,))


def test_a_callback_sees_each_step(pipeline):
    seen = []

    def callback(given, number, sigma, tensors):
        assert given is pipeline
        seen.append((number, sigma, tensors["latents"].shape))
        return {}

    images(pipeline, [0], (1,), callback_on_step_end=callback)
    assert [number for number, *_ in seen] == [0, 1, 2, 3]
    assert seen[-1][1] == 0
    assert {shape for *_, shape in seen} == {(1, 48, 3, 3)}


def test_a_callback_that_returns_nothing_changes_nothing(pipeline):
    seen = images(pipeline, [0], (1,), callback_on_step_end=lambda *_: None)
    np.testing.assert_array_equal(seen, images(pipeline, [0], (1,)))


def test_labels_are_numbers_of_any_kind_or_names(pipeline):
    expected = images(pipeline, [2, 0], (1, 2))
    for labels in (["apple", 0], ("apple", "red ring"), np.array([2, 0]), torch.tensor([2, 0]), [np.int64(2), 0]):
        np.testing.assert_array_equal(images(pipeline, labels, (1, 2)), expected)
    for label in (np.int32(2), torch.tensor(2), np.array(2), "apple"):
        np.testing.assert_array_equal(images(pipeline, label, (1,)), expected[:1])


def test_one_generator_gives_each_image_its_own(pipeline):
    asked = {"labels": [1, 1], "num_inference_steps": 4, "output_type": "np"}
    first, again = (pipeline(**asked, generator=torch.Generator().manual_seed(3)).images for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - first[1]).max() > 1e-3
    torch.manual_seed(3)  # from which no generator draws, too
    np.testing.assert_array_equal(pipeline(**asked).images, first)


def test_a_pipeline_is_loaded_and_cast_without_a_warning(pipeline, tmp_path, monkeypatch, request):
    pipeline.save_pretrained(tmp_path)
    said, library, before = [], logging.get_logger("diffusers"), logging.get_verbosity()
    request.addfinalizer(lambda: logging.set_verbosity(before))
    logging.set_verbosity_warning()
    monkeypatch.setattr(library.handlers[0], "emit", said.append)
    with warnings.catch_warnings(action="error"):
        loaded = ClassToImagePipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert loaded.dtype == torch.bfloat16
        assert loaded.to(torch.float32).dtype == torch.float32
        loaded.set_progress_bar_config(disable=True)
        images(loaded.to("cpu", torch.bfloat16), ["apple"], (1,))
        again = ClassToImagePipeline(**loaded.components, **loaded.parameters)
    assert again.parameters == loaded.parameters
    assert [record.getMessage() for record in said] == []
    library.warning("this is heard")
    assert len(said) == 1


def test_noise_may_be_given_to_a_flow_alone():
    pipeline = flow()
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn(48, 3, 3, generator=one) for one in generators(5, 6)])
    made = pipeline([0, 1], latents=noise, num_inference_steps=4, output_type="np").images
    np.testing.assert_array_equal(made, images(pipeline, [0, 1], (5, 6)))
    assert pipeline([0, 1], latents=torch.randn(2, 48, 4, 5), num_inference_steps=2).images[0].size == (80, 64)
    for wrong in (noise[:1], noise[:, :4], noise[0]):
        with pytest.raises(AtokenError, match=r"noise of shape \(2, 48, 3, 3\)"):
            pipeline([0, 1], latents=wrong)
    with pytest.raises(AtokenError, match="starts from no latents"):
        masked()([0, 1], latents=noise)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_pipeline_moves_with_its_tokenizer_and_takes_generators_of_the_gpu(pipeline):
    images(pipeline, [0], (1,))
    pipeline.to("cuda")
    assert images(pipeline, [0], (1,)).shape == (1, 48, 48, 3)
    first, again = (
        pipeline(0, generator=torch.Generator("cuda").manual_seed(3), num_inference_steps=2, output_type="np").images
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    pipeline.to("cpu")


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ("pear", {}, "no label 'pear'"),
        (3, {}, "labels 0 to 2"),
        ([], {}, "no labels"),
        (0, {"output_type": "jpeg"}, "no output type jpeg"),
        ([0, 1], {"generator": generators(1)}, "1 generators for 2 images"),
        (1.5, {}, "a name or a whole number, got 1.5"),
        ([[0, 1]], {}, r"a name or a whole number, got \[0, 1\]"),
        (None, {}, "a name or a whole number, got None"),
        (0, {"generator": 7}, "generator must be"),
        (0, {"generator": [7]}, "generator must be"),
        (0, {"num_inference_steps": 0}, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(pipeline, labels, options, said):
    with pytest.raises(AtokenError, match=said):
        pipeline(labels, **options)
