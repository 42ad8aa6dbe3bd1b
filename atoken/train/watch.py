"""Watching a run: the progress line, ``log.jsonl``, TensorBoard, and an evaluation every so many steps.

Nothing here changes what is trained: random states are put back after an evaluation.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from atoken.atomic import atomic_path
from atoken.errors import MediaError
from atoken.train import devices
from atoken.train.engine import PlainEngine
from atoken.train.objective import Batch, Evaluate
from atoken.train.run_folder import RunFolder


class Watch:
    """Watches the steps of an engine from where it stands; the run's folder has been rewound to there.

    evaluate: gives numbers and, where it can, an image, of EMA weights. every: steps from one evaluation to the next;
    the last step has one, too, and 0 is never. All ranks make the same calls; rank 0 alone evaluates and writes. The
    micro-batches that it is told of are those of its own rank, the engine's row is of all.
    """

    def __init__(self, engine: PlainEngine, run_folder: RunFolder, evaluate: Evaluate | None, every: int) -> None:
        self.engine, self.run_folder, self.evaluate = engine, run_folder, evaluate
        self.every = 0 if evaluate is None else every
        steps = engine.recipe.steps
        self.writes = engine.rank == 0 and engine.step < steps  # a run that is done changes no more
        on_cuda = engine.device.startswith("cuda")
        self.peak = devices.device_peak(torch.cuda.get_device_name(engine.device)) if on_cuda else None
        self.writer = _tensorboard(run_folder.path / "tensorboard", engine.step) if self.writes else None
        self.progress = tqdm(
            total=steps, initial=engine.step, desc=run_folder.path.name, disable=None if self.writes else True
        )
        self.started = self.before = time.monotonic()

    def close(self) -> None:
        """The run ends, or stops."""
        self.progress.close()
        if self.writer is not None:
            self.writer.close()

    def step(self, row: Mapping[str, Any], batches: Sequence[Batch], waited: float) -> None:
        """Log a step that is done: the engine's row, this rank's micro-batches, and how long they had to be waited for.

        Adds to the row ``tasks``, ``tokens``, ``skipped`` (steps, so far), ``seconds`` (since the start), ``data``
        (seconds waited), ``flops``, ``mfu`` (None where the device's peak is unknown) and ``memory`` (bytes, peak).
        """
        now = time.monotonic()
        seconds, self.before = now - self.before, now
        if not self.writes:
            return
        flops = sum(self.engine.objective.flops(batch) for batch in batches)
        tasks = list(dict.fromkeys(batch.task for batch in batches))
        share = devices.mfu(flops, seconds, self.peak)
        self._log({
            "step": self.engine.step - 1, "tasks": tasks, "tokens": sum(map(len, batches)), **row,
            "skipped": self.engine.skipped, "seconds": round(now - self.started, 3), "data": round(waited, 3),
            "flops": flops, "mfu": share, "memory": devices.peak_memory(self.engine.device),
        })  # fmt: skip
        shown = {task: f"{row[f'{task}/loss']:.4f}" for task in tasks}
        shown |= {"seconds": f"{seconds:.2f}", "data": f"{waited / seconds:.0%}", "MFU": devices.percent(share)}
        self.progress.set_postfix(shown, refresh=False)
        self.progress.update()

    def evaluate_if_due(self) -> None:
        """Evaluate the EMA weights if it is time to: before the first step, every so many, and after the last.

        Writes a line of ``evaluation.jsonl`` and ``images/step-NNNNNN.png``, under the number of the last step done, or
        0 before the first. Raises: MediaError where the image cannot be written.
        """
        if self.every and (self.engine.step % self.every == 0 or self.engine.step == self.engine.recipe.steps):
            weights, device = self.engine.ema_weights(), self.engine.device  # all ranks take part
            if self.evaluate is not None and self.writes:
                with torch.random.fork_rng([device] if device.startswith("cuda") else []):
                    numbers, image = self.evaluate(weights)
                self._log({"step": max(self.engine.step - 1, 0), **numbers}, "evaluation")
                if image is not None:
                    self._image(image)

    def restart_clock(self) -> None:
        """The next step begins: the time since the last one belongs to none."""
        self.before = time.monotonic()

    def _log(self, row: dict[str, Any], name: str = "log") -> None:
        self.run_folder.log(row, name)
        if self.writer is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key != "step":
                    self.writer.add_scalar(key, value, row["step"])

    def _image(self, image_HW3: np.ndarray) -> None:
        step = max(self.engine.step - 1, 0)
        path = self.run_folder.path / "images" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path, MediaError) as temporary:
            Image.fromarray(image_HW3).save(temporary, format="PNG")
        if self.writer is not None:
            self.writer.add_image("evaluation", image_HW3, step, dataformats="HWC")


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer that takes back what the folder has from ``step`` on; None, and a note about it, without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        message = "TensorBoard is not installed, so the run writes nothing for it: pip install 'atoken[train]'."
        tqdm.write(message, file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=step)
