"""Quality by bytes: AToken as points beside the curves of codecs, and at the same bytes; PCA at the same dimensions.

Bytes are those of whole files. Bits per pixel are all bits by all pixels (of a clip, those of all frames). A point is
measured as a row of any task is (``eval/measuring.py``), and has its protocol beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.errors import AtokenError
from atoken.tokenizer import Tokenizer, load
from eval.contract import Subject
from eval.job import Job
from eval.measuring import measured
from eval.metrics.pixels import Psnr, Ssim
from eval.metrics.size import Size
from eval.prepare import Preparation
from eval.rate_report import CURVE, Point, check_charts, write
from eval.shards import Row
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
    source: str | Path | Mapping[str, Prepared],
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


def media_of(folder: str | Path) -> dict[str, Prepared]:
    """The pictures and clips below a folder, by medium. Raises: AtokenError where there are none."""
    found = local(Path(folder))
    sources = {medium: Prepared(found[medium].entries, Preparation()) for medium in BATCH if medium in found}
    if not sources:
        raise AtokenError(f"There are no pictures and no clips in {folder}; name a folder that has some.")
    return sources


class Bench:
    """Measures subjects on the items of a source. ``failed``: why items could not be read, by key."""

    def __init__(self, medium: str, source: Prepared) -> None:
        self.medium, self.source, self.failed = medium, source, dict[str, str]()

    def one(self, build: Callable[[], Subject], group: str = CURVE, name: str = "") -> tuple[Point, dict[str, int]]:
        """A subject's point, and the bytes of each item by key; a point that says why where it cannot be measured."""
        try:
            subject = build()
            name = subject.name
            return self._measured(self._job(subject), group)
        except AtokenError as error:
            return Point(self.medium, group, name, why=str(error)), {}

    def _job(self, subject: Subject) -> Job:
        prepared = self.source.preparation.record()
        return Job(
            f"{self.medium}-rate", self.medium, "reconstruct", self.source, subject, (Psnr(), Ssim(), Size()), prepared,
            batch=BATCH[self.medium],
        )  # fmt: skip

    def _measured(self, job: Job, group: str) -> tuple[Point, dict[str, int]]:
        with tqdm(total=len(self.source), desc=job.subject.name, unit=self.medium, leave=False, disable=None) as bar:
            shards = [measured(job, number, bar.update) for number in range(job.shards)]
        rows = [row for shard in shards for row in shard.rows]
        self._note([index for index, row in enumerate(rows) if "failed" in row], rows)
        if faults := [why for shard in shards for why in shard.faults.values()]:
            raise AtokenError(faults[0])
        kept = [index for index, row in enumerate(rows) if "failed" not in row]
        if not kept:
            raise AtokenError(f"No {self.medium} could be read.")
        found: dict[str, float] = {}
        for metric in job.metrics:
            found |= metric.finish(reduce(metric.merge, (shard.states[metric.name] for shard in shards)))
        point = Point(
            medium=self.medium,
            group=group,
            subject=job.subject.name,
            items=len(kept),
            size=found["bytes"],
            bits_per_pixel=found["bits per pixel"],
            psnr=found["psnr"],
            psnr_of_mean=found["psnr of mean error"],
            ssim=found["ssim"],
            record=dict(job.subject.record),
            protocol=job.protocol(kept, job.metrics).record(),
        )
        return point, {rows[index]["key"]: int(rows[index]["bytes"]) for index in kept}

    def _note(self, lost: Sequence[int], rows: Sequence[Row]) -> None:
        """List the items that cannot be read. Raises: AtokenError for one that can: it is the subject that failed."""
        for index in lost:
            try:
                self.source[index]
            except AtokenError:
                self.failed[rows[index]["key"]] = rows[index]["failed"]
            else:
                raise AtokenError(rows[index]["failed"])


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
