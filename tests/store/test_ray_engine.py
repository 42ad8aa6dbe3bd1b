"""A store that Ray makes has the bytes of one that this process makes, whoever is killed; errors are one sentence."""

import pickle
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from msgspec import structs

import atoken
from atoken.errors import AtokenError, MissingExtraError
from atoken.store import driver, pool, shards
from atoken.store.layout import FAILURES, Options
from atoken.store.ray_engine import RayEngine
from atoken.store.reading import DEATHS, Read, killed, read_unit
from atoken.store.source import open_source
from atoken.store.units import encode_unit
from tests.model.sizes import small_model
from tests.store.data import here
from tests.store.deadly import Deadly

ROOT = Path(__file__).parents[2]
OPTIONS = Options(items=26, crop=32, flip=True, batch_tokens=40, shard_mb=1)

pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def session():
    """One Ray for all tests, whose processes import this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with ExitStack() as stack:
            try:
                stack.enter_context(RayEngine(actors=2))
            except AtokenError as error:
                if "timed out during startup" in str(error):  # Ray waits for 15 s
                    pytest.skip(f"This machine is too busy: {error}")
                raise
            yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture
def make(tmp_path, model, monkeypatch):
    """Make a store of a source with shards of two units by an engine, and give its files."""
    planned = driver.new_plan
    monkeypatch.setattr(driver, "new_plan", lambda *arguments: structs.replace(planned(*arguments), shard_units=2))
    monkeypatch.setattr(pool, "one_by_one", here)  # deaths are for the readers of Ray

    def make(name, engine, items, shown=lambda progress: None, source=model):
        tokenizer = atoken.load(model, device="cpu")
        arguments = {"source": source, "device": "cpu"}
        driver.tokenize(items, tmp_path / name, tokenizer, arguments, OPTIONS, engine, most_broken=0.2, shown=shown)
        return {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*") if path.is_file()
        }  # fmt: skip

    return make


class Plain:
    """What an engine does, in this process; ``lost`` items are those that would end it."""

    def __init__(self, tokenizer, lost=()):
        self.tokenizer, self.lost = tokenizer, lost

    def encode(self, job, units):
        for unit in units:
            pieces = [
                (killed(job, item),) if item in self.lost else read_unit(job, unit, [item]).items
                for item in job.plan.items_of(unit)
            ]
            yield encode_unit(job, self.tokenizer, Read(unit, tuple(one for piece in pieces for one in piece), 0.0))

    def join(self, job, shard):
        future = Future()
        future.set_result(shards.join(job, shard))
        return future


def kill_an_actor():
    """Once, as soon as a unit is done."""
    killed_ones = []

    def shown(progress):
        if progress.done and not killed_ones:
            actor = next(
                child for child in psutil.Process().children(recursive=True) if "_Encoder" in actor_name(child)
            )
            actor.kill()
            killed_ones.append(actor.pid)

    return shown


def actor_name(process):
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_one_actor_and_a_reader_that_is_killed_make_the_same_bytes(make, model, tmp_path):
    items = open_source("procedural", OPTIONS)
    expected = make("plain", Plain(atoken.load(model, device="cpu")), items)
    with RayEngine(actors=1) as engine:
        found = make("ray", engine, Deadly(items, {3: 1}, tmp_path))
    assert (tmp_path / "3-0").exists()
    assert found == expected


def test_two_actors_of_which_one_is_killed_and_an_item_that_no_reader_survives_make_the_same_bytes(
    make, model, tmp_path
):
    items = Deadly(open_source("procedural", OPTIONS), {7: 99}, tmp_path)
    expected = make("plain", Plain(atoken.load(model, device="cpu"), lost={7}), items)
    with RayEngine(actors=2) as engine:
        assert make("ray", engine, items, kill_an_actor()) == expected
    assert f"killed {DEATHS} times" in expected[Path(FAILURES)].decode()


def test_an_error_of_an_actor_is_one_sentence(make, tmp_path):
    items = open_source("procedural", OPTIONS)
    with RayEngine() as engine, pytest.raises(AtokenError, match=r"^[^\n]*elsewhere[^\n]*$"):
        make("ray", engine, items, source=str(tmp_path / "elsewhere"))


def test_errors_survive_the_way_from_one_process_to_another():
    error = MissingExtraError("pyarrow", "store", "A token store")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own, made in this line
    assert (type(again), str(again)) == (MissingExtraError, str(error))


def test_too_few_gpus_are_one_sentence():
    with pytest.raises(AtokenError, match=r"has 0 GPUs for 2 actors of 0\.5 each"), RayEngine(actors=2, gpus=0.5):
        pass


def test_no_cluster_is_one_sentence(monkeypatch):
    import ray

    def refuse(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(AtokenError, match=r"^Ray cannot be reached at auto: Could not find .* instance.$"):
        RayEngine("auto").__enter__()
