"""The command line, run as a person runs it: figures and files equal Python's, and bad input gets one sentence."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import atoken
from atoken import layers, presets
from atoken import tokenizer as tokenizers
from atoken.checkpoint import fingerprint, load_folder, load_official
from atoken.cli import main
from atoken.errors import CheckpointError
from atoken.io import Clip, Image, load_media, read_clip, write_clip
from atoken.io.token_file import read_items
from atoken.io.tokens_record import Tokens
from atoken.metrics import psnr, ssim
from atoken.model import ATokenModel
from tests.io.clip_cases import moving
from tests.model.sizes import small_config, small_model
from tests.model.test_checkpoint import ARCH, OFFICIAL, small_tower
from tests.tokenizer.small import random_frames
from tests.tolerances import FP32
from tests.train.test_run_folder import no_file_over

METRICS = 1e-6  # relative: the same sums in another order


def picture(path, height=19, width=35, *, alpha=False, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random_frames(height, width, seed=seed)
    if alpha:
        pixels = np.dstack([pixels, random_frames(height, width, seed=seed + 1)[..., 0]])
    PIL.Image.fromarray(pixels).save(path)
    return path


def film(path, frames=37, height=18, width=30, fps=Fraction(30000, 1001)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(Clip(moving(frames, height, width), fps), path)
    return path


def pixels_of(path):
    media = load_media(path)
    return media.pixels if isinstance(media, Image) else media.frames


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def says_one_sentence(result, words, code=1):
    assert result[0] == code
    assert re.fullmatch(rf"atoken: [^\n]*{words}[^\n]*\n", result[2]), result[2]


# encode, info, decode


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (19, 35), (64, 3)])
def test_a_picture_there_and_back_is_what_python_gives(size, run, there, tokenizer):
    path = picture(there / "a.png", *size)
    assert run("encode", path)[0] == 0
    ours, theirs = Tokens.load("a.atok"), tokenizer.encode(path)
    assert torch.equal(ours.latents, theirs.latents)
    assert torch.equal(ours.pooled, theirs.pooled)
    assert ours.name == "a.png"
    assert run("decode", "a.atok") == (0, "wrote\nout/a.png.png\n", "")
    assert np.array_equal(pixels_of("out/a.png.png"), tokenizer.decode(theirs).pixels)


def test_alpha_is_kept(run, there):
    path = picture(there / "a.png", alpha=True)
    run("encode", path)
    run("decode", "a.atok", "-o", "b.png")
    assert np.array_equal(load_media("b.png").alpha, load_media(path).alpha)


def test_a_clip_there_and_back_is_what_python_gives(run, there, tokenizer):
    path = film(there / "a.mp4")
    assert run("encode", path, "-o", "b.atok")[0] == 0
    ours, theirs = Tokens.load("b.atok"), tokenizer.encode(path)
    torch.testing.assert_close(ours.latents, theirs.latents, atol=FP32, rtol=FP32)
    assert (ours.fps, ours.frames, ours.size) == (Fraction(30000, 1001), 37, (18, 30))
    assert run("decode", "b.atok", "-o", "b.mp4")[0] == 0
    write_clip(tokenizer.decode(ours), "c.mp4")
    assert np.array_equal(pixels_of("b.mp4"), pixels_of("c.mp4"))  # the same frames give the same file
    assert read_clip("b.mp4").fps == Fraction(30000, 1001)


@pytest.mark.parametrize("kind", ["tile by tile", "with a decoder's cache"])
def test_a_range_of_frames_decodes_to_just_these(kind, run, there, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached") / "model"
    small_model(**({} if kind == "tile by tile" else {"cache_frames": 4})).save_pretrained(folder)
    tokenizer, path = atoken.load(folder, device="cpu"), film(there / "a.mp4", 50)
    run("encode", path, model=folder)
    whole = tokenizer.decode(Tokens.load("a.atok"))
    for wanted, (first, last) in {"20:30": (20, 30), "15:17": (15, 17), "40:": (40, 50), ":5": (0, 5)}.items():
        assert run("decode", "a.atok", "--frames", wanted, "-o", "b.mp4", model=folder)[0] == 0
        stamps = None if whole.timestamps is None else whole.timestamps[first:last]
        write_clip(Clip(whole.frames[first:last], whole.fps, stamps), "c.mp4")
        ours, theirs = read_clip("b.mp4"), read_clip("c.mp4")
        assert ours.frames.shape == theirs.frames.shape
        assert psnr(ours.frames, theirs.frames) > 45  # a piece may differ by one step of uint8 before the codec
        assert ours.fps == theirs.fps
    says_one_sentence(run("decode", "a.atok", "--frames", "50:", model=folder), "selects none")


def test_encoding_takes_a_range_and_a_rate(run, there):
    path = film(there / "a.mp4", 48, fps=24)
    run("encode", path, "--frames", "8:28", "-o", "b.atok")
    run("encode", path, "--fps", "6", "-o", "c.atok")
    assert [(item.frames, item.fps) for item in (*read_items("b.atok"), *read_items("c.atok"))] == [(20, 24), (12, 6)]


def test_several_items_in_one_file(run, there, tokenizer):
    paths = [picture(there / "x" / "a.png"), film(there / "b.mp4", 5), picture(there / "y" / "a.png", 8, 9, seed=3)]
    code, out, _ = run("encode", *paths, "-o", "set.atok", "--json")
    assert code == 0
    described = json.loads(out)
    assert json.loads(run("info", "set.atok", "--json")[1]) == described
    assert [item["name"] for item in described] == ["a.png", "b.mp4", "a.png"]
    assert [(item["height"], item["width"], item["frames"]) for item in described] == [
        (19, 35, 1), (18, 30, 5), (8, 9, 1)
    ]  # fmt: skip
    assert [item["tokens"] for item in described] == [6, 8, 1]
    assert {item["fingerprint"] for item in described} == {tokenizer.fingerprint}
    assert len(run("info", "set.atok")[1].splitlines()) == 4
    code, out, _ = run("decode", "set.atok", "--json")
    assert json.loads(out) == ["out/a.png.png", "out/b.mp4.mp4", "out/a.png-2.png"]
    assert [pixels_of(path).shape for path in json.loads(out)] == [(19, 35, 3), (5, 18, 30, 3), (8, 9, 3)]
    code, out, _ = run("decode", "set.atok", "--item", 2, "-o", "only", "--json")
    assert json.loads(out) == ["only/a.png.png"]
    assert np.array_equal(pixels_of("only/a.png.png"), pixels_of("out/a.png-2.png"))


def test_half_size_latents_are_a_choice(run, there, tokenizer):
    path = picture(there / "a.png", 40, 50)
    run("encode", path, "--latents", "float16")
    assert torch.equal(Tokens.load("a.atok").latents, tokenizer.encode(path).latents.half().float())


# reconstruct


def test_reconstruct_writes_its_files_and_true_figures(run, there, tokenizer):
    odd, flight = picture(there / "odd.png", 21, 33), film(there / "flight.mp4", 20)
    code, out, _ = run("reconstruct", odd, flight, "-o", "there", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["file"] for row in rows] == [str(odd), str(flight)]
    assert [row["size"] for row in rows] == ["33x21", "30x18x20"]
    assert files_in(there / "there") == sorted(
        [*(f"odd.png.{end}" for end in ("atok", "png", "compare.png")),
         *(f"flight.mp4.{end}" for end in ("atok", "mp4", "compare.png"))]
    )  # fmt: skip
    for path, row in zip((odd, flight), rows, strict=True):
        stored = there / "there" / f"{path.name}.atok"
        original, ours = pixels_of(path), tokenizer.decode(Tokens.load(stored))
        ours = ours.pixels if isinstance(ours, Image) else ours.frames
        assert row["psnr"] == pytest.approx(psnr(ours, original), rel=METRICS)
        assert row["ssim"] == pytest.approx(ssim(ours, original), rel=METRICS)
        assert row["tokens"] == len(Tokens.load(stored).latents)
        assert row["bytes"] == stored.stat().st_size
        assert row["bits_per_pixel"] == 8 * row["bytes"] / (original.size / 3)
        both = [original, ours] if original.ndim == 3 else [original[0], ours[0]]
        assert np.array_equal(pixels_of(f"there/{path.name}.compare.png"), np.concatenate(both, axis=1))
    assert np.array_equal(pixels_of("there/odd.png.png"), tokenizer.decode(tokenizer.encode(odd)).pixels)
    assert len(read_clip("there/flight.mp4.mp4").frames) == 20


def test_the_table_has_a_row_for_each_file(run, there):
    paths = [picture(there / "a.png"), picture(there / "b.png", 5, 5)]
    code, out, error = run("reconstruct", *paths)
    head, *rows = out.splitlines()
    assert (code, error) == (0, "")
    assert head.split()[:3] == ["file", "size", "tokens"]
    assert [row.split()[0] for row in rows] == list(map(str, paths))


def test_the_first_compared_frames_are_those_of_a_chosen_range(run, there):
    path = film(there / "a.mp4", 40)
    code, out, _ = run("reconstruct", path, "--frames", "17:21", "--json")
    assert (code, json.loads(out)[0]["size"]) == (0, "30x18x4")
    assert np.array_equal(pixels_of("out/a.mp4.compare.png")[:, :30], pixels_of(path)[17])


def test_inputs_of_one_name_do_not_overwrite_each_other(run, there):
    paths = [picture(there / folder / "a.png", side, side) for folder, side in (("x", 5), ("y", 6), ("z", 7))]
    paths[1] = paths[1].rename(there / "a.png-2")  # the name that the third would get
    assert run("reconstruct", paths[0], paths[1], paths[2])[0] == 0
    results = [path for path in (there / "out").glob("*.png") if "compare" not in path.name]
    assert sorted(pixels_of(path).shape[0] for path in results) == [5, 6, 7]
    assert len(files_in(there / "out")) == 9


# What goes wrong


def test_inputs_that_cannot_be_read_get_one_sentence_and_leave_nothing(run, there):
    (there / "text.png").write_text("not a picture")
    (there / "empty.png").touch()
    (there / "cut.png").write_bytes(picture(there / "whole.png", 64, 64).read_bytes()[:3000])
    (there / "whole.png").unlink()
    (there / "folder").mkdir()
    before = files_in(there)
    for name, words in {
        "nowhere.png": "no such file", "text.png": "none of the supported", "folder": "not a file",
        "empty.png": "empty", "cut.png": "cut.png",
    }.items():  # fmt: skip
        says_one_sentence(run("reconstruct", name, "-o", "out"), words)
        code, _, error = run("encode", name, "-o", "x.atok")
        assert code == 1
        assert words in error
        assert "Traceback" not in error
        assert files_in(there) == before
    says_one_sentence(run("info", "text.png"), "is not a token file")
    says_one_sentence(run("decode", "nowhere.atok"), "no token file")
    assert files_in(there) == before


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_one_bad_input_does_not_stop_the_others(command, run, there):
    good = [picture(there / "a.png"), picture(there / "b.png")]
    target = "out" if command == "reconstruct" else "out.atok"
    result = run(command, good[0], "nowhere.png", good[1], "-o", target, "--json")
    says_one_sentence(result, "nowhere.png")
    assert len(json.loads(result[1])) == 2
    assert all((there / name).exists() for name in (["out/b.png.png"] if command == "reconstruct" else ["out.atok"]))


def test_limits_refuse_and_say_how_to_raise_them(run, there):
    path = picture(there / "a.png", 19, 35)
    says_one_sentence(run("reconstruct", path, "--max-pixels", "600"), "--max-pixels")
    assert run("encode", path, "--max-pixels", "665")[0] == 0


def test_tokens_of_another_model_are_refused_by_name(run, there, tmp_path_factory):
    other = tmp_path_factory.mktemp("models") / "other"
    small_model(seed=1).save_pretrained(other)
    run("encode", picture(there / "a.png"))
    says_one_sentence(run("decode", "a.atok", model=other), "made by model small .* this is other")
    assert files_in(there) == ["a.atok", "a.png"]


def test_items_and_names_that_do_not_fit_are_refused(run, there):
    run("encode", picture(there / "a.png"), film(there / "b.mp4", 2), "-o", "s.atok")
    before = files_in(there)
    for item in (2, -1):
        says_one_sentence(run("decode", "s.atok", f"--item={item}"), f"no item {item}; it holds 0 to 1")
    says_one_sentence(run("decode", "s.atok", "-o", "one.png"), "2 items")
    says_one_sentence(run("decode", "s.atok", "--item", 0, "-o", "one.mp4"), "one.mp4")
    for name in ("one.jpg", "one.webm"):  # not written as a folder of that name
        says_one_sentence(run("decode", "s.atok", "--item", 0, "-o", name), r"\.png")
        assert not Path(name).exists()
    says_one_sentence(run("decode", "s.atok", "--item", 1, "-o", "one.png"), "one.png")
    says_one_sentence(run("decode", "s.atok", "--item", 1, "--frames=-1:1"), "selects none")
    says_one_sentence(run("encode", "a.png", "b.mp4"), "-o set.atok")
    assert files_in(there) == before


def test_outputs_that_cannot_be_written_get_one_sentence(run, there):
    path = picture(there / "a.png")
    run("encode", path)
    before = {name: Path(name).read_bytes() for name in files_in(there)}
    for command, source in (("reconstruct", path), ("decode", "a.atok")):
        for out in ("a.atok", "a.atok/deeper"):
            says_one_sentence(run(command, source, "-o", out), "Cannot make the folder")
    says_one_sentence(run("encode", path, "-o", "no/such/x.atok"), "Cannot write")
    (there / "taken.atok").mkdir()
    says_one_sentence(run("encode", path, "-o", "taken.atok"), "Cannot write")
    assert {name: Path(name).read_bytes() for name in files_in(there)} == before


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["encode"], ["decode", "a", "--frames", "5"], ["decode", "a", "--item", "x"],
     ["encode", "a", "--fps", "1/0"], ["info", "a", "--dtype", "float64"], ["encode", "a", "--dtype", "float64"]],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: atoken" in capsys.readouterr().err


def test_as_a_program(there, model):
    """Exit codes and streams of the real thing."""
    picture(there / "a.png")
    environment = os.environ | {"PYTHONPATH": str(Path(atoken.__file__).parents[1])}

    def program(*arguments):
        command = [sys.executable, "-m", "atoken.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    done = program("encode", "a.png", "nowhere.png", "-o", "s.atok", "--model", str(model), "--json")
    assert done.returncode == 1
    assert [item["name"] for item in json.loads(done.stdout)] == ["a.png"]
    assert done.stderr == "atoken: Cannot read nowhere.png: there is no such file.\n"
    version = program("--version")
    assert (version.returncode, version.stdout) == (0, f"atoken {atoken.__version__}\n")


# doctor


def test_doctor_passes_a_sound_model(run):
    code, out, _ = run("doctor")
    lines = out.splitlines()
    assert code == 0, out
    assert all(line.startswith("ok ") for line in lines)
    assert len(lines) >= 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_doctor_passes_a_discrete_model(dtype, run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "discrete"
    small_model(fsq_levels=presets.FSQ_LEVELS).save_pretrained(folder)
    code, out, _ = run("doctor", "--dtype", dtype, "--json", model=folder)
    assert [finding["promise"] for finding in json.loads(out) if not finding["passed"]] == []
    assert code == 0


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
    media = tokenizers._media
    patch.setattr(tokenizers, "_media", lambda tokens, part: media(replace(tokens, alpha=None), part))


FAULTS = {
    "streaming = whole": [forget_earlier_tiles, spoil_the_pooled_vector_of_later_tiles],
    "alone = in a batch": [look_at_other_samples],
    "twice = the same": [draw_at_random],
    "nothing lost: alpha": [lose_the_alpha],
}


@pytest.mark.parametrize(
    ("promise", "fault"),
    [(promise, fault) for promise, faults in FAULTS.items() for fault in faults],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_doctor_names_the_promise_that_is_broken(promise, fault, run, monkeypatch):
    fault(monkeypatch)
    code, out, _ = run("doctor")
    assert code == 1
    assert any(line.startswith("FAIL") and promise in line for line in out.splitlines()), out
    assert any(line.startswith("ok") and "weights" in line for line in out.splitlines())


def test_doctor_finds_a_weight_that_is_not_a_number(run, tmp_path_factory):
    folder, model = tmp_path_factory.mktemp("models") / "nan", small_model()
    with torch.no_grad():
        model.to_patch.weight[7, 7] = math.nan
    model.save_pretrained(folder)
    code, out, _ = run("doctor", "--json", model=folder)
    failed = [finding["promise"] for finding in json.loads(out) if not finding["passed"]]
    assert (code, failed[0]) == (1, "weights: finite")


# train


def test_a_run_is_reported_on_one_page(run, there):
    (there / "run").mkdir()
    (there / "run" / "log.jsonl").write_text('{"step": 0, "modality": "image", "loss": 0.5, "norm": 1.0}\n')
    assert run("train", "report", "run") == (0, "run/report.html\n", "")
    assert "0.5" in (there / "run" / "report.html").read_text()
    assert run("train", "report", "run", "-o", "mine.html")[0] == 0
    assert (there / "mine.html").read_bytes() == (there / "run" / "report.html").read_bytes()
    says_one_sentence(run("train", "report", "nowhere"), "not the folder of a run")


# convert


def published_yaml(path):
    path.write_text(yaml.safe_dump({"model": {"model_cfg": {"arch_cfg": ARCH}}}))
    return path


@pytest.fixture
def published(tmp_path_factory):
    return published_yaml(tmp_path_factory.mktemp("published") / "soc.yaml")


def test_published_weights_become_a_folder_with_the_same_features(run, there, published):
    code, out, error = run("convert", OFFICIAL, "--config", published, "-o", "mine")
    assert (code, error) == (0, "")
    ours, theirs = atoken.load("./mine", device="cpu"), load_official(OFFICIAL, published)
    assert out == f"mine: {sum(p.numel() for p in theirs.parameters()) / 1e6:.1f} million weights\n"
    assert ours.fingerprint == fingerprint(theirs)
    tokens = atoken.tokenizer.patchify(torch.rand(4, 48, 32, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    with torch.no_grad():
        pairs = zip(ours.model(tokens), theirs.eval()(tokens), strict=True)
        (ours, theirs), (our_patches, their_patches) = pairs
    assert torch.equal(ours.features.feats, theirs.features.feats)
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=FP32, rtol=0)
    assert torch.equal(our_patches.feats, their_patches.feats)


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
    says_one_sentence(run("convert", "nowhere.pt", "-o", "x"), "nowhere.yaml")
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


# load


def test_a_name_that_nobody_knows_lists_the_bundled_ones(tmp_path, monkeypatch, model):
    bundled = tmp_path / "weights"
    bundled.mkdir()
    for module in (presets, tokenizers):
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
