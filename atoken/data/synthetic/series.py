"""The series of the generator by modality, and the classes of those that have some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atoken.data.synthetic import labelled, placed, procedural

MAKERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {  # modality -> series -> function of (seed, index, sizes)
    "image": {
        "mixed": procedural.make_image,
        "labelled": labelled.labelled_image,
        "grounded": labelled.grounded_image,
        "scenes": labelled.scene,
        "counted": placed.counted_image,
        "placed": placed.placed_image,
    },
    "video": {"mixed": procedural.make_video, "labelled": labelled.labelled_video, "moving": placed.moving_video},
    "asset": {"mixed": procedural.make_asset, "labelled": labelled.labelled_asset},
}


def class_name(modality: str, series: str, index: int) -> str | None:
    """The prompt of the class of sample ``index``, "a red ring"; None of a series without classes."""
    if series == "grounded":
        return labelled.FIGURE_PROMPTS[labelled.grounded_class(index)]
    if series == "labelled":
        prompts = labelled.SOLID_PROMPTS if modality == "asset" else labelled.FIGURE_PROMPTS
        return prompts[labelled.class_of(index)]
    return None
