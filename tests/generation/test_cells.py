"""Convolutions and means over occupied cells, against dense ones."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the usual name

from atoken.tokens import SparseTokens
from generation.cells import Cells, SparseConv, pooled
from tests.tolerances import EXACT, FP32

SIDE, CHANNELS = 6, 5


def occupied(*counts, seed=0):
    """So many voxels of each sample, in no order, some of them at the border of the grid."""
    draws = torch.Generator().manual_seed(seed)
    coords = []
    for count in counts:
        numbers = torch.randperm(SIDE**3, generator=draws)[:count]
        coords.append(torch.stack([numbers // SIDE**2, numbers // SIDE % SIDE, numbers % SIDE], 1))
    coords = F.pad(torch.cat(coords), (1, 0), value=1)  # the column t
    return SparseTokens(torch.randn(len(coords), CHANNELS, generator=draws), coords.int(), counts)


def dense(voxels, feats):
    grid = torch.zeros(len(voxels.lengths), feats.shape[1], SIDE, SIDE, SIDE)
    grid[voxels.sample_N, :, *voxels.coords[:, 1:].long().T] = feats
    return grid


@pytest.mark.parametrize("counts", [(SIDE**3,), (60, 0, 17), (1,), (0, 0)])
def test_a_sparse_convolution_is_a_dense_one_at_occupied_cells(counts):
    torch.manual_seed(1)
    voxels, conv = occupied(*counts), SparseConv(CHANNELS, 3)
    torch.nn.init.normal_(conv.bias)
    feats = voxels.feats.requires_grad_()
    found = conv(feats, Cells.sizes(voxels, 1)[0])
    weight = conv.weight.unflatten(1, (3, 3, 3)).movedim(-1, 1)
    expected = F.conv3d(dense(voxels, feats), weight, conv.bias, padding=1)
    expected = expected[voxels.sample_N, :, *voxels.coords[:, 1:].long().T]
    torch.testing.assert_close(found, expected, rtol=0, atol=FP32)
    inputs = (feats, conv.weight, conv.bias)
    ours, theirs = (torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=FP32, atol=10 * FP32)


@pytest.mark.parametrize("published", [False, True])
def test_the_mean_of_cells_is_one_of_those_that_are_there(published):
    voxels = occupied(60, 0, 17)
    fine, coarse = Cells.sizes(voxels, 2)
    found = pooled(voxels.feats, fine, published=published)
    ones = torch.ones(len(voxels.feats), 1)
    sums, counts = (8 * F.avg_pool3d(dense(voxels, feats), 2) for feats in (voxels.feats, ones))
    expected = sums / (counts + published)
    sample_M, coords_M3 = coarse.tokens.sample_N, coarse.tokens.coords[:, 1:].long()
    torch.testing.assert_close(found, expected[sample_M, :, *coords_M3.T], rtol=0, atol=FP32)
    assert [len(torch.unique(one.coords[:, 1:] // 2, dim=0)) for one in voxels.unpack()] == list(coarse.tokens.lengths)
    rows = torch.cat([sample_M[:, None], coords_M3], 1)
    torch.testing.assert_close(rows, torch.unique(rows, dim=0), rtol=0, atol=EXACT)  # in order
    assert (coarse.tokens.coords[:, 0] == 1).all()
    assert (coarse.tokens.coords[fine.coarser[0]][:, 1:] == voxels.coords[:, 1:] // 2).all()
