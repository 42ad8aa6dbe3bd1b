"""Bytes on disk of what stands for an item, without which quality says little."""

from __future__ import annotations

from atoken.errors import AtokenError
from eval.contract import Output, State
from eval.metrics.exact import Mean


class Size(Mean):
    """``bytes``: the mean over outputs. ``bits per pixel``: all bits by all pixels, of videos those of all frames.

    pixels: False for assets, whose views have pixels and whose tokens do not depend on them.
    """

    name = "size"

    def __init__(self, *, pixels: bool = True) -> None:
        self.numbers = ("bytes", "pixels") if pixels else ("bytes",)
        self.record = {"bytes": "as the model's record says", "bits per pixel": "all bits by all pixels"}

    def measure(self, output: Output) -> dict[str, float]:
        """``bytes``, and ``pixels`` of the original. Raises: AtokenError where the model does not tell."""
        if output.size is None or output.target is None:
            raise AtokenError(f"The model does not tell how many bytes {output.item.key} takes; leave sizes out.")
        found = {"bytes": float(output.size), "pixels": float(output.target.size // 3)}
        return {name: found[name] for name in self.numbers}

    def finish(self, state: State) -> dict[str, float]:
        """The mean, and the ratio of sums."""
        means = super().finish(state)
        rate = {"bits per pixel": 8 * means["bytes"] / means["pixels"]} if "pixels" in means else {}
        return {"bytes": means["bytes"]} | rate
