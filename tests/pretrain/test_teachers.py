"""Teachers: checked before they are read, frozen, outside of every module; towers see what their processors make."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from atoken.errors import CheckpointError
from atoken.metrics import vgg as vgg_module
from atoken.metrics.stlpips import STLPIPS_FILES
from atoken.metrics.vgg import HEADS_FILE, SIDE, VGG16, VGG_FILE, lpips, shared_pass
from atoken.modalities.pixels import patchify, to_values
from atoken.pretrain import teachers
from atoken.pretrain.teachers import (
    CLIP,
    NO_TEACHERS,
    SIGLIP2,
    ImageTower,
    cosine_distance,
    image_features,
    load_teachers,
    siglip_images,
    siglip_texts,
)
from atoken.tokens import SparseTokens
from tests.random_networks import pinned as pinned_to
from tests.random_networks import stlpips_state
from tests.tolerances import FP32

LAYER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP_VISION = LAYER | {"image_size": SIDE, "patch_size": 56, "projection_dim": 24}
SIGLIP2_VISION = LAYER | {"num_patches": 16, "patch_size": 16}
TEXT = LAYER | {
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "projection_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def sha256(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def randomised(model, seed=0):
    """Weights that are not near zero, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def save_tower(model, folder):
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))


@pytest.fixture(scope="module")
def clip():
    config = transformers.CLIPConfig(vision_config=CLIP_VISION, text_config=TEXT, projection_dim=24)
    return randomised(transformers.CLIPModel(config))


@pytest.fixture(scope="module")
def siglip():
    config = transformers.Siglip2Config(vision_config=SIGLIP2_VISION, text_config=TEXT)
    return randomised(transformers.Siglip2Model(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip, siglip):
    """All that a user would put there, with random weights; and what is then pinned."""
    folder = tmp_path_factory.mktemp("teachers")
    state = VGG16().state_dict()
    torch.save(state | {"classifier.0.weight": torch.zeros(2)}, folder / VGG_FILE.name)
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
    torch.save(heads, folder / HEADS_FILE.name)
    save_tower(clip, folder / "clip")
    siglip.save_pretrained(folder / "siglip2")
    return folder


@pytest.fixture(scope="module")
def sums(folder):
    return {file.name: sha256(file) for file in folder.glob("*.pth")}


@pytest.fixture(autouse=True)
def pinned(sums, tmp_path, monkeypatch):
    """The two files count as the published ones, and the Hugging Face cache is empty."""
    monkeypatch.setattr(vgg_module, "VGG_FILE", replace(VGG_FILE, sha256=sums[VGG_FILE.name]))
    monkeypatch.setattr(vgg_module, "HEADS_FILE", replace(HEADS_FILE, sha256=sums[HEADS_FILE.name]))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def loaded(folder, sums):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg_module, "VGG_FILE", replace(VGG_FILE, sha256=sums[VGG_FILE.name]))
        patch.setattr(vgg_module, "HEADS_FILE", replace(HEADS_FILE, sha256=sums[HEADS_FILE.name]))
        before = torch.get_rng_state()
        made = load_teachers(("vgg", "clip", "siglip"), folder)
        assert torch.equal(torch.get_rng_state(), before), "loading draws random numbers that training would have drawn"
        return made


def images(seed, *size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def networks(loaded):
    return loaded.vgg, loaded.clip.model, loaded.siglip


def test_what_is_loaded_is_what_was_saved_and_its_checksums_are_told(loaded, folder, sums, clip, siglip):
    models = ("clip/model.safetensors", "siglip2/model.safetensors")
    assert loaded.record == sums | {name: sha256(folder / name) for name in models}
    saved = torch.load(folder / VGG_FILE.name, weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in loaded.vgg.state_dict().items())
    saved = torch.load(folder / HEADS_FILE.name, weights_only=True)
    assert all(torch.equal(head, saved[f"lin{i}.model.1.weight"].flatten()) for i, head in enumerate(loaded.heads))
    for result, reference in ((loaded.clip.model, clip), (loaded.siglip, siglip)):
        saved = reference.state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in result.state_dict().items())
    x, ids = images(0, 1, 3, SIDE, SIDE), torch.arange(8)[None]  # what is computed rather than loaded is there, too
    expected = clip.get_image_features(pixel_values=x).pooler_output
    torch.testing.assert_close(loaded.clip.model(pixel_values=x).image_embeds, expected, rtol=FP32, atol=FP32)
    expected = siglip.get_text_features(input_ids=ids).pooler_output
    found = loaded.siglip.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(found, expected, rtol=FP32, atol=FP32)
    assert (loaded.clip.mean, loaded.clip.std) == (tuple(MEAN), tuple(STD))


def test_only_what_is_asked_for_is_loaded(folder):
    only = load_teachers(["siglip"], folder)
    assert only.siglip is not None
    assert (only.vgg, only.heads, only.clip) == (None, None, None)
    assert list(only.record) == ["siglip2/model.safetensors"]
    none = load_teachers(())
    assert none == NO_TEACHERS == none.to("cpu")
    assert (only.names, none.names) == ({"siglip"}, set())


def test_a_module_that_holds_teachers_does_not_own_them(loaded):
    holder = nn.Linear(2, 2)
    names = list(holder.state_dict())
    holder.teachers = loaded.to("cpu")
    assert list(holder.state_dict()) == names
    assert len(list(holder.parameters())) == len(list(holder.modules())) + 1 == 2


def test_teachers_pass_gradients_on_and_get_none(loaded):
    x = images(1, 1, 3, 32, 32).requires_grad_()
    lpips(*shared_pass(loaded.vgg, x, images(2, 1, 3, 32, 32)), loaded.heads).sum().backward()
    y = images(3, 1, 3, SIDE, SIDE).requires_grad_()
    image_features(loaded.clip, y).sum().backward()
    assert x.grad.abs().sum() > 0
    assert y.grad.abs().sum() > 0
    for network in networks(loaded):
        assert not network.training
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert not any(head.requires_grad for head in loaded.heads)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A cache with random weights of what ``atoken fetch`` brings, and the file that is then pinned."""
    folder = tmp_path / "fetched"
    folder.mkdir()
    monkeypatch.setenv("ATOKEN_CACHE", str(folder))
    file = pinned_to(STLPIPS_FILES["alex"], folder, lambda path: torch.save(stlpips_state("alex"), path))
    monkeypatch.setitem(STLPIPS_FILES, "alex", file)
    return folder / file.name


def test_what_was_fetched_is_read_from_the_cache_or_the_folder_and_frozen(fetched, tmp_path):
    before = torch.get_rng_state()
    for given in (None, tmp_path, fetched.parent):
        found = load_teachers(["stlpips"], given)
        assert found.names == {"stlpips"}
        assert found.record == {fetched.name: sha256(fetched)}
        assert not found.stlpips.training
        assert not any(parameter.requires_grad for parameter in found.stlpips.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_not_fetched_is_named_with_the_command_that_fetches_it(fetched):
    fetched.unlink()
    says(f"{fetched.name} is needed .*: run `atoken fetch st-lpips`, or train", ["stlpips"])
    fetched.write_bytes(b"other")
    says(f"{fetched.name} is not the published file .*: run `atoken fetch st-lpips`, or train", ["stlpips"])


# What is missing, damaged or another file


def says(match, names, folder=None):
    """One sentence, which also says how to go on without."""
    with pytest.raises(CheckpointError, match=match) as caught:
        load_teachers(names, folder)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith("or train with --teachers none.")
    return text


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of links to the files, so that a test can put others in their places."""
    for path in folder.rglob("*"):
        target = tmp_path / "copy" / path.relative_to(folder)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return tmp_path / "copy"


def other(file, data):
    file.unlink()
    file.write_bytes(data)


class Hostile:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("file", "how"), [(VGG_FILE, "VGG-16.* download https"), (HEADS_FILE, "heads of LPIPS.* take lpips/")]
)
def test_a_file_must_be_there_and_be_the_published_one(copy, tmp_path, file, how):
    path = copy / file.name
    whole, written = path.read_bytes(), tmp_path / "written"
    for data in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", pickle.dumps(Hostile(written))):
        other(path, data)
        assert hashlib.sha256(data).hexdigest()[:8] in says(
            f"{file.name} is not the published file.*{how}", ["vgg"], copy
        )
    assert not written.exists()
    path.unlink()
    says(f"Cannot read .*{file.name} .*{how}", ["vgg"], copy)


def test_without_a_folder_the_first_file_is_named():
    says(f"{VGG_FILE.name} is needed .*download https", ["vgg"])
    says(f"Cannot read .*{VGG_FILE.name} .*No such file", ["vgg"], "not-there")


def test_what_the_checksum_lets_through_is_still_not_unpickled_freely(copy, tmp_path, monkeypatch):
    other(copy / HEADS_FILE.name, pickle.dumps(Hostile(tmp_path / "written"), protocol=2))
    monkeypatch.setattr(vgg_module, "HEADS_FILE", replace(HEADS_FILE, sha256=sha256(copy / HEADS_FILE.name)))
    with pytest.raises(pickle.UnpicklingError):
        load_teachers(["vgg"], copy)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(("name", "model"), [("clip", CLIP), ("siglip", SIGLIP2)])
def test_a_model_that_is_nowhere_is_named_with_the_command_that_gets_it(tmp_path, name, model):
    for folder in (None, tmp_path):
        text = says(f"No {model.repository} .*subfolder {model.subfolder}", [name], folder)
        assert f"hf download {model.repository} --revision {model.revision}" in text


@pytest.mark.parametrize(("name", "subfolder", "lost"), [
    ("clip", "clip", "visual_projection.weight"), ("siglip", "siglip2", "text_model.head.bias"),
])  # fmt: skip
def test_a_model_folder_must_hold_the_whole_model(copy, name, subfolder, lost):
    weights, config = copy / subfolder / "model.safetensors", copy / subfolder / "config.json"
    state, whole = load_file(weights), weights.read_bytes()
    weights.unlink()
    save_file({key: value for key, value in state.items() if key != lost}, weights, metadata={"format": "pt"})
    says(f"No teacher in .*{subfolder} .it lacks {lost}", [name], copy)
    other(weights, whole[: len(whole) // 2])
    says(f"No teacher in .*{subfolder} ", [name], copy)
    weights.unlink()
    says(f"No teacher in .*{subfolder} ", [name], copy)
    other(config, json.dumps({"model_type": "bert"}).encode())
    says("its config.json is of type bert, not ", [name], copy)
    config.unlink()
    says(f"No teacher in .*{subfolder} ", [name], copy)


def test_a_tower_needs_its_mean_and_deviation(copy):
    (copy / "clip/preprocessor_config.json").unlink()
    says("clip lacks a preprocessor_config.json", ["clip"], copy)


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_of_the_cache_is_taken_if_its_weights_are_the_pinned_ones(folder, tmp_path, monkeypatch, whole):
    snapshot = tmp_path / "cache/models--openai--clip-vit-large-patch14/snapshots" / CLIP.revision
    snapshot.mkdir(parents=True)
    for file in (folder / "clip").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    weights = snapshot / "model.safetensors"
    monkeypatch.setattr(teachers, "CLIP", replace(CLIP, sha256=sha256(weights)))
    if whole:
        found = load_teachers(["clip"]).record
        assert found == {f"{CLIP.repository}@{CLIP.revision}/model.safetensors": sha256(weights)}
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
        says(f"{weights} is damaged .*delete it.*hf download", ["clip"])


def test_published_checksums_and_revisions_are_whole():
    assert all(len(bytes.fromhex(each.sha256)) == 32 for each in (VGG_FILE, HEADS_FILE, CLIP, SIGLIP2))
    assert all(len(bytes.fromhex(each.revision)) == 20 for each in (CLIP, SIGLIP2))
    assert VGG_FILE.sha256.startswith("397923af")  # as its name says


# The CLIP-perceptual loss


@pytest.mark.parametrize("kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "SiglipVisionModel"])
def test_a_tower_sees_images_by_its_mean_and_deviation(kind):
    model_class = getattr(transformers, kind)
    model = randomised(model_class(model_class.config_class(**CLIP_VISION)))
    x = images(4, 2, 3, SIDE, SIDE)
    values = ((x + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    found = model(pixel_values=values)
    expected = found.image_embeds if kind.endswith("Projection") else found.pooler_output
    result = image_features(ImageTower(model, tuple(MEAN), tuple(STD)), x)
    torch.testing.assert_close(result, expected, rtol=FP32, atol=FP32)


def test_cosine_distance_in_closed_form():
    result = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    reference = torch.tensor([[1.0, 0.0], [0.0, 5.0], [1.0, 0.0], [-1.0, 0.0]])
    expected = torch.tensor([0.0, 1.0, 1 - 0.5**0.5, 2.0])
    torch.testing.assert_close(cosine_distance(result, reference), expected, rtol=0, atol=FP32)
    torch.testing.assert_close(cosine_distance(reference.bfloat16(), result), expected, rtol=0, atol=FP32)


def test_a_image_is_at_no_distance_from_itself_with_finite_gradient(loaded):
    x = images(5, 2, 3, SIDE, SIDE).requires_grad_()
    value = cosine_distance(image_features(loaded.clip, x), image_features(loaded.clip, x.detach()))
    value.sum().backward()
    assert value.abs().max() <= FP32
    assert torch.isfinite(x.grad).all()


# The teacher of similarities


def drawing(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_siglip_sees_a_images_tokens_as_its_own_processor_makes_them(siglip):
    drawings = [drawing(0, 64, 48), drawing(1, 32, 96), drawing(2, 16, 16)]
    samples = [patchify(to_values(each[None])) for each in drawings]
    batch = siglip_images(siglip, SparseTokens.pack(samples))
    for each, sample, row in zip(drawings, samples, batch, strict=True):
        made = Siglip2ImageProcessorPil()(Image.fromarray(each), max_num_patches=len(sample.feats), return_tensors="pt")
        assert made["pixel_values"].shape[1] == len(sample.feats)  # so it did not resize
        expected = siglip.get_image_features(**made).pooler_output[0]
        torch.testing.assert_close(row, expected / expected.norm(), rtol=0, atol=FP32)
        torch.testing.assert_close(siglip_images(siglip, sample)[0], row, rtol=0, atol=FP32)
    assert not batch.requires_grad


def test_texts_are_unit_vectors_whatever_their_batch(siglip):
    ids = torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    batch = siglip_texts(siglip, ids)
    expected = siglip.text_model(input_ids=ids[1:2]).pooler_output[0]
    torch.testing.assert_close(batch[1], expected / expected.norm(), rtol=0, atol=FP32)
    torch.testing.assert_close(batch.norm(dim=1), torch.ones(3), rtol=0, atol=FP32)
    assert not batch.requires_grad
