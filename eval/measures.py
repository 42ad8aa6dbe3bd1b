"""The metrics that tasks ask for, by name, each built only when its task runs: some need weights, or a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from atoken.errors import AtokenError
from atoken.loading import load
from atoken.metrics.stlpips import load_stlpips
from atoken.metrics.vgg import load_vgg
from eval.atoken_features import ATokenFeatures
from eval.contract import Metric, Model
from eval.metrics.answers import Accuracy
from eval.metrics.classes import ClassAgreement
from eval.metrics.features import FrechetMetric
from eval.metrics.perceptual import Lpips, StLpips
from eval.metrics.pixels import BlockingArtefacts, MsSsim, Psnr, Ssim
from eval.metrics.probe import LinearProbe
from eval.metrics.retrieval import Retrieval
from eval.metrics.usage import CodeUsage, Size
from eval.metrics.zero_shot import Choice, Templates, ZeroShot, class_vectors
from eval.models.tokenizer import AToken
from eval.networks import I3D, EfficientNetLite0, Inception
from eval.sources.samples import LEARNED

TILE_FRAMES, PATCH = 16, 16  # of AToken: frames of a tile, pixels of a patch


@dataclass(frozen=True)
class Needs:
    """What metrics are built from. weights: the folder of published networks. trust: TorchScript may be loaded."""

    model: Model
    classes: tuple[str, ...] = ()
    templates: Templates | None = None
    weights: Path | None = None
    device: str = "cpu"
    trust: bool = False


Build = Callable[[Needs], Metric | None]  # None where it does not apply


def _zero_shot(needs: Needs) -> ZeroShot:
    assert needs.templates is not None, "a task of zero-shot classification names its templates"
    vectors = class_vectors(needs.model, needs.classes, needs.templates)
    return ZeroShot(vectors, needs.classes, needs.templates)


def _usage(needs: Needs) -> CodeUsage | None:
    levels = needs.model.tokenizer.model.config.fsq_levels if isinstance(needs.model, AToken) else ()
    return CodeUsage(prod(levels)) if levels else None


def _of_nano(*, videos: bool) -> Build:
    """The Frechet distance between the bundled nano's own vectors: it needs no download."""

    def build(_: Needs) -> FrechetMetric:
        nano = load("nano", device="cpu", dtype="float32")
        return FrechetMetric("nano frechet", ATokenFeatures(nano, videos=videos))

    return build


def _efficientnet(needs: Needs) -> FrechetMetric:
    agreement = ClassAgreement(f"classifier agreement ({EfficientNetLite0.name})")
    return FrechetMetric(EFFICIENTNET, EfficientNetLite0(needs.weights, needs.device), agreement)


PSNR: dict[str, Build] = {"psnr": lambda _: Psnr()}
USAGE: dict[str, Build] = {"usage": _usage}
PIXELS: dict[str, Build] = {
    **PSNR,
    "ssim": lambda _: Ssim(),
    "lpips": lambda needs: Lpips(*load_vgg(needs.weights, "or measure without LPIPS"), needs.device),
    "ST-LPIPS": lambda needs: StLpips(load_stlpips(needs.weights), needs.device),
    "blocking artefacts": lambda _: BlockingArtefacts(PATCH),
    "size": lambda _: Size(),
    **USAGE,
}
EFFICIENTNET = f"Fréchet ({EfficientNetLite0.name})"
IMAGES: dict[str, Build] = PIXELS | {
    "ms-ssim": lambda _: MsSsim(),
    EFFICIENTNET: _efficientnet,
}
BLOCKING_IN_TIME: dict[str, Build] = {
    "blocking artefacts in time": lambda _: BlockingArtefacts(TILE_FRAMES, in_time=True)
}
VIEWS: dict[str, Build] = PIXELS | {"psnr": lambda _: Psnr(foreground=True), "size": lambda _: Size(pixels=False)}
RFID: dict[str, Build] = {"rfid": lambda needs: FrechetMetric("rfid", Inception(needs.weights, needs.device))}
RFVD: dict[str, Build] = {
    "rfvd": lambda needs: FrechetMetric("rfvd", I3D(needs.weights, trust=needs.trust, frames=None, device=needs.device))
}
NANO: dict[str, Build] = {"nano frechet": _of_nano(videos=False)}
NANO_VIDEOS: dict[str, Build] = {"nano frechet": _of_nano(videos=True)}
ZERO_SHOT: dict[str, Build] = {"zero-shot": _zero_shot}
CHOICE: dict[str, Build] = {"choice": lambda needs: Choice(needs.model)}
ACCURACY: dict[str, Build] = {"accuracy": lambda needs: Accuracy(needs.classes)}
PROBE: dict[str, Build] = {"linear probe": lambda _: LinearProbe(f"{LEARNED}/")}
RETRIEVAL: dict[str, Build] = {"retrieval": lambda needs: Retrieval(needs.model)}


def built(builds: Mapping[str, Build], needs: Needs) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that can start, and why the others cannot, by name."""
    found: list[Metric | None] = []
    skipped = {}
    for name, build in builds.items():
        try:
            found.append(build(needs))
        except AtokenError as error:
            skipped[name] = str(error)
    metrics = [metric for metric in found if metric is not None]
    assert all(metric.name in builds for metric in metrics)
    return metrics, skipped
