"""A 3D asset from an image of a thing, or from several images of it.

    python -m scripts.image_to_3d photo.png -o thing.ply

The suffix of ``-o`` says what is written: ``.ply`` of Gaussians, which viewers of 3D Gaussian splatting open, with z up
or as ``--up`` says; ``.mp4`` of one turn; ``.png`` of one view; ``.atok`` of tokens. The image's alpha, or a plain
background, says what the thing is; other backgrounds are removed with another tool first.
"""

import argparse
import sys
from pathlib import Path

import torch

from atoken.errors import AtokenError
from atoken.placement import checked_device
from generation.pipelines.image_to_3d import ImageTo3DPipeline
from generation.presets import folder_of

SUFFIXES = (".ply", ".mp4", ".png", ".atok")


def main() -> None:
    """Make it, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="of one thing")
    parser.add_argument("-o", "--out", type=Path, required=True, help=f"file: {', '.join(SUFFIXES)}")
    parser.add_argument(
        "--model", default="i23d-nano", help="folder of a pipeline, or a bundled name (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=25, help="of each of both stages (default: %(default)s)")
    parser.add_argument("--guidance", type=float, nargs=2, metavar=("STRUCTURE", "LATENTS"), help="scales; 1 is none")
    parser.add_argument("--combine", default="stochastic", help="several images: stochastic (default) or average")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--up", default="z", choices=["z", "y", "-y"], help="axis of the .ply that points up (default: z)"
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    options = parser.parse_args()
    try:
        _make(options)
    except AtokenError as error:
        sys.exit(str(error))
    print(options.out)


def _make(options: argparse.Namespace) -> None:
    if options.out.suffix not in SUFFIXES:
        raise AtokenError(f"{options.out} must end in {', '.join(SUFFIXES)}.")
    if not (folder_of(options.model) / "model_index.json").is_file():
        raise AtokenError(f"There is no pipeline in {options.model}: name the folder model of a run of slat.")
    pipeline = ImageTo3DPipeline.from_pretrained(options.model).to(checked_device(options.device))
    scales = options.guidance and dict(zip(("guidance_scale", "slat_guidance_scale"), options.guidance, strict=True))
    (asset,) = pipeline(
        [options.images], num_inference_steps=options.steps, combine=options.combine,
        generator=torch.Generator().manual_seed(options.seed),
        output_type="tokens" if options.out.suffix == ".atok" else "gaussians", **(scales or {}),
    ).assets  # fmt: skip
    asset.save(options.out, **({"up": options.up} if options.out.suffix == ".ply" else {}))


if __name__ == "__main__":
    main()
