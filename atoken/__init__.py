"""AToken: one tokenizer for images, videos and 3D assets (arXiv 2509.14476).

``import atoken`` is free: torch, transformers and the registration of the model with ``AutoModel`` load on the first
touch of a name that needs them.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoken.autoencoder import ATokenAutoencoder as ATokenAutoencoder
    from atoken.errors import AtokenError as AtokenError
    from atoken.errors import AtokenWarning as AtokenWarning
    from atoken.gaussians import Gaussians as Gaussians
    from atoken.io import Image as Image
    from atoken.io import Mesh as Mesh
    from atoken.io import Video as Video
    from atoken.io import load_media as load_media
    from atoken.io.token_file import Tokens as Tokens
    from atoken.loading import load as load
    from atoken.model import ATokenConfig as ATokenConfig
    from atoken.model import ATokenModel as ATokenModel
    from atoken.patches import from_grid as from_grid
    from atoken.patches import to_grid as to_grid
    from atoken.statistics import LatentStatistics as LatentStatistics
    from atoken.store.reader import TokenStore as TokenStore
    from atoken.tokenizer import Tokenizer as Tokenizer
    from atoken.tokens import SparseTokens as SparseTokens
    from atoken.tower import ATokenImageProcessor as ATokenImageProcessor
    from atoken.tower import ATokenVisionConfig as ATokenVisionConfig
    from atoken.tower import ATokenVisionModel as ATokenVisionModel

__version__ = "0.1.0"

# OpenMP reads this once, when torch loads it. Threads that spin while they wait take the cores from other processes:
# beside a busy one, a small image then costs many times its CPU time (docs/results.md). ``doctor`` says if it is late.
SPINNING = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_NAMES = {
    "autoencoder": ("ATokenAutoencoder",),
    "errors": ("AtokenError", "AtokenWarning"),
    "gaussians": ("Gaussians",),
    "io": ("Image", "Mesh", "Video", "load_media"),
    "io.token_file": ("Tokens",),
    "model": ("ATokenConfig", "ATokenModel"),
    "patches": ("from_grid", "to_grid"),
    "loading": ("load",),
    "statistics": ("LatentStatistics",),
    "store.reader": ("TokenStore",),
    "tokenizer": ("Tokenizer",),
    "tokens": ("SparseTokens",),
    "tower": ("ATokenImageProcessor", "ATokenVisionConfig", "ATokenVisionModel"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_ROOMS = {"checkpoint", "io", "modalities", "presets"}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Import the home of a public name on its first use."""
    if name in _ROOMS:
        return importlib.import_module(f"atoken.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'atoken' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"atoken.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
