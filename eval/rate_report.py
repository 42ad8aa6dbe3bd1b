"""What ``eval.rate`` found, as JSON, as tables in Markdown, and as charts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atoken.errors import ReportError
from atoken.io.atomic import atomic_path
from eval.protocol import fingerprint
from eval.report import charts
from eval.report.tables import number_text

FORMAT = "atoken-rate-2"
CURVE = "curve"
HEAD = ("model", "items", "bytes", "bits per pixel", "PSNR dB", "PSNR of mean error dB", "SSIM")


@dataclass(frozen=True)
class Point:
    """One model on all items of one modality.

    group: "curve", or "at the bytes of NAME". size: mean bytes of an item. psnr: mean over items, inf where one came
    back perfect; psnr_of_mean: that of the mean error. protocol: as in a row. why: a sentence where it could not be
    measured.
    """

    modality: str
    group: str
    model: str
    items: int = 0
    size: float = math.nan
    bits_per_pixel: float = math.nan
    psnr: float = math.nan
    psnr_of_mean: float = math.nan
    ssim: float = math.nan
    record: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""

    @property
    def numbers(self) -> tuple[float, ...]:
        """What was measured, in the order of ``HEAD``."""
        return self.size, self.bits_per_pixel, self.psnr, self.psnr_of_mean, self.ssim

    def plain(self) -> dict[str, object]:
        """For JSON; a number that is not finite as a text."""
        values = {name: str(value) if _lost(value) else value for name, value in vars(self).items()}
        prints = {name: fingerprint(self.protocol, name) for name in self.protocol.get("metrics", ())}
        return values | {"record": dict(self.record), "protocol": dict(self.protocol), "fingerprints": prints}


def _lost(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def check_charts() -> None:
    """Raises: MissingExtraError where charts cannot be drawn."""
    charts.curves("bits per pixel", "PSNR dB", {"nothing": (np.ones(1), np.ones(1))})


def write(points: Sequence[Point], failed: Mapping[str, str], out: Path) -> None:
    """Write ``rate.json``, ``rate.md`` and the charts into the folder ``out``, each whole or not at all.

    failed: why items could not be read, by key. Raises: ReportError, MissingExtraError.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"Cannot make the folder {out}: {error.strerror}.") from error
    media = dict.fromkeys(point.modality for point in points)
    for modality in media:
        for name, png in drawn([point for point in points if point.modality == modality]):
            _write(out / f"{modality}-{name}.png", png)
    record = {"format": FORMAT, "points": [point.plain() for point in points], "failed": dict(failed)}
    _write(out / "rate.json", (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    parts = [markdown([point for point in points if point.modality == modality]) for modality in media]
    _write(out / "rate.md", "\n".join([*parts, *_unread(failed)]).encode(errors="xmlcharrefreplace"))


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path, ReportError) as temporary:
        temporary.write_bytes(data)


def drawn(points: Sequence[Point]) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each chart of one modality: a curve for each kind of model, its name up to the first comma.

    PSNR is the mean over items where that is finite everywhere, and else that of the mean error, as the axis says.
    """
    shown = [point for point in points if point.group == CURVE and not point.why and math.isfinite(point.psnr_of_mean)]
    perfect = any(math.isinf(point.psnr) for point in shown)
    axes = {
        "psnr": ("PSNR of mean error, dB", "psnr_of_mean") if perfect else ("PSNR, dB", "psnr"),
        "ssim": ("SSIM", "ssim"),
    }
    for name, (title, attribute) in axes.items():
        kinds: dict[str, list[tuple[float, float]]] = {}
        for point in shown:
            pair = point.bits_per_pixel, getattr(point, attribute)
            kinds.setdefault(point.model.partition(",")[0], []).append(pair)
        lines = {kind: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for kind, pairs in kinds.items()}
        if lines:
            yield name, charts.curves("bits per pixel", title, lines, logarithmic=True)


def markdown(points: Sequence[Point]) -> str:
    """The tables of one modality: the curve, and one for each tokenizer with what has its bytes."""
    modality = points[0].modality
    lines = [f"## {modality}\n", f"![PSNR by bits per pixel]({modality}-psnr.png)\n"]
    for group in dict.fromkeys(point.group for point in points):
        of = [point for point in points if point.group == group]
        lines += [f"### {group}\n", _line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_line(_cells(point)) for point in of if not point.why]
        lines += ["", *(f"- {point.model}: {point.why}" for point in of if point.why), ""]
    return "\n".join(lines)


def _cells(point: Point) -> list[str]:
    return [point.model, f"{point.items:,}", *map(number_text, point.numbers)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _unread(failed: Mapping[str, str]) -> list[str]:
    return ["## left out\n", *(f"- {key}: {why}" for key, why in failed.items()), ""] if failed else []
