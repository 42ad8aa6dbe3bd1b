"""Files for the tests of the command line, and what a refusal looks like."""

import re
from fractions import Fraction

import numpy as np
import PIL.Image
import yaml

from atoken.io import Image, Video, load_media, write_video
from tests.media.video_cases import moving
from tests.model.test_checkpoint import ARCH
from tests.tokenizer.small import random_frames


def image(path, height=19, width=35, *, alpha=False, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random_frames(height, width, seed=seed)
    if alpha:
        pixels = np.dstack([pixels, random_frames(height, width, seed=seed + 1)[..., 0]])
    PIL.Image.fromarray(pixels).save(path)
    return path


def film(path, frames=37, height=18, width=30, fps=Fraction(30000, 1001)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(Video(moving(frames, height, width), fps), path)
    return path


def pixels_of(path):
    media = load_media(path)
    return media.pixels if isinstance(media, Image) else media.frames


def published_yaml(path):
    path.write_text(yaml.safe_dump({"model": {"model_cfg": {"arch_cfg": ARCH}}}))
    return path


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def says_one_sentence(result, words, code=1):
    assert result[0] == code
    assert re.fullmatch(rf"atoken: [^\n]*{words}[^\n]*\n", result[2]), result[2]
