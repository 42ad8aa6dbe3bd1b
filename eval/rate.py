"""Quality by bytes: AToken as points beside the curves of codecs, and at the same bytes; PCA at the same dimensions.

Bytes are those of whole files. Bits per pixel are all bits by all pixels (of a video, those of all frames). A point is
a row of a result file, measured as the row of any task (``eval/run.py``); the rows of ``image-rate`` and
``video-rate`` are the curves of a report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.errors import AtokenError
from atoken.tokenizer import Tokenizer
from eval.contract import Model
from eval.job import Job
from eval.metrics.pixels import Psnr, Ssim
from eval.metrics.usage import Size
from eval.models.codecs import FORMATS, AtMost, ImageCodec
from eval.models.pca import PCA
from eval.models.pixels import Stored
from eval.models.tokenizer import AToken
from eval.models.video_codecs import FORMATS as VIDEO_FORMATS
from eval.models.video_codecs import VideoCodec
from eval.prepare import Preparation
from eval.protocol import result_row
from eval.run import measured
from eval.shards import ItemLine
from eval.sources.entry import Prepared
from eval.sources.folders import local
from eval.tasks import LOCAL

CODECS: dict[str, tuple[Mapping[str, Any], Callable[..., Model], Sequence[int]]] = {  # formats, codec, qualities
    "image": (FORMATS, ImageCodec, (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)),
    "video": (VIDEO_FORMATS, VideoCodec, (50, 45, 40, 35, 30, 25, 20, 15)),
}
BATCH = {"image": 8, "video": 1}
STORED: tuple[Stored, ...] = ("float32", "float16")

ResultRow = dict[str, Any]


def rate(
    source: str | Path | Mapping[str, Prepared], *, models: Sequence[Tokenizer], peers: Sequence[Model] = ()
) -> list[ResultRow]:
    """The rows of all points, as ``eval/protocol.py`` describes them.

    source: a folder, whose images and videos are measured at native size, or sources by modality ("image", "video").
    models: tokenizers, which get points on the chart and codecs at their bytes. peers: further points. A file that
    cannot be read is left out for all, and listed in each row. Raises: AtokenError (no images and no videos).
    """
    sources = media_of(source) if isinstance(source, str | Path) else source
    rows: list[ResultRow] = []
    for modality, of in sources.items():
        bench = Bench(modality, of)
        rows += [*curves(bench), *own_points(bench, models)]
        rows += [bench.one(partial(_itself, peer))[0] for peer in peers]
    return rows


def media_of(folder: str | Path) -> dict[str, Prepared]:
    """The images and videos below a folder, by modality. Raises: AtokenError where there are none."""
    found = local(Path(folder))
    sources = {modality: Prepared(found[modality].entries, Preparation()) for modality in BATCH if modality in found}
    if not sources:
        raise AtokenError(f"There are no images and no videos in {folder}; name a folder that has some.")
    return sources


class Bench:
    """Measures models on the items of a source."""

    def __init__(self, modality: str, source: Prepared) -> None:
        self.modality, self.source = modality, source
        self.task = replace(
            LOCAL[modality], name=f"{modality}-rate", prepare=source.preparation, batch=BATCH[modality], shard=32
        )

    def one(self, build: Callable[[], Model], name: str = "") -> tuple[ResultRow, dict[str, int]]:
        """The row of a model, failed if it cannot be measured, and the bytes of each item by key.

        name: of the row where there is no model.
        """
        try:
            model = build()
            name = model.name
            return self._measured(Job(self.task, self.source, model, (Psnr(), Ssim(), Size())))
        except AtokenError as error:
            items = {"planned": len(self.source), "measured": 0, "full": len(self.source)}
            row = result_row(
                self.task.name, name, {}, self.modality, None, {}, status="failed", why=str(error), items=items
            )
            return row, {}

    def _measured(self, job: Job) -> tuple[ResultRow, dict[str, int]]:
        planned = len(self.source)
        with tqdm(total=planned, desc=job.model.name, unit=self.modality, leave=False, disable=None) as bar:
            shards = [measured(job, number, bar.update) for number in range(job.shards)]
        lines = dict(enumerate(line for shard in shards for line in shard.lines))
        failed = {index: line for index, line in lines.items() if "failed" in line}
        self._check_unreadable(failed)
        if faults := [why for shard in shards for why in shard.faults.values()]:
            raise AtokenError(faults[0])
        kept = [index for index in lines if index not in failed]
        if not kept:
            raise AtokenError(f"No {self.modality} could be read.")
        found: dict[str, tuple[str, float]] = {}
        for metric in job.metrics:
            state = reduce(metric.merge, (shard.states[metric.name] for shard in shards))
            found |= {name: (metric.name, value) for name, value in metric.finish(state).items()}
        row = result_row(
            self.task.name, job.model.name, job.model.record, self.modality, job.protocol(kept, job.metrics),
            {name: number for name, number in found.items() if math.isfinite(number[1])},
            status="partial" if failed else "complete",
            why=f"{len(failed):,} of {planned:,} items could not be read." if failed else "",
            skipped={name: f"It is {value}." for name, (_, value) in found.items() if not math.isfinite(value)},
            items={"planned": planned, "measured": len(kept), "full": planned},
            failed=[{"key": line["key"], "why": line["failed"]} for line in failed.values()],
        )  # fmt: skip
        return row, {lines[index]["key"]: int(lines[index]["bytes"]) for index in kept}

    def _check_unreadable(self, failed: Mapping[int, ItemLine]) -> None:
        """Raises: AtokenError for an item that can be read: then the model has failed."""
        for index, line in failed.items():
            try:
                self.source[index]
            except AtokenError:
                continue
            raise AtokenError(line["failed"])


# ----------------------------------------------------------------------------------------------------- what is measured


def curves(bench: Bench) -> Iterator[ResultRow]:
    """Every codec of the modality, from few bytes to many."""
    formats, codec, qualities = CODECS[bench.modality]
    for format, described in formats.items():
        for quality in qualities:
            yield bench.one(partial(codec, format, quality), described.name)[0]


def own_points(bench: Bench, tokenizers: Sequence[Tokenizer]) -> Iterator[ResultRow]:
    """Each tokenizer, as it stores its tokens; codecs at its bytes; PCA with as many dimensions."""
    fitted: dict[int, PCA] = {}
    for tokenizer in tokenizers:
        channels = tokenizer.model.config.latent_channels
        if channels not in fitted:
            fit = PCA.of_images if bench.modality == "image" else PCA.of_videos
            fitted[channels] = fit(channels)
        for stored in STORED[:1] if tokenizer.model.config.fsq_levels else STORED:
            yield from _at_the_same_bytes(bench, AToken(tokenizer, stored=stored), fitted[channels].stored_as(stored))
    for pca in fitted.values():
        for stored in STORED:
            yield bench.one(partial(pca.stored_as, stored), name=pca.name)[0]


def _at_the_same_bytes(bench: Bench, model: AToken, pca: PCA) -> Iterator[ResultRow]:
    row, sizes = bench.one(lambda: model, name=model.name)
    yield row
    if row["status"] == "failed":
        return
    target, (formats, codec, _) = AtMost(sizes, model.name), CODECS[bench.modality]
    same = [bench.one(partial(codec, format, target), known.name)[0] for format, known in formats.items()]
    for other in (row, *same, bench.one(lambda: pca, pca.name)[0]):
        yield other | {"task": f"{other['task']}, at the bytes of {model.name}"}


def _itself(model: Model) -> Model:
    return model
