"""The actions of Kinetics-400 that I3D sees in videos: a check by eye of the network that measures FVD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from atoken.errors import MediaError
from atoken.io import Video
from eval.networks import I3D
from eval.prepare import Preparation

CLASSES = Path(__file__).with_name("kinetics_classes.txt").read_text(encoding="utf-8").splitlines()
SEEN = Preparation(frames=250, fps=Fraction(25))  # the first ten seconds, at the rate of Kinetics
SHOWN = 5


def actions(network: I3D, videos: Sequence[Path]) -> Iterator[list[tuple[str, float]]]:
    """Of each video the five most probable actions, and their probabilities. Raises: AtokenError."""
    for path in videos:
        media = SEEN.read(path)
        if not isinstance(media, Video):
            raise MediaError(f"{path} is not a video; name one.")
        shares_C = torch.from_numpy(network.features([media.frames])["pooled"][0]).double().softmax(0)
        yield [(CLASSES[number], float(shares_C[number])) for number in shares_C.argsort(descending=True)[:SHOWN]]
