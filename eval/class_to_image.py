"""How good a generator is that was trained on figures and photographs, as the bundled ones are, by its samples.

Figures: classes by nano's own zero-shot classification, and by a linear probe that learned from other held-out ones.
Photographs: classes by a linear probe that learned from the training photographs. Both: Frechet distances to held-out
images, beside those of another half of these, of what the tokenizer makes of them, and of a Gaussian of the latents of
each class; and whether training images are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from atoken.data.synthetic.labelled import WAYS
from atoken.errors import AtokenError
from atoken.loading import load
from atoken.metrics.pinned import check_fetched, located
from atoken.store.reader import TokenStore
from atoken.tokenizer import Tokenizer
from eval.code import code_version
from eval.contract import Model
from eval.job import Task
from eval.measures import EFFICIENTNET, NANO, PROBE, ZERO_SHOT, Build, Needs
from eval.metrics.features import FrechetMetric
from eval.metrics.zero_shot import CLASS_NAME_ONLY
from eval.models.latent_gaussians import LatentGaussians
from eval.models.samples import Samples
from eval.models.tokenizer import AToken
from eval.nearest import RARE, copying, nearest, write_page
from eval.networks import EfficientNetLite0
from eval.prepare import Preparation, evenly
from eval.protocol import EvalProtocol, data_hash, result_row, settings
from eval.sources.classes import bare, figures, halves, photographs, square
from eval.sources.entry import Entry, Listing, Prepared
from eval.sources.generated import entries_of, options_of, record_of, samples_of
from eval.sources.samples import LEARNED, clothes, groceries, photos_to_probe

EACH = 20  # samples of each class of figures that are classified
HALF, GAUSSIANS = "other real images", "Gaussian of each class"
PHOTOS = "fetched:photos"
AS_IT_IS = Preparation()


@dataclass(frozen=True)
class Generator:
    """A generator under test, and what belongs to it.

    given: the folder of a pipeline, or a bundled name. store: what it was trained on, made by ``tokenizer``. options:
    of ``python -m generation sample``. folder: for samples.
    """

    given: str
    name: str
    store: TokenStore
    tokenizer: Tokenizer
    options: Sequence[str]
    folder: Path

    @cached_property
    def side(self) -> int:
        """Pixels of a side of the images that it was trained on."""
        return int(self.store.column("height")[0].as_py())

    @cached_property
    def _labels(self) -> dict[str, str]:
        return {bare(label): label for label in self.store.labels}

    def label(self, name: str) -> str:
        """What the store calls a class. Raises: AtokenError."""
        if bare(name) not in self._labels:
            raise AtokenError(f"{self.store.name} has no label {bare(name)!r}, and so {self.name} makes none of them.")
        return self._labels[bare(name)]

    def samples(self, where: str, listing: Listing) -> Path:
        """A sample for each entry, of its class. Raises: AtokenError."""
        labels = [self.label(name) for name in names_of(listing)]
        return samples_of(self.given, self.folder / where, len(labels), labels=labels, options=self.options)


def generator_of(given: str, name: str, store: str, changes: Sequence[str], folder: Path, device: str) -> Generator:
    """A generator with the store that it was trained on. changes: ``KEY=VALUE`` for options of sampling.

    Raises: AtokenError (no store, no tokenizer or another one than that of the store).
    """
    trained = TokenStore(store)
    tokenizer = load(trained.model, device=device)
    trained.check(tokenizer)
    options = ["--device", device, *options_of(changes)]
    return Generator(given, name, trained, tokenizer, options, folder)


def names_of(listing: Listing) -> list[str]:
    """The name of the class of each entry, all of which have one."""
    return [listing.classes[entry.label] for entry in listing.entries if entry.label is not None]


def of_figures(generator: Generator, judges: Sequence[Model], number: int) -> Iterator[tuple[Task, Model]]:
    """Tasks and models: distances of ``number`` samples, and the classes of the first.

    judges: whose vectors a probe reads; the first also classifies by texts. Raises: AtokenError.
    """
    listing = figures(generator.side, max(number, 2 * WAYS))  # a probe learns from two of each class, or more
    first, second = halves(listing.entries)
    learned = [replace(entry, key=f"{LEARNED}/{entry.key}") for entry in second]
    first, second = first[:number], second[:number]
    sampled = _samples(generator, "figures", Listing(first, listing.classes))
    yield from _distances(generator, "class-figures", Listing(first, listing.classes), second, sampled(), AS_IT_IS)
    some = Listing(first[: EACH * WAYS], listing.classes)
    task = _task("class-figures-zero-shot", some, AS_IT_IS, ZERO_SHOT, make="embed", templates=CLASS_NAME_ONLY)
    yield task, sampled(judges[0])
    yield task, _real(judges[0])
    task = _task("class-figures-probe", Listing([*learned, *some.entries], some.classes), AS_IT_IS, PROBE, make="embed")
    yield from _seen(task, sampled, judges)


def of_photographs(
    generator: Generator, judges: Sequence[Model], split: str, number: int
) -> Iterator[tuple[Task, Model]]:
    """Tasks and models: distances and classes of a sample for each photograph of a split. Raises: AtokenError."""
    listing, prepare, name = photographs_of(split, number), square(generator.side), f"class-photos-{split}"
    sampled = _samples(generator, "photographs", listing)
    first, second = halves(listing.entries)
    yield from _distances(generator, name, Listing(first, listing.classes), second, sampled(), prepare)
    tested = {entry.key for entry in listing.entries}
    for kind, class_of in {"clothes": clothes, "groceries": groceries}.items():
        found = photos_to_probe(located(PHOTOS, Path()), class_of, split)
        entries = [entry for entry in found.entries if _is_learned(entry.key) or entry.key in tested]
        task = _task(f"{name}-{kind}-probe", Listing(entries, found.classes), prepare, PROBE, make="embed")
        yield from _seen(task, sampled, judges)


def photographs_of(split: str, number: int) -> Listing:
    """At most so many photographs, evenly over a split, under the keys that probes have. Raises: MediaError."""
    root = located(PHOTOS, Path())
    check_fetched(root)
    listing = photographs(root / split)
    count = len(listing.entries)
    chosen = [listing.entries[index] for index in evenly(count, min(number, count))]
    return Listing([replace(entry, key=f"{split}/{entry.key}") for entry in chosen], listing.classes)


def of_copies(generator: Generator, split: str, number: int, page: Path) -> dict[str, Any]:
    """A row, and a page: how near samples of photographs are to training images. Raises: AtokenError."""
    listing, prepare = photographs_of(split, number), square(generator.side)
    path = generator.samples("photographs", listing)
    labels = [generator.label(name) for name in names_of(listing)]
    trained = generator.store.where(label=sorted(set(labels)))
    samples = Prepared(entries_of(path, [entry.key for entry in listing.entries]), AS_IT_IS)
    found, real = (
        nearest(images, trained, generator.tokenizer) for images in (samples, Prepared(listing.entries, prepare))
    )
    write_page(page, samples, labels, found, trained, generator.tokenizer)
    name, items = f"class-photos-{split}-nearest", len(listing.entries)
    metric = {
        "training images": f"{len(trained)} of {trained.model} {trained.fingerprint}",
        "distance": "root of mean squared differences of normalised latents; cosine of pooled vectors",
        "rare": f"{RARE} of held-out images",
    }
    protocol = EvalProtocol(
        task=name, data=data_hash(entry.line() for entry in listing.entries), items=items, templates="none",
        code=code_version(), metrics={"nearest": metric}, **prepare.record(), **settings({}),
    )  # fmt: skip
    numbers = {key: ("nearest", value) for key, value in copying(found, real).items()}
    counts = {"planned": items, "measured": items, "full": items}
    return result_row(name, generator.name, record_of(path), "image", protocol, numbers, items=counts)


def _samples(generator: Generator, where: str, listing: Listing) -> Callable[..., Samples]:
    """Makes a model under test of a sample for each entry; it takes a judge, and which items stand for themselves."""
    path = generator.samples(where, listing)
    images = Prepared(entries_of(path, [entry.key for entry in listing.entries]), AS_IT_IS)
    return partial(Samples, generator.name, record_of(path), images)


def _distances(
    generator: Generator, name: str, listing: Listing, second: Sequence[Entry], sampled: Model, prepare: Preparation
) -> Iterator[tuple[Task, Model]]:
    """The Frechet distances of samples to real images, and of what stands beside them."""
    task = _task(name, listing, prepare, NANO | {EFFICIENTNET: _efficientnet})
    gaussians = LatentGaussians(generator.store, generator.tokenizer)
    labels = [generator.label(class_name) for class_name in names_of(listing)]
    drawn = [
        Entry(entry.key, partial(gaussians.image, label, number))
        for number, (entry, label) in enumerate(zip(listing.entries, labels, strict=True))
    ]
    yield task, sampled
    yield task, Samples(HALF, {"images": data_hash(entry.line() for entry in second)}, Prepared(second, prepare))
    yield task, AToken(generator.tokenizer)
    yield task, Samples(GAUSSIANS, gaussians.record, Prepared(drawn, AS_IT_IS))


def _seen(task: Task, sampled: Callable[..., Samples], judges: Sequence[Model]) -> Iterator[tuple[Task, Model]]:
    """A probe of samples and of real images by the vectors of each judge; what it learns from is real in both."""
    for judge in judges:
        yield task, sampled(judge, _is_learned)
        yield task, _real(judge)


def _real(judge: Model) -> Samples:
    return Samples("real images", {}, Prepared([], AS_IT_IS), judge, real=lambda key: True)


def _is_learned(key: str) -> bool:
    return key.startswith(f"{LEARNED}/")


def _task(name: str, listing: Listing, prepare: Preparation, metrics: Mapping[str, Build], **settings: Any) -> Task:
    return Task(name, "image", "", lambda _: listing, prepare, metrics, shard=128, batch=16, **settings)


def _efficientnet(needs: Needs) -> FrechetMetric:
    return FrechetMetric(EFFICIENTNET, EfficientNetLite0(needs.weights, needs.device))
