"""Put the models that ``atoken train --preset nano --stage all`` made in place of the bundled ones.

Beside the weights: statistics of latents, a README that names data and licences, and a list of fingerprints, for
``atoken doctor``. ``make nano`` trains and then runs this; docs/recipe.md has the stages and the time that each takes.
"""

import argparse
import shutil
import sys
from pathlib import Path

from atoken.checkpoint import fingerprint, load_folder
from atoken.cli import main as atoken
from atoken.errors import AtokenError
from atoken.presets import BUNDLED
from atoken.pretrain.curriculum import FINISHED
from scripts.model_card import model_card

MOST = 20 << 20  # bytes of a variant's weights: 16 MiB, and 4 for its Gaussian decoder


def main() -> None:
    """Copy the last stage of each preset, once all of them are there and small enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the stages' runs")
    parser.add_argument("--weights", type=Path, default=BUNDLED, help="where the models go")
    options = parser.parse_args()
    cards, fingerprints = {}, []
    try:
        for stage, preset in FINISHED.items():
            model = load_folder(options.runs / stage / "model")
            gaussians = 2 * sum(weights.numel() for weights in model.gaussian_decoder.parameters())
            size = 2 * model.num_parameters()
            print(f"{preset}: {size / 2**20:.2f} of 20 MiB, {gaussians / 2**20:.2f} of them the Gaussian decoder")
            if size > MOST:
                sys.exit(f"{preset} is too large; nothing was put in place.")
            cards[stage] = model_card(options.runs / stage, preset, model, gaussians)
            fingerprints.append(f"{preset} {fingerprint(model)}\n")
    except AtokenError as error:
        sys.exit(f"Nothing was put in place: {error}")
    for stage, preset in FINISHED.items():
        folder = options.weights / preset
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(options.runs / stage / "model", folder)
        (folder / "model.safetensors").chmod(0o644)  # safetensors writes for its user alone, and a wheel keeps that
        (folder / "README.md").write_text(cards[stage], encoding="utf-8")
        if code := atoken(["stats", "procedural", "--model", str(folder), "-o", str(folder)]):
            sys.exit(code)
    (options.weights / "fingerprints.txt").write_text("".join(sorted(fingerprints)))


if __name__ == "__main__":
    main()
