"""AToken: one tokenizer for images, videos and 3D assets (arXiv 2509.14476).

``import atoken`` is free: torch, transformers and the registration of the model with ``AutoModel`` load on the first
touch of a name that needs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoken.errors import AtokenError, AtokenWarning
    from atoken.gaussians import Gaussians
    from atoken.io import Image, Mesh, Video, load_media
    from atoken.io.token_file import Tokens
    from atoken.model import ATokenConfig, ATokenModel
    from atoken.tokenizer import Tokenizer, load
    from atoken.tokens import SparseTokens

__version__ = "0.1.0"

_HOME = {
    "ATokenConfig": "atoken.model",
    "ATokenModel": "atoken.model",
    "AtokenError": "atoken.errors",
    "AtokenWarning": "atoken.errors",
    "Video": "atoken.io",
    "Gaussians": "atoken.gaussians",
    "Image": "atoken.io",
    "Mesh": "atoken.io",
    "SparseTokens": "atoken.tokens",
    "Tokenizer": "atoken.tokenizer",
    "Tokens": "atoken.io.token_file",
    "load": "atoken.tokenizer",
    "load_media": "atoken.io",
}
_ROOMS = {"checkpoint", "io", "modalities", "presets"}

__all__ = [
    "ATokenConfig",
    "ATokenModel",
    "AtokenError",
    "AtokenWarning",
    "Gaussians",
    "Image",
    "Mesh",
    "SparseTokens",
    "Tokenizer",
    "Tokens",
    "Video",
    "load",
    "load_media",
]


def __getattr__(name: str) -> Any:
    """Import the home of a public name on its first use."""
    if name in _ROOMS:
        return importlib.import_module(f"atoken.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'atoken' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])
