"""Which code a number comes from: every module of this project that is reached by imports from those that measure."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import atoken

ROOT = Path(__file__).parents[1]
MEASURING = (
    "eval.assets", "eval.english", "eval.generation", "eval.measures", "eval.merging", "eval.metrics", "eval.prepare",
    "eval.probes", "eval.run", "eval.sources",
)  # fmt: skip
# Models under test and reports: a change there does not change how numbers are measured.
APART = ("atoken.coder", "atoken.loading", "atoken.tokenizer", "eval.models", "eval.report")
_MODULE = re.compile(r"(atoken|eval|mllm)(\.\w+)*")


@cache
def code_version(modules: tuple[str, ...] = MEASURING) -> str:
    """AToken's version and a digest of the code that measures."""
    return f"{atoken.__version__}+{code_digest(modules, APART)}"


def code_digest(modules: Iterable[str], apart: Iterable[str] = (), root: Path = ROOT) -> str:
    """Twelve hexadecimal digits over the text of every file of ``closure``."""
    files = sorted(closure(modules, apart, root).items())
    return hashlib.sha256(json.dumps([(name, _text(path)) for name, path in files]).encode()).hexdigest()[:12]


def closure(modules: Iterable[str], apart: Iterable[str] = (), root: Path = ROOT) -> dict[str, Path]:
    """The files of modules, of what is in packages among them, and of all that these import, by module name.

    Imports within functions count, and so do modules that a text names, which run in a process of their own. Modules
    below ``apart`` do not count.
    """
    found: dict[str, Path] = {}
    waiting = [inside for name in modules for inside in _with_contents(name, root)]
    while waiting:
        name = waiting.pop()
        path = _file(name, root)
        if path is None or name in found or any(f"{name}.".startswith(f"{other}.") for other in apart):
            continue
        found[name] = path
        if name not in ("atoken", "mllm"):  # their __init__ load nothing, they only say where public names are
            waiting += [name.rpartition(".")[0], *_named(_text(path))]
    return found


@cache
def _named(text: str) -> tuple[str, ...]:
    return tuple(_names(ast.parse(text)))


def _names(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module imports when it runs, or mentions as a whole text."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        yield from _names(node)


def _with_contents(name: str, root: Path) -> Iterator[str]:
    yield name
    for path in (root / name.replace(".", "/")).rglob("*.py"):
        yield ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _file(name: str, root: Path) -> Path | None:
    """Where a module of this project is; None for any other name."""
    if not _MODULE.fullmatch(name):
        return None
    home = root / name.replace(".", "/")
    return next((path for path in (home.with_suffix(".py"), home / "__init__.py") if path.is_file()), None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
