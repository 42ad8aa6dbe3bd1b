"""Host memory of a rank while it writes a ZeRO-3 checkpoint of a model of 400 million parameters in fp32.

``torchrun --nproc_per_node 2 -m benchmarks.checkpoint`` takes one step on CPUs, saves, and prints what rank 0 holds:
the peak resident set while it saves, all of the process, as a share of the whole state (weights, EMA and two moments,
16 bytes a parameter). Target: 0.6 on two ranks, a rank's own half and buffers.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from atoken.train.checkpoints import Checkpoints
from atoken.train.objective import Objective
from atoken.train.recipe import Recipe
from atoken.train.zero import ZeroEngine
from benchmarks.tables import head, options, row
from tests.train.flow import Points

TARGET = 0.6


class Layers(Objective[Points]):
    """Plain linear layers, one after another."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, batch: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean square of what comes out."""
        x = batch.rows
        for layer in self.layers:
            x = layer(x)
        return x.square().mean(), {}

    def flops(self, batch: Points) -> int:
        """Forward and backward."""
        return 6 * len(batch) * sum(parameter.numel() for parameter in self.parameters())


def main() -> None:
    """Print the table, on rank 0."""
    sizes = options(__doc__, layers=16, width=5000)
    state = 16 * sizes.layers * sizes.width**2
    engine = ZeroEngine(Layers(sizes.layers, sizes.width), Recipe(mixed_precision=False), "cpu", 3)
    engine.train([Points("layers", torch.randn(4, sizes.width))])
    before = _status("VmRSS")
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        distributed.broadcast_object_list(folder)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        engine.save(Checkpoints(folder[0]))
        peak = _status("VmHWM")
        distributed.barrier()
    if engine.rank == 0:
        head("rank 0 holds", "GB", "share of the state")
        for what, size in {"before": before, "at most, while it saves": peak}.items():
            row(what, f"{size / 1e9:.2f}", f"{size / state:.2f}")
        print(f"\nTarget {TARGET}: {'reached' if peak <= TARGET * state else 'missed'}.")


def _status(name: str) -> int:
    """Bytes of this process, as Linux counts them."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
