"""The checkpoints of a run: each process writes what it holds, and any other number of processes resumes from it.

| file of ``step-NNNNNN/`` | holds |
| --- | --- |
| ``rank-NNNNN.safetensors`` | of one process, its piece of each trained parameter: weights, EMA, moments; flat |
| ``numbers.json`` | steps seen and applied |
| ``manifest.json`` | SHA-256 of these, and of ``../frozen-NNNNNN.safetensors``, what is not trained, written once |

The metadata of a file say where in its parameter each piece starts. A checkpoint is written into a temporary folder,
which is on disk, manifest last, before it is renamed; resuming takes the newest one whose files match their manifest.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from atoken.atomic import atomic_path, sync
from atoken.errors import AtokenWarning, CheckpointError
from atoken.train import manifest
from atoken.train.run_folder import rank_of_launch, step_of, writing

KEEP = 2  # checkpoints
Exchange = Callable[[str], list[str]]  # every rank's text, on all ranks


class Checkpoint:
    """One that was verified: its numbers, and any slice of what it holds, whichever process wrote that."""

    def __init__(self, folder: Path, sums: Mapping[str, str]) -> None:
        self.numbers = json.loads((folder / "numbers.json").read_text())
        self.frozen = {name: value for name, value in sums.items() if name.startswith("../")}
        self.frozen_keys: set[str] = set()
        self._pieces: dict[str, list[tuple[int, Any]]] = {}  # where each starts, and its file
        for name in sums:
            if name.endswith(".safetensors"):
                file: Any = safe_open(folder / name, "pt")
                starts = json.loads(file.metadata()["starts"])
                for key in file.keys():  # noqa: SIM118 - it is no dictionary
                    self._pieces.setdefault(key, []).append((starts[key.partition("/")[2]], file))
                self.frozen_keys |= set(file.keys()) if name in self.frozen else set()

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def read(self, key: str, start: int, count: int) -> Tensor:
        """Numbers ``start`` to ``start + count`` of ``weights/NAME``, say; flat. Raises: CheckpointError."""
        parts = []
        for first, file in sorted(self._pieces.get(key, ()), key=lambda piece: piece[0]):
            piece = file.get_slice(key)
            begin, end = max(start - first, 0), min(start + count - first, piece.get_shape()[0])
            if begin < end:
                parts.append(piece[begin:end])
        found = torch.cat(parts) if parts else torch.empty(0)
        if len(found) != count:
            raise CheckpointError(f"The checkpoint does not fit what is trained: it has {len(found)} of {count} {key}.")
        return found

    @torch.no_grad()
    def fill(self, module: nn.Module) -> None:
        """Set all parameters of a module that no engine has yet. Raises: CheckpointError."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.read(f"weights/{name}", 0, parameter.numel()).view(parameter.shape))


class Checkpoints:
    """Those in the folder of a run. ``frozen``: the file of what is not trained, from within one, and its SHA-256."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frozen: dict[str, str] = {}

    def folders(self) -> list[Path]:
        """Oldest first."""
        return sorted((x for x in self.path.glob("step-*") if re.fullmatch(r"step-\d+", x.name)), key=step_of)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; None where there is none at all.

        Those before it that are damaged are named in an AtokenWarning. Raises: CheckpointError where all are damaged: a
        run that began anew would throw away its log.
        """
        damaged: list[str] = []
        for folder in reversed(self.folders()):
            try:
                found = Checkpoint(folder, manifest.read(folder))
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if damaged and rank_of_launch() == 0:
                message = f"{' '.join(damaged)} The run resumes from {folder.name}."
                warnings.warn(message, AtokenWarning, stacklevel=2)
            return found
        if damaged:
            raise CheckpointError(
                f"All checkpoints in {self.path} are damaged; remove them to begin the run anew. {damaged[0]}"
            )
        return None

    def keep_frozen(self, parameters: Mapping[str, Tensor], saved: Checkpoint | None) -> None:
        """Write what is not trained, unless ``saved`` names a file that holds just that. Raises: CheckpointError."""
        sizes = {f"weights/{name}": tensor.numel() for name, tensor in parameters.items()}
        if saved and saved.frozen_keys == set(sizes):
            self.frozen = saved.frozen
        elif sizes:
            tensors = {f"weights/{name}": tensor.detach().flatten().cpu() for name, tensor in parameters.items()}
            if saved:
                tensors = {key: saved.read(key, 0, size) for key, size in sizes.items()}
            path = self.path / f"frozen-{saved.numbers['step'] if saved else 0:06d}.safetensors"
            with writing(path), atomic_path(path, CheckpointError) as temporary:
                save_file(tensors, temporary, {"starts": json.dumps(dict.fromkeys(parameters, 0))})
            self.frozen = {f"../{path.name}": manifest.sha256(path)}

    def save(
        self,
        numbers: Mapping[str, int],
        tensors: Mapping[str, Tensor],
        starts: Mapping[str, int],
        rank: int = 0,
        exchange: Exchange = lambda text: [text],
    ) -> None:
        """Write a checkpoint, then drop all but the newest ``KEEP``; all ranks call it.

        tensors: flat pieces by ``KIND/NAME``; starts: where each begins in its parameter, by name.
        Raises: CheckpointError, on all ranks (a full disk, say).
        """
        final = self.path / f"step-{numbers['step']:06d}"
        part = self.path / f".{final.name}.part"
        file = part / f"rank-{rank:05d}.safetensors"

        def begin() -> None:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()

        def write() -> str:
            save_file(dict(tensors), file, {"starts": json.dumps(dict(starts))})
            sync(file)
            return manifest.sha256(file)

        def end() -> None:
            (part / "numbers.json").write_text(json.dumps(dict(numbers)))
            manifest.seal(part, {name: value for name, value in sums.items() if value} | self.frozen)
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            sync(self.path)

        try:
            _together(exchange, final, begin if rank == 0 else None)
            found = _together(exchange, final, write if tensors else None)
            sums = {f"rank-{number:05d}.safetensors": value for number, value in enumerate(found)}
            _together(exchange, final, end if rank == 0 else None)
        except CheckpointError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if rank == 0:
            self._drop_old()

    def _drop_old(self) -> None:
        for old in self.folders()[:-KEEP]:
            shutil.rmtree(old, ignore_errors=True)  # what stays is tried again after the next one
        named = set()
        for folder in self.folders():
            with suppress(OSError, ValueError):
                named |= json.loads((folder / manifest.NAME).read_text()).keys()
        for file in self.path.glob("frozen-*.safetensors"):
            if f"../{file.name}" not in named:
                file.unlink()


def _together(exchange: Exchange, path: Path, action: Callable[[], str | None] | None) -> list[str]:
    """What ``action`` returns on each rank, once it is done on all. Raises: CheckpointError, on all, if it fails."""
    try:
        with writing(path):
            said = [action() if action else None, ""]
    except CheckpointError as error:
        said = [None, str(error)]
    found = [json.loads(text) for text in exchange(json.dumps(said))]
    for _, failure in found:
        if failure:
            raise CheckpointError(failure)
    return [result for result, _ in found]
