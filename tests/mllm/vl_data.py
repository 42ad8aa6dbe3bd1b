"""Tiny sources and mixtures to train vision-language models on."""

import json

from tests.mllm.tiny_language import write_language, write_tower

CHANGES = (
    "epochs=0", "steps=6", "tokens=200", "micro_batches=2", "warmup=2", "lr=1e-3", "language_lr=1.0", "ema=0.5",
    "rank=2", "image_pool=2", "frames=4", "slow_frames=2", "fast_output=2", "asset_tokens=20",
)  # fmt: skip
MIXTURE = """
datasets:
  - {questions: image, samples: 24, size: [32, 48], turns: 2}
  - {questions: video, samples: 8, size: [4, 32, 32]}
  - {json_path: text.jsonl}
"""
CHECKED = """
datasets:
  - {questions: image, samples: 6, size: [32, 48], seed: 9}
"""


def write_sources(folder, kind="qwen2"):
    """A folder with ``language``, ``tower``, ``mix.yaml`` and ``checked.yaml``."""
    write_language(folder / "language", kind)
    write_tower(folder / "tower")
    said = [{"role": "user", "content": "How many? "}, {"role": "assistant", "content": "Two, three, four. " * 8}]
    (folder / "text.jsonl").write_text("\n".join([json.dumps({"messages": said})] * 6))
    (folder / "mix.yaml").write_text(MIXTURE)
    (folder / "checked.yaml").write_text(CHECKED)
    return folder


def words(folder, out, *more, trains="projector+lora", changes=()):
    """Of a command that trains; its changes come last."""
    sources = ["--llm", str(folder / "language"), "--tower", str(folder / "tower"), "--data", str(folder / "mix.yaml")]
    return ["train", *sources, "--trains", trains, "-o", str(out), "--workers", "0", *more, "--set", *CHANGES, *changes]
