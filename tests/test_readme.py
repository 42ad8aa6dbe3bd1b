"""README and docs say what is true: the tree, guarantees, links, Python, the plan, every path and every command."""

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language, text=README):
    fences = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in fences if name == language]


def spans(text):
    """What stands in backticks outside of blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def commands(text):
    """Command lines of all shell blocks and of prose, without comments and prompts."""
    lines = "\n".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    prose = [span for span in spans(text) if re.match(r"(atoken|python -m|make|torchrun|deepspeed) ", span)]
    return [words for line in [*lines, *prose] if (words := shlex.split(line, comments=True))]


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {Path(name) for name in listed}


def drawn():
    """Paths of the tree: an indented line lies in the last folder before it."""
    paths, folder = set(), Path()
    for line in blocks("")[-1].splitlines():
        name = Path(line.split()[0])
        if line.startswith("  "):
            paths.add(folder / name)
        else:
            folder = name
            paths.add(name)
    return paths


def test_the_tree_is_the_tree():
    folders = {path.parts[0] for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")}
    assert {str(path) for path in drawn() if len(path.parts) == 1} == folders
    inside = {Path(*path.parts[:2]) for path in tracked() if path.parts[0] == "atoken"}
    passed_over = {Path("atoken/__init__.py"), Path("atoken/py.typed")}
    assert {path for path in drawn() if len(path.parts) == 2} == inside - passed_over


def test_every_guarantee_is_a_test():
    tests = (ROOT / "tests/tokenizer/test_guarantees.py").read_text()
    named = re.findall(r"\| `(test_\w+)` \|", README)
    assert len(named) >= 10
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target, _, heading in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", page.read_text()):
        if target.startswith("https://"):
            continue
        other = page.parent / target if target else page
        assert other.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert heading in anchors, f"{target}#{heading}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page):
    files = tracked()
    folders = {parent for path in files for parent in path.parents}
    top, names = {path.parts[0] for path in files}, {path.name for path in files}
    for span in spans(page.read_text()):
        path = Path(span)
        if re.fullmatch(r"[\w.-]+/[\w./-]*", span) and path.parts[0] in top:
            assert path in files or path in folders, span
        elif re.fullmatch(r"\w+\.(py|md)", span):
            assert span in names, span


def parsed(words):
    """Parse a command line with the program's own parser, or look up what it runs; None if it is not one of ours."""
    words = [word for word in words if word not in ("|", "&&", "--")]
    if words[0] in ("torchrun", "deepspeed"):
        flag = "-m" if "-m" in words else "--module"
        return parsed(["python", "-m", *words[words.index(flag) + 1 :]])
    if words[:2] == ["python", "-m"] and words[2] == "atoken":
        return parsed(words[2:])
    if words[0] == "atoken" and len(words) > 1:
        from atoken.cli.parser import parser

        return parser().parse_args(words[1:])
    if words[:2] == ["python", "-m"] and words[2] in ("eval", "mllm"):
        return importlib.import_module(f"{words[2]}.command").parser().parse_args(words[3:])
    if words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks.", "tests.")):
        found = importlib.util.find_spec(words[2])
        assert found, f"there is no {words[2]}"
        source = Path(found.origin).read_text()
        flags = [word for word in words[3:] if word.startswith("--")]
        assert all(f'"{flag}"' in source or f"{flag[2:]}=" in source for flag in flags), words
        return source
    if words[0] == "make" and len(words) > 1:
        target = words[1]
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
        return target
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_parses(page):
    for words in commands(page.read_text()):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                options = parsed(words)
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {said.getvalue().splitlines()[-1]}")
        check_names(options, words)


def check_names(options, words):
    """Stages, presets, fields, tasks and examples that a command names exist."""
    if words[:4] == ["python", "-m", "mllm", "train"]:
        from mllm.training import training

        assert training(options.trains, options.stage, options.changes, None)
    elif getattr(options, "stage", None) and getattr(options, "task", None) is None:
        from atoken.pretrain.command import chosen

        assert chosen(options.preset, options.stage, options.changes, options.teachers)
    if words[:4] == ["python", "-m", "eval", "run"] and options.task != ["TASK"]:
        from eval.tasks import TASKS

        assert set(options.task) <= set(TASKS), options.task
    if options is not None:
        shipped = [word for word in words if word.startswith("examples/")]
        assert [word for word in shipped if not [*ROOT.glob(word)]] == []


def test_the_readme_shows_every_command():
    from atoken.cli.parser import parser

    shown = {words[1] for text in blocks("sh") for words in commands(f"```sh\n{text}```") if words[0] == "atoken"}
    assert shown == set(parser()._subparsers._group_actions[0].choices)


def test_the_plan_is_as_printed(capsys):
    from atoken.cli import main

    recipe = (ROOT / "docs" / "recipe.md").read_text()
    (command,) = [words for words in commands(recipe) if "--plan" in words and "--gpus" in words]
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.strip() in [code.strip() for code in blocks("", recipe)]


def test_the_python_runs_as_printed(tmp_path):
    code, _ = blocks("python")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "torch.Size([256, 48]) torch.Size([256, 4])"
    assert (tmp_path / "leaves-again.png").exists()


def test_images_of_classes_are_made_as_printed():
    from generation.presets import BUNDLED

    if not (BUNDLED / "dit-nano").is_dir():
        pytest.skip("no generators are bundled; make generators trains them")
    _, code = blocks("python")
    command = [sys.executable, "-c", f"{code}\nprint([image.size for image in images])"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[(128, 128), (128, 128), (128, 128)]", done.stderr


@pytest.mark.parametrize("code", blocks("python", (ROOT / "docs" / "tensors.md").read_text()))
def test_examples_of_tensors_run_as_printed_in_15_lines(code, tmp_path):
    assert len(code.strip().splitlines()) <= 15
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = [line.partition("  # ")[2] for line in code.splitlines() if line.startswith("print(")]
    assert [line for line in done.stdout.splitlines() if "real_accelerator" not in line] == shown  # DeepSpeed's note
