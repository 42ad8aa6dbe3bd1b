"""What does not work says in one sentence what is wrong and what to do; what works, works in the forms people use."""

import io
import re

import numpy as np
import pytest
import torch

import atoken
from atoken.errors import AtokenError, CheckpointError, MediaError
from atoken.io.token_file import Tokens
from tests.model.sizes import small_model
from tests.tokenizer.small import random_frames, small_tokenizer

IMAGE = random_frames(16, 16)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model().save_pretrained("small")
    return tmp_path


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda tok: list(tok.encode_stream([IMAGE, random_frames(16, 32)])), r"Frame 1 is \(16, 32, 3\)"),
        (lambda tok: list(tok.encode_stream([*[IMAGE] * 16, random_frames(8, 8)])), r"Frame 16 is \(8, 8, 3\)"),
        (lambda tok: list(tok.encode_stream(["a.png"])), "Frame 0 must be a uint8 array"),
        (lambda tok: list(tok.encode_stream(7)), "Cannot read frames from a int"),
        (lambda tok: tok.embed_frames(None), "Cannot read frames from a NoneType"),
        (lambda tok: tok.decode("x.atok"), r"got a str; read a file with atoken\.Tokens\.load"),
        (lambda tok: tok.decode(torch.zeros(1, 48)), "got a Tensor; .* decode tensors with decode_latents"),
        (lambda tok: next(tok.decode_stream(["x.atok"])), "got a str"),
        (lambda tok: tok.decode_batch(tok.encode(IMAGE)), "decode_batch takes a list, got a Tokens"),
        (lambda tok: tok.encode_batch("a.png"), "encode_batch takes a list, got a str"),
        (lambda tok: tok.encode_batch(IMAGE), "encode_batch takes a list, got a ndarray"),
        (lambda tok: tok.encode(IMAGE, generator=0), r"generator must be torch\.Generator\(\)\.manual_seed\(0\)"),
        (lambda tok: tok.encode(torch.zeros(3, 16, 16)), "a tensor goes into encode_pixels"),
        (lambda tok: tok.encode("https://example.org/a.png"), "nothing is fetched"),
        (lambda tok: tok.encode("s3://bucket/a.mp4"), "nothing is fetched"),
        (lambda tok: tok.encode_batch([IMAGE, np.zeros((4, 4))]), "Input 1: An image must be"),
        (lambda tok: tok.encode_batch([IMAGE, "no/such.png"]), r"no/such\.png"),
        (lambda tok: Tokens.load("https://example.org/a.atok"), "nothing is fetched"),
        (lambda tok: atoken.load("nano", device="hpu"), "no device 'hpu'"),
        (lambda tok: atoken.load("nano", device="nonsense"), "no device 'nonsense'"),
        (lambda tok: atoken.load("nano", device="meta"), "holds no numbers"),
        (lambda tok: atoken.load("nano", dtype=torch.float16), r"got torch\.float16"),
        (lambda tok: tok.to("hpu"), "no device 'hpu'"),
        (lambda tok: atoken.load("missing/"), "There is no folder missing/"),
        (lambda tok: atoken.load("small/missing"), "There is no folder small/missing"),
        (lambda tok: atoken.load("no/such/folder"), "There is no folder no/such/folder"),
        (lambda tok: atoken.load("missing.pt"), r"There is no weight file missing\.pt"),
        (lambda tok: atoken.load("some/missing.safetensors"), "There is no weight file some/missing"),
        (lambda tok: atoken.load("https://huggingface.co/owner/name"), "nothing is fetched"),
    ],
)
def test_what_does_not_work_gets_one_sentence(folder, call, words):
    with pytest.raises(AtokenError, match=words) as error:
        call(small_tokenizer())
    assert "\n" not in str(error.value)


def test_a_file_among_several_is_named_whatever_the_reason(tmp_path):
    import PIL.Image

    PIL.Image.fromarray(np.full((4, 4), 1e6, np.float32)).save(tmp_path / "phase.tif")
    PIL.Image.fromarray(IMAGE).save(tmp_path / "fine.png")
    with pytest.raises(MediaError, match=r"phase\.tif"):
        small_tokenizer().encode_batch([tmp_path / "fine.png", tmp_path / "phase.tif"])
    with pytest.raises(MediaError, match=r"phase\.tif"):
        atoken.load_media(tmp_path / "phase.tif")


def test_devices_and_precisions_are_torchs_or_strings(folder):
    for device in ("cpu", torch.device("cpu"), "auto"):
        assert atoken.load("small", device=device).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    tok = atoken.load("small", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert tok.model.dtype == atoken.load("small", device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert tok.encode(IMAGE).latents.dtype == torch.float32
    assert tok.to(torch.float32) is tok
    assert tok.model.dtype == torch.float32
    assert tok.to("cpu", "bfloat16").model.dtype == torch.bfloat16


def test_reprs_are_one_line(folder):
    tok = atoken.load("nano", device="cpu")
    frames = random_frames(5, 16, 32)
    tokens, encoded = tok.encode(frames), tok.encode_pixels(torch.zeros(2, 3, 16, 32))
    gaussians = atoken.Gaussians(*(torch.zeros(1, *shape) for shape in ((3,), (3,), (4,), (), (3,))))
    mesh = atoken.Mesh(
        np.zeros((3, 3), np.float32), np.zeros((1, 3), np.int32), np.zeros((1, 3, 4), np.uint8),
        np.zeros((1, 3, 2), np.float32), np.zeros(1, np.int32), (np.zeros((512, 512, 4), np.uint8),),
    )  # fmt: skip
    media = [atoken.Image(IMAGE), atoken.Video(frames), mesh]
    for value in (tokens, encoded, encoded.latents, gaussians, tok, *media):
        assert re.fullmatch(rf"{type(value).__name__}\(.*\)", repr(value))
        assert len(repr(value)) < 1000
    assert "latents=float32 (4, 48) on cpu" in repr(tokens)
    assert "modality='video', size=(16, 32), frames=5" in repr(tokens)
    assert "latents=SparseTokens(feats=float32 (4, 48) on cpu, coords=int32 (4, 4) on cpu, lengths=(2, 2))" in repr(
        encoded
    )
    assert repr(media[0]) == "Image(pixels=uint8 (16, 16, 3))"
    assert "textures=1 of uint8 (512, 512, 4)" in repr(mesh)
    assert repr(tok) == "Tokenizer('nano', 9.5 million weights, 48 channels, with texts, float32 on cpu)"


def test_a_device_map_names_the_package_it_needs(folder):
    if __import__("importlib.util").util.find_spec("accelerate"):
        pytest.skip("accelerate is installed")
    with pytest.raises(ValueError, match="requires `accelerate`"):
        atoken.ATokenModel.from_pretrained("small", device_map="auto")


def test_a_stream_is_read_from_bytes_and_open_files_too():
    with pytest.raises(MediaError, match="none of the formats"):
        next(small_tokenizer().encode_stream(io.BytesIO(b"no video")))
    with pytest.raises(MediaError):
        small_tokenizer().embed_frames(b"no video")


def test_a_damaged_text_tokenizer_is_still_refused(folder):
    from tests.tokenizer.texts import small_texts_model

    small_texts_model().save_pretrained("texts")
    (folder / "texts" / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="no text tokenizer that transformers can load"):
        atoken.load("texts", device="cpu")
