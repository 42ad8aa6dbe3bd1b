"""The command line, run as a person runs it: figures and files equal Python's, and bad input gets one sentence."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import trimesh

import atoken
from atoken.cli import main
from atoken.io import Image, Video, load_media, read_video, write_video
from atoken.io.token_file import Tokens, read_items
from atoken.metrics.pixels import psnr, ssim
from tests.cli.cases import files_in, film, image, pixels_of, says_one_sentence
from tests.model.sizes import small_model
from tests.tokenizer.small import random_frames
from tests.tolerances import FP32

METRICS = 1e-6  # relative: the same sums in another order


# encode, info, decode


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (19, 35), (64, 3)])
def test_an_image_there_and_back_is_what_python_gives(size, run, there, tokenizer):
    path = image(there / "a.png", *size)
    assert run("encode", path)[0] == 0
    actual, expected = Tokens.load("a.atok"), tokenizer.encode(path)
    assert torch.equal(actual.latents, expected.latents)
    assert torch.equal(actual.pooled, expected.pooled)
    assert actual.name == "a.png"
    assert run("decode", "a.atok") == (0, "wrote\nout/a.png.png\n", "")
    assert np.array_equal(pixels_of("out/a.png.png"), tokenizer.decode(expected).pixels)


def test_alpha_is_kept(run, there):
    path = image(there / "a.png", alpha=True)
    run("encode", path)
    run("decode", "a.atok", "-o", "b.png")
    assert np.array_equal(load_media("b.png").alpha, load_media(path).alpha)


def test_alpha_of_a_video_is_kept(run, there):
    alpha = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (18, 32, 1))
    write_video(Video(np.full((18, 32, 32, 3), 90, np.uint8), alpha=alpha), "a.mov")
    assert run("encode", "a.mov")[0] == 0
    assert run("decode", "a.atok") == (0, "wrote\nout/a.mov.webm\n", "")
    assert np.abs(read_video("out/a.mov.webm").alpha.astype(int) - alpha).mean() < 4
    assert run("decode", "a.atok", "-o", "b.mov")[0] == 0
    assert np.array_equal(read_video("b.mov").alpha, alpha)
    assert "alpha is left out" in run("decode", "a.atok", "-o", "b.mp4")[2]


def test_a_video_there_and_back_is_what_python_gives(run, there, tokenizer):
    path = film(there / "a.mp4")
    assert run("encode", path, "-o", "b.atok")[0] == 0
    actual, expected = Tokens.load("b.atok"), tokenizer.encode(path)
    torch.testing.assert_close(actual.latents, expected.latents, atol=FP32, rtol=FP32)
    assert (actual.fps, actual.frames, actual.size) == (Fraction(30000, 1001), 37, (18, 30))
    assert run("decode", "b.atok", "-o", "b.mp4")[0] == 0
    write_video(tokenizer.decode(actual), "c.mp4")
    assert np.array_equal(pixels_of("b.mp4"), pixels_of("c.mp4"))  # the same frames give the same file
    assert read_video("b.mp4").fps == Fraction(30000, 1001)


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
        write_video(Video(whole.frames[first:last], whole.fps, stamps), "c.mp4")
        actual, expected = read_video("b.mp4"), read_video("c.mp4")
        assert actual.frames.shape == expected.frames.shape
        assert psnr(actual.frames, expected.frames) > 45  # a piece may differ by one step of uint8 before the codec
        assert actual.fps == expected.fps
    says_one_sentence(run("decode", "a.atok", "--frames", "50:", model=folder), "selects none")


def test_encoding_takes_a_range_and_a_rate(run, there):
    path = film(there / "a.mp4", 48, fps=24)
    run("encode", path, "--frames", "8:28", "-o", "b.atok")
    run("encode", path, "--fps", "6", "-o", "c.atok")
    assert [(item.frames, item.fps) for item in (*read_items("b.atok"), *read_items("c.atok"))] == [(20, 24), (12, 6)]


def test_several_items_in_one_file(run, there, tokenizer):
    paths = [image(there / "x" / "a.png"), film(there / "b.mp4", 5), image(there / "y" / "a.png", 8, 9, seed=3)]
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


def test_larger_media_are_scaled_down_on_request_and_the_table_says_from_what(run, there, tokenizer):
    photo, small, clip = image(there / "a.png", 90, 60), image(there / "b.png", 8, 9), film(there / "c.mp4", 20)
    code, out, _ = run("encode", photo, small, clip, "-o", "set.atok", "--max-side", 24, "--json")
    assert code == 0
    found = [(item["height"], item["width"], item["scaled_from"]) for item in json.loads(out)]
    assert found == [(24, 16, [90, 60]), (8, 9, [8, 9]), (14, 24, [18, 30])]
    table = run("encode", photo, "-o", "one.atok", "--max-side", 24)[1].splitlines()
    assert "scaled from" in table[0]
    assert table[1].split()[3:5] == ["16x24", "60x90"]
    assert torch.equal(Tokens.load("one.atok").latents, tokenizer.encode(photo, max_side=24).latents)
    code, out, _ = run("reconstruct", photo, clip, "--max-side", 24)
    assert code == 0
    assert [" ".join(line.split()[1:4]) for line in out.splitlines()[1:]] == [
        "16x24 (from 60x90)",
        "24x14x20 (from 30x18)",
    ]
    assert pixels_of("out/a.png.png").shape == (24, 16, 3)
    assert pixels_of("out/a.png.compare.png").shape == (24, 32, 3)
    assert "scaled from" not in run("encode", photo, "-o", "one.atok", "--max-side", 90)[1]


def test_half_size_latents_are_a_choice(run, there, tokenizer):
    path = image(there / "a.png", 40, 50)
    run("encode", path, "--latents", "float16")
    assert torch.equal(Tokens.load("a.atok").latents, tokenizer.encode(path).latents.half().float())


# reconstruct


def test_reconstruct_writes_its_files_and_true_figures(run, there, tokenizer):
    odd, flight = image(there / "odd.png", 21, 33), film(there / "flight.mp4", 20)
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
        original, actual = pixels_of(path), tokenizer.decode(Tokens.load(stored))
        actual = actual.pixels if isinstance(actual, Image) else actual.frames
        assert row["psnr"] == pytest.approx(psnr(actual, original), rel=METRICS)
        assert row["ssim"] == pytest.approx(ssim(actual, original), rel=METRICS)
        assert row["tokens"] == len(Tokens.load(stored).latents)
        assert row["bytes"] == stored.stat().st_size
        assert row["bits_per_pixel"] == 8 * row["bytes"] / (original.size / 3)
        both = [original, actual] if original.ndim == 3 else [original[0], actual[0]]
        assert np.array_equal(pixels_of(f"there/{path.name}.compare.png"), np.concatenate(both, axis=1))
    assert np.array_equal(pixels_of("there/odd.png.png"), tokenizer.decode(tokenizer.encode(odd)).pixels)
    assert len(read_video("there/flight.mp4.mp4").frames) == 20


def test_the_table_has_a_row_for_each_file(run, there):
    paths = [image(there / "a.png"), image(there / "b.png", 5, 5)]
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


def test_an_animated_image_is_a_video_unless_its_first_frame_is_asked_for(run, there):
    first, *rest = [PIL.Image.fromarray(random_frames(18, 32, seed=seed)) for seed in range(3)]
    first.save("a.webp", save_all=True, append_images=rest, duration=[40, 80, 40], lossless=True)
    assert run("encode", "a.webp")[0] == 0
    tokens = Tokens.load("a.atok")
    assert (tokens.modality, tokens.frames) == ("video", 3)
    assert np.allclose(tokens.timestamps, [0, 0.04, 0.12])
    code, _, said = run("encode", "a.webp", "--first-frame")
    assert (code, Tokens.load("a.atok").modality) == (0, "image")
    assert "Only the first of the frames" in said


def test_inputs_of_one_name_do_not_overwrite_each_other(run, there):
    paths = [image(there / folder / "a.png", side, side) for folder, side in (("x", 5), ("y", 6), ("z", 7))]
    paths[1] = paths[1].rename(there / "a.png-2")  # the name that the third would get
    assert run("reconstruct", paths[0], paths[1], paths[2])[0] == 0
    results = [path for path in (there / "out").glob("*.png") if "compare" not in path.name]
    assert sorted(pixels_of(path).shape[0] for path in results) == [5, 6, 7]
    assert len(files_in(there / "out")) == 9


# What goes wrong


def test_inputs_that_cannot_be_read_get_one_sentence_and_leave_nothing(run, there):
    (there / "text.png").write_text("not an image")
    (there / "empty.png").touch()
    (there / "cut.png").write_bytes(image(there / "whole.png", 64, 64).read_bytes()[:3000])
    (there / "whole.png").unlink()
    (there / "folder").mkdir()
    before = files_in(there)
    for name, words in {
        "nowhere.png": "no such file", "text.png": "none of the supported", "folder": "has no file to read",
        "empty.png": "empty", "cut.png": "cut.png",
    }.items():  # fmt: skip
        says_one_sentence(run("reconstruct", name, "-o", "out"), words)
        says_one_sentence(run("encode", name, "-o", "x.atok"), words)
        assert files_in(there) == before
    both = run("encode", "nowhere.png", "text.png", "-o", "x.atok")[2].splitlines()
    assert [line.split()[1] for line in both] == ["Cannot", "Cannot", "None"]
    says_one_sentence(run("info", "text.png"), "is not a token file")
    says_one_sentence(run("decode", "nowhere.atok"), "no token file")
    assert files_in(there) == before


@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_one_bad_input_does_not_stop_the_others(command, run, there):
    good = [image(there / "a.png"), image(there / "b.png")]
    target = "out" if command == "reconstruct" else "out.atok"
    result = run(command, good[0], "nowhere.png", good[1], "-o", target, "--json")
    says_one_sentence(result, "nowhere.png")
    assert len(json.loads(result[1])) == 2
    assert all((there / name).exists() for name in (["out/b.png.png"] if command == "reconstruct" else ["out.atok"]))


@pytest.mark.parametrize(
    "words",
    [["info", "URL"], ["decode", "URL"], ["convert", "URL", "-o", "c"], ["encode", "URL"],
     ["train", "--stage", "tune", "--data", "URL"], ["train", "--start", "URL"], ["train", "report", "URL"]],
    ids=" ".join,
)  # fmt: skip
def test_an_address_is_said_to_be_one_by_every_command(words, run, there):
    address = "https://example.org/a.x"
    result = run(*(address if word == "URL" else word for word in words))
    says_one_sentence(result, f"Cannot read {address}: it is an address, and nothing is fetched")
    assert files_in(there) == []


def test_a_text_may_be_an_address(run, there):
    code, _, error = run("search", "https://example.org", image(there / "a.png"))
    assert code == 1
    assert "has no text side" in error


def test_of_several_inputs_the_sentence_names_the_one(run, there):
    image(there / "a.png")
    box = trimesh.creation.box((1, 1, 0.001))
    trimesh.util.concatenate([box.copy().apply_translation((0, 0, n / 64)) for n in range(64)]).export("dense.stl")
    result = run("encode", "dense.stl", "a.png", "-o", "s.atok")
    says_one_sentence(result, r"dense\.stl: The asset fills .* voxels .*--coarsen")


def test_limits_refuse_and_say_how_to_raise_them(run, there):
    path = image(there / "a.png", 19, 35)
    says_one_sentence(run("reconstruct", path, "--limit-pixels", "600"), "--limit-pixels")
    assert run("encode", path, "--limit-pixels", "665")[0] == 0


def test_tokens_of_another_model_are_refused_by_name(run, there, tmp_path_factory):
    other = tmp_path_factory.mktemp("models") / "other"
    small_model(seed=1).save_pretrained(other)
    run("encode", image(there / "a.png"))
    says_one_sentence(run("decode", "a.atok", model=other), "made by model small .* this is other")
    assert files_in(there) == ["a.atok", "a.png"]


def test_items_and_names_that_do_not_fit_are_refused(run, there):
    run("encode", image(there / "a.png"), film(there / "b.mp4", 2), "-o", "s.atok")
    before = files_in(there)
    for item in (2, -1):
        says_one_sentence(run("decode", "s.atok", f"--item={item}"), f"no item {item}; it holds 0 to 1")
    says_one_sentence(run("decode", "s.atok", "-o", "one.png"), "2 items")
    says_one_sentence(run("decode", "s.atok", "--item", 0, "-o", "one.mp4"), "one.mp4")
    for name in ("one.bmp", "one.webm"):  # not written as a folder of that name
        says_one_sentence(run("decode", "s.atok", "--item", 0, "-o", name), r"\.png")
        assert not Path(name).exists()
    says_one_sentence(run("decode", "s.atok", "--item", 1, "-o", "one.png"), "one.png")
    says_one_sentence(run("decode", "s.atok", "--item", 1, "--frames=-1:1"), "selects none")
    says_one_sentence(run("encode", "a.png", "b.mp4"), "-o set.atok")
    assert files_in(there) == before


def test_outputs_that_cannot_be_written_get_one_sentence(run, there):
    path = image(there / "a.png")
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
    image(there / "a.png")
    environment = os.environ | {"PYTHONPATH": str(Path(atoken.__file__).parents[1])}

    def program(*arguments):
        command = [sys.executable, "-m", "atoken", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)

    done = program("encode", "a.png", "nowhere.png", "-o", "s.atok", "--model", str(model), "--json")
    assert done.returncode == 1
    assert [item["name"] for item in json.loads(done.stdout)] == ["a.png"]
    assert done.stderr == "atoken: Cannot read nowhere.png: there is no such file.\n"
    command = [sys.executable, "-m", "atoken", "info", "s.atok"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as cut:
        cut.stdout.close()  # as head does
        assert cut.stderr.read() == b""
        assert cut.wait(120) == 141
    version = program("--version")
    assert (version.returncode, version.stdout) == (0, f"atoken {atoken.__version__}\n")
