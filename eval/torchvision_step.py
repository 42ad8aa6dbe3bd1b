"""Make a torchvision that was built for CUDA importable without CUDA.

Its kernels do not load there, so that its import fails, and with it that of every package that looks for it:
torch-fidelity, lpips, and transformers, and so AToken. None of these needs the kernels. This runs before their import.
"""

from __future__ import annotations

import importlib
import sys

import torch

_DECLARED: list[torch.library.Library] = []  # what a library declares lasts as long as the library


def mend_torchvision() -> bool:
    """Import torchvision; where its operators are missing, declare the two that it looks for and import it again.

    Returns whether it is installed. Where the import works, nothing is changed.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half loaded
        _declare_operators()
        importlib.import_module("torchvision")
    return True


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
