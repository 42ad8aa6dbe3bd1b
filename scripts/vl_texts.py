"""Questions about Python without media, as JSONL: what functions and classes of its library do, by their docstrings.

A vision-language model that is trained on them, too, still writes sentences.
"""

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path

MODULES = [
    "argparse", "ast", "base64", "bisect", "calendar", "collections", "configparser", "contextlib", "copy", "csv",
    "datetime", "decimal", "difflib", "email.message", "fractions", "functools", "gettext", "glob", "hashlib", "heapq",
    "html", "http.client", "inspect", "io", "itertools", "json", "logging", "mailbox", "math", "operator", "os",
    "os.path", "pathlib", "pickle", "pprint", "queue", "random", "re", "sched", "selectors", "shelve", "shlex",
    "shutil", "socket", "sqlite3", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "time", "timeit", "tokenize", "traceback", "types", "unicodedata", "unittest.mock", "urllib.parse",
    "urllib.request", "uuid", "warnings", "wave", "weakref", "xml.etree.ElementTree", "zipfile", "zlib",
]  # fmt: skip
PHRASES = ("What does {} do?", "What is {} for?", "Explain {} in one sentence.", "Describe {} of Python.")
WORDS = range(6, 100)  # of an answer


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file, whose folder is made")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (name, said) in enumerate(dict.fromkeys(described())):
        question = PHRASES[number % len(PHRASES)].format(name)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        records.append(json.dumps({"messages": turns}))
    options.out.write_text("\n".join(records) + "\n", encoding="utf-8")
    print(f"{len(records)} questions in {options.out}")


def described() -> Iterator[tuple[str, str]]:
    """Names, and what is said of each in whole sentences, up to the first paragraph that is none."""
    for module in MODULES:
        for name, value in sorted(vars(import_module(module)).items()):
            if name.startswith("_") or not (inspect.isroutine(value) or inspect.isclass(value)):
                continue
            found = [(f"{module}.{name}", value)]
            if inspect.isclass(value) and value.__module__ == module:
                own = sorted(vars(value).items())
                found += [(f"{module}.{name}.{of}", each) for of, each in own if not of.startswith("_")]
            for full, each in found:
                paragraphs = [" ".join(one.split()) for one in (inspect.getdoc(each) or "").split("\n\n")]
                prose = "\n\n".join(takewhile(re.compile(r"[A-Z][a-z]+ .*\.").fullmatch, paragraphs))
                if len(prose.split()) in WORDS:
                    yield full, prose


if __name__ == "__main__":
    main()
