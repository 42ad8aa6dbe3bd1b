"""Put the model that ``make vl-nano`` trained in place of the bundled one, with a README of its data."""

import argparse
import json
import shutil
import sys
from math import prod
from pathlib import Path

import yaml
from safetensors import safe_open

from atoken.data.sources.shards import ShardSource
from atoken.errors import AtokenError
from atoken.metrics.pinned import located
from atoken.report.rows import read_rows
from mllm.config import ATokenVLConfig
from mllm.sources import BUNDLED
from scripts.model_card import credited, minutes, rendered, trained_steps

MOST = 12 << 20  # bytes of the folder
NAME = "vl-nano"
DATA = Path(__file__).with_name(f"{NAME}.yaml")


def main() -> None:
    """Copy the model of the run, once it is finished and small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="where the model goes")
    options = parser.parse_args()
    folder, target = options.run / "model", options.weights / NAME
    try:
        if not folder.is_dir():
            raise AtokenError(f"{options.run} holds no finished run.")
        card = vl_card(options.run)
        size = len(card.encode()) + sum(file.stat().st_size for file in folder.iterdir())
        print(f"{NAME}: {size / 2**20:.2f} of {MOST / 2**20:.0f} MiB")
        if size > MOST:
            raise AtokenError(f"{NAME} is too large.")
    except AtokenError as error:
        sys.exit(f"Nothing was put in place: {error}")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    (target / "model.safetensors").chmod(0o644)  # safetensors writes for its user alone
    (target / "README.md").write_text(card, encoding="utf-8")


def vl_card(run: Path) -> str:
    """The model card: what the run recorded, and who made its data.

    Raises: AtokenError (photographs that were trained on are no longer where they were).
    """
    entries = yaml.safe_load(DATA.read_text(encoding="utf-8"))["datasets"]
    shards = [str(located(entry["photographs"], DATA.parent)) for entry in entries if "photographs" in entry]
    photographs = [ShardSource(path) for path in shards]
    labels = {source[number].record["a_label"] for source in photographs for number in range(len(source))}
    with safe_open(run / "model/model.safetensors", "pt") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is no dictionary
    checks = [*read_rows(run / "evaluation.jsonl")]
    return rendered(
        "vl_card.md.jinja", name=NAME, config=ATokenVLConfig.from_pretrained(run / "model"), labels=labels,
        weights=sum(prod(size) for size in sizes), steps=trained_steps(run), minutes=minutes(run),
        started=json.loads((run / "start-000000.json").read_text()),
        checks={name: share for name, share in (checks[-1] if checks else {}).items() if name.startswith("right")},
        data=credited({("shards", path, "image"): {"images"} for path in shards})[0],
    )  # fmt: skip


if __name__ == "__main__":
    main()
