"""The row of a folder of generated samples, and the network that it was measured with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from atoken.errors import AtokenError
from atoken.tokenizer import load
from eval.generation import evaluate_generation
from eval.networks import ATokenFeatures, Inception, Network, TorchScript
from eval.prepare import Preparation
from eval.protocol import Protocol, code_version, settings

NAME = "generation"


def network_of(name: str, weights: str | None, device: str, *, trust: bool) -> Network:
    """The network of a name: "inception", "nano", or FILE@SHA256, a TorchScript file. Raises: AtokenError."""
    if name == "inception":
        return Inception(weights, device)
    if name == "nano":
        return ATokenFeatures(load("nano", device="cpu", dtype="float32"))
    path, at, checksum = name.rpartition("@")
    if not at:
        raise AtokenError(f"There is no network {name!r}; take inception, nano, or FILE@SHA256 of a TorchScript file.")
    return TorchScript(path, checksum, trust=trust, device=device)


def generated(samples: Path, reference: Path, network: Network) -> dict[str, Any]:
    """A row as ``eval/protocol.py`` describes it. Raises: AtokenError."""
    with tqdm(desc=NAME, unit=" images", delay=1, disable=None, leave=False) as bar:
        found = evaluate_generation(samples, reference, network, progress=lambda *_: bar.update(64))
    record, items = found["record"], int(found["record"]["samples items"])
    data = record.get("statistics sha256") or record["reference sha256"]
    protocol = Protocol(
        task=NAME, data=data, items=items, templates="none", code=code_version(), metrics={NAME: record},
        **Preparation().record(), **settings({}),
    )  # fmt: skip
    fingerprint = protocol.fingerprint(NAME)
    return {
        "task": NAME,
        "model": samples.stem,
        "identity": {"samples": samples.name},
        "modality": "image",
        "status": "complete",
        "why": "",
        "protocol": protocol.record(),
        "numbers": {
            name: {"value": value, "metric": NAME, "fingerprint": fingerprint}
            for name, value in found["numbers"].items()
        },
        "faults": {},
        "skipped": found["left_out"],
        "items": {"planned": items, "measured": items, "full": items},
        "failed": [],
    }
