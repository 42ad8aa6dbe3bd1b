"""The command line: ``atoken COMMAND``, with the commands of ``parser``.

Exit codes: 0 done, 1 some inputs failed (listed, the others done), 2 usage. Only what parsing needs is imported here.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from atoken.cli.parser import parser
from atoken.errors import AtokenError, AtokenWarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = parser().parse_args(arguments)
    try:
        console = import_module("atoken.cli.console")
        command = getattr(import_module(f"atoken.cli.{options.module}"), options.command)
        with warnings.catch_warnings():
            warnings.simplefilter("always", AtokenWarning)
            warnings.showwarning = _show_warning
            console.silence_transformers()
            console.refuse_addresses(options)
            return int(command(options))
    except AtokenError as error:
        print(f"atoken: {error}", file=sys.stderr)  # noqa: T201 - the program's voice
        return 1
    except BrokenPipeError:  # who reads the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("atoken: interrupted.", file=sys.stderr)  # noqa: T201
        return 130


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print warnings that are meant for a person, and none that libraries give about themselves."""
    if issubclass(category, AtokenWarning):
        print(f"atoken: note: {message}", file=sys.stderr)  # noqa: T201
