"""The vision tower gives the tokenizer's features, at every layer, in sample order, from whatever it is loaded."""

import json

import pytest
import torch
from PIL import Image as PilImage
from transformers import AutoImageProcessor, AutoModel, Siglip2VisionConfig, Siglip2VisionModel

from atoken import ATokenImageProcessor, ATokenModel, ATokenVisionConfig, ATokenVisionModel, load, tower
from atoken.checkpoint import from_siglip2
from atoken.errors import CheckpointError, MediaError, TensorError
from atoken.io import Image, Video, load_media
from atoken.patches import pack_pixels
from atoken.presets import BUNDLED
from atoken.tokens import SparseTokens
from tests.model.golden import GOLDEN, packed, released
from tests.model.sizes import small_config, small_model
from tests.tokenizer.small import random_frames
from tests.tolerances import BF16_FORWARD, EXACT, FP32, RELEASED


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pixels(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 33, 50), (2, 3, 21, 17, 32)], ids=["images", "videos of two tiles"])
def test_it_gives_the_features_and_pooled_vectors_of_the_tokenizer(shape, dtype):
    model = small_model().to(dtype)
    x = pixels(*shape).to(dtype)
    expected, actual = model.encode_pixels(x), ATokenVisionModel.from_atoken(model)(x)
    assert actual.last_hidden_state.dtype == actual.pooler_output.dtype == dtype
    assert (actual.last_hidden_state.flatten(0, 1) - expected.features.feats).abs().max() <= EXACT
    torch.testing.assert_close(actual.pooler_output.float(), expected.pooled, atol=BF16_FORWARD, rtol=BF16_FORWARD)
    assert actual.hidden_states is None


def test_a_tower_has_the_encoder_and_the_pooling_head_alone(tmp_path):
    loaded = ATokenVisionModel.from_pretrained("nano", dtype=torch.float32)
    weights = sum(parameter.numel() for parameter in loaded.parameters())
    assert weights == 3_753_408
    loaded.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * weights + 20_000
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is ATokenVisionModel
    assert again.config.to_diff_dict() == loaded.config.to_diff_dict()
    torch.testing.assert_close(again.state_dict(), loaded.state_dict(), atol=EXACT, rtol=EXACT)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ATokenImageProcessor
    sizes = {"hidden_size": 192, "num_hidden_layers": 6, "patch_size": 16, "image_size": 256}
    assert (
        json.loads((tmp_path / "config.json").read_text()).items() > (sizes | {"model_type": "atoken_vision"}).items()
    )


@pytest.mark.parametrize("source", ["a model's folder", "a tokenizer's folder", "a bundled name"])
def test_it_loads_from_tokenizers(source, tmp_path, capsys):
    if source == "a bundled name":
        expected = AutoModel.from_pretrained(BUNDLED / "nano")
        actual = ATokenVisionModel.from_pretrained("nano")
    elif source == "a tokenizer's folder":
        tok = load("nano", device="cpu")
        tok.save_pretrained(tmp_path)
        expected, actual = tok.model, ATokenVisionModel.from_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ATokenImageProcessor
    else:
        expected = small_model(rope=False, tile_frames=8)
        expected.save_pretrained(tmp_path)
        actual = ATokenVisionModel.from_pretrained(tmp_path)
        assert (actual.config.rope, actual.config.tile_frames) == (False, 8)
    assert actual.dtype == expected.dtype
    own = {key: value for key, value in expected.state_dict().items() if key.startswith(("encoder.", "pool."))}
    torch.testing.assert_close(actual.state_dict(), own, atol=EXACT, rtol=EXACT)
    assert "UNEXPECTED" not in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["images", "videos"])
def test_official_weights_give_the_published_features(tag):
    model, io = released(GOLDEN, "soc-tiny")
    names = sorted(name for name in io if name.startswith(f"{tag}.pixels."))
    media = [io[name].movedim(-1, 0) for name in names]
    features, _ = ATokenVisionModel.from_atoken(model).encode_media(media)
    expected = io[f"{tag}.features"]
    assert packed(io, tag).lengths == tuple(map(len, features))
    assert (torch.cat(features) - expected).abs().max() <= RELEASED * expected.abs().max()


def test_a_tower_shares_the_weights_of_its_tokenizer():
    model = small_model()
    assert ATokenVisionModel.from_atoken(model).encoder.inputs.weight is model.encoder.inputs.weight


def test_hidden_states_are_those_of_each_block_in_sample_order():
    """Blocks see tiles: of two videos of 40 frames the first 16 of both, then the next 16. Results are not so."""
    model = ATokenVisionModel.from_atoken(small_model())
    x = pixels(2, 3, 40, 16, 32)
    actual = model(x, output_hidden_states=True)
    assert len(actual.hidden_states) == model.config.num_hidden_layers + 1
    final = model.encoder.norm(actual.hidden_states[-1])
    torch.testing.assert_close(final, actual.last_hidden_state, atol=EXACT, rtol=EXACT)
    tiles = [model(tile, output_hidden_states=True).hidden_states for tile in x.split(16, dim=2)]
    for layer, states in enumerate(actual.hidden_states):
        expected = torch.cat([tile[layer] for tile in tiles], dim=1)
        torch.testing.assert_close(states, expected, atol=FP32, rtol=0)
    one_tile = model(x[:, :, :16], output_hidden_states=True).hidden_states
    seen = [None] * 2
    for number, block in enumerate(model.encoder.blocks):
        block.register_forward_hook(lambda _, __, output, number=number: seen.__setitem__(number, output))
    model(x[:, :, :16])
    for states, hooked in zip(one_tile[1:], seen, strict=True):
        torch.testing.assert_close(states.flatten(0, 1), hooked, atol=EXACT, rtol=EXACT)


def test_only_the_hidden_states_that_are_asked_for_are_kept():
    model = ATokenVisionModel.from_atoken(small_model())
    x = pixels(1, 3, 32, 32)
    every = model(x, output_hidden_states=True).hidden_states
    for wanted, kept in ((-2, {1}), (0, {0}), ([-1, 0], {0, 2}), (False, set())):
        hidden = model(x, output_hidden_states=wanted).hidden_states
        assert {layer for layer, states in enumerate(hidden or ()) if states is not None} == kept
        assert all(torch.equal(hidden[layer], every[layer]) for layer in kept)
    model.config.output_hidden_states = True
    assert len(model(x).hidden_states) == 3
    last, pooled, hidden = model(x, return_dict=False)
    assert (last.shape, pooled.shape, len(hidden)) == ((1, 4, 96), (1, 96), 3)
    with pytest.raises(IndexError):
        model(x, output_hidden_states=7)


def test_padded_patches_give_what_each_image_alone_gives():
    images = [random_frames(32, 48), random_frames(80, 80, seed=1), random_frames(16, 240, seed=2)]
    processor = ATokenImageProcessor(min_pixels=256)
    model = ATokenVisionModel.from_atoken(small_model())
    batch = processor(images, return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 25, 768)
    actual = model(**batch, output_hidden_states=True)
    for row, image in enumerate(images):
        alone = model(**processor(image, return_tensors="pt"), output_hidden_states=True)
        length = alone.last_hidden_state.shape[1]
        for together, single in zip(actual.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(together[row, :length], single[0], atol=FP32, rtol=0)
        torch.testing.assert_close(actual.pooler_output[row], alone.pooler_output[0], atol=FP32, rtol=0)
        assert not actual.last_hidden_state[row, length:].any()


def test_without_rope_padded_patches_give_siglip2s_numbers():
    torch.manual_seed(0)
    config = Siglip2VisionConfig(
        hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_patches=256
    )
    siglip2 = Siglip2VisionModel(config).eval()
    model = ATokenVisionModel.from_atoken(from_siglip2(siglip2, small_config(rope=False)))
    batch = ATokenImageProcessor()([random_frames(96, 64), random_frames(80, 128)], return_tensors="pt")
    expected = siglip2(**batch, output_hidden_states=True)
    actual = model(**batch, output_hidden_states=True)
    real = batch["pixel_attention_mask"].bool()
    for mine, other in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], other[real], atol=FP32, rtol=0)
    torch.testing.assert_close(actual.last_hidden_state[real], expected.last_hidden_state[real], atol=FP32, rtol=0)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=FP32, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_shapes": None}, "spatial_shapes"),
        ({"pixel_values": torch.zeros(2, 6, 300)}, "padded patches"),
        ({"spatial_shapes": torch.tensor([[2, 3], [1, 7]])}, "do not fit"),
        ({"pixel_attention_mask": torch.ones(2, 6)}, "do not fit"),
        ({"pixel_values": torch.zeros(2, 4, 32, 32)}, "3"),
        ({"pixel_values": torch.full((2, 3, 32, 32), 255.0)}, "127.5"),
    ],
)
def test_tensors_that_do_not_fit_give_one_sentence(changes, message):
    inputs = {
        "pixel_values": torch.zeros(2, 6, 768),
        "spatial_shapes": torch.tensor([[2, 3], [1, 4]]),
        "pixel_attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    }
    model = ATokenVisionModel.from_atoken(small_model())
    model(**inputs)
    with pytest.raises(TensorError, match=message):
        model(**(inputs | changes))


def test_media_of_every_type_give_features_at_their_own_resolution(tmp_path):
    image, frames = random_frames(33, 50), random_frames(18, 20, 32)
    PilImage.fromarray(image).save(tmp_path / "image.png")
    model = small_model()
    same_image = [tmp_path / "image.png", str(tmp_path / "image.png"), PilImage.fromarray(image), image, Image(image)]
    same_image.append(torch.tensor(image).movedim(-1, 0) / 127.5 - 1)
    same_video = [frames, Video(frames), torch.tensor(frames).movedim(-1, 0) / 127.5 - 1]
    features, sizes = ATokenVisionModel.from_atoken(model).encode_media([*same_image, *same_video])
    assert sizes == [(1, 3, 4)] * len(same_image) + [(5, 2, 2)] * len(same_video)
    for group, one in ((features[: len(same_image)], same_image[-1]), (features[len(same_image) :], same_video[-1])):
        expected = model.encode_pixels([one]).features.feats
        assert all((actual - expected).abs().max() <= FP32 for actual in group)


def test_three_modes_of_videos(monkeypatch):
    model = small_model()
    encoder = ATokenVisionModel.from_atoken(model)
    video, image = pixels(3, 19, 32, 16), pixels(3, 16, 48, seed=1)
    frames = video.unbind(1)

    def encode(mode, layer=None):
        features, sizes = encoder.encode_media([video, image], video_mode=mode, layer=layer)
        assert sizes == [(5 if mode == "tubelet" else 19, 2, 1), (1, 1, 3)]
        torch.testing.assert_close(features[1], encoder.encode_media([image], layer=layer)[0][0], atol=FP32, rtol=0)
        return features[0]

    tubelets = model.encode_pixels([video]).features.feats
    torch.testing.assert_close(encode("tubelet"), tubelets, atol=FP32, rtol=0)
    alone = model.encode_pixels(list(frames)).features.feats
    torch.testing.assert_close(encode("frame"), alone, atol=FP32, rtol=0)
    single = pack_pixels(list(frames))
    coords = single.coords.clone()
    coords[:, 0] = single.sample_N
    timed = SparseTokens(single.feats, coords, (len(coords),))
    expected = model.encode(timed, tile_frames=4 * 19)
    torch.testing.assert_close(encode("timed_frame"), expected.features.feats, atol=FP32, rtol=0)
    for mode in ("tubelet", "frame", "timed_frame"):
        embedded, last = encode(mode, layer=0), encode(mode, layer=-1)
        torch.testing.assert_close(encoder.encoder.norm(last), encode(mode), atol=FP32, rtol=0)
        assert (embedded - last).abs().max() > 0.1
        whole = encode(mode)
        monkeypatch.setattr(tower, "PASS_TOKENS", 5)
        torch.testing.assert_close(encode(mode), whole, atol=FP32, rtol=0)
        monkeypatch.undo()


@pytest.mark.parametrize(("mode", "sees"), [("tubelet", False), ("frame", False), ("timed_frame", True)])
def test_only_timed_frames_see_the_whole_video(mode, sees):
    """The last of 34 frames, which is two tiles after the first."""
    encoder = ATokenVisionModel.from_atoken(small_model())
    video = pixels(3, 34, 16, 16)
    changed = torch.cat([video[:, :-1], -video[:, -1:]], dim=1)
    before, after = (encoder.encode_media([one], video_mode=mode)[0][0][0] for one in (video, changed))
    assert bool((before - after).abs().max() > 1e-4) == sees


def test_what_has_no_grid_or_no_such_mode_is_refused():
    encoder = ATokenVisionModel.from_atoken(small_model())
    with pytest.raises(MediaError, match="3D asset"):
        encoder.encode_media([load_media("examples/tower.glb")])
    for wrong in (pixels(16, 16), pixels(4, 16, 16), pixels(3, 16, 16) * 255):
        with pytest.raises(TensorError):
            encoder.encode_media([wrong])
    with pytest.raises(ValueError, match="timed_frame"):
        encoder.encode_media([pixels(3, 16, 16)], video_mode="frames")
    with pytest.raises(IndexError):
        encoder.encode_media([pixels(3, 16, 16)], layer=3)
    assert encoder.encode_media([]) == ([], [])


def test_a_new_tower_reads_images_as_siglip2_and_is_checked():
    for new in (ATokenModel(small_config()), ATokenVisionModel(ATokenVisionConfig.of(small_config()))):
        assert not new.encoder.inputs.weight[:, 768:].any()
        assert new.encoder.inputs.weight[:, :768].std() > 0.01
    with pytest.raises(ValueError, match="heads"):
        ATokenVisionConfig(hidden_size=100)


def test_gradients_flow_to_pixels_and_weights_through_checkpointing():
    model = ATokenVisionModel.from_atoken(small_model()).train()
    gradients = []
    with torch.enable_grad():
        for checkpointing in (False, True):
            x = pixels(1, 3, 32, 32).requires_grad_()
            if checkpointing:
                model.gradient_checkpointing_enable()
            output = model(x, output_hidden_states=-2)
            (output.pooler_output.sum() + output.hidden_states[1].sum()).backward()
            gradients.append(x.grad)
            assert model.encoder.inputs.weight.grad.abs().sum() > 0
    torch.testing.assert_close(*gradients, atol=FP32, rtol=0)


def test_a_tower_is_not_taken_for_a_tokenizer(tmp_path):
    ATokenVisionModel.from_atoken(small_model()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"of type atoken_vision, not atoken; .*ATokenVisionModel"):
        load(tmp_path)
