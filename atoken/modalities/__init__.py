"""What the tokenizer can read and give back: ``MODALITIES``, a record of each; nothing else lists them."""

from __future__ import annotations

from atoken.modalities.asset import ASSET
from atoken.modalities.image import IMAGE
from atoken.modalities.modality import Modality
from atoken.modalities.video import VIDEO

__all__ = ["ASSET", "IMAGE", "MODALITIES", "VIDEO", "Modality"]

MODALITIES = {modality.name: modality for modality in (IMAGE, VIDEO, ASSET)}
