"""A small model in a folder, an empty working folder, and the command line run on both."""

import pytest

import atoken
from atoken.cli import main
from tests.model.sizes import small_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")  # a file may bring its own model
def tokenizer(model):
    return atoken.load(model, device="cpu")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(model, capsys, there):
    """Run one command on the small model: exit code, standard output, standard error."""

    def command(name, *arguments, model=model):
        without = name in ("info", "convert", "train") or (name == "store" and arguments[0] != "import")
        options = [] if without else ["--model", str(model), "--device", "cpu"]
        capsys.readouterr()  # what the preparations printed
        code = main([name, *map(str, arguments), *options])
        return code, *capsys.readouterr()

    return command
