"""Cameras: rigid, looking at the centre, z up, evenly spread."""

from math import radians, tan

import pytest
import torch

from atoken.cameras import Cameras
from tests.tolerances import FP32


@pytest.mark.parametrize("cameras", [Cameras.sphere(50), Cameras.turntable(7), Cameras.sphere(1)], ids=repr)
def test_poses_are_rigid_and_the_centre_is_in_the_middle(cameras):
    rotation = cameras.world_to_camera[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(len(cameras), 3, 3), atol=FP32, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(cameras)), atol=FP32, rtol=0)
    torch.testing.assert_close(
        cameras.world_to_camera[:, :3, 3], torch.tensor([[0.0, 0.0, 2.0]]).expand(len(cameras), 3), atol=FP32, rtol=0
    )
    torch.testing.assert_close(cameras.centres.norm(dim=1), torch.full((len(cameras),), 2.0), atol=FP32, rtol=0)


def test_up_in_the_world_is_up_in_the_image():
    up = Cameras.turntable(5).world_to_camera[:, :3, :3] @ torch.tensor([0.0, 0.0, 1.0])
    assert (up[:, 1] < -0.9).all()
    torch.testing.assert_close(up[:, 0], torch.zeros(5), atol=FP32, rtol=0)


def test_the_field_of_view_is_the_edge_of_the_image():
    camera = Cameras.turntable(1, pitch=0.0, fov=30.0)
    edge = 2 * tan(radians(15))  # right of the centre, at distance 2 from the camera on the -y side
    point = camera.world_to_camera[0] @ torch.tensor([edge, 0.0, 0.0, 1.0])
    seen = camera.intrinsics[0] @ point[:3]
    torch.testing.assert_close(seen[:2] / seen[2], torch.tensor([1.0, 0.5]), atol=FP32, rtol=0)


def test_the_sphere_is_covered_evenly():
    centres = Cameras.sphere(256).centres
    torch.testing.assert_close(centres.mean(0), torch.zeros(3), atol=0.03, rtol=0)
    nearest = torch.cdist(centres, centres).fill_diagonal_(9).min(1).values
    assert nearest.min() > 0.05
    assert len(Cameras.sphere(0)) == 0


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(V, 4, 4\)"):
        Cameras(torch.eye(4), torch.eye(3)[None])
