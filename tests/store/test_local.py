"""The engine of one machine: whoever is killed, the store is the same to the byte, and a killer is listed."""

import multiprocessing
import threading
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from time import monotonic, sleep

import psutil
import pytest

from atoken.errors import StoreError
from atoken.loading import load
from atoken.store import local
from atoken.store.layout import PLAN, Options
from atoken.store.local import LocalEngine
from atoken.store.probe import probe
from atoken.store.source import open_source
from tests.store.data import contents, folder, make
from tests.store.killers import Killers
from tests.tokenizer.small import small_tokenizer

UNITS = {"batch_tokens": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("source"), count=24)


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    store = tmp_path_factory.mktemp("whole") / "s"
    make(source, store, **UNITS)
    return contents(store)


def test_an_item_that_kills_its_readers_is_listed_and_no_other_is_lost(source, tmp_path):
    items = Killers(open_source(str(source), Options()), {5})
    with LocalEngine(small_tokenizer(), 2) as engine:
        stats = make(items, tmp_path / "s", engine=engine, most_broken=0.5, **UNITS)
    failures = (tmp_path / "s" / "failures.jsonl").read_text().splitlines()
    assert (stats["items"], stats["failures"], len(failures)) == (23, 1, 1)
    assert "Its reader was killed 3 times" in failures[0]
    assert items[5].key in failures[0]


def test_a_file_that_kills_its_reader_is_left_out_of_the_probe(source, tmp_path):
    items = open_source(str(folder(tmp_path / "two", count=2)), Options())
    measured, media = probe(Killers(items, {0}), Options(), most=1)
    assert (measured.items, measured.tokens, len(media)) == (2, 2 * 3, 1)
    with pytest.raises(StoreError, match=r"None of 2 items of folder two can be read: its reader was killed\."):
        probe(Killers(items, {0, 1}), Options())


@contextmanager
def killing(most, store):
    """Kill processes that this one starts once a store is planned, each once, in the time of the block; which were."""
    killed, over = [], threading.Event()

    def kill():
        while not over.is_set() and len(killed) < most:
            for child in psutil.Process().children() if (store / PLAN).exists() else ():
                with suppress(psutil.NoSuchProcess):
                    if child.pid not in killed and "spawn_main" in " ".join(child.cmdline()):
                        sleep(0.5 * len(killed))  # while it starts, and while it works
                        child.kill()
                        killed.append(child.pid)
                        break
            sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("piece", [1, 32])
def test_readers_that_are_killed_leave_no_trace(source, tmp_path, whole, piece, monkeypatch):
    monkeypatch.setattr(local, "PIECE", piece)
    with killing(4, tmp_path / "s") as killed, LocalEngine(small_tokenizer(), 2) as engine:
        make(source, tmp_path / "s", engine=engine, **UNITS)
    assert killed
    assert contents(tmp_path / "s") == whole


def test_a_reader_that_dies_while_another_starts_leaves_no_process(source, tmp_path, whole, monkeypatch):
    started, start = [], SpawnProcess.start

    def start_late(process):
        start(process)
        started.append(process)
        if len(started) == 3:  # the first one reads for the plan
            started[1].kill()
            sleep(1)  # meanwhile the pool sees that one died, and does not know of this one yet

    monkeypatch.setattr(SpawnProcess, "start", start_late)
    with LocalEngine(small_tokenizer(), 2) as engine:
        make(source, tmp_path / "s", engine=engine, **UNITS)
    assert len(started) == 5
    assert contents(tmp_path / "s") == whole
    late = monotonic() + 20
    while multiprocessing.active_children() and monotonic() < late:
        sleep(0.1)
    assert multiprocessing.active_children() == []


def test_a_process_for_each_of_several_devices_gives_the_same_bytes_though_some_are_killed(source, tmp_path):
    small_tokenizer().save_pretrained(tmp_path / "small-continuous")
    tokenizer = load(tmp_path / "small-continuous", device="cpu")
    model = {"source": str(tmp_path / "small-continuous"), "device": "cpu"}
    make(source, tmp_path / "one", tokenizer=tokenizer, **UNITS)
    with killing(4, tmp_path / "two") as killed, LocalEngine(tokenizer, 1, ["cpu", "cpu:0"]) as engine:
        make(source, tmp_path / "two", engine=engine, model=model, tokenizer=tokenizer, **UNITS)
    assert killed
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_model_that_is_not_that_of_the_plan_is_one_sentence(source, tmp_path):
    small_tokenizer("discrete").save_pretrained(tmp_path / "other")
    model = {"source": str(tmp_path / "other"), "device": "cpu"}
    with LocalEngine(small_tokenizer(), 1, ["cpu", "cpu:0"]) as engine, pytest.raises(StoreError, match="same model"):
        make(source, tmp_path / "s", engine=engine, model=model, **UNITS)
