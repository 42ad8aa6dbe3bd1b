"""What makes a row: a task on its data, a model under test, metrics, and how items are cut into shards and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from atoken.metrics.pinned import check_fetched, located
from eval.code import code_version
from eval.contract import Dataset, Metric, Model
from eval.measures import Build
from eval.metrics.zero_shot import Templates
from eval.prepare import Preparation
from eval.protocol import EvalProtocol, data_hash, digest, settings
from eval.sources.entry import Listing
from eval.sources.synthetic import SEED

Modality = Literal["image", "video", "asset"]


@dataclass(frozen=True)
class Task:
    """A row of ``eval/tasks.py``.

    open: lists the entries of the folder ``folder`` below the data's root, or, after ``fetched:``, below the cache of
    ``atoken fetch``; of a synthetic task, whose ``folder`` is None, those of a seed. metrics: what builds each, by its
    name. make: what is asked of a model. model: options of ``AToken`` that the task sets. further: models whose
    rows stand below that of the model. full: how many items the whole data set has. shard: items whose results are
    kept together; batch: items that the model gets at once, within a shard. table3: it is in the paper's table 3.
    """

    name: str
    modality: Modality
    folder: str | None
    open: Callable[[Any], Listing]
    prepare: Preparation
    metrics: Mapping[str, Build]
    make: Literal["reconstruct", "embed", "answer"] = "reconstruct"
    full: int | None = None
    templates: Templates | None = None
    shard: int = 32
    batch: int = 4
    model: Mapping[str, Any] = field(default_factory=dict)
    table3: bool = False
    further: Callable[[Model, Listing], Iterable[Model]] = lambda model, listing: ()

    def listing(self, root: Path, seed: int | None) -> Listing:
        """The entries below ``root``, or, where they are drawn, those of ``seed``.

        Raises: MediaError (also for data that are not fetched).
        """
        if self.folder is None:
            return self.open(SEED if seed is None else seed)
        path = located(self.folder, root)
        check_fetched(path)
        return self.open(path)


@dataclass(frozen=True)
class Job:
    """A task on its data with a model. skipped: metrics that could not start, and why. full: as in ``Task``."""

    task: Task
    data: Dataset
    model: Model
    metrics: Sequence[Metric]
    skipped: Mapping[str, str] = field(default_factory=dict)
    full: int | None = None

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self.data) // self.task.shard)

    def items_of(self, shard: int) -> range:
        """The numbers of the items of a shard."""
        return range(shard * self.task.shard, min((shard + 1) * self.task.shard, len(self.data)))

    def protocol(self, measured: Sequence[int], metrics: Iterable[Metric]) -> EvalProtocol:
        """The protocol of some of the items, by number, and some of the metrics."""
        return EvalProtocol(
            task=self.task.name,
            data=data_hash(self.data.line(index) for index in measured),
            items=len(measured),
            templates="none" if self.task.templates is None else self.task.templates.name,
            code=code_version(),
            metrics={metric.name: dict(metric.record) for metric in metrics},
            **self.task.prepare.record(),
            **settings(self.model.record),
        )

    def name(self) -> str:
        """The same for two runs if and only if one may go on with the shards of the other."""
        plan = self.protocol(range(len(self.data)), self.metrics).record()
        model, task = [self.model.name, dict(self.model.record)], self.task
        return digest([plan, model, dict(self.skipped), self.full, task.shard, task.batch, task.make])
