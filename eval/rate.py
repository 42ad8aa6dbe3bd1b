"""Quality by bytes: AToken as points beside the curves of codecs, and at the same bytes; PCA at the same dimensions.

Bytes are those of whole files. Bits per pixel are all bits by all pixels (of a video, those of all frames). A point is
measured as a row of any task is (``eval/measuring.py``), and has its protocol with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.errors import AtokenError
from atoken.report.charts import by_number
from atoken.tokenizer import Tokenizer
from eval.contract import Model
from eval.job import Job
from eval.measuring import measured
from eval.metrics.pixels import Psnr, Ssim
from eval.metrics.size import Size
from eval.models.codecs import FORMATS, ImageCodec
from eval.models.matching import AtMost
from eval.models.pca import PCA
from eval.models.pixels import Stored
from eval.models.tokenizer import AToken
from eval.models.video_codecs import FORMATS as VIDEO_FORMATS
from eval.models.video_codecs import VideoCodec
from eval.prepare import Preparation
from eval.rate_report import CURVE, Point, write
from eval.shards import ItemLine
from eval.sources.entry import Prepared
from eval.sources.folders import local
from eval.tasks import LOCAL

QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
CRFS = (50, 45, 40, 35, 30, 25, 20, 15)
BATCH = {"image": 8, "video": 1}
STORED: tuple[Stored, ...] = ("float32", "float16")


def rate(
    source: str | Path | Mapping[str, Prepared],
    out: str | Path,
    *,
    models: Sequence[Tokenizer],
    peers: Sequence[Model] = (),
) -> list[Point]:
    """Measure and write ``rate.json``, ``rate.md`` and ``rate.html`` into ``out``.

    source: a folder, whose images and videos are measured at native size, or sources by modality ("image", "video").
    models: tokenizers, which get points on the chart and codecs at their bytes. peers: further points. A file that
    cannot be read is left out for all, and listed. Raises: AtokenError (no images and no videos), ReportError;
    MissingExtraError without matplotlib.
    """
    sources = media_of(source) if isinstance(source, str | Path) else source
    by_number("", "", "", {"test": [(1, 1)]})  # fails without matplotlib: before hours of work
    points: list[Point] = []
    failed: dict[str, str] = {}
    for modality, of in sources.items():
        bench = Bench(modality, of)
        points += [*curves(bench), *own_points(bench, models)]
        points += [bench.one(partial(_itself, peer))[0] for peer in peers]
        failed |= bench.failed
    write(points, failed, Path(out))
    return points


def media_of(folder: str | Path) -> dict[str, Prepared]:
    """The images and videos below a folder, by modality. Raises: AtokenError where there are none."""
    found = local(Path(folder))
    sources = {modality: Prepared(found[modality].entries, Preparation()) for modality in BATCH if modality in found}
    if not sources:
        raise AtokenError(f"There are no images and no videos in {folder}; name a folder that has some.")
    return sources


class Bench:
    """Measures models on the items of a source. ``failed``: why items could not be read, by key."""

    def __init__(self, modality: str, source: Prepared) -> None:
        self.modality, self.source, self.failed = modality, source, dict[str, str]()
        self.task = replace(
            LOCAL[modality], name=f"{modality}-rate", prepare=source.preparation, batch=BATCH[modality], shard=32
        )

    def one(self, build: Callable[[], Model], group: str = CURVE, name: str = "") -> tuple[Point, dict[str, int]]:
        """A model's point, and the bytes of each item by key; a point that says why where it cannot be measured."""
        try:
            model = build()
            name = model.name
            return self._measured(Job(self.task, self.source, model, (Psnr(), Ssim(), Size())), group)
        except AtokenError as error:
            return Point(self.modality, group, name, why=str(error)), {}

    def _measured(self, job: Job, group: str) -> tuple[Point, dict[str, int]]:
        with tqdm(total=len(self.source), desc=job.model.name, unit=self.modality, leave=False, disable=None) as bar:
            shards = [measured(job, number, bar.update) for number in range(job.shards)]
        lines = [line for shard in shards for line in shard.lines]
        self._note([index for index, line in enumerate(lines) if "failed" in line], lines)
        if faults := [why for shard in shards for why in shard.faults.values()]:
            raise AtokenError(faults[0])
        kept = [index for index, line in enumerate(lines) if "failed" not in line]
        if not kept:
            raise AtokenError(f"No {self.modality} could be read.")
        found: dict[str, float] = {}
        for metric in job.metrics:
            found |= metric.finish(reduce(metric.merge, (shard.states[metric.name] for shard in shards)))
        point = Point(
            modality=self.modality,
            group=group,
            model=job.model.name,
            items=len(kept),
            size=found["bytes"],
            bits_per_pixel=found["bits per pixel"],
            psnr=found["psnr"],
            psnr_of_mean=found["psnr of mean error"],
            ssim=found["ssim"],
            record=dict(job.model.record),
            protocol=job.protocol(kept, job.metrics).record(),
        )
        return point, {lines[index]["key"]: int(lines[index]["bytes"]) for index in kept}

    def _note(self, lost: Sequence[int], lines: Sequence[ItemLine]) -> None:
        """List the items that cannot be read. Raises: AtokenError for one that can be: then the model has failed."""
        for index in lost:
            try:
                self.source[index]
            except AtokenError:
                self.failed[lines[index]["key"]] = lines[index]["failed"]
            else:
                raise AtokenError(lines[index]["failed"])


# ----------------------------------------------------------------------------------------------------- what is measured


def curves(bench: Bench) -> Iterator[Point]:
    """Every codec of the modality, from few bytes to many."""
    for format, name in formats(bench.modality).items():
        for quality in QUALITIES if bench.modality == "image" else CRFS:
            yield bench.one(partial(_codec, bench.modality, format, quality), name=name)[0]


def own_points(bench: Bench, tokenizers: Sequence[Tokenizer]) -> Iterator[Point]:
    """Each tokenizer, as it stores its tokens; codecs at its bytes; PCA with as many dimensions."""
    fitted: dict[int, PCA] = {}
    for tokenizer in tokenizers:
        channels = tokenizer.model.config.latent_channels
        if channels not in fitted:
            fit = PCA.of_images if bench.modality == "image" else PCA.of_videos
            fitted[channels] = fit(components=channels)
        for stored in STORED[:1] if tokenizer.model.config.fsq_levels else STORED:
            yield from _at_the_same_bytes(bench, AToken(tokenizer, stored=stored), fitted[channels].stored_as(stored))
    for pca in fitted.values():
        for stored in STORED:
            yield bench.one(partial(pca.stored_as, stored), name=pca.name)[0]


def _at_the_same_bytes(bench: Bench, model: AToken, pca: PCA) -> Iterator[Point]:
    point, sizes = bench.one(lambda: model, name=model.name)
    yield point
    if point.why:
        return
    group, target = f"at the bytes of {model.name}", AtMost(sizes, model.name)
    yield replace(point, group=group)
    for format, name in formats(bench.modality).items():
        yield bench.one(partial(_codec, bench.modality, format, target), group, name)[0]
    yield bench.one(lambda: pca, group, pca.name)[0]


def formats(modality: str) -> dict[str, str]:
    """The codecs of a modality, and their names."""
    known: Mapping[str, Any] = FORMATS if modality == "image" else VIDEO_FORMATS
    return {format: described.name for format, described in known.items()}


def _codec(modality: str, format: str, quality: int | AtMost) -> Model:
    if modality == "image":
        return ImageCodec(format, quality)
    if isinstance(quality, AtMost):
        return VideoCodec(format, at_most=quality)
    return VideoCodec(format, crf=quality)


def _itself(model: Model) -> Model:
    return model
