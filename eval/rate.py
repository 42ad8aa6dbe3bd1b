"""Quality by bytes: AToken as points beside the curves of codecs, and at the same bytes; PCA at the same dimensions.

Bytes are those of whole files. Bits per pixel are all bits by all pixels (of a clip, those of all frames).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.errors import AtokenError, MediaError
from atoken.tokenizer import Tokenizer, load
from eval.contract import Item, Sample, Source, Subject
from eval.metrics.pixels import Psnr, Ssim
from eval.prepare import Preparation
from eval.rate_report import CURVE, Point, check_charts, write
from eval.sources.entry import Prepared
from eval.sources.folders import local
from eval.subjects.codecs import FORMATS, PictureCodec
from eval.subjects.matching import AtMost
from eval.subjects.pca import PCA
from eval.subjects.pixels import Stored
from eval.subjects.tokenizer import AToken
from eval.subjects.video_codecs import FORMATS as VIDEO_FORMATS
from eval.subjects.video_codecs import VideoCodec

QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
CRFS = (50, 45, 40, 35, 30, 25, 20, 15)
BATCH = {"picture": 8, "clip": 1}
STORED: tuple[Stored, ...] = ("float32", "float16")


def rate(
    source: str | Path | Mapping[str, Source],
    out: str | Path,
    *,
    models: Sequence[str | Tokenizer] = ("nano", "nano-d"),
    peers: Sequence[Subject] = (),
    device: str = "auto",
    dtype: str = "auto",
) -> list[Point]:
    """Measure and write ``rate.json``, ``rate.md``, ``MEDIUM-psnr.png`` and ``MEDIUM-ssim.png`` into ``out``, a folder.

    source: a folder, of which the pictures and clips are taken at native size, or sources by medium ("picture",
    "clip"). models: tokenizers, which get points on the chart and codecs at their bytes. peers: further points.
    A file that cannot be read is left out for all, and listed. Raises: AtokenError (no pictures and no clips, a model
    that cannot be loaded), ReportError; MissingExtraError without matplotlib.
    """
    sources = media_of(source) if isinstance(source, str | Path) else source
    tokenizers = [
        model if isinstance(model, Tokenizer) else load(model, device=device, dtype=dtype) for model in models
    ]
    check_charts()  # before hours of work
    points: list[Point] = []
    failed: dict[str, str] = {}
    for medium, of in sources.items():
        bench = Bench(medium, of)
        points += [*curves(bench), *own_points(bench, tokenizers)]
        points += [bench.one(partial(_itself, peer))[0] for peer in peers]
        failed |= bench.failed
    write(points, failed, Path(out))
    return points


def media_of(folder: str | Path) -> dict[str, Source]:
    """The pictures and clips below a folder, by medium. Raises: AtokenError where there are none."""
    found = local(Path(folder))
    sources: dict[str, Source] = {
        medium: Prepared(found[medium].entries, Preparation()) for medium in BATCH if medium in found
    }
    if not sources:
        raise AtokenError(f"There are no pictures and no clips in {folder}; name a folder that has some.")
    return sources


class Bench:
    """Measures subjects on the items of a source, one by one. ``failed``: why items could not be read, by key."""

    def __init__(self, medium: str, source: Source) -> None:
        self.medium, self.source, self.failed = medium, source, dict[str, str]()

    def one(self, build: Callable[[], Subject], group: str = CURVE, name: str = "") -> tuple[Point, dict[str, int]]:
        """A subject's point, and the bytes of each item by key; a point that says why where it cannot be measured."""
        try:
            subject = build()
            name = subject.name
            return self._measured(subject, group)
        except AtokenError as error:
            return Point(self.medium, group, name, why=str(error)), {}

    def _measured(self, subject: Subject, group: str) -> tuple[Point, dict[str, int]]:
        psnr, ssim = Psnr(), Ssim()
        errors, likeness = psnr.start(), ssim.start()
        sizes: dict[str, int] = {}
        pixels = 0
        for items in self._batches(subject.name):
            samples = subject.reconstruct(items)
            psnr.add(errors, samples)
            ssim.add(likeness, samples)
            sizes |= {sample.item.key: _size(sample, subject.name) for sample in samples}
            pixels += sum(sample.theirs.size // 3 for sample in samples if sample.theirs is not None)
        if not sizes:
            raise AtokenError(f"No {self.medium} could be read.")
        means, total = psnr.finish(errors), sum(sizes.values())
        point = Point(
            medium=self.medium,
            group=group,
            subject=subject.name,
            items=len(sizes),
            size=total / len(sizes),
            bits_per_pixel=8 * total / pixels,
            psnr=means["psnr"],
            psnr_of_mean=means["psnr of mean error"],
            ssim=ssim.finish(likeness)["ssim"],
            record=dict(subject.record),
        )
        return point, sizes

    def _batches(self, name: str) -> Iterator[list[Item]]:
        batch: list[Item] = []
        for index in tqdm(range(len(self.source)), desc=name, unit=self.medium, leave=False, disable=None):
            try:
                batch.append(self.source[index])
            except MediaError as error:
                self.failed[self.source.key(index)] = str(error)
            if len(batch) == BATCH[self.medium]:
                yield batch
                batch = []
        if batch:
            yield batch


def _size(sample: Sample, name: str) -> int:
    if sample.size is None:
        raise AtokenError(f"{name} does not say how many bytes it takes; it has no place among rates.")
    return sample.size


# ----------------------------------------------------------------------------------------------------- what is measured


def curves(bench: Bench) -> Iterator[Point]:
    """Every codec of the medium, from few bytes to many."""
    for format, known in formats(bench.medium).items():
        for quality in QUALITIES if bench.medium == "picture" else CRFS:
            yield bench.one(partial(_codec, bench.medium, format, quality), name=known)[0]


def own_points(bench: Bench, tokenizers: Sequence[Tokenizer]) -> Iterator[Point]:
    """Each tokenizer, as it stores its tokens; codecs at its bytes; PCA with as many dimensions."""
    fitted: dict[int, PCA] = {}
    for tokenizer in tokenizers:
        channels = tokenizer.model.config.latent_channels
        if channels not in fitted:
            make = PCA.of_pictures if bench.medium == "picture" else PCA.of_clips
            fitted[channels] = make(components=channels)
        for stored in STORED[:1] if tokenizer.model.config.fsq_levels else STORED:
            yield from _beside(bench, AToken(tokenizer, stored=stored), fitted[channels].stored_as(stored))
    for pca in fitted.values():
        for stored in STORED:
            yield bench.one(partial(_itself, pca.stored_as(stored)), name=pca.name)[0]


def _beside(bench: Bench, subject: AToken, pca: PCA) -> Iterator[Point]:
    point, sizes = bench.one(partial(_itself, subject), name=subject.name)
    yield point
    if point.why:
        return
    group, target = f"at the bytes of {subject.name}", AtMost(sizes, subject.name)
    yield replace(point, group=group)
    for format, known in formats(bench.medium).items():
        yield bench.one(partial(_codec, bench.medium, format, target), group, known)[0]
    yield bench.one(partial(_itself, pca), group, pca.name)[0]


def formats(medium: str) -> dict[str, str]:
    """The codecs of a medium, and their names."""
    known: Mapping[str, Any] = FORMATS if medium == "picture" else VIDEO_FORMATS
    return {format: described.name for format, described in known.items()}


def _codec(medium: str, format: str, quality: int | AtMost) -> Subject:
    if medium == "picture":
        return PictureCodec(format, quality)
    if isinstance(quality, AtMost):
        return VideoCodec(format, at_most=quality)
    return VideoCodec(format, crf=quality)


def _itself(subject: Subject) -> Subject:
    return subject
