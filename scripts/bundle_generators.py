"""Put the generators that ``make generators`` trained in place of the bundled ones, each with a README of its data.

With --videos, the one that ``make t2v-nano`` trained.
"""

import argparse
import shutil
import sys
from pathlib import Path

from atoken.errors import AtokenError
from generation.pipelines.class_to_image import ClassToImagePipeline
from generation.pipelines.text_to_video import TextToVideoPipeline
from generation.presets import BUNDLED
from scripts.generator_card import generator_card, video_card

MOST = 10 << 20  # bytes of the folder of a generator
NAMES = {"dit": "dit-nano", "tokenbridge": "tokenbridge-nano"}  # by run
DATA = Path(__file__).with_name("generators.toml")
MOST_OF_VIDEOS = 12 << 20
VIDEOS = {"videos": "t2v-nano"}


def main() -> None:
    """Copy the model of each run, once both are there and small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the two runs")
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="where the models go")
    parser.add_argument("--videos", action="store_true", help="those of make t2v-nano")
    options = parser.parse_args()
    cards = {}
    names, most = (VIDEOS, MOST_OF_VIDEOS) if options.videos else (NAMES, MOST)
    try:
        for run, name in names.items():
            folder = options.runs / run / "model"
            if not folder.is_dir():
                raise AtokenError(f"{options.runs / run} holds no finished run.")
            if options.videos:
                cards[run] = video_card(folder.parent, name, TextToVideoPipeline.from_pretrained(folder))
            else:
                cards[run] = generator_card(folder.parent, name, ClassToImagePipeline.from_pretrained(folder), DATA)
            size = len(cards[run].encode()) + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(f"{name}: {size / 2**20:.2f} of {most / 2**20:.0f} MiB")
            if size > most:
                raise AtokenError(f"{name} is too large.")
    except AtokenError as error:
        sys.exit(f"Nothing was put in place: {error}")
    for run, name in names.items():
        folder = options.weights / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(options.runs / run / "model", folder)
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes for its user alone
        (folder / "README.md").write_text(cards[run], encoding="utf-8")


if __name__ == "__main__":
    main()
