"""``atoken convert``, and what ``load`` makes of names, folders and files."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import atoken
from atoken import loading, presets
from atoken.checkpoint import fingerprint, load_folder, load_official
from atoken.errors import CheckpointError
from atoken.modalities.pixels import patchify
from tests.cli.cases import files_in, published_yaml, says_one_sentence
from tests.model.sizes import small_config
from tests.model.test_checkpoint import OFFICIAL, small_tower
from tests.tolerances import FP32
from tests.train.test_run_folder import no_file_over


@pytest.fixture
def published(tmp_path_factory):
    return published_yaml(tmp_path_factory.mktemp("published") / "soc.yaml")


def test_published_weights_become_a_folder_with_the_same_features(run, there, published):
    code, out, error = run("convert", OFFICIAL, "--config", published, "-o", "mine")
    assert (code, error) == (0, "")
    actual, expected = atoken.load("./mine", device="cpu"), load_official(OFFICIAL, published)
    assert out == f"mine: {sum(p.numel() for p in expected.parameters()) / 1e6:.1f} million weights\n"
    assert actual.fingerprint == fingerprint(expected)
    assert (there / "mine" / "preprocessor_config.json").exists()
    tokens = patchify(torch.rand(4, 48, 32, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    with torch.no_grad():
        pairs = zip(actual.model(tokens), expected.eval()(tokens), strict=True)
        (actual, expected), (actual_patches, expected_patches) = pairs
    assert torch.equal(actual.features.feats, expected.features.feats)
    torch.testing.assert_close(actual.pooled, expected.pooled, atol=FP32, rtol=0)
    assert torch.equal(actual_patches.feats, expected_patches.feats)


def test_a_published_file_loads_directly_with_the_yaml_beside_it(there, published):
    (there / "soc.safetensors").write_bytes(OFFICIAL.read_bytes())
    (there / "soc.yaml").write_bytes(published.read_bytes())
    tokenizer = atoken.load("soc.safetensors", device="cpu")
    assert (tokenizer.name, tokenizer.fingerprint) == ("soc", fingerprint(load_official(OFFICIAL, published)))


@pytest.fixture
def siglip2(tmp_path_factory, monkeypatch):
    sizes = {key: getattr(small_config(), key) for key in small_config().to_dict() if key.startswith(("enc", "dec"))}
    monkeypatch.setitem(presets.PRESETS, "small", sizes)
    folder = tmp_path_factory.mktemp("siglip2") / "tower"
    small_tower().save_pretrained(folder)
    return folder


def test_a_siglip2_tower_becomes_an_encoder(run, there, siglip2):
    assert run("convert", siglip2, "--preset", "small", "-o", "mine")[0] == 0
    tower, model = small_tower(), load_folder(there / "mine")
    assert torch.equal(model.encoder.blocks[1].mlp.up.weight, tower.encoder.layers[1].mlp.fc1.weight)
    assert torch.equal(model.encoder.position.weight, tower.embeddings.position_embedding.weight)


def test_what_cannot_be_converted_gets_one_sentence(run, there, siglip2, published, model):
    (there / "empty").mkdir()
    (there / "taken").write_text("mine")
    before = files_in(there)
    official = ["convert", OFFICIAL, "--config", published]
    says_one_sentence(run("convert", "nowhere.pt", "-o", "x"), "no weight file nowhere.pt")
    says_one_sentence(run("convert", OFFICIAL, "--config", "nowhere.yaml", "-o", "x"), "nowhere.yaml")
    says_one_sentence(run("convert", "empty", "-o", "x"), "no SigLIP2 vision tower")
    says_one_sentence(run("convert", siglip2, "--preset", "nonsense", "-o", "x"), "no preset .* so400m-c")
    says_one_sentence(run("convert", siglip2, "--preset", "nano", "-o", "x"), "do not fit")
    says_one_sentence(run("convert", model, "--preset", "base", "-o", "x"), "no SigLIP2 vision tower")
    says_one_sentence(run(*official, "-o", "taken"), "taken")
    says_one_sentence(run(*official, "-o", "taken/deeper"), "taken")
    assert files_in(there) == before


def test_a_damaged_siglip2_folder_gets_one_sentence(run, there, siglip2):
    weights = siglip2 / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2]):
        weights.write_bytes(damaged)
        says_one_sentence(run("convert", siglip2, "--preset", "small", "-o", "x"), "no SigLIP2 vision tower")


def test_a_siglip2_tower_that_lacks_weights_is_not_filled_with_random_ones(run, there, siglip2):
    state = load_file(siglip2 / "model.safetensors")
    del state["encoder.layers.1.mlp.fc1.bias"]
    save_file(state, siglip2 / "model.safetensors", metadata={"format": "pt"})
    says_one_sentence(run("convert", siglip2, "--preset", "small", "-o", "x"), "lacks encoder.layers.1.mlp.fc1.bias")


def test_a_full_disk_leaves_no_half_written_model(run, there, published):
    with no_file_over(100_000):
        says_one_sentence(run("convert", OFFICIAL, "--config", published, "-o", "mine"), "Cannot write")
    assert files_in(there) == []


def test_a_name_that_nobody_knows_lists_the_bundled_ones(tmp_path, monkeypatch, model):
    bundled = tmp_path / "weights"
    bundled.mkdir()
    for module in (presets, loading):
        monkeypatch.setattr(module, "BUNDLED", bundled)
    for name in ("tiny-a", "tiny-b"):
        (bundled / name).symlink_to(model)
    with pytest.raises(CheckpointError, match=r"no model 'nonsense'.*tiny-a, tiny-b"):
        atoken.load("nonsense")
    with pytest.raises(CheckpointError, match=r"so400m-c is a size without bundled weights.*tiny-a, tiny-b"):
        atoken.load("so400m-c")
    assert atoken.load("tiny-a", device="cpu").name == "tiny-a"


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder"])
def test_a_folder_that_is_not_there_gets_one_sentence(source, there):
    with pytest.raises(CheckpointError, match=source) as error:
        atoken.load(source)
    assert "\n" not in str(error.value)


def test_a_file_that_holds_no_weights_gets_one_sentence(there, published):
    (there / "x.safetensors").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        atoken.load("x.safetensors", config=published)


def test_device_and_dtype_are_what_was_asked_for(model):
    with pytest.raises(CheckpointError, match="no device 'nonsense'"):
        atoken.load(model, device="nonsense")
    with pytest.raises(CheckpointError, match="float16"):
        atoken.load(model, device="cpu", dtype="float16")
    assert atoken.load(model, device="cpu").model.dtype == torch.float32
    assert atoken.load(model, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_on_a_machine_without_it_gets_one_sentence(model):
    with pytest.raises(CheckpointError, match=r"no device 'cuda'; pass device='cpu'"):
        atoken.load(model, device="cuda")
