"""Items to put through models."""

import functools

import numpy as np

from atoken.data.synthetic.procedural import make_image, make_video
from atoken.io import Image, Video
from eval.contract import Item


@functools.cache
def synthetic_image(height=48, width=64, number=0):
    return Item(f"image-{number}-{width}x{height}", Image(make_image(7, number, height, width).frames[0]))


@functools.cache
def synthetic_video(frames=6, height=32, width=48, number=0):
    made = make_video(7, number, frames, height, width).frames
    return Item(f"video-{number}-{frames}-{width}x{height}", Video(made))


def pixels(item):
    return item.media.pixels[None] if isinstance(item.media, Image) else item.media.frames


def greatest_difference(prediction, target):
    return int(np.abs(prediction.astype(int) - target).max())
