"""Watching a run: the progress line, ``log.jsonl``, TensorBoard, and an evaluation every so many steps.

Nothing here changes what is trained: an evaluation has a model of its own, and random states are put back.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from atoken.errors import MediaError
from atoken.io.atomic import atomic_path
from atoken.model import ATokenConfig, ATokenModel
from atoken.pretrain import cost, losses
from atoken.pretrain.batches import Batch
from atoken.pretrain.evaluation import HeldOut, evaluate
from atoken.pretrain.stages import Stage, Task
from atoken.text import TextTokenizer
from atoken.train.engine import PlainEngine
from atoken.train.run_folder import RunFolder

EMBEDDING = (losses.kl, losses.semantics, losses.alignment)  # terms that do not read what is decoded


class Watch:
    """Watches the steps of an engine from where it stands; the run's folder has been rewound to there.

    texts: the tokenizer of the model's text side. every: steps from one evaluation to the next; the last step has one,
    too, and 0 is never. All ranks make the same calls; rank 0 alone writes. What it is told of a step is of its own
    micro-batches, but for what the engine's row holds.
    """

    def __init__(self, engine: PlainEngine, run_folder: RunFolder, texts: TextTokenizer | None, every: int) -> None:
        self.engine, self.stage = engine, engine.stage
        self.run_folder, self.texts, self.every = run_folder, texts, every
        self.writes = engine.rank == 0 and engine.step < self.stage.steps  # nothing of a run that is done
        on_cuda = engine.device.startswith("cuda")
        self.peak = cost.device_peak(torch.cuda.get_device_name(engine.device)) if on_cuda else None
        media = {task.modality for task in self.stage.used.values()}
        self.held_out = HeldOut.of(media) if every and self.writes else None
        self.writer = _tensorboard(run_folder.path / "tensorboard", engine.step) if self.writes else None
        self.progress = tqdm(
            total=self.stage.steps, initial=engine.step, desc=self.stage.name, disable=None if self.writes else True
        )
        self.started = self.before = time.monotonic()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        flops = step_flops(self.engine.objective.model.config, self.stage, batches)
        tasks = list(dict.fromkeys(batch.task for batch in batches))
        share = cost.mfu(flops, seconds, self.peak)
        self._log({
            "step": self.engine.step - 1, "tasks": tasks, "tokens": sum(len(b.tokens.feats) for b in batches), **row,
            "skipped": self.engine.skipped, "seconds": round(now - self.started, 3), "data": round(waited, 3),
            "flops": flops, "mfu": share, "memory": peak_memory(self.engine.device),
        })  # fmt: skip
        shown = {task: f"{row[f'{task}/loss']:.4f}" for task in tasks}
        shown |= {"seconds": f"{seconds:.2f}", "data": f"{waited / seconds:.0%}", "MFU": cost.percent(share)}
        self.progress.set_postfix(shown, refresh=False)
        self.progress.update()

    def evaluate_if_due(self) -> None:
        """Evaluate the averaged weights if it is time to; its time, and that of a checkpoint before, is of no step.

        Writes a line of ``evaluation.jsonl`` and ``images/step-NNNNNN.png``, under the number of the last step done.
        Raises: MediaError where the image cannot be written.
        """
        if self.every and (self.engine.step % self.every == 0 or self.engine.step == self.stage.steps):
            averaged = self.engine.averaged()  # all ranks take part
            if self.held_out is not None:
                self._evaluate(averaged, self.held_out)
        self.before = time.monotonic()

    def _evaluate(self, averaged: Mapping[str, Tensor], held_out: HeldOut) -> None:
        device, mixed = self.engine.device, self.stage.mixed_precision
        model = averaged_model(self.engine.objective.model.config, averaged, device)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=mixed):
            numbers, sheet = evaluate(model, held_out, self.texts)
        self._log({"step": self.engine.step - 1, **numbers}, "evaluation")
        if sheet is not None:
            self._image(sheet)

    def _log(self, row: dict[str, Any], name: str = "log") -> None:
        self.run_folder.log(row, name)
        if self.writer is not None:
            for key, value in row.items():
                if isinstance(value, int | float) and key != "step":
                    self.writer.add_scalar(key, value, row["step"])

    def _image(self, sheet: np.ndarray) -> None:
        step = self.engine.step - 1
        path = self.run_folder.path / "images" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path, MediaError) as temporary:
            Image.fromarray(sheet).save(temporary, format="PNG")
        if self.writer is not None:
            self.writer.add_image("reconstructions", sheet, step, dataformats="HWC")


def step_flops(config: ATokenConfig, stage: Stage, batches: Sequence[Batch]) -> int:
    """FLOPs that MFU counts of a step over these micro-batches: forward and backward of the model, without its text."""
    steps, total = config.steps(config.tile_frames), 0
    for batch in batches:
        task = stage.tasks[batch.task]
        if task.modality == "surface":
            parts = cost.gaussian_parts(config, batch.tokens)
        else:
            parts = cost.model_parts(config, cost.tiles(batch.tokens, steps), decode=decodes(task))
        total += cost.training_flops(parts, stage.frozen, checkpointing=stage.checkpointing).counted
    return total


def decodes(task: Task) -> bool:
    """Whether some term of the task reads reconstructions."""
    return any(term.fn not in EMBEDDING for term in task.computed)


def averaged_model(config: ATokenConfig, averaged: Mapping[str, Tensor], device: str) -> ATokenModel:
    """A model of its own on a device, with these parameters, in eval mode; the random states stay as they are."""
    with torch.random.fork_rng([device] if device.startswith("cuda") else []), torch.device(device):
        model = ATokenModel(config)
    model.load_state_dict(model.state_dict() | averaged)
    return model.eval()


def peak_memory(device: str) -> int:
    """Bytes that this process held at most: allocated on a GPU, resident on the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer that takes back what the folder has from ``step`` on; None, and a word about it, without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        message = "TensorBoard is not installed, so the run writes nothing for it: pip install 'atoken[train]'."
        tqdm.write(message, file=sys.stderr)
        return None
    return SummaryWriter(str(folder), purge_step=step)
