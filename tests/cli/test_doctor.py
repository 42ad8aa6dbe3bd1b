"""``atoken doctor``: a sound model passes, and each broken guarantee is named."""

import json
import math
from dataclasses import replace

import pytest
import torch

from atoken import doctor, layers, presets
from atoken.modalities import IMAGE, MODALITIES
from atoken.model import ATokenModel
from tests.model.sizes import small_model


@pytest.fixture
def quick(monkeypatch):
    """Without the check that starts a process of its own."""
    monkeypatch.setattr(doctor, "constant_memory", lambda tokenizer: None)


def test_doctor_passes_a_sound_model(run):
    code, out, _ = run("doctor")
    lines = out.splitlines()
    assert code == 0, out
    assert all(line.startswith("ok ") for line in lines)
    assert len(lines) >= 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_doctor_passes_a_discrete_model(dtype, run, tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("models") / "discrete"
    small_model(fsq_levels=presets.FSQ_LEVELS).save_pretrained(folder)
    code, out, _ = run("doctor", "--dtype", dtype, "--json", model=folder)
    assert [finding["guarantee"] for finding in json.loads(out) if not finding["passed"]] == []
    assert code == 0


@pytest.mark.parametrize(("threads", "passed"), [(2, False), (1, True)])
def test_doctor_says_that_torch_came_first(threads, passed, tokenizer, monkeypatch):
    monkeypatch.setattr(doctor, "SPINNING", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    finding = doctor.neighbours(tokenizer)
    assert (finding.passed, "import atoken first" in finding.figure) == (passed, not passed)


def forget_earlier_tiles(patch):
    encode = ATokenModel.encode
    patch.setattr(ATokenModel, "encode", lambda model, tokens, pool_state=None: encode(model, tokens))


def spoil_the_pooled_vector_of_later_tiles(patch):
    encode = ATokenModel.encode

    def spoiled(model, tokens, pool_state=None):
        encoded = encode(model, tokens, pool_state=pool_state)
        return replace(encoded, pooled=encoded.pooled * math.nan) if pool_state else encoded

    patch.setattr(ATokenModel, "encode", spoiled)


def look_at_other_samples(patch):
    attend = layers.varlen_attention
    patch.setattr(layers, "varlen_attention", lambda q, k, v, *bounds: attend(q, k, v, (0, len(q)), (0, len(k))))


def draw_at_random(patch):
    project = ATokenModel._bottleneck

    def noisy(model, features, state):
        return project(model, features.with_feats(features.feats + torch.randn_like(features.feats)), state)

    patch.setattr(ATokenModel, "_bottleneck", noisy)


def lose_the_alpha(patch):
    def spoiled(model, tokens, patches):
        return IMAGE.unpatchify(model, replace(tokens, alpha=None), patches)

    patch.setitem(MODALITIES, "image", replace(IMAGE, unpatchify=spoiled))


FAULTS = {
    "streaming = whole": [forget_earlier_tiles, spoil_the_pooled_vector_of_later_tiles],
    "alone = in a batch": [look_at_other_samples],
    "twice = the same": [draw_at_random],
    "nothing lost: alpha": [lose_the_alpha],
}


@pytest.mark.parametrize(
    ("guarantee", "fault"),
    [(guarantee, fault) for guarantee, faults in FAULTS.items() for fault in faults],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_doctor_names_the_guarantee_that_is_broken(guarantee, fault, run, monkeypatch, quick):
    fault(monkeypatch)
    code, out, _ = run("doctor")
    assert code == 1
    assert any(line.startswith("FAIL") and guarantee in line for line in out.splitlines()), out
    assert any(line.startswith("ok") and "weights" in line for line in out.splitlines())


def test_doctor_names_a_stream_that_takes_more_memory_than_it_may(run, monkeypatch):
    monkeypatch.setattr(doctor, "GROWTH", -(1 << 30))  # Linux counts pages late, so a peak may seem to fall
    code, out, _ = run("doctor")
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    assert code == 1
    assert len(failed) == 1
    assert "streaming in constant memory" in failed[0]
    assert "MB in 64 tiles, at most -1073.7" in failed[0]


def test_doctor_finds_a_weight_that_is_not_a_number(run, tmp_path_factory, quick):
    folder, model = tmp_path_factory.mktemp("models") / "nan", small_model()
    with torch.no_grad():
        model.to_patch.weight[7, 7] = math.nan
    model.save_pretrained(folder)
    code, out, _ = run("doctor", "--json", model=folder)
    failed = [finding["guarantee"] for finding in json.loads(out) if not finding["passed"]]
    assert (code, failed[0]) == (1, "weights: finite")
