"""When an answer counts as right: in the harness, in lmms-eval, and wherever answers are compared."""

from __future__ import annotations

ARTICLES = ("a", "an", "the")


def plain(answer: str) -> str:
    """An answer in small letters, without a first article, a last full stop and spaces that say nothing."""
    words = answer.lower().strip(" \t\n.!").split()
    return " ".join(words[1:] if words[:1] and words[0] in ARTICLES else words)


def is_right(answer: str, expected: str) -> bool:
    """Whether both are the same text as ``plain`` has them."""
    return plain(answer) == plain(expected)
