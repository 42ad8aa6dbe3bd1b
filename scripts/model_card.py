"""The README of a bundled model, a model card: what its runs recorded of data, teachers, time and machine.

Who made the media is what the ``.json`` of each sample says (``source``, or ``creator`` and ``licence``), and
``CREDITS``.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from atoken.data.sources import FolderSource, ShardSource, TableSource
from atoken.fetch import FETCHABLES
from atoken.metrics.pinned import cache
from atoken.modalities import MODALITIES
from atoken.model import ATokenModel
from atoken.photographs import CLOTHES, GROCERIES
from atoken.report.rows import read_rows
from atoken.train.run_folder import RunFolder


class Credit(NamedTuple):
    """Who made a data set, where it is, and its licence; None where each sample says it."""

    by: str
    address: str
    licence: str | None


CREDITS = {
    "clothing-dataset": Credit("Alexey Grigorev and contributors", CLOTHES[0], "CC0-1.0"),
    "GroceryStoreDataset": Credit("Marcus Klasson, Cheng Zhang, Hedvig Kjellström", GROCERIES[0], "MIT"),
    "furniture": Credit(
        "Emmanuel Puybaret / eTeks, and those named below", "http://www.sweethome3d.com/importModels.jsp", None
    ),
}
Origin = tuple[str, str, str]  # kind of source, path, medium
UNKNOWN = Credit("not recorded", "", "not recorded")
USES = {"image": "images", "video": "videos", "asset": "3D assets"}


def model_card(run: Path, name: str, model: ATokenModel, gaussians: int) -> str:
    """The card of the model that ``run`` left. gaussians: bytes of its Gaussian decoder, to be named apart.

    Raises: AtokenError (data that were trained on are no longer where they were).
    """
    runs = list(_chain(run))
    data, creators = credited(_trained_on([record for _, record in runs]))
    return rendered(
        "model_card.md.jinja", name=name, config=model.config, weights=model.num_parameters(),
        bytes=2 * model.num_parameters() - gaussians, gaussians=gaussians,
        stages=[(folder.name, trained_steps(folder), minutes(folder)) for folder, _ in runs],
        data=data, creators=creators, last=runs[-1][1],
        teachers={file: _teacher(file) for _, record in runs for file in record["launch"]["teachers"]},
    )  # fmt: skip


def rendered(template: str, **values: Any) -> str:
    """A template of this folder with its values, all of which it names."""
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template(template)
    return page.render(**values)


def credited(paths: Mapping[Origin, set[str]]) -> tuple[list[tuple], list[tuple[str, Counter[str]]]]:
    """What was trained on, by kind, path and medium of each source, with its uses.

    A row for each data set: its name, uses, number of samples, those of each licence, and credit. And the creators of
    samples under CC-BY with the labels of these, those of most first. Raises: AtokenError.
    """
    uses, samples = _by_data_set(paths)
    data, creators = [], defaultdict[str, Counter[str]](Counter)
    for source, records in samples.items():
        credit = CREDITS.get(source, UNKNOWN)
        licences = Counter(str(record.get("licence", credit.licence)) for record in records)
        data.append((source, " and ".join(sorted(uses[source])), len(records), licences, credit))
        for record in records:
            if str(record.get("licence")).startswith("CC-BY"):
                creators[record["creator"]][record["label"]] += 1
    return data, sorted(creators.items(), key=lambda one: (-one[1].total(), one[0].lower()))


def _chain(run: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The runs that led to ``run``, it being the last, and what each recorded when it began."""
    record = json.loads((run / "start-000000.json").read_text())
    if record["start"] and (before := run.parent / Path(record["start"]).parent.name).is_dir():
        yield from _chain(before)
    yield run, record


def _trained_on(records: list[dict[str, Any]]) -> dict[Origin, set[str]]:
    """The sources of all runs, and what each was used as."""
    paths = dict[Origin, set[str]]()
    for record in records:
        tables = record["data"]["tables"]
        for task, of in record["stage"]["tasks"].items():
            for origin in (tables.get(task) or tables.get(of["modality"], {})).values():
                kind = next(kind for kind in ("folder", "shards", "table", "procedural") if origin[kind])
                if kind != "procedural":
                    media = "image" if origin["filmed"] else of["modality"]
                    use = "videos of a camera that moves over them" if origin["filmed"] else USES[of["modality"]]
                    paths.setdefault((kind, origin[kind], media), set()).add(use)
    return paths


def _by_data_set(
    paths: Mapping[Origin, set[str]],
) -> tuple[dict[str, set[str]], dict[str, list[Mapping[str, Any]]]]:
    """By the name of each data set: what it was used as, and what is recorded of each of its samples."""
    uses = defaultdict[str, set[str]](set)
    samples = dict[str, dict[str, Mapping[str, Any]]]()
    for (kind, path, media), used in paths.items():
        for key, record in _records(kind, path, media):
            source = record.get("source", _called(Path(path)))
            uses[source] |= used
            samples.setdefault(source, {})[key] = record
    return uses, {source: list(of.values()) for source, of in samples.items()}


def _records(kind: str, path: str, media: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Key and record of each sample. Raises: AtokenError."""
    if kind == "table":
        yield from ((f"{path}:{number}", {}) for number in range(len(TableSource(path, None, None))))
        return
    source = ShardSource(path) if kind == "shards" else FolderSource(path, MODALITIES[media].suffixes)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent  # keys of a shard begin with its name
    yield from ((f"{folder}/{sample.key}", sample.record) for sample in map(source.__getitem__, range(len(source))))


def _called(path: Path) -> str:
    """What a path in the cache was fetched as; the name of any other."""
    return path.relative_to(cache()).parts[0] if path.is_relative_to(cache()) else path.name


def _teacher(file: str) -> str:
    """What a pinned file is, its licence and where it is from."""
    for one in FETCHABLES.values():
        if any(member.name == file for member in getattr(one, "members", {}).values()):
            return f"{one.what.partition(', for')[0]}; {one.licence}; from {one.package}"
    return "see docs/recipe.md"


def trained_steps(run: Path) -> int:
    """Of a run that is done."""
    last = RunFolder(run).noted("start-")
    return 0 if last is None else int(last["recipe"]["steps"])


def minutes(run: Path) -> float:
    """Of all starts of the run: ``seconds`` of its log begin again with each."""
    total = before = 0.0
    for row in read_rows(run / "log.jsonl"):
        total += row["seconds"] - before if row["seconds"] >= before else row["seconds"]
        before = row["seconds"]
    return total / 60
