"""What a device can do and what a run takes of it: peak FLOP/s, model FLOPs utilisation (MFU), memory."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# Dense bf16 FLOP/s by the makers' data sheets (half of what they print "with sparsity"), narrower names first:
# NVIDIA Blackwell (B200), H200, H100 (SXM, PCIe, NVL), A100, L40S and L4; AMD Instinct MI300X.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "MI300X": 1307e12,
}

# Options of glibc's mallopt: no allocation is mapped alone (M_MMAP_MAX); of what is free, 2 GiB are kept
# (M_TRIM_THRESHOLD), and 256 MiB more are asked for at once (M_TOP_PAD).
GLIBC = {-4: 0, -1: 2**31 - 1, -2: 2**28}


def device_peak(name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name that torch gives it; None where unknown, and for a slice of one."""
    words = set(re.findall(r"\w+", name))
    known = (rate for key, rate in PEAKS.items() if words.issuperset(key.split()))
    return None if "MIG" in words else next(known, None)


def mfu(flops: float, seconds: float, peak: float | None, devices: int = 1) -> float | None:
    """FLOPs of all devices (``Objective.flops``) as a share of their peak; None where that is unknown."""
    return None if peak is None else flops / (seconds * peak * devices)


def percent(share: float | None) -> str:
    """A share for people to read."""
    return "not available" if share is None else f"{share:.1%}"


def peak_memory(device: str) -> int:
    """Bytes that this process held at most: allocated on a GPU, resident on the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux lets a process inherit ru_maxrss from the one that started it
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def without_denormals() -> Iterator[None]:
    """Denormals are zero in this thread and in those that start meanwhile.

    Weights of sharp attention are full of them, which made some steps twice as long (docs/log.md).
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def keep_freed_memory() -> None:
    """From now on memory that is freed stays with this process, where its C library is glibc.

    Else the large tensors of each step are mapped, filled with zeros by the kernel and unmapped (docs/results.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in GLIBC.items():
            mallopt(option, value)
