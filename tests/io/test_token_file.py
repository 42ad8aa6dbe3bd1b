"""Token files: what goes in comes out bit for bit, read whole, in parts or as a stream."""

import errno
import hashlib
import os
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from atoken.errors import TokenFileError
from atoken.io.chunks import DIGITS, MAX_RAW, Chunk, decode, encode, raw_size
from atoken.io.contents import plain_name
from atoken.io.token_checks import check_model
from atoken.io.token_file import TokenFile, TokenFileWriter, Tokens, read_items
from atoken.media.clock import varying
from atoken.patches import grid
from tests.io.token_cases import FINGERPRINT, LEVELS, assert_same, frame_tokens, make, read_all, take


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_goes_in_comes_out(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    frames = data.draw(st.one_of(st.just(1), st.integers(2, 50)))
    size = (data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    fields: dict[str, Any] = {"levels": data.draw(st.sampled_from([None, LEVELS, (8, 5, 5), (2,), (3, 7)]))}
    if fields["levels"] is not None and 12 % len(fields["levels"]):
        fields["levels"] = LEVELS
    if frames > 1 and data.draw(st.booleans()):
        fields["timestamps"] = np.cumsum(rng.uniform(0.01, 0.1, frames))
    if data.draw(st.booleans()):
        fields["alpha"] = rng.integers(0, 256, size if frames == 1 else (frames, *size), dtype=np.uint8)
    if data.draw(st.booleans()):
        fields["pooled"] = None
    tokens = make(size, frames, name=data.draw(st.text(max_size=30)), **fields)
    if data.draw(st.booleans()):
        tokens = take(tokens, rng.random(len(tokens.coords)) < data.draw(st.sampled_from([0.0, 0.1, 0.9])))
    path = tmp_path_factory.mktemp("tokens") / "one.atok"
    tokens.save(path)
    assert_same(Tokens.load(path), tokens)
    (item,) = read_items(path)
    assert item.tokens == len(tokens.coords)
    assert item.stored_bytes < path.stat().st_size
    with TokenFile(path) as file:
        assert_same(Tokens.join(file.stream()), tokens)


@pytest.mark.parametrize("discrete", [False, True])
def test_several_items_may_share_a_name_and_are_read_in_any_order(tmp_path: Path, discrete: bool) -> None:
    path = tmp_path / "many.atok"
    several = [make(discrete=discrete, seed=1), make((64, 16), 33, discrete=discrete, seed=2), make((1, 1), seed=3)]
    with TokenFileWriter(path) as writer:
        for tokens in several:
            writer.add(tokens)
    with TokenFile(path) as file:
        assert [item.name for item in file.items] == ["photo.jpg"] * len(file)
        for index in (2, 0, 1):
            assert_same(file.read(index), several[index])
    with pytest.raises(TokenFileError, match="3 items; say which"):
        Tokens.load(path)
    assert_same(Tokens.load(path, item=1), several[1])
    with pytest.raises(TokenFileError, match="no item 3"):
        Tokens.load(path, item=3)


def test_float16_gives_exactly_the_rounded_latents(tmp_path: Path) -> None:
    tokens = make((40, 40), 20)
    tokens.save(tmp_path / "half.atok", dtype="float16")
    tokens.save(tmp_path / "whole.atok")
    assert_same(Tokens.load(tmp_path / "half.atok"), replace(tokens, latents=tokens.latents.half().float()))
    assert (tmp_path / "half.atok").stat().st_size < 0.6 * (tmp_path / "whole.atok").stat().st_size


def test_a_discrete_item_stores_codes_only_and_any_dtype_keeps_it_exact(tmp_path: Path) -> None:
    tokens = make((64, 64), discrete=True)
    tokens.save(tmp_path / "a.atok", dtype="float16")
    assert_same(Tokens.load(tmp_path / "a.atok"), tokens)
    (item,) = read_items(tmp_path / "a.atok")
    assert item.dtype == "digits"
    assert item.groups == 2
    assert item.tiles[0].tokens.stored <= 16 * 3  # 16 tokens, 2 codes of 12 bits


def test_the_same_tokens_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make((33, 20), 18, discrete=True).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bytes_follow_the_description(tmp_path: Path) -> None:
    """A file of one token built by hand from docs/token-file.md."""
    latents = torch.tensor([[1.0, -2.0]])
    make((5, 7), latents=latents, pooled=None).save(tmp_path / "a.atok")
    columns = np.array([1.0, -2.0], "<f4").view(np.uint8).reshape(2, 4).T.tobytes()
    item = {"modality": "image", "size": [5, 7], "frames": 1, "first_frame": 0, "fps": None, "model": "nano"}
    item |= {"fingerprint": bytes.fromhex(FINGERPRINT), "name": "photo.jpg", "levels": None, "dtype": "float32"}
    item |= {"channels": 2, "tiles": [[[8, 8, "raw", [1, 2], hashlib.sha256(columns).digest()], None, None]]}
    toc = msgpack.encode({"items": [item | {"timestamps": None, "pooled": None}]})
    start = b"ATOK\x03\x00\x00\x00"
    footer = struct.pack("<QQ", 16, len(toc)) + hashlib.sha256(start + toc).digest() + b"KOTA"
    assert (tmp_path / "a.atok").read_bytes() == start + columns + toc + footer


def test_codes_are_laid_out_as_planes_of_digits() -> None:
    digits = [0, 1, 2, 3, 0, 1]  # of the one code 0 + 4 + 2 * 16 + 3 * 64 + 0 + 1024
    _, data = encode(np.array([[sum(d * 4**i for i, d in enumerate(digits))]]), "digits", LEVELS, 0)
    assert data == bytes([0b00_01_10_11, 0b00_01_0000])
    turning = [sum((d + turn) % 4 * 4**i for i, d in enumerate(digits)) for turn in range(4)]
    _, data = encode(np.array(turning)[:, None], "digits", LEVELS, 0)  # four tokens: each byte holds one dimension
    assert data == bytes([0b00_01_10_11, 0b01_10_11_00, 0b10_11_00_01, 0b11_00_01_10, 0b00_01_10_11, 0b01_10_11_00])
    assert raw_size((1000, 8), "digits", LEVELS) == 1000 * 12


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.25, 0.25), (0.05, 0.15, 0.7, 0.1), (0.0, 0.0, 1.0, 0.0)])
def test_entropy_coding_pays_on_skewed_codes_and_never_costs(shares: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    codes = (rng.choice(4, (1024, 8, 6), p=shares) * 4 ** np.arange(6)).sum(-1)
    chunk, data = encode(codes, "digits", LEVELS, 0)
    entropy = -sum(share * np.log2(share) for share in shares if share) / 2  # of one for two full bits
    assert len(data) <= min(1.0, 1.1 * entropy + 0.02) * 1024 * 12
    assert (decode(chunk, data, "digits", LEVELS) == codes).all()


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("tiles_a_piece", [1, 2, 4])
def test_pieces_give_the_same_file_as_the_whole(tmp_path: Path, discrete: bool, tiles_a_piece: int) -> None:
    whole, pieces = tmp_path / "whole.atok", tmp_path / "pieces.atok"
    tokens = take(frame_tokens(discrete=discrete), np.arange(4 * 15 * 1.5) % 7 > 0)
    tokens.save(whole)
    with TokenFile(whole) as file, TokenFileWriter(pieces) as writer:
        parts = list(file.stream())
        assert [(part.first_frame, part.frames) for part in parts] == [(0, 16), (16, 16), (32, 16), (48, 9)]
        assert [part.pooled is None for part in parts] == [True, True, True, False]
        writer.add(Tokens.join(parts[i : i + tiles_a_piece]) for i in range(0, 4, tiles_a_piece))
    assert pieces.read_bytes() == whole.read_bytes()


def test_a_frame_range_widens_to_whole_tiles_and_can_be_saved_again(tmp_path: Path) -> None:
    tokens = frame_tokens()
    tokens.save(tmp_path / "a.atok")
    with TokenFile(tmp_path / "a.atok") as file:
        part = file.read(frames=(17, 33))
        assert_same(file.read(frames=(0, 57)), tokens)
        for wrong in [(5, 5), (-1, 4), (50, 58), (9, 3)]:
            with pytest.raises(TokenFileError, match="are not in 0 to 57"):
                file.read(frames=wrong)
    assert (part.first_frame, part.frames, part.pooled) == (16, 32, None)
    assert part.coords[[0, -1], 0].tolist() == [4, 11]
    assert (part.timestamps == tokens.timestamps[16:48]).all()
    rows = (tokens.coords[:, 0] >= 4) & (tokens.coords[:, 0] < 12)
    assert torch.equal(part.latents, tokens.latents[rows])
    part.save(tmp_path / "part.atok")
    with TokenFile(tmp_path / "part.atok") as file:
        assert_same(file.read(), part)
        assert file.read(frames=(32, 33)).first_frame == 32


class CountingFile:
    def __init__(self, file: Any, spans: list[tuple[int, int]]) -> None:
        self.file, self.spans = file, spans

    def __enter__(self) -> "CountingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def read(self, length: int) -> bytes:
        self.spans.append((self.file.tell(), length))
        return self.file.read(length)


def test_random_access_reads_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.atok"
    with TokenFileWriter(path) as writer:
        writer.add(make())
        writer.add(make((32, 48), 57))
    spans: list[tuple[int, int]] = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: CountingFile(original(self, mode), spans))
    with TokenFile(path) as file:
        size = path.stat().st_size
        end = file.items[1].pooled.offset + file.items[1].pooled.stored
        assert spans == [(0, 8), (size - 52, 52), (end, size - 52 - end)]
        spans.clear()
        file.read(1, frames=(20, 40))
        assert spans == [(tile.tokens.offset, tile.tokens.stored) for tile in file.items[1].tiles[1:3]]
        spans.clear()
        next(file.stream(1))
        assert len(spans) == 1


def endless_tiles(count: int) -> Iterator[Tokens]:
    alpha = np.random.default_rng(0).integers(0, 256, (16, 64, 64), dtype=np.uint8)  # 65,536 bytes
    tile = make((64, 64), 16, pooled=None, alpha=alpha)
    for index in range(count):
        coords = tile.coords + torch.tensor([4 * index, 0, 0, 0], dtype=torch.int32)
        yield replace(tile, coords=coords, first_frame=16 * index)


def test_writing_and_streaming_take_constant_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        with TokenFileWriter(tmp_path / "a.atok") as writer:
            writer.add(endless_tiles(count))
        with TokenFile(tmp_path / "a.atok") as file:
            assert sum(piece.frames for piece in file.stream()) == 16 * count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # what is allocated once
    assert peak(100) - peak(20) < 80 * 2000  # a tile holds 3072 bytes; a row of the table of contents takes some 1000


def test_reading_more_than_the_memory_limit_is_refused_but_streaming_is_not(tmp_path: Path) -> None:
    make((64, 64), 64).save(tmp_path / "a.atok")
    with TokenFile(tmp_path / "a.atok", max_memory=10_000) as file:
        with pytest.raises(TokenFileError, match="over the limit of 10,000"):
            file.read()
        assert len(list(file.stream())) == 4


BAD_TOKENS: dict[str, dict[str, Any]] = {
    "latents must be": {"latents": torch.zeros(4, 12, dtype=torch.float64)},
    "latents must": {"latents": torch.zeros(12)},
    "latents must be .* on the CPU, got .* on meta": {"latents": torch.zeros(4, 12, device="meta")},
    "coords must be torch.int32 of shape": {"coords": torch.zeros(3, 4, dtype=torch.int32)},
    "coords must be ordered": {"coords": torch.zeros(4, 4, dtype=torch.int32)},
    "coords must lie": {"coords": torch.full((4, 4), 9, dtype=torch.int32)},
    "codes and levels": {"levels": LEVELS},
    "modality must be one of image, video, asset": {"modality": "voxels"},
    "size.* expected `int` >= 1": {"size": (0, 3)},
    "frames: expected `int` >= 1": {"frames": 0},
    "only a video has": {"fps": Fraction(24)},
    "alpha must": {"alpha": np.zeros((4, 4), np.uint8)},
    "pooled must": {"pooled": torch.zeros(0)},
    "fingerprint must": {"fingerprint": "abc"},
    "fingerprint must be the 64 lower-case": {"fingerprint": FINGERPRINT.upper()},
    "coords must lie in the grid": {"coords": torch.full((4, 4), -1, dtype=torch.int32)},
    "alpha must be uint8": {"alpha": np.zeros((30, 17), np.float32)},
    "model: expected": {"model": "a/b"},
}


@pytest.mark.parametrize(("message", "fields"), BAD_TOKENS.items(), ids=BAD_TOKENS.keys())
def test_tokens_that_do_not_fit_together_are_refused(message: str, fields: dict[str, Any]) -> None:
    with pytest.raises(TokenFileError, match=message):
        replace(make(), **fields)


def test_videos_and_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TokenFileError, match="strictly rising"):
        make((16, 16), 3, timestamps=np.zeros(3))
    with pytest.raises(TokenFileError, match="fps must"):
        make((16, 16), 3, fps=Fraction(1001))
    last = {"first_frame": 2**31 - 16, "levels": None, "latents": torch.zeros(5, 12)}
    steps = torch.arange(5, dtype=torch.int32) + 2**29 - 4
    coords = torch.nn.functional.pad(steps[:, None], (0, 3))
    assert make((16, 16), 16, **last | {"latents": torch.zeros(4, 12), "coords": coords[:4]}).frames == 16
    with pytest.raises(TokenFileError, match="a video has at most 2,147,483,648 frames"):
        make((16, 16), 17, **last, coords=coords)
    with pytest.raises(TokenFileError, match="levels must be at most 65536 multiplied"):
        make(levels=(257, 256), codes=torch.zeros(4, 6, dtype=torch.int64))
    with pytest.raises(TokenFileError, match="codes must be from 0 to 4095"):
        replace(tokens := make(discrete=True), codes=tokens.codes + 4096)
    with pytest.raises(TokenFileError, match="codes must be from 0 to 4095"):
        replace(tokens, codes=torch.full_like(tokens.codes, 4096))
    with pytest.raises(TokenFileError, match="one channel for each"):
        replace(tokens, latents=tokens.latents[:, :6])


def test_items_are_counted_from_0_and_their_vectors_have_length_1(tmp_path: Path) -> None:
    tokens = make()
    tokens.save(tmp_path / "a.atok")
    with TokenFile(tmp_path / "a.atok") as file:
        assert tokens.pooled is not None
        torch.testing.assert_close(file.vector(0), tokens.pooled / tokens.pooled.norm())
        for index in (-1, 1):
            with pytest.raises(TokenFileError, match=f"has no item {index}; it holds items 0 to 0"):
                file.read(index)
    with TokenFile(tmp_path / "a.atok", max_memory=100) as file:
        for read in (file.read, lambda: list(file.stream())):
            with pytest.raises(TokenFileError, match="over the limit of 100"):
                read()


def test_a_writer_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.atok"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def broken() -> Iterator[Tokens]:
        yield frame_tokens(16)
        raise RuntimeError("the camera fell over")

    with pytest.raises(TokenFileError, match="would hold no item"), TokenFileWriter(target):
        pass
    with pytest.raises(RuntimeError, match="camera"), TokenFileWriter(target) as writer:
        writer.add(broken())
    with monkeypatch.context() as patch:
        patch.setattr(TokenFileWriter, "put", full)
        with pytest.raises(TokenFileError, match=r"Cannot write .*: No space left"):
            make().save(target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TokenFileError, match=r"Cannot write .*: No space left"):
            make().save(target)
    with pytest.raises(TokenFileError, match="Cannot write"):
        make().save(tmp_path / "no" / "folder.atok")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_and_harms_no_other_item(tmp_path: Path) -> None:
    tokens, codes = make(), make(discrete=True)
    pieces = [frame_tokens(16, pooled=None), frame_tokens(16)]
    bad: list[tuple[Any, str, str]] = [
        (replace(tokens, latents=tokens.latents / 0), "float32", "NaN or infinity"),
        (replace(tokens, latents=tokens.latents + 70_000), "float16", "too large for float16"),
        (replace(tokens, pooled=torch.tensor([torch.nan])), "float32", "NaN or infinity"),
        (replace(codes, latents=codes.latents + 1), "float32", "not what the codes stand for"),
        (tokens, "float64", "dtype must be float32 or float16"),
        ([], "float32", "at least one piece"),
        (pieces, "float32", "pieces must follow each other"),
        ([tokens, tokens], "float32", "Pieces must be of one video"),
    ]
    with TokenFileWriter(tmp_path / "a.atok") as writer:
        writer.add(tokens)
        for item, dtype, message in bad:
            with pytest.raises(TokenFileError, match=message):
                writer.add(item, dtype=dtype)
        writer.add(codes)
    for left, right in zip(read_all(tmp_path / "a.atok"), [tokens, codes], strict=True):
        assert_same(left, right)


def test_pieces_that_do_not_follow_are_refused(tmp_path: Path) -> None:
    frame_tokens(40).save(tmp_path / "a.atok")
    with TokenFile(tmp_path / "a.atok") as file:
        one, two, three = file.stream()
    later = replace(two, timestamps=two.timestamps - 1)
    pooled = replace(one, pooled=three.pooled)
    at_once = replace(two, timestamps=two.timestamps - (two.timestamps[0] - one.timestamps[-1]))
    others = [{"model": "micro"}, {"fingerprint": "f" * 64}, {"timestamps": None}, {"name": "b"}, {"fps": Fraction(7)}]
    for pieces, message in [
        ([], "no pieces"),
        ([one, three], "pieces must follow"),
        ([one, one], "pieces must follow"),
        ([one, later], "rising from piece to piece"),
        ([one, at_once], "rising from piece to piece"),
        ([pooled, two], "give it last"),
        *(([one, replace(two, **other)], "of one video") for other in others),
    ]:
        with pytest.raises(TokenFileError, match=message):
            Tokens.join(pieces)


def test_an_array_too_large_for_a_chunk_is_refused() -> None:
    with pytest.raises(TokenFileError, match="in one chunk"):
        encode(np.broadcast_to(np.float32(0), (MAX_RAW // 4 + 1,)), "float32", None, 0)


@pytest.mark.parametrize(("level", "bits"), [(3, 2), (5, 3), (6, 3)])
def test_a_digit_beyond_its_level_is_refused(level: int, bits: int) -> None:
    """Levels that are no power of two leave room for digits that are none."""
    for digit in range(1 << bits):
        data = bytes([digit << (8 - bits)])
        chunk = Chunk(0, 1, "raw", (1, 1), hashlib.sha256(data).digest())
        if digit < level:
            assert decode(chunk, data, DIGITS, (level,)).tolist() == [[digit]]
        else:
            with pytest.raises(TokenFileError, match="a digit that its levels do not have"):
                decode(chunk, data, DIGITS, (level,))


def test_tokens_of_another_model_are_refused_by_name() -> None:
    tokens = make()
    check_model(tokens, FINGERPRINT, "nano")
    sentence = r"photo.jpg: made by model nano \(fingerprint 01234567…\), this is micro \(ffffffff…\): load that model"
    with pytest.raises(TokenFileError, match=sentence):
        check_model(tokens, "f" * 64, "micro")
    for place in range(64):  # all digits count, not only those that the message shows
        other = FINGERPRINT[:place] + ("0" if FINGERPRINT[place] != "0" else "1") + FINGERPRINT[place + 1 :]
        with pytest.raises(TokenFileError, match="made by model nano"):
            check_model(tokens, other, "nano")


def test_names_become_plain_and_grids_round_up() -> None:
    assert plain_name("a/b\\c\nd\udcff.jpg") == "a_b_c_d_.jpg"
    assert plain_name("..") == "_"
    assert plain_name("x" * 300) == "x" * 255
    assert make(name="x/../y").name == "x_.._y"
    assert grid(5, 17, 16) == (2, 2, 1)


def test_time_stamps_that_the_rate_implies_are_left_out() -> None:
    even = np.arange(20) / 24
    assert varying(even, Fraction(24), 0.0) is None
    assert varying(np.round(even, 3), Fraction(24), 0.0005) is None
    assert varying(np.round(even, 3), Fraction(24), 0.0) is not None
    late = even.copy()
    late[7] += 0.002
    assert varying(late, Fraction(24), 0.0005) is late


# Assets


def asset(resolution: int = 64, count: int = 500, *, seed: int = 0, **fields: Any) -> Tokens:
    """Tokens on voxels of a sphere's shell."""
    rng = np.random.default_rng(seed)
    around = rng.normal(size=(count, 3))
    around *= 0.45 * resolution / np.linalg.norm(around, axis=1, keepdims=True)
    voxels = np.unique(np.floor(around + resolution / 2).astype(np.int32), axis=0)
    coords = torch.from_numpy(np.concatenate([np.zeros((len(voxels), 1), np.int32), voxels], 1))
    latents = torch.from_numpy(rng.normal(size=(len(voxels), 12)).astype(np.float32))
    kept = {"latents": latents, "coords": coords, "modality": "asset", "name": "chair.glb"}
    return make((resolution, resolution), 1, **(kept | fields))


@pytest.mark.parametrize("resolution", [1, 7, 64, 1024])
def test_an_asset_comes_back_with_its_places(tmp_path: Path, resolution: int) -> None:
    tokens = asset(resolution)
    tokens.save(tmp_path / "a.atok")
    assert_same(Tokens.load(tmp_path / "a.atok"), tokens)
    with TokenFile(tmp_path / "a.atok") as file:
        assert file.items[0].tiles[0].coords is not None  # places are explicit, even where every voxel is taken
        assert [part.modality for part in file.stream()] == ["asset"]


def test_places_of_an_asset_take_about_a_byte_a_token(tmp_path: Path) -> None:
    tokens = asset(count=60_000)
    tokens.save(tmp_path / "a.atok")
    with TokenFile(tmp_path / "a.atok") as file:
        places = file.items[0].tiles[0].coords
    assert places is not None
    assert places.stored < 1.5 * len(tokens.coords)


def test_items_of_all_modalities_lie_in_one_file(tmp_path: Path) -> None:
    items = [make(), asset(), make((32, 48), 20)]
    with TokenFileWriter(tmp_path / "a.atok") as writer:
        for item in items:
            writer.add(item)
    for actual, expected in zip(read_all(tmp_path / "a.atok"), items, strict=True):
        assert_same(actual, expected)


ODD_ASSETS: dict[str, dict[str, Any]] = {
    "voxels a side, twice": {"size": (64, 63)},
    "from 1 to 1,024": {"size": (2048, 2048)},
    "only a video": {"frames": 2},
    "lie in the grid of 1 steps, 8 rows": {"size": (8, 8)},
}


@pytest.mark.parametrize("reason", ODD_ASSETS)
def test_assets_that_do_not_fit_together_are_refused(reason: str) -> None:
    with pytest.raises(TokenFileError, match=reason):
        replace(asset(), **ODD_ASSETS[reason])


def test_voxels_out_of_order_or_twice_are_refused() -> None:
    tokens = asset()
    for rows in (np.arange(len(tokens.coords))[::-1].copy(), np.repeat(np.arange(len(tokens.coords)), 2)):
        with pytest.raises(TokenFileError, match="ordered by"):
            take(tokens, rows)
