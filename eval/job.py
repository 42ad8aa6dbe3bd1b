"""What makes a row: items, a model, metrics, and how they are cut into shards and batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from eval.contract import Metric, Model, Source
from eval.protocol import Protocol as Record
from eval.protocol import code_version, data_hash, digest, settings


class Data(Source, Protocol):
    """A source that says what stands for an item in the hash of the data."""

    def line(self, index: int) -> str:
        """Name, size, label and captions of an item, without reading it."""


@dataclass(frozen=True)
class Job:
    """What makes a row. prepared, templates: for the protocol. full: members of the whole data set.

    shard: items whose results are kept together; batch: items that the model gets at once, within a shard.
    skipped: metrics that were asked for and could not start, and why.
    """

    task: str
    modality: str
    make: Literal["reconstruct", "embed"]
    data: Data
    model: Model
    metrics: Sequence[Metric]
    prepared: Mapping[str, str]
    templates: str = "none"
    skipped: Mapping[str, str] = field(default_factory=dict)
    full: int | None = None
    shard: int = 32
    batch: int = 4

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-len(self.data) // self.shard)

    def items_of(self, shard: int) -> range:
        """The numbers of the items of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, len(self.data)))

    def protocol(self, measured: Sequence[int], metrics: Iterable[Metric]) -> Record:
        """Of some of the items, by number, and some of the metrics."""
        return Record(
            task=self.task,
            data=data_hash(self.data.line(index) for index in measured),
            items=len(measured),
            templates=self.templates,
            code=code_version(),
            metrics={metric.name: dict(metric.record) for metric in metrics},
            **self.prepared,
            **settings(self.model.record),
        )

    def name(self) -> str:
        """The same for two runs if and only if one may go on with the shards of the other."""
        plan = self.protocol(range(len(self.data)), self.metrics).record()
        model = [self.model.name, dict(self.model.record)]
        return digest([plan, model, dict(self.skipped), self.full, self.shard, self.batch, self.make])
