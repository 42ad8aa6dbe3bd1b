"""What all benchmarks print and ask for: rows of a Markdown table, and whole numbers as options."""

from __future__ import annotations

import argparse


def options(words: str | None, **numbers: int) -> argparse.Namespace:
    """Options ``--name`` of the command line, each with its default; ``words`` is the help text."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    return parser.parse_args()


def head(*names: str) -> None:
    """Print the head of a table."""
    row(*names)
    print("|" + " --- |" * len(names))


def row(*cells: object) -> None:
    """Print a row at once: the next one may take minutes."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
