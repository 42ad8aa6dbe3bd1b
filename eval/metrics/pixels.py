"""How close the pixels of a reconstruction are to the original: PSNR, SSIM, MS-SSIM, and blocking artefacts.

All take uint8 outputs of any size and keep exact float64 sums. The numbers of a video or an asset are those of all its
frames or views together (PSNR, blocking artefacts) or the mean over them (SSIM, MS-SSIM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np

from atoken.errors import AtokenError
from atoken.metrics.pixels import MS_SSIM_SIDE, ms_ssim, psnr_of, squared_error, ssim
from eval.contract import Output, State
from eval.metrics.exact import Mean

WINDOWS = "RGB, 11 x 11 and sigma 1.5 where it fits whole, K 0.01 and 0.03, peak 255"  # for the protocol


def pixels_of(output: Output) -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W, 3) uint8: the reconstruction, and the original.

    Raises: AtokenError where one is missing or not uint8, where the shapes differ, or where there are no pixels.
    """
    prediction, target, key = output.prediction, output.target, output.item.key
    if prediction is None or target is None:
        raise AtokenError(f"There is no reconstruction of {key} to measure; let the model reconstruct its items.")
    for pixels in (prediction, target):
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
            found = f"{pixels.dtype} {pixels.shape}"
            raise AtokenError(f"The pixels of {key} must be uint8 of shape (T, H, W, 3), not {found}; convert them.")
    if prediction.shape != target.shape:
        shapes = f"{prediction.shape} instead of {target.shape}"
        raise AtokenError(f"The reconstruction of {key} has shape {shapes}; let the model keep the size.")
    return prediction, target


class Psnr(Mean):
    """PSNR in dB of 8-bit values, in both conventions.

    ``psnr``: mean over outputs of the PSNR of each, where that of a video or an asset is of its squared error over all
    frames or views (as TokenBench). ``psnr of mean error``: of the mean over outputs of their mean squared errors. An
    output that is perfect has a PSNR of inf, and so has then the mean: it is not capped; the second number is finite
    unless all are perfect. foreground: also both numbers over the pixels of the mask alone (3D), of the outputs that
    have one; a mask without pixels gives NaN. The other numbers are of the full frame.
    """

    name = "psnr"

    def __init__(self, *, foreground: bool = False) -> None:
        self._areas = ("", " foreground") if foreground else ("",)
        self.numbers = tuple(name + area for area in self._areas for name in ("psnr", "error"))
        self.record = {
            "psnr": "mean over samples of the PSNR of each, of its error over all frames; peak 255",
            "psnr of mean error": "PSNR of the mean over samples of the mean squared error of each",
            "perfect samples": "inf, not capped",
            "area": "full frame; foreground alone" if foreground else "full frame",
        }

    def measure(self, output: Output) -> dict[str, float]:
        """``psnr`` in dB and ``error``, the mean squared error of values in 0..255. Raises: AtokenError."""
        prediction, target = pixels_of(output)
        errors = {"": squared_error(prediction, target)}
        if len(self._areas) > 1 and output.mask is not None:
            errors[" foreground"] = _error_within(output.mask, prediction, target, output.item.key)
        psnrs = {f"psnr{area}": psnr_of(error) for area, error in errors.items()}
        return psnrs | {f"error{area}": error for area, error in errors.items()}

    def finish(self, state: State) -> dict[str, float]:
        """Both conventions, of each area."""
        means = super().finish(state)
        psnrs = {f"psnr{area}": means[f"psnr{area}"] for area in self._areas}
        return psnrs | {f"psnr of mean error{area}": psnr_of(means[f"error{area}"]) for area in self._areas}


def _error_within(mask: np.ndarray, prediction: np.ndarray, target: np.ndarray, key: str) -> float:
    if mask.dtype != bool or mask.shape != prediction.shape[:3]:
        found = f"{mask.dtype} {mask.shape}"
        raise AtokenError(f"The mask of {key} must be bool of shape {prediction.shape[:3]}, not {found}; correct it.")
    return squared_error(prediction[mask], target[mask]) if mask.any() else math.nan


class FrameMean(Mean):
    """The mean over frames, then over outputs, of a function of two (H, W, 3) uint8 frames.

    smallest: pixels of a side that the function needs; a smaller output raises AtokenError. record: for the protocol.
    """

    def __init__(self, name: str, function: Callable[..., float], record: Mapping[str, str], smallest: int = 0) -> None:
        self.name, self.numbers, self._function, self._smallest = name, (name,), function, smallest
        self.record = {"mean": "over frames, then over samples", **record}

    def measure(self, output: Output) -> dict[str, float]:
        """The mean over the frames of one output. Raises: AtokenError."""
        prediction, target = pixels_of(output)
        height, width = prediction.shape[1:3]
        if min(height, width) < self._smallest:
            reason = f"sides of {self._smallest} pixels or more, and {output.item.key} is {width}x{height}"
            raise AtokenError(f"{self.name.upper()} needs {reason}; prepare larger ones, or leave it out.")
        return {self.name: fmean(self._function(*frame) for frame in zip(prediction, target, strict=True))}


class Ssim(FrameMean):
    """Structural similarity (Wang et al. 2004), from -1 to 1."""

    def __init__(self) -> None:
        super().__init__("ssim", ssim, {"window": WINDOWS})


class MsSsim(FrameMean):
    """SSIM over five scales (``atoken.metrics.pixels.ms_ssim``), from 0 to 1."""

    def __init__(self) -> None:
        scales = "five, means of 2 x 2 pixels, weights of Wang et al. 2003, negative factors as 0"
        super().__init__("ms-ssim", ms_ssim, {"window": WINDOWS, "scales": scales}, MS_SSIM_SIDE)


class BlockingArtefacts(Mean):
    """How much of the gradient lies at the borders of tiles, relative to the original: 1 is as much as there.

    Gradient energy is the sum of squared differences of neighbouring values. The number is its ratio at borders to
    elsewhere in all reconstructions, over the same ratio of the originals; outputs without a border are in neither.
    tile: pixels of a side of a tile; in_time: frames of a tile instead, and differences between frames. A single output
    has no number where its original is flat. Raises: AtokenError for a tile of fewer than 2.
    """

    numbers = ("prediction at borders", "prediction elsewhere", "target at borders", "target elsewhere")

    def __init__(self, tile: int, *, in_time: bool = False) -> None:
        if tile < 2:
            raise AtokenError(f"Tiles of {tile} have borders only; give the tile of the model, 2 or more.")
        self.name = "blocking artefacts in time" if in_time else "blocking artefacts"
        self.record = {
            "tile": f"{tile} {'frames' if in_time else 'pixels'}",
            "energy": "squared differences, all colours",
        }
        self._tile, self._axes = tile, (0,) if in_time else (1, 2)

    def measure(self, output: Output) -> dict[str, float]:
        """The four energies, of an output with a border. Raises: AtokenError."""
        pair = pixels_of(output)
        if all(pair[0].shape[axis] <= self._tile for axis in self._axes):
            return {}
        energies = [value for pixels in pair for value in self._energies(pixels)]
        return dict(zip(self.numbers, energies, strict=True))

    def _energies(self, pixels: np.ndarray) -> tuple[float, float]:
        borders = total = 0
        for axis in self._axes:
            steps = np.square(np.diff(pixels.astype(np.int32), axis=axis))
            at = tuple(slice(None) if other != axis else slice(self._tile - 1, None, self._tile) for other in range(4))
            borders += int(steps[at].sum(dtype=np.int64))
            total += int(steps.sum(dtype=np.int64))
        return float(borders), float(total - borders)

    def add(self, state: State, outputs: Sequence[Output]) -> list[dict[str, float]]:
        """Fold outputs into ``state``, in place. Raises: AtokenError."""
        ratios = [self._ratio(energies) if energies else math.nan for energies in super().add(state, outputs)]
        return [{} if math.isnan(ratio) else {self.name: ratio} for ratio in ratios]

    def finish(self, state: State) -> dict[str, float]:
        """The ratio of ratios; NaN where no original has a gradient there."""
        return {self.name: self._ratio(super().finish(state))}

    def _ratio(self, energies: Mapping[str, float]) -> float:
        prediction_at, prediction_else, target_at, target_else = (energies[name] for name in self.numbers)
        above, below = prediction_at * target_else, prediction_else * target_at
        if below == 0:
            return math.inf if above > 0 else math.nan
        return above / below
