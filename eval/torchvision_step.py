"""Makes a torchvision importable that was built for CUDA where there is none.

Its kernels do not load there, and not only its own import fails but that of all that looks for it: torch-fidelity,
lpips, and transformers, so AToken, too. None of these needs the kernels. So this step comes before their import.
"""

from __future__ import annotations

import importlib
import sys

import torch

_DECLARED: list[torch.library.Library] = []  # what a library declares is gone with it


def mend_torchvision() -> bool:
    """Import torchvision; where that fails for want of its operators, declare the two it looks for, and try again.

    Returns whether it is installed. Where it works nothing is changed.
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
