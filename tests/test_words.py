"""The field's words: what people read says image, video, modality and the like, not words of our own.

Read are the help of every command, README and docs (not the log, which is about the past), public names, and messages
of errors. Each row of ``WORDS`` is a word that has a better one; what is allowed all the same is in ``ALLOWED``.
"""

import argparse
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for room in ("atoken", "mllm", "eval", "benchmarks") for path in (ROOT / room).rglob("*.py"))
DOCS = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md")]

# In sentences, whatever the case; what is to be written instead.
PROSE = {
    r"pictures?": "image",
    r"clips?": "video",
    r"medium": "modality",
    r"kinds?": "modality, or type",
    r"bins?": "micro-batch",
    r"rooms?": "token budget, or package",
    r"feeds?": "dataset",
    r"part of an asset|parts of (an asset|assets)": "crop",
    r"ours|theirs": "prediction, target",
    r"naming|named (right|wrong)": "zero-shot classification",
    r"subjects?": "model, or topic",
    r"seams?": "blocking artefacts",
    r"each with a place|places? of (a |the )?(tokens?|voxels?)|positions? and places?": "position",
    r"(first|second|third|fourth|this|that|one|short) go(es)?": "run",
    r"runs? [PQRS]\b": "run",
    r"bars?": "target",
    r"promise[sd]?": "guarantee",
    r"turned by muon": "updated by Muon",
    r"averaged? (of )?(the )?(model|weights)": "EMA",
    r"sheets?": "image grid",
}
# Parts of names, such as ``naming`` in ``naming_task`` or ``NamingTask``.
NAMES = {
    "picture", "pictures", "clip", "clips", "medium", "kind", "kinds", "bin", "bins", "room", "rooms", "feed", "feeds",
    "beside", "part", "parts", "ours", "theirs", "made", "naming", "named", "subject", "subjects", "seam", "seams",
    "place", "places", "bar", "bars", "promise", "promises", "turned", "sheet", "sheets",
}  # fmt: skip

# Phrases of the field, or of other people, that contain such a word.
ALLOWED_PHRASES = [
    r"CLIP\w*",  # the model, and what is named after it; only in capitals
    r"clip-vit-large-patch14",  # its name on the hub
    r"`clip/`",  # the folder of that teacher's files
    r"teachers? +clip|0\.2 clip",  # that teacher and its loss, as --plan prints them
    r"\.(venv|lmms)/bin",
    r"feed-?forward",
    r"preset medium",  # of x264
]
# Public names that contain such a word and mean something else, as file:name.
ALLOWED_NAMES = {
    **dict.fromkeys(("atoken/pretrain/losses.py:clip", "atoken/pretrain/teachers.py:clip"), "the CLIP loss"),
    "atoken/pretrain/teachers.py:CLIP": "its network",
    "atoken/train/recipe.py:clip": "the largest norm of a gradient",
    "atoken/report/charts.py:BINS": "of a histogram",
    **dict.fromkeys((f"atoken/media/mesh_parts.py:{name}" for name in ("mesh_parts", "Part", "parts")), "of a mesh"),
    **dict.fromkeys((f"atoken/data/synthetic/textures.py:{name}" for name in ("sheet", "sheets")), "of a pattern"),
    "atoken/data/sources/tar.py:kind": "of a member of an archive: file, link, header",
    **dict.fromkeys((f"atoken/media/{name}.py:kind" for name in ("process", "worker")), "of a message"),
    **dict.fromkeys(
        ("eval/atoken_features.py:kinds", "eval/networks.py:kinds", "eval/metrics/distribution.py:kind",
         "eval/metrics/features.py:kind", "eval/metrics/classes.py:kind"),
        "of features: pooled, spatial, probabilities",
    ),
}  # fmt: skip


def found_in(text: str) -> list[str]:
    """What is to be replaced in a text, as ``word (better)``."""
    for phrase in ALLOWED_PHRASES:
        text = re.sub(phrase, " ", text)
    hits = {word: re.search(rf"\b({word})\b", text, re.IGNORECASE) for word in PROSE}
    return [f"{hit[0]} ({PROSE[word]})" for word, hit in hits.items() if hit]


def words_of(name: str) -> list[str]:
    """The words of a name in snake case, camel case or capitals."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def public_names(path: Path) -> set[str]:
    """The module, its constants, classes, fields, functions and parameters, if they begin with no underscore."""
    names = {path.stem}

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(child.name)
                if not child.name.startswith("_"):
                    names.update(arg.arg for arg in ast.walk(child.args) if isinstance(arg, ast.arg))
                continue  # its own variables are its own business
            if isinstance(child, ast.ClassDef):
                names.add(child.name)
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                names.update(name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
            visit(child)

    visit(ast.parse(path.read_text()))
    return {name for name in names if not name.startswith("_")}


def messages(path: Path) -> list[tuple[int, str]]:
    """Line and text of every string of several words that is no docstring: errors, warnings, tables, pages."""
    tree = ast.parse(path.read_text())
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in bare]
    return [(node.lineno, node.value) for node in strings if isinstance(node.value, str) and " " in node.value.strip()]


def helps(parser: argparse.ArgumentParser) -> dict[str, str]:
    """What ``--help`` of every command prints, by command."""
    found = {parser.prog: parser.format_help()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= helps(command)
    return found


def all_helps() -> dict[str, str]:
    from atoken.cli.parser import parser
    from eval.command import parser as eval_parser

    return helps(parser()) | helps(eval_parser())


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_pages_have_the_fields_words(page):
    lines = enumerate(page.read_text().splitlines(), 1)
    assert [f"{number}: {hit}" for number, line in lines for hit in found_in(line)] == []


def test_help_has_the_fields_words():
    assert [f"{command}: {hit}" for command, text in all_helps().items() for hit in found_in(text)] == []


def test_errors_have_the_fields_words():
    said = [(path, line, text) for path in CODE for line, text in messages(path)]
    assert len(said) > 200  # that they are found at all
    assert [f"{p.relative_to(ROOT)}:{line}: {hit}" for p, line, text in said for hit in found_in(text)] == []


def test_names_have_the_fields_words():
    public = {f"{path.relative_to(ROOT)}:{name}" for path in CODE for name in public_names(path)}
    wrong = {name for name in public if NAMES & {*words_of(name.rpartition(":")[2])}}
    assert sorted(wrong - set(ALLOWED_NAMES)) == []
    assert sorted(set(ALLOWED_NAMES) - wrong) == []  # an exception that is not needed any more


def test_the_words_are_found_where_they_are():
    assert found_in("two Pictures and a clip of the third go") == ["Pictures (image)", "clip (video)", "third go (run)"]
    assert found_in("CLIP4Clip, .venv/bin/atoken and openai/clip-vit-large-patch14") == []
    assert words_of("NamedClips") == ["named", "clips"]
    assert words_of("HTMLPage_2_BINS") == ["html", "page", "bins"]
    assert words_of("q_NHK") == ["q", "nhk"]
