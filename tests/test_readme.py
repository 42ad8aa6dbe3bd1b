"""The README says what is true: its tree, its promises, its links, its Python."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    fences = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [code for name, code in fences if name == language]


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


def test_every_promise_is_a_test():
    tests = (ROOT / "tests/tokenizer/test_promises.py").read_text()
    named = re.findall(r"\| `(test_\w+)` \|", README)
    assert len(named) >= 10
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_link_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_runs_as_printed(tmp_path):
    (code,) = blocks("python")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "torch.Size([256, 48]) torch.Size([256, 4])"
    assert (tmp_path / "leaves-again.png").exists()


def test_every_command_and_option_that_is_named_exists():
    from atoken.cli import parser

    actions = parser()._subparsers._group_actions[0].choices
    named = re.findall(r"^atoken (\w+)(.*?)(?:#|$)", "\n".join(blocks("sh")), re.MULTILINE)
    assert {command for command, _ in named} == set(actions)
    for command, rest in named:
        options = actions[command]._option_string_actions
        assert all(option in options for option in re.findall(r"--[\w-]+", rest))
