"""Who may import whom, what a minimal install holds, and what stays unloaded until it is needed."""

import ast
import graphlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The house, top floor first. A room is a module or a folder of atoken. An import must lead to a
# lower floor or stay in its room; rooms on one floor do not see each other. __init__ is what "import atoken" gives.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"doctor", "fetch", "lmms"},
    {"store"},
    {"photographs", "gguf"},
    {"tower"},
    {"loading"},
    {"tokenizer", "autoencoder"},
    {"coder"},
    {"pretrain"},
    {"train"},
    {"checkpoint", "export", "placement", "text"},
    {"presets", "foreign"},
    {"model"},
    {"transformer"},
    {"gaussian_decoder"},
    {"gaussians"},
    {"data", "report"},
    {"io"},
    {"modalities", "image_processor", "metrics", "layers", "rasterize"},
    {"media", "patches"},
    {"tokens", "attention", "rope", "bottleneck", "cameras", "mesh", "statistics"},
    {"onednn"},
    {"atomic", "summary"},
    {"errors"},
    {"__init__"},
]
SIBLINGS = {"mllm", "generation", "eval", "demos", "scripts", "benchmarks", "tests"}
OPTIONAL = {
    "DracoPy",
    "deepspeed",
    "diffusers",
    "flash_attn",
    "trimesh",
    "embreex",
    "gsplat",
    "scipy",
    "ray",
    "pyarrow",
    "matplotlib",
    "pillow_heif",
    "usearch",
    "gguf",
    "lmms_eval",
}  # imported late
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # where the import is not the package's name


class Import(NamedTuple):
    """``where`` (a module of atoken) imports ``name``; ``late``: inside a function."""

    where: str
    name: str
    late: bool


class Imports(ast.NodeVisitor):
    """Every import of one module but those for the type checker."""

    def __init__(self, where):
        self.where, self.found, self.depth = where, [], 0

    def visit_Import(self, node):
        self.found += [Import(self.where, alias.name, self.depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"{self.where}: relative imports hide what they name"
        self.found += [Import(self.where, f"{node.module}.{alias.name}", self.depth > 0) for alias in node.names]

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_If(self, node):
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)


def modules(package="atoken"):
    """Names below a package (``io.load``), and their files."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT / package).with_suffix("").parts): file for file in files}


def all_imports(package="atoken"):
    found = []
    for name, file in modules(package).items():
        visitor = Imports(name)
        visitor.visit(ast.parse(file.read_text()))
        found += visitor.found
    return found


def room(module):
    return module.split(".")[0]


ROOMS = {room(module) for module in modules()}


def target_room(name):
    """The room that ``atoken.x.y`` is in; a plain name of the package itself is in __init__."""
    inside = name.removeprefix("atoken").removeprefix(".").split(".")[0]
    inside = room(inside)
    return inside if inside in ROOMS else "__init__"


def test_every_room_is_in_the_house():
    placed = [name for floor in FLOORS for name in floor]
    assert len(placed) == len(set(placed))
    assert set(placed) == ROOMS, "a new room needs a floor in tests/test_imports.py, a gone one leaves it"


def test_imports_lead_down():
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    inside = [found for found in all_imports() if found.name.split(".")[0] == "atoken"]
    assert len(inside) > 100
    wrong = [
        f"atoken.{found.where} imports {found.name}, which is not below it"
        for found in inside
        if room(found.where) != target_room(found.name)
        and floor_of[target_room(found.name)] <= floor_of[room(found.where)]
    ]
    assert wrong == []


def files_that_import_each_other(imports, files):
    """A circle in ``imports`` (importer, imported name), as a list of files; [] where there is none.

    A name leads to the file of the longest module in it. Late imports count; those for the type checker do not.
    """
    needed = {file: set() for file in files}
    for where, name in imports:
        parts = name.split(".")
        ends = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        target = next((file for end in ends for file in (end, f"{end}.__init__") if file in files), None)
        if target is not None:
            needed[where].add(target)
    try:
        graphlib.TopologicalSorter(needed).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize(
    ("imports", "circle"),
    [
        ([("a", "b.c"), ("b", "c")], []),
        ([("a", "b.name"), ("b", "a")], ["a", "b", "a"]),
        ([("p.__init__", "p.x"), ("p.x", "p.name")], ["p.__init__", "p.x", "p.__init__"]),
    ],
)
def test_a_circle_is_found(imports, circle):
    files = {"a", "b", "c", "p.__init__", "p.x"}
    found = files_that_import_each_other(imports, files)
    assert set(found) == set(circle)


def test_no_two_files_import_each_other():
    """Nor longer circles: in the package, the harness and the benchmarks, imports inside functions included."""
    packages = ("atoken", "mllm", "eval", "benchmarks")
    files = {f"{package}.{name}" for package in packages for name in modules(package)}
    imports = [(f"{package}.{found.where}", found.name) for package in packages for found in all_imports(package)]
    assert len(files) > 150
    assert len(imports) > 1000
    assert files_that_import_each_other(imports, files) == []


def test_the_training_room_knows_nothing_of_what_it_trains():
    known = {"train", "report", "data", "atomic", "errors"}
    found = [found for found in all_imports() if room(found.where) == "train"]
    inside = {target_room(each.name) for each in found if each.name.split(".")[0] == "atoken"}
    assert inside <= known
    assert not [each for each in found if each.name.split(".")[0] == "transformers"]


def test_the_package_imports_none_of_its_siblings():
    assert [found for found in all_imports() if found.name.split(".")[0] in SIBLINGS] == []


def test_the_language_model_imports_the_package_alone():
    assert [found for found in all_imports("mllm") if found.name.split(".")[0] in SIBLINGS - {"mllm"}] == []


def core():
    """Names of the core dependencies."""
    return {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}


def third_party():
    return [found for found in all_imports() if found.name.split(".")[0] not in {*sys.stdlib_module_names, "atoken"}]


def test_what_is_imported_is_a_core_dependency_and_the_other_way_round():
    names = {found.name.split(".")[0] for found in third_party()} - OPTIONAL
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names} == core()


def test_optional_packages_are_imported_late():
    optional = [found for found in third_party() if found.name.split(".")[0] in OPTIONAL]
    assert {found.name.split(".")[0] for found in optional} == OPTIONAL
    assert all(found.late for found in optional)


def test_one_module_alone_knows_deepspeed():
    assert {found.where for found in third_party() if found.name.split(".")[0] == "deepspeed"} == {"train.zero"}


def with_what_they_need(names):
    """Distributions, with their dependencies on this machine, without extras."""
    closed, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        closed.add(name)
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting |= {canonicalize_name(needed.name)} - closed
    return closed


def python(code, *arguments):
    """The JSON that a fresh interpreter prints last."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


MINIMAL = """
import importlib, importlib.util, json, pkgutil, sys

class Minimal:
    '''A finder that does not see what a minimal install lacks.'''
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *where):
        return None if name.partition('.')[0] in lacking else self.finder.find_spec(name, *where)

lacking = set(json.loads(sys.argv[1]))
sys.meta_path[:] = [Minimal(finder) for finder in sys.meta_path]
assert not any(map(importlib.util.find_spec, lacking - set(sys.modules)))
import atoken
names = [module.name for module in pkgutil.walk_packages(atoken.__path__, 'atoken.')]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""


def test_a_minimal_install_imports_every_module():
    kept, owners = with_what_they_need(core()) | {"atoken"}, importlib.metadata.packages_distributions()
    beyond = {top for top, names in owners.items() if not kept & {canonicalize_name(name) for name in names}}
    assert {"pytest", "skimage", "hypothesis"} <= beyond
    assert not {"torch", "PIL", "yaml", "av"} & beyond
    imported = python(MINIMAL, json.dumps(sorted(beyond | SIBLINGS)))
    assert set(imported) == {f"atoken.{name}".removesuffix(".__init__") for name in modules()} - {"atoken"}


HEAVY = ["torch", "transformers", "PIL", "av", "numpy", "safetensors", "einops", "msgspec", "yaml"]

LAZY = """
import json, sys
heavy = json.loads(sys.argv[1])
import atoken
loaded = [[name for name in heavy if name in sys.modules]]
assert issubclass(atoken.AtokenError, Exception) and issubclass(atoken.AtokenWarning, Warning) and atoken.__version__
loaded.append([name for name in heavy if name in sys.modules])
atoken.ATokenModel
from transformers import AutoConfig, AutoModel
assert AutoConfig.for_model('atoken').__class__ is atoken.ATokenConfig
assert AutoModel._model_mapping[atoken.ATokenConfig] is atoken.ATokenModel
missing = [name for name in (*atoken.__all__, *dir(atoken)) if not hasattr(atoken, name)]
print(json.dumps([*loaded, missing]))
"""


def test_import_atoken_loads_nothing_heavy_and_every_public_name_comes_on_touch():
    at_import, at_errors, missing = python(LAZY, json.dumps(HEAVY))
    assert (at_import, at_errors, missing) == ([], [], [])


WAITING = """
import json, os, sys
for name in sys.argv[1:]:
    __import__(name)
import atoken, torch
print(json.dumps([atoken.SPINNING, os.environ["OMP_WAIT_POLICY"]]))
"""


@pytest.mark.parametrize(
    ("first", "setting", "expected"),
    [([], None, [False, "PASSIVE"]), (["torch"], None, [True, "PASSIVE"]), (["torch"], "PASSIVE", [False, "PASSIVE"]),
     ([], "ACTIVE", [False, "ACTIVE"])],
)  # fmt: skip
def test_import_atoken_lets_threads_that_wait_sleep_unless_the_user_says_otherwise(first, setting, expected):
    settings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    settings |= {"OMP_WAIT_POLICY": setting} if setting else {}
    command = [sys.executable, "-c", WAITING, *first]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def test_an_unknown_name_is_an_attribute_error():
    import atoken

    with pytest.raises(AttributeError, match="nonsense"):
        _ = atoken.nonsense


HELP = """
import json, sys
from atoken.cli import main
try:
    main(sys.argv[2:])
except SystemExit as stop:
    print(json.dumps([stop.code, [name for name in json.loads(sys.argv[1]) if name in sys.modules]]))
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["encode", "--help"], 0), (["nonsense"], 2)])
def test_help_and_usage_load_nothing_heavy(arguments, code):
    assert python(HELP, json.dumps(HEAVY), *arguments) == [code, []]


def test_the_program_that_is_installed_is_the_one_tested_here():
    assert PROJECT["scripts"] == {"atoken": "atoken.cli:main"}


def test_modules_name_no_path_of_a_machine():
    pattern = re.compile(r"[\"'](/home|/root|/work|/Users|[A-Z]:\\)")
    assert [name for name, file in modules().items() if pattern.search(file.read_text())] == []
