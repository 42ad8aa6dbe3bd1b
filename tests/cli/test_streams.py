"""Standard input and output, links, devices and full disks in the commands."""

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from atoken.cli import console, main
from atoken.io import load_media
from atoken.io.token_file import Tokens
from tests.cli.cases import film, image, pixels_of, says_one_sentence

ROOT = Path(__file__).parents[2]


@pytest.fixture
def piped(model, capfdbinary, there, monkeypatch):
    """Run one command with bytes on standard input: exit code, bytes on standard output, text on standard error."""

    def command(name, *arguments, data=b""):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        console._standard_input.cache_clear()
        capfdbinary.readouterr()
        options = ["--model", str(model), "--device", "cpu"] if name != "info" else []
        code = main([name, *map(str, arguments), *options])
        out, error = capfdbinary.readouterr()
        return code, out, error.decode()

    return command


def test_media_and_tokens_pass_through_pipes(piped, there):
    for path, suffix in ((image(there / "a.png", alpha=True), ".png"), (film(there / "a.mp4", 5), ".mp4")):
        assert piped("encode", path, "-o", "a.atok")[0] == 0
        code, tokens, said = piped("encode", "-", "-o", "-", "--json", data=path.read_bytes())
        assert code == 0
        assert json.loads(said)[0]["tokens"] == len(Tokens.load(tokens).latents)
        assert np.array_equal(Tokens.load(tokens).latents, Tokens.load("a.atok").latents)
        code, out, said = piped("info", "-", "--json", data=tokens)
        assert (code, json.loads(out)[0]["modality"], said) == (0, {".png": "image", ".mp4": "video"}[suffix], "")
        assert piped("decode", "a.atok", "-o", f"b{suffix}")[0] == 0
        code, media, said = piped("decode", "-", "-o", "/dev/stdout", data=tokens)
        assert (code, media) == (0, (there / f"b{suffix}").read_bytes())
        assert said.startswith("wrote\n")


def test_other_commands_read_and_write_streams(piped, there):
    data = image(there / "a.png").read_bytes()
    assert piped("embed", "a.png", "-o", "a.npz")[0] == 0
    code, out, said = piped("embed", "-", "-o", "-", data=data)
    vectors = [np.load(file)["vectors"] for file in (io.BytesIO(out), there / "a.npz")]
    assert (code, said.split()[2]) == (0, "-")
    assert np.array_equal(*vectors)
    tokens = piped("encode", "-", "-o", "-", data=data)[1]
    code, out, said = piped("embed", "-", "-o", "-", data=tokens)
    assert np.array_equal(np.load(io.BytesIO(out))["vectors"], vectors[0])
    code, out, _ = piped("reconstruct", "-", "--json", data=data)
    assert (code, json.loads(out)[0]["file"]) == (0, "-")
    assert load_media(there / "out/stdin.png").pixels.shape == (19, 35, 3)


def test_streams_that_do_not_fit_are_refused(piped, there):
    path = image(there / "a.png")
    says_one_sentence(piped("encode", "-", data=path.read_bytes()), "-o set.atok")
    says_one_sentence(piped("reconstruct", path, "-o", "-"), "give a folder with -o")
    says_one_sentence(piped("info", "-", data=b"not tokens"), "<bytes> is not a token file")
    code, out, said = piped("encode", "-", "-o", "-", data=b"no image")
    assert (code, out) == (1, b"")
    assert said.startswith("atoken: Cannot read standard input: its content is none of the supported formats")
    piped("encode", path, path, "-o", "s.atok")
    says_one_sentence(piped("decode", "s.atok", "-o", "-"), "2 items")


def test_a_closed_pipe_is_one_sentence(model, there):
    """As in ``atoken encode a.png -o - | true``."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "atoken", "encode", image(there / "a.png"), "-o", "-", "--model", model]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "atoken: Cannot write standard output: Broken pipe.\n")


def test_links_are_written_through(run, there):
    path = image(there / "a.png")
    (there / "link.atok").symlink_to("real.atok")
    assert run("encode", path, "-o", "link.atok")[0] == 0
    assert (there / "link.atok").is_symlink()
    (there / "link.png").symlink_to("real.png")
    assert run("decode", "real.atok", "-o", "link.png")[0] == 0
    assert (there / "link.png").is_symlink()
    assert pixels_of("real.png").shape == (19, 35, 3)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_devices_stay_devices(run, there):
    path = image(there / "a.png")
    for name, number in (("null", 3), ("full", 7)):
        os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(1, number))
    run("encode", path)
    for command in (["encode", path], ["decode", "a.atok"], ["embed", path]):
        assert run(*command, "-o", "null")[0] == 0
        says_one_sentence(run(*command, "-o", "full"), "Cannot write full: No space left on device")
    assert all((there / name).is_char_device() for name in ("null", "full"))


def test_places_that_take_nothing_are_one_sentence(run, there):
    path = image(there / "a.png")
    for command in (["encode", path], ["embed", path]):
        says_one_sentence(run(*command, "-o", "absent/x"), "Cannot write absent/x: No such file or directory")
        says_one_sentence(run(*command, "-o", there), "Is a directory")
