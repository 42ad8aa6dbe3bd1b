"""Solids: closed, wound outwards, of the right volume, and assets that fit their box and their caption."""

from collections import Counter

import numpy as np
import pytest

from atoken.data.synthetic import solids
from atoken.data.synthetic.drawing import figure_outline
from atoken.data.synthetic.procedural import make_asset
from atoken.data.synthetic.words import COLOURS


def volume(solid):
    """The volume inside, by the divergence theorem: negative where faces wind inwards."""
    one, two, three = (solid.vertices[solid.faces[:, corner]] for corner in range(3))
    return float((np.cross(one, two) * three).sum() / 6)


def is_closed(solid):
    """Whether every edge is used once in each direction, vertices at one position counting as one."""
    _, same = np.unique(solid.vertices.round(9), axis=0, return_inverse=True)
    faces = same.reshape(-1)[solid.faces]
    edges = Counter(map(tuple, np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])))
    return all(count == edges[edge[::-1]] for edge, count in edges.items())


ANGLE = np.linspace(-np.pi / 2, np.pi / 2, 200)
AROUND = np.linspace(-np.pi, np.pi, 200)
DISC = np.pi * np.sinc(1 / 24)  # of a 48-gon of radius 1: (48 / 2) sin(2 pi / 48)


@pytest.mark.parametrize(
    ("solid", "expected"),
    [
        (solids.revolved(np.stack([np.cos(ANGLE), np.sin(ANGLE)], -1)), 4 / 3 * DISC),
        (solids.revolved(np.array([[0, 0], [1, 0], [1, 2], [0, 2.0]])), 2 * DISC),
        (solids.revolved(np.array([[0, 0], [1, 0], [0, 3.0]])), DISC),
        (solids.revolved(np.stack([2 + 0.5 * np.cos(AROUND), 0.5 * np.sin(AROUND)], -1)), DISC * 2 * 2 * 0.25 * np.pi),
        (solids.extruded(figure_outline("square"), 3.0), 6.0),
        (solids.extruded(figure_outline("triangle"), 1.0), 3 * np.sqrt(3) / 4),
    ],
    ids=["ball", "cylinder", "cone", "ring", "box", "prism"],
)
def test_volumes(solid, expected):
    assert volume(solid) == pytest.approx(expected, rel=1e-3)
    assert is_closed(solid)


def test_every_shape_is_closed_and_wound_outwards():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        solid, name = solids.shape(rng)
        assert volume(solid) > 0
        assert is_closed(solid)
        seen.add(name)
    assert seen == {"ball", "egg", "box", "cylinder", "cone", "ring", "vase", "bottle", "star", "cross", "prism"}


def test_assets_fill_their_box_and_differ():
    assets = [make_asset(0, index) for index in range(40)]
    for asset in assets:
        low, high = asset.mesh.vertices.min(0), asset.mesh.vertices.max(0)
        assert (high - low).max() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(low + high, 0, atol=1e-5)
        assert asset.caption == asset.caption.lower()
    assert len({asset.caption for asset in assets}) > 30
    textured = [asset for asset in assets if asset.mesh.textures]
    assert 0 < len(textured) < len(assets)
    assert all((asset.mesh.texture >= 0).any() for asset in textured)


def test_the_same_arguments_give_the_same_asset():
    one, two, other = make_asset(3, 5), make_asset(3, 5), make_asset(3, 6)
    np.testing.assert_array_equal(one.mesh.vertices, two.mesh.vertices)
    np.testing.assert_array_equal(one.mesh.colors, two.mesh.colors)
    assert one.caption == two.caption
    assert one.mesh.vertices.shape != other.mesh.vertices.shape or (one.mesh.vertices != other.mesh.vertices).any()


def test_a_plain_asset_has_the_colour_of_its_caption():
    found = 0
    for index in range(60):
        asset = make_asset(1, index)
        colours = np.unique(asset.mesh.colors[..., :3].reshape(-1, 3), axis=0)
        word = asset.caption.split()[1]
        if not asset.mesh.textures and len(colours) == 1 and tuple(colours[0]) in COLOURS.values():
            assert COLOURS[word] == tuple(colours[0])
            found += 1
    assert found
