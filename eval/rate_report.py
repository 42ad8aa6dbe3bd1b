"""What ``eval.rate`` found, as JSON, as tables in Markdown, and as charts."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoken.report.charts import by_number
from atoken.report.page import Block, Figure, Figures, Table, save
from atoken.report.page import write as write_page
from eval.protocol import fingerprint
from eval.report.tables import number_text
from eval.shards import make_folder

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


def write(points: Sequence[Point], failed: Mapping[str, str], out: Path) -> None:
    """Write ``rate.json``, ``rate.md`` and, with charts, ``rate.html`` into the folder ``out``.

    failed: why items could not be read, by key. Raises: ReportError, MissingExtraError.
    """
    make_folder(out)
    record = {"format": FORMAT, "points": [point.plain() for point in points], "failed": dict(failed)}
    save(out / "rate.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    modalities = dict.fromkeys(point.modality for point in points)
    parts = {modality: [point for point in points if point.modality == modality] for modality in modalities}
    sections: dict[str, Sequence[Block]] = {name: [*drawn(of), *tables(of)] for name, of in parts.items()}
    if failed:
        sections["left out"] = [Table("", ("item", "why"), [*failed.items()])]
    for end in ("md", "html"):
        write_page(out / f"rate.{end}", "Quality by bytes", sections)


def drawn(points: Sequence[Point]) -> list[Block]:
    """The charts of one modality: a curve for each kind of model, its name up to the first comma.

    PSNR is the mean over items where that is finite everywhere, and else that of the mean error, as the axis says.
    """
    shown = [point for point in points if point.group == CURVE and not point.why and math.isfinite(point.psnr_of_mean)]
    perfect = any(math.isinf(point.psnr) for point in shown)
    axes = {
        "PSNR of mean error, dB" if perfect else "PSNR, dB": "psnr_of_mean" if perfect else "psnr",
        "SSIM": "ssim",
    }
    charts = []
    for title, attribute in axes.items():
        kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for point in shown:
            kinds[point.model.partition(",")[0]].append((point.bits_per_pixel, getattr(point, attribute)))
        if kinds:
            charts.append(Figure(title, by_number(title, "bits per pixel", "", kinds, logarithmic=True)))
    return [Figures("", charts)] if charts else []


def tables(points: Sequence[Point]) -> Iterator[Table]:
    """The tables of one modality: the curve, and one for each tokenizer with what has its bytes; and what failed."""
    for group in dict.fromkeys(point.group for point in points):
        of = [point for point in points if point.group == group]
        cells = [(point.model, f"{point.items:,}", *map(number_text, point.numbers)) for point in of if not point.why]
        yield Table(group, HEAD, cells, len(HEAD) - 1)
        if failed := [(point.model, point.why) for point in of if point.why]:
            yield Table("", ("model", "why it could not be measured"), failed)
