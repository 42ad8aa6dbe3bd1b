"""Writes views as the folder that renderers publish: images, depth maps as arrays, ``transforms.json``."""

import json

import numpy as np
import torch

from atoken.io import Image, write_image


def write_views(views, folder):
    """Depth is at pixel corners when it is read again, not at centres as here. Cameras have 40 degrees."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = []
    for number in range(len(views)):
        write_image(Image(views.rgb[number]), folder / f"{number:03}.png")
        np.save(folder / f"{number:03}_depth.npy", views.depth[number])
        pose = torch.linalg.inv(views.cameras.world_to_camera[number].double())
        pose[:, 1:3] *= -1  # OpenCV's axes to Blender's
        angle = {"camera_angle_x": np.radians(40)}
        frames.append({"file_path": f"{number:03}.png", "transform_matrix": pose.tolist(), **angle})
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
