"""Foreign weights: SigLIP2 gives SigLIP2's numbers, loading is strict, nothing is unpickled freely."""

import json
import os
import pickle

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import Siglip2VisionConfig, Siglip2VisionModel
from transformers.utils import logging

from atoken.checkpoint import (
    fill,
    fingerprint,
    from_siglip2,
    load_folder,
    load_official,
    official_config,
    quiet_transformers,
)
from atoken.errors import CheckpointError
from atoken.modalities.pixels import patchify
from atoken.presets import preset
from atoken.tokens import SparseTokens
from tests.model.golden import GOLDEN
from tests.model.sizes import small_config, small_model
from tests.tolerances import FP32

OFFICIAL = GOLDEN / "soc-tiny.weights.safetensors"
ARCH = json.loads((GOLDEN / "soc-tiny.config.json").read_text())
SIZES = [(16, 16), (64, 48), (48, 16), (16, 96), (160, 32), (320, 304)]


def small_tower():
    torch.manual_seed(0)
    config = Siglip2VisionConfig(
        hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_patches=256
    )
    tower = Siglip2VisionModel(config).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
    return tower


def test_with_rope_off_an_image_gives_siglip2s_features_and_pooled_vector():
    tower = small_tower()
    model = from_siglip2(tower, small_config(rope=False))
    generator = torch.Generator().manual_seed(0)
    for height, width in SIZES:
        tokens = patchify(torch.rand(1, height, width, 3, generator=generator) * 2 - 1)
        with torch.no_grad():
            siglip2 = tower(
                pixel_values=tokens.feats[None, :, :768],
                pixel_attention_mask=torch.ones(1, len(tokens.feats), dtype=torch.long),
                spatial_shapes=torch.tensor([[height // 16, width // 16]]),
            )
            encoded = model.encode(tokens)
        torch.testing.assert_close(encoded.features.feats, siglip2.last_hidden_state[0], atol=FP32, rtol=0)
        torch.testing.assert_close(encoded.pooled, siglip2.pooler_output, atol=FP32, rtol=0)


def test_siglip2_starts_with_zero_weights_for_later_frames():
    weight = from_siglip2(small_tower(), small_config()).encoder.inputs.weight
    assert weight[:, :768].any()
    assert not weight[:, 768:].any()


def test_a_tower_of_another_size_is_refused_by_key():
    with pytest.raises(CheckpointError, match=r"missing encoder\.blocks\.2\.attention"):
        from_siglip2(small_tower(), small_config(encoder_layers=3))
    with pytest.raises(CheckpointError, match="is \\(96,\\), not \\(144,\\)"):
        from_siglip2(small_tower(), small_config(encoder_width=144))


def test_official_keys_at_full_size_map_onto_our_models():
    published = json.loads((GOLDEN / "official_state_dict_keys.json").read_text())
    for checkpoint, name in (("atoken-soc", "so400m-c"), ("atoken-soc-s1", "so400m-c-s1")):
        state = {
            key.replace("{0..26}", str(layer)): torch.empty(shape, device="meta")
            for key, shape in published[checkpoint].items()
            for layer in range(27)
        }
        with torch.device("meta"):
            config = {**ARCH, "encoder_model_channels": 1152, "decoder_model_channels": 1152}
            config |= {f"{side}_num_blocks": 27 for side in ("encoder", "decoder")}
            config |= {f"{side}_num_heads": 16 for side in ("encoder", "decoder")}
            config |= {f"{side}_mlp_channels": 4304 for side in ("encoder", "decoder")}
            config["latent_channels"] = preset(name).latent_channels
            model = load_official(state, config)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert model.config.to_diff_dict() == preset(name).to_diff_dict()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_official_loading_names_what_does_not_fit(change):
    state = load_file(OFFICIAL)
    if change == "missing":
        del state["encoder.blocks.1.attn.to_qkv.bias"]
        words = r"missing encoder\.blocks\.1\.attention\.qkv\.bias"
    elif change == "extra":
        state["encoder.blocks.9.norm1.weight"] = torch.zeros(72)
        words = r"unexpected encoder\.blocks\.9\.norm1\.weight"
    else:
        state["proj.weight"] = torch.zeros(64, 72)
        words = r"to_latent\.weight is \(64, 72\), not \(96, 72\)"
    with pytest.raises(CheckpointError, match=words):
        load_official(state, ARCH)


def test_a_loaded_model_is_its_own_and_has_the_published_scale_and_bias():
    state = load_file(OFFICIAL)
    kept = {key: value.clone() for key, value in state.items()}
    model = load_official(state, ARCH)
    assert (model.logit_scale.item(), model.logit_bias.item()) == (pytest.approx(4.8438), -15.5625)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(state[key], value) for key, value in kept.items())


@pytest.mark.parametrize("shown", [True, False])
def test_transformers_is_as_talkative_afterwards_as_before(shown):
    before, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        logging.set_verbosity_info()
        with quiet_transformers():
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
        assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (shown, logging.INFO)
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
        logging.set_verbosity(level)


def test_official_files_as_safetensors_and_pt_with_the_published_yaml(tmp_path):
    state = load_file(OFFICIAL)
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"model_cfg": {"arch_cfg": ARCH}}}))
    from_pt = load_official(tmp_path / "model.pt", tmp_path / "model.yaml")
    from_safetensors = load_official(OFFICIAL, ARCH)
    assert fingerprint(from_pt) == fingerprint(from_safetensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_pe_mode": "ape"}, "encoder_pe_mode"),
        ({"quantizer_codebook_size": 8192}, "quantizer_codebook_size"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_a_published_configuration_we_cannot_honour_is_refused(change, words):
    with pytest.raises(CheckpointError, match=words):
        official_config({**ARCH, **change})
    with pytest.raises(CheckpointError, match="encoder_model_channels"):
        official_config({})


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    canary = tmp_path / "canary"
    for name, write in (("a.pt", torch.save), ("b.pt", lambda thing, path: path.write_bytes(pickle.dumps(thing)))):
        write({"x": Malicious(str(canary))}, tmp_path / name)
        with pytest.raises(CheckpointError, match="Cannot read weights"):
            load_official(tmp_path / name, ARCH)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x08" + b"\x00" * 7 + b"{}      "])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_and_missing_weight_files_get_one_sentence(content, suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(CheckpointError):
        load_official(path, ARCH)
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_official(path, ARCH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_a_folder_must_fit_its_configuration(change, tmp_path):
    small_model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if change == "missing":
        del weights["to_patch.weight"]
    else:
        weights["odd"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_folder(tmp_path)


def test_damaged_and_missing_folders_get_one_sentence(tmp_path):
    small_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError) as error:
            load_folder(folder)
        assert "\n" not in str(error.value)


def test_fingerprint_counts_weights_and_configuration_but_not_dtype():
    model = small_model()
    print_ = fingerprint(model)
    assert fingerprint(small_model()) == print_
    assert fingerprint(small_model().bfloat16()) == print_
    assert fingerprint(small_model(tile_frames=8)) != print_
    changed = small_model()
    changed.to_patch.weight.data[5, 5] += 0.01
    assert fingerprint(changed) != print_


def test_fill_takes_a_model_off_the_meta_device():
    model, source = small_model(), small_model()
    with torch.device("meta"):
        empty = type(model)(small_config())
    filled = fill(empty, source.state_dict(), "a test")
    assert not any(p.is_meta for p in filled.parameters())
    tokens = SparseTokens(torch.zeros(1, 3072), torch.zeros(1, 4, dtype=torch.int32), (1,))
    with torch.no_grad():
        assert torch.equal(filled.encode(tokens).pooled, model.encode(tokens).pooled)
