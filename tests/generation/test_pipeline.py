"""``ClassToImagePipeline`` with small random models: generators, labels, outputs, callbacks, saving."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ("pear", {}, "no label 'pear'"),
        (3, {}, "labels 0 to 2"),
        ([], {}, "no labels"),
        (0, {"output_type": "jpeg"}, "no output type jpeg"),
        ([0, 1], {"generator": generators(1)}, "1 generators for 2 images"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(pipeline, labels, options, said):
    with pytest.raises(AtokenError, match=said):
        pipeline(labels, **options)
