"""``TextToVideoPipeline`` and its training: texts, sizes, windows, held frames, what is trained and gone on with."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import atoken
from atoken.cli import main as atoken_main
from atoken.errors import AtokenError
from atoken.io import load_media
from atoken.io.token_file import TokenFile
from generation import plan, presets
from generation.command import main
from generation.mmdit import MMDiT
from generation.pipelines.text_to_video import TextToVideoPipeline
from generation.prompted import prompts_in, video_folder
from generation.text import TextFeatures, encoder_of, load_encoder
from generation.training import training
from scripts import bundle_generators, text_to_video
from tests.tolerances import RELEASED

SIZES = {"width": 32, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    nano = atoken.load("nano")
    encoder = encoder_of(nano)
    model = MMDiT(channels=48, **SIZES, text_widths=(encoder.width,), pooled_widths=(encoder.pooled_width,))
    for weight in model.parameters():  # a fresh model gives zeros
        nn.init.normal_(weight, std=0.05)
    means = nano.statistics.mean, nano.statistics.std
    made = TextToVideoPipeline(model, ("nano",), (8, 32, 32), 3.0, "nano", nano.fingerprint, *means)
    made.set_progress_bar_config(disable=True)
    return made


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def frames(pipeline, prompt, seeds, **options):
    options = {"num_inference_steps": 3, "output_type": "np", **options}
    return pipeline(prompt, generator=generators(*seeds), **options).frames


def test_a_video_depends_on_its_prompt_and_generator_alone(pipeline):
    together = frames(pipeline, ["a red ring", "", "a blue star moving left"], (5, 6, 7))
    assert together.shape == (3, 8, 32, 32, 3)
    alone = frames(pipeline, "a blue star moving left", (7,))
    np.testing.assert_allclose(alone[0], together[2], atol=RELEASED)
    assert np.abs(frames(pipeline, "a blue star moving left", (8,)) - alone).max() > 1e-3
    assert np.abs(frames(pipeline, "a red ring", (7,)) - alone).max() > 1e-4
    assert np.abs(frames(pipeline, "a red ring", (5,), negative_prompt="a blue star") - together[:1]).max() > 1e-5
    twice = frames(pipeline, "a red ring", (5, 6), num_videos_per_prompt=2)
    np.testing.assert_allclose(twice[0], together[0], atol=RELEASED)


def test_an_image_is_a_video_of_one_frame_and_outputs_are_of_one_video(pipeline):
    image = frames(pipeline, "a red ring", (3,), num_frames=1, height=48)
    assert image.shape == (1, 1, 48, 32, 3)
    pt = frames(pipeline, "a red ring", (3,), num_frames=1, height=48, output_type="pt")
    np.testing.assert_array_equal(pt.permute(0, 2, 3, 4, 1), image)
    pil = frames(pipeline, "a red ring", (3,), num_frames=1, height=48, output_type="pil")
    np.testing.assert_array_equal(np.asarray(pil[0][0]), np.rint(image[0, 0] * 255))
    (tokens,) = frames(pipeline, "a red ring", (3,), num_frames=1, height=48, output_type="tokens")
    assert tokens.modality == "image"
    decoded = pipeline.coder.decode(tokens).pixels
    assert np.abs(decoded.astype(int) - np.rint(image[0, 0] * 255)).max() <= 1


def test_windows_overlap_and_a_stream_is_the_whole_video(pipeline):
    latents = frames(pipeline, "a red ring", (4,), num_frames=28, output_type="latent")
    assert latents.shape == (1, 48, 7, 2, 2)
    first = frames(pipeline, "a red ring", (4,), output_type="latent")
    torch.testing.assert_close(latents[:, :, :2], first)
    options = {"num_frames": 28, "num_inference_steps": 3}
    whole = pipeline("a red ring", generator=generators(4)[0], output_type="np", **options).frames[0]
    pieces = list(pipeline.stream("a red ring", fps=8, generator=generators(4)[0], **options))
    assert [len(piece.frames) for piece in pieces] == [16, 12]
    streamed = np.concatenate([piece.frames for piece in pieces])
    assert np.abs(streamed.astype(int) - np.rint(whole * 255)).max() <= 1


def test_a_video_begins_with_the_image_that_is_given(pipeline):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    latents = frames(pipeline, "a red ring", (4,), image=image, output_type="latent")
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        still = pipeline.coder.encode_pixels(pixels[None, :, None].expand(1, 3, 4, 32, 32)).latents
    torch.testing.assert_close(latents[0, :, 0].flatten(1).mT, still.feats, rtol=RELEASED, atol=RELEASED)


def test_saved_and_loaded_it_gives_the_same(pipeline, tmp_path):
    before = frames(pipeline, "a red ring", (1,))
    pipeline.save_pretrained(tmp_path)
    loaded = TextToVideoPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(frames(loaded, "a red ring", (1,)), before)


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([], {}, "at least one prompt"),
        (3, {}, "a text or a list of texts, got 3"),
        ("a", {"negative_prompt": ["b", "c"]}, "one negative prompt"),
        ("a", {"num_frames": 6}, "multiple of 4 frames"),
        ("a", {"height": 40}, "multiples of 16 pixels"),
        ("a", {"overlap": 8, "num_frames": 16}, "overlap"),
        ("a", {"output_type": "gif"}, "no output type gif"),
        ("a", {"generator": generators(1, 2)}, "2 generators for 1 videos"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(pipeline, prompt, options, said):
    with pytest.raises(AtokenError, match=said):
        pipeline(prompt, **options)


def test_texts_of_any_length_are_features_of_their_own(pipeline):
    encoder = pipeline.encoders[0]
    texts = ["a red ring", "", "word " * 1000]
    found = encoder(texts)
    assert found.lengths == encoder.lengths(texts)
    assert found.lengths[1] == 0 < found.lengths[0] < found.lengths[2] == pipeline.coder.texts.length
    assert not found.pooled[1].any()
    alone = encoder(texts[:1])
    torch.testing.assert_close(found.tokens[: found.lengths[0]], alone.tokens)
    kept = TextFeatures.joined([found, alone]).kept([False, True, True, True])
    assert kept.lengths == (0, 0, found.lengths[2], found.lengths[0])
    torch.testing.assert_close(kept.tokens[found.lengths[2] :], alone.tokens)


def test_encoders_of_transformers_are_loaded_from_a_folder(tmp_path, pipeline):
    from transformers import Siglip2Config, Siglip2Model, T5Config, T5EncoderModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = pipeline.coder.texts
    vocabulary = len(words.tokenizer)
    T5EncoderModel(
        T5Config(d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=vocabulary)
    ).save_pretrained(tmp_path / "t5")  # fmt: skip
    of_text = sizes | {"vocab_size": vocabulary, "max_position_embeddings": 16, "projection_size": 16}
    Siglip2Model(Siglip2Config(text_config=of_text, vision_config=sizes)).save_pretrained(tmp_path / "siglip2")
    for name, expected in (("t5", (12, 0)), ("siglip2", (16, 16))):
        words.save(tmp_path / name)
        encoder = load_encoder(tmp_path / name)
        assert (encoder.width, encoder.pooled_width) == expected
        found = encoder(["a red ring", "", "a blue star moving left"])
        assert found.tokens.shape == (sum(found.lengths), expected[0])
        assert found.pooled.shape == (3, expected[1])
        alone = encoder(["a red ring"])
        torch.testing.assert_close(found.tokens[: found.lengths[0]], alone.tokens, rtol=RELEASED, atol=RELEASED)
    with pytest.raises(AtokenError, match="no text encoder"):
        load_encoder(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a store of images and videos, and of a run of four steps."""
    pytest.importorskip("pyarrow", reason="the extra store is not installed")
    folder = tmp_path_factory.mktemp("mmdit")
    (folder / "data.toml").write_text(
        '[image.figures]\nprocedural = "labelled"\nitems = 8\nside = 32\n[video.moving]\nprocedural = "moving"\n'
        'items = 6\nside = 32\n[video.larger]\nprocedural = "moving"\nitems = 2\nside = 48\n'
    )
    words = ["--frames", "8", "--model", "nano", "--workers", "1"]
    assert atoken_main(["tokenize", str(folder / "data.toml"), "-o", str(folder / "store"), *words]) == 0
    presets.MMDIT["tiny"] = SIZES
    run(folder, "run", 4)
    return folder


def run(folder, out, steps, *more):
    sets = ["--set", f"steps={steps}", "tokens=32", "micro_batches=1", "warmup=1"]
    words = ["train", "mmdit", "--preset", "tiny", "--store", str(folder / "store"), "-o", str(folder / out)]
    assert main([*words, "--workers", "0", *more, *sets]) == 0


def test_what_is_trained_is_a_pipeline_of_the_store(trained):
    loaded = TextToVideoPipeline.from_pretrained(trained / "run/model")
    assert loaded.config.sample_size == [8, 32, 32]
    assert loaded.config.fingerprint == atoken.TokenStore(trained / "store").fingerprint
    sizes = {one.grid for one in atoken.TokenStore(trained / "store").alike()[0]}
    assert sizes == {("image", (1, 2, 2, 1)), ("video", (2, 2, 2, 1)), ("video", (2, 3, 3, 1))}
    rows = [json.loads(line) for line in (trained / "run/log.jsonl").read_text().splitlines()]
    assert all(row["flops"] > 0 and np.isfinite(row["loss"]) for row in rows)
    assert {row["tokens"] for row in rows} <= {*range(4, 33, 2)}


def test_videos_begin_with_what_was_trained_on_images_and_are_put_in_place(trained, monkeypatch):
    run(trained, "runs/images", 2, "--modality", "image")
    loaded = TextToVideoPipeline.from_pretrained(trained / "runs/images/model")
    assert loaded.config.sample_size == [1, 32, 32]
    more = ["--start", str(trained / "runs/images/model"), "--evaluate-every", "1"]
    run(trained, "runs/videos", 2, *more)
    assert [*(trained / "runs/videos/images").glob("*.png")]
    monkeypatch.setattr(sys, "argv", ["", str(trained / "runs"), "--videos", "--weights", str(trained / "bundled")])
    bundle_generators.main()
    made = TextToVideoPipeline.from_pretrained(trained / "bundled/t2v-nano")
    assert made.config.sample_size == [8, 32, 32]
    assert "16 images and videos of the project's own generator" in (trained / "bundled/t2v-nano/README.md").read_text()


def test_a_run_begins_with_the_weights_of_another(trained, capsys):
    run(trained, "begun", 1, "--start", str(trained / "run/model"))
    first, second = (
        load_file(trained / name / "model/transformer/diffusion_pytorch_model.safetensors") for name in ("run", "begun")
    )
    moved = max(float((first[name].float() - second[name].float()).abs().max()) for name in first)
    fresh = max(float(weight.float().abs().max()) for weight in first.values())
    assert moved < fresh / 10
    words = ["train", "mmdit", "--store", str(trained / "store"), "-o", str(trained / "other"), "--workers", "0"]
    assert main([*words, "--start", str(trained / "run/model")]) == 1
    assert "no pipeline to begin with" in capsys.readouterr().err


def test_a_plan_is_of_what_a_run_does(trained, monkeypatch):
    monkeypatch.setattr(plan, "MICRO_BATCHES", 4)
    how = training("mmdit", "tiny", ["steps=4", "tokens=32", "micro_batches=1", "warmup=1"])
    found = plan.plan("mmdit", "tiny", atoken.TokenStore(trained / "store"), how, gpus=1)
    rows = [json.loads(line) for line in (trained / "run/log.jsonl").read_text().splitlines()]
    assert found.loads["latents"].flops == np.mean([row["flops"] for row in rows])
    assert found.activations > 0


def test_prompts_become_files_as_vbench_reads_them_on_any_ranks(pipeline, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("a red ring\n\na blue star moving left\na red ring\n")
    prompts = prompts_in(tmp_path / "list.txt", 2)
    options = {"per_prompt": 2, "seed": 3, "fps": 8, "num_inference_steps": 2, "num_frames": 4}
    video_folder(pipeline, prompts, tmp_path / "one", **options)
    names = [f"{prompt}-{each}.mp4" for prompt in ("a blue star moving left", "a red ring") for each in range(2)]
    assert sorted(path.name for path in (tmp_path / "one").glob("*.mp4")) == names
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        video_folder(pipeline, prompts, tmp_path / "two", **options)
    found = [[(tmp_path / folder / name).read_bytes() for name in names] for folder in ("one", "two")]
    assert found[0] == found[1]
    assert len(set(found[0])) == 4
    monkeypatch.setattr(pipeline, "stream", None)  # nothing is left to make
    video_folder(pipeline, prompts, tmp_path / "one", **options)
    with pytest.raises(AtokenError, match="other seed"):
        video_folder(pipeline, prompts, tmp_path / "one", **options | {"seed": 4})


@pytest.mark.parametrize(
    ("text", "said"), [("", "0 prompts"), ("a/b", "has a slash"), ("word " * 1000, "or is too long")]
)
def test_prompts_that_are_no_names_of_files_are_said(tmp_path, text, said):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(AtokenError, match=said):
        prompts_in(tmp_path / "list.txt", 5)


@pytest.mark.parametrize(("name", "seen"), [("ring.mp4", 8), ("ring.png", 1), ("ring.atok", 8)])
def test_the_script_writes_what_its_suffix_says(pipeline, tmp_path, monkeypatch, name, seen):
    pipeline.save_pretrained(tmp_path / "model")
    words = ["a red ring", "-o", str(tmp_path / name), "--model", str(tmp_path / "model"), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["text_to_video", *words, "--device", "cpu"])
    text_to_video.main()
    if name.endswith(".atok"):
        assert TokenFile(tmp_path / name).read().frames == seen
    else:
        found = load_media(tmp_path / name)
        assert (len(found.frames) if seen > 1 else 1) == seen
    monkeypatch.setattr(sys, "argv", ["text_to_video", "a", "-o", str(tmp_path / name), "--model", str(tmp_path)])
    with pytest.raises(SystemExit, match="There is no pipeline"):
        text_to_video.main()
