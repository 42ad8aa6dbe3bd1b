"""A video or image of a text: ``python -m scripts.text_to_video "a red ring moving left" -o ring.mp4``.

The suffix decides: .mp4, .webm or .mov is a video, which is written as it is made; .png, .jpg or .webp an image; .atok
its tokens. With --prompts, several videos of each line of a file, into a folder as VBench reads it; interrupted, the
same command goes on, and torchrun shares it among GPUs. Exit codes: 0 done, 1 an error in one sentence, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

IMAGES = (".png", ".jpg", ".webp")


def parser() -> argparse.ArgumentParser:
    """All options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = found.add_mutually_exclusive_group(required=True)
    what.add_argument("prompt", nargs="?", help="what it shows")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, in place of one")
    found.add_argument("--per-prompt", type=int, default=5, metavar="N", help="videos of each of them (default: 5)")
    found.add_argument("-o", "--out", type=Path, required=True, help="file, or the folder of --prompts")
    found.add_argument("--model", default="t2v-nano", help="folder of a pipeline, or a bundled name")
    found.add_argument("--image", type=Path, help="that the video begins with")
    found.add_argument("--negative", default="", metavar="TEXT", help="what it does not show")
    found.add_argument("--frames", type=int, help="a multiple of 4 (default: those that the model learned)")
    found.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels")
    found.add_argument("--overlap", type=int, help="frames that windows of a long video share (default: half of one)")
    found.add_argument("--steps", type=int, default=50, help="of the solver (default: 50)")
    found.add_argument("--guidance", type=float, help="scale; 1 is none (default: the model's)")
    found.add_argument("--solver", default="euler", help="euler, heun, unipc or dpm++ (default: euler)")
    found.add_argument("--shift", type=float, help="of sigma (default: by tokens and frames)")
    found.add_argument("--fps", type=float, default=8, help="frames a second (default: 8)")
    found.add_argument("--seed", type=int, default=0, help="(default: 0)")
    found.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    return found


def main() -> None:
    """Make what is asked for; one sentence where that cannot be."""
    options = parser().parse_args()
    from atoken.errors import AtokenError

    try:
        make(options)
    except AtokenError as error:
        sys.exit(f"text_to_video: {error}")


def make(options: argparse.Namespace) -> None:
    """Raises: AtokenError."""
    import torch
    from PIL import Image

    from atoken.io import read_image
    from atoken.placement import checked_device
    from generation.pipelines.text_to_video import TextToVideoPipeline
    from generation.prompted import prompts_in, video_folder, write

    device = checked_device(options.device)
    if device.type == "cuda":  # each of several ranks on a machine has a GPU of its own
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    pipeline = TextToVideoPipeline.opened(options.model).to(device)
    height, width = options.size or (None, None)
    how: dict[str, Any] = {
        "negative_prompt": options.negative, "num_frames": options.frames, "height": height, "width": width,
        "num_inference_steps": options.steps, "guidance_scale": options.guidance, "solver": options.solver,
        "shift": options.shift, "overlap": options.overlap,
    }  # fmt: skip
    if options.prompts:
        prompts = prompts_in(options.prompts, options.per_prompt)
        video_folder(pipeline, prompts, options.out, per_prompt=options.per_prompt, seed=options.seed, fps=options.fps,
                     **how)  # fmt: skip
        return
    image = Image.fromarray(read_image(options.image).pixels) if options.image else None
    how |= {"image": image, "generator": torch.Generator().manual_seed(options.seed)}
    suffix = options.out.suffix.lower()
    if suffix in IMAGES:
        pipeline(options.prompt, **how | {"num_frames": 1}).frames[0][0].save(options.out)
    elif suffix == ".atok":
        pipeline(options.prompt, output_type="tokens", **how).frames[0].save(options.out)
    else:
        write(pipeline.stream(options.prompt, fps=options.fps, **how), options.out, options.fps)


if __name__ == "__main__":
    main()
