"""Packed tokens: packing is a round trip, windows are a partition, patches are a bijection."""

import numpy as np
import pytest
import torch

from atoken.modalities.pixels import patchify, patchify_frames, to_uint8, to_values, unpatchify
from atoken.patches import grid, grid_coords
from atoken.tokens import SparseTokens


def video_tokens(*shapes, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coords = [grid_coords(*shape) for shape in shapes]
    lengths = tuple(len(c) for c in coords)
    return SparseTokens(torch.randn(sum(lengths), width, generator=generator), torch.cat(coords), lengths)


def test_pack_unpack_round_trip_keeps_an_empty_last_sample():
    tokens = video_tokens((1, 2, 3), (2, 1, 1))
    empty = SparseTokens(torch.zeros(0, 3), torch.zeros(0, 4, dtype=torch.int32), (0,))
    packed = SparseTokens.pack([tokens, empty])
    assert packed.lengths == (6, 2, 0)
    again = SparseTokens.pack(packed.unpack())
    assert again.lengths == packed.lengths
    assert torch.equal(again.feats, packed.feats)
    assert torch.equal(again.coords, packed.coords)


@pytest.mark.parametrize("lengths", [(5,), (7, 0), (-1, 7)])
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        SparseTokens(torch.zeros(6, 3), torch.zeros(6, 4, dtype=torch.int32), lengths)


def test_windows_partition_every_sample_from_its_own_first_step():
    tokens = video_tokens((5, 1, 2), (2, 2, 2))
    shifted = SparseTokens(tokens.feats, tokens.coords + torch.tensor([3, 0, 0, 0], dtype=torch.int32), tokens.lengths)
    windows = shifted.time_windows(2)
    assert [window.lengths for _, window in windows] == [(4, 8), (4, 0), (2, 0)]
    assert torch.equal(torch.cat([index for index, _ in windows]).sort().values, torch.arange(len(tokens.feats)))
    for index, window in windows:
        assert window.coords[:, 0].max() <= 1
        assert torch.equal(window.feats, tokens.feats[index])


def later(tokens, *steps):
    """The same samples, each begun at a step of its own."""
    starts = torch.tensor(steps, dtype=torch.int32)[tokens.sample_N]
    return SparseTokens(tokens.feats, tokens.coords + starts[:, None] * torch.tensor([1, 0, 0, 0]), tokens.lengths)


def test_smallest_and_largest_coordinates_are_those_of_each_sample():
    tokens = later(video_tokens((5, 1, 2), (2, 4, 3)), 3, 8)
    tokens = SparseTokens(tokens.feats, tokens.coords, (10, 0, 24))
    assert tokens.reduce_coords("amin").tolist() == [[3, 0, 0, 0], [0, 0, 0, 0], [8, 0, 0, 0]]
    assert tokens.reduce_coords("amax").tolist() == [[7, 0, 1, 0], [0, 0, 0, 0], [9, 3, 2, 0]]


def test_batch_mates_that_begin_at_different_steps_have_the_windows_that_each_has_alone():
    tokens = video_tokens((5, 1, 2), (2, 2, 2), (7, 1, 1))
    windows = tokens.time_windows(2)
    for steps in ((3, 0, 5), (0, 9, 1), (1, 1, 0)):
        found = later(tokens, *steps).time_windows(2)
        for (index, window), (expected_index, expected) in zip(found, windows, strict=True):
            assert torch.equal(index, expected_index)
            assert torch.equal(window.coords, expected.coords)
            assert window.lengths == expected.lengths


def test_windows_of_shuffled_tokens_hold_the_same_tokens():
    tokens = video_tokens((4, 2, 2))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = SparseTokens(tokens.feats[order], tokens.coords[order], (16,))
    for (_, plain), (_, mixed) in zip(tokens.time_windows(2), shuffled.time_windows(2), strict=True):
        assert {tuple(row) for row in plain.feats.tolist()} == {tuple(row) for row in mixed.feats.tolist()}


SHAPES = [(1, 1, 1), (1, 16, 16), (1, 17, 33), (3, 5, 70), (4, 16, 32), (9, 31, 1), (16, 48, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_patches_of_frames_are_those_of_their_values_without_the_empty_frames_of_an_image(shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected, found = patchify(to_values(frames)), patchify_frames(frames)
    width = 768 if shape[0] == 1 else 3072
    assert torch.equal(found.feats, expected.feats[:, :width])
    assert not expected.feats[:, width:].any()
    assert torch.equal(found.coords, expected.coords)
    assert found.lengths == expected.lengths


@pytest.mark.parametrize("shape", SHAPES)
def test_patchify_is_undone_by_unpatchify(shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    tokens = patchify(to_values(frames))
    assert len(tokens.feats) == np.prod(grid(*shape))
    assert np.array_equal(to_uint8(unpatchify(tokens, *shape)), frames)


def test_patch_layout_is_frame_row_column_channel():
    values = torch.arange(4 * 32 * 16 * 3, dtype=torch.float32).reshape(4, 32, 16, 3)
    tokens = patchify(values)
    assert torch.equal(tokens.feats[1].reshape(4, 16, 16, 3), values[:, 16:])
    assert tokens.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]


def test_padding_repeats_edges_in_space_and_is_grey_in_time():
    values = torch.rand(1, 3, 5, 3) * 2 - 1
    patch = patchify(values).feats[0].reshape(4, 16, 16, 3)
    assert torch.equal(patch[0, 3:, :5], values[0, 2:].expand(13, -1, -1))
    assert torch.equal(patch[0, :3, 5:], values[0, :, 4:].expand(-1, 11, -1))
    assert not patch[1:].any()


def test_every_byte_survives_the_way_through_values():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_uint8(to_values(every)), every)
    assert to_values(every).min() == -1
    assert to_values(every).max() == 1
