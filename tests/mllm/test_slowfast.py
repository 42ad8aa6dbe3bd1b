"""Pathways, pooling, order and counts of SlowFast-LLaVA, against a second implementation in plain loops."""

import numpy as np
import pytest
import torch

from atoken.errors import AtokenError
from mllm.slowfast import (
    FEATURE,
    SEPARATORS,
    SlowFast,
    cubes,
    even_indices,
    layout_of,
    pool_frames,
    pool_voxels,
    token_budget,
)
from tests.tolerances import FP32


def mean(frame, top, bottom, left, right):
    cells = [frame[row][column] for row in range(top, bottom) for column in range(left, right)]
    return [sum(values) / len(cells) for values in zip(*cells, strict=True)]


def blocks(frame, side):
    rows, columns = len(frame), len(frame[0])
    return [
        mean(frame, top, min(top + side, rows), left, min(left + side, columns))
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]


def cut(frame, side):
    """Adaptive pooling as PyTorch defines it: cell i of n spans floor(i * L / n) to ceil((i + 1) * L / n)."""
    rows, columns = len(frame), len(frame[0])
    high, wide = min(rows, side), min(columns, side)
    return [
        mean(frame, i * rows // high, -(-(i + 1) * rows // high), j * columns // wide, -(-(j + 1) * columns // wide))
        for i in range(high)
        for j in range(wide)
    ]


def plain(video, settings):
    """Tokens of a video (T, h, w, D) as lists: features, or names of separators."""
    frames, steps = video.tolist(), len(video)
    slow = {int(index) for index in np.linspace(0, steps, min(steps, settings.slow_frames) + 1)[:-1] + 1e-9}
    slow_tokens = {step: blocks(frames[step], settings.slow_pool) for step in sorted(slow)}
    fast_tokens = {
        step: cut(frames[step], settings.fast_output)
        for step in range(steps)
        if settings.fast_includes_slow or step not in slow
    }
    if settings.layout == "group":
        runs = [[token for frame in pathway.values() for token in frame] for pathway in (slow_tokens, fast_tokens)]
    else:
        runs, last = [], None
        for step in range(steps):
            for name, tokens in (("slow", slow_tokens), ("fast", fast_tokens)):
                if step in tokens:
                    if name != last:
                        runs.append([])
                    runs[-1] += tokens[step]
                    last = name
    found = ["video"]
    for number, run in enumerate(run for run in runs if run):
        found += ["pathway", *run] if number else run
    return [*found, "end"]


def tokens_of(features, layout):
    rest = iter(features.tolist())
    return [next(rest) if code == FEATURE else SEPARATORS[code] for code in layout.tolist()]


@pytest.mark.parametrize("layout", ["group", "interleave"])
@pytest.mark.parametrize("includes", [True, False])
@pytest.mark.parametrize("size", [(16, 6, 6), (7, 5, 3), (3, 4, 9), (1, 1, 1)])
def test_a_video_is_pooled_and_ordered_as_in_plain_loops(size, includes, layout):
    settings = SlowFast(slow_frames=4, fast_output=4, layout=layout, fast_includes_slow=includes)
    video = torch.randn(*size, 3, generator=torch.Generator().manual_seed(0))
    layout = layout_of("video", size, settings)
    found = tokens_of(pool_frames(video.flatten(0, 2), "video", size, settings), layout)
    expected = plain(video, settings)
    assert [one for one in found if isinstance(one, str)] == [one for one in expected if isinstance(one, str)]
    assert [isinstance(one, str) for one in found] == [isinstance(one, str) for one in expected]
    numbers = [torch.tensor([one for one in each if not isinstance(one, str)]) for each in (found, expected)]
    torch.testing.assert_close(*numbers, atol=FP32, rtol=0)


def test_an_image_ends_its_rows():
    settings = SlowFast(image_pool=2)
    image = torch.arange(15.0).reshape(3, 5, 1)
    layout = layout_of("image", (1, 3, 5), settings)
    found = tokens_of(pool_frames(image.flatten(0, 1), "image", (1, 3, 5), settings), layout)
    assert found == ["image", [3.0], [5.0], [6.5], "row", [10.5], [12.5], [14.0], "row", "end"]


def test_frames_are_evenly_spaced_and_none_comes_twice():
    assert even_indices(10, 5) == [0, 2, 4, 6, 8]
    assert even_indices(3, 8) == [0, 1, 2]
    assert even_indices(0, 8) == []
    for total in (1, 17, 128, 10_000):
        found = even_indices(total, 128)
        assert found[0] == 0
        assert len({*found}) == len(found) == min(total, 128)
        assert max(found) < total


def test_four_frames_are_a_step_of_tubelets():
    settings = SlowFast(video_mode="tubelet")
    assert settings.steps(128) == 32
    layout = layout_of("video", (32, 30, 30), settings)
    assert int((layout == FEATURE).sum()) == 8 * 225 + 32 * 16


def test_the_papers_setting_takes_about_nine_thousand_tokens():
    """480 x 480 pixels, 128 frames, of which 32 are slow: 32 * 15 * 15 + 128 * 4 * 4, or 96 * 4 * 4 without overlap."""
    size = [(128, 480, 480)]
    assert token_budget(SlowFast(), size) == [(7200, 2048, 3)]
    assert token_budget(SlowFast(), [(10_000, 480, 480)]) == token_budget(SlowFast(), size)
    assert token_budget(SlowFast(fast_includes_slow=False), size)[0].total == 8739
    assert token_budget(SlowFast(), [(1536, 1536)]) == [(96 * 96, 0, 96 + 2)]


def test_voxels_are_pooled_in_cubes_that_fit():
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 16, (300, 3), generator=generator).unique(dim=0)
    index, centres = cubes(cells, 16, SlowFast(asset_tokens=64))
    side = next(side for side in (1, 2, 4, 8, 16) if len((cells // side).unique(dim=0)) <= 64)
    expected = {tuple(cube): [] for cube in (cells // side).unique(dim=0).tolist()}
    features = torch.randn(len(cells), 2, generator=generator)
    for cell, feature in zip(cells.tolist(), features, strict=True):
        expected[tuple(part // side for part in cell)].append(feature)
    assert centres.tolist() == [[(part + 0.5) * side / 8 - 1 for part in cube] for cube in expected]
    means = torch.stack([torch.stack(found).mean(0) for found in expected.values()])
    torch.testing.assert_close(pool_voxels(features, index, len(centres)), means, atol=FP32, rtol=0)
    assert len(layout_of("asset", (16, 16, 16), SlowFast(), len(centres))) == len(centres) + 2


def test_few_voxels_are_not_pooled():
    cells = torch.tensor([[0, 0, 0], [0, 0, 3], [3, 1, 0]])
    index, centres = cubes(cells, 4, SlowFast())
    assert index.tolist() == [0, 1, 2]
    assert centres.tolist() == [[-0.75, -0.75, -0.75], [-0.75, -0.75, 0.75], [0.75, -0.25, -0.75]]


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"layout": "time"}, {"video_mode": "cube"}, {"slow_pool": 1.5}])
def test_settings_are_checked(wrong):
    with pytest.raises(AtokenError, match=next(iter(wrong))):
        SlowFast(**wrong)
