"""Items to put through subjects."""

import functools

import numpy as np

from atoken.data.procedural import clip, picture
from atoken.io import Clip, Image
from eval.contract import Item


@functools.cache
def made_picture(height=48, width=64, number=0):
    return Item(f"picture-{number}-{width}x{height}", Image(picture(7, number, height, width).frames[0]))


@functools.cache
def made_clip(frames=6, height=32, width=48, number=0):
    made = clip(7, number, frames, height, width).frames
    return Item(f"clip-{number}-{frames}-{width}x{height}", Clip(made))


def pixels(item):
    return item.media.pixels[None] if isinstance(item.media, Image) else item.media.frames


def greatest_difference(ours, theirs):
    return int(np.abs(ours.astype(int) - theirs).max())
