"""Processes that read get what is large once."""

from typing import Any

from atoken.store.layout import Options
from atoken.store.local import LocalEngine
from atoken.store.source import Items, open_source
from tests.store.data import contents, folder, make
from tests.tokenizer.small import small_tokenizer


class Counted(Items):
    """Items that count how often they are pickled."""

    pickled = 0

    def __reduce__(self) -> tuple[Any, ...]:
        Counted.pickled += 1
        return Items, (self._sources, self.described)


def test_the_names_of_a_source_are_sent_to_a_reader_once_and_not_with_each_unit(tmp_path):
    source = folder(tmp_path / "data", count=9)
    opened = open_source(str(source), Options())
    with LocalEngine(small_tokenizer(), 1) as engine:
        done = make(Counted(opened._sources, opened.described), tmp_path / "store", engine=engine)
    assert Counted.pickled == 2  # once to the probe of the plan, which has a process of its own
    assert done == make(source, tmp_path / "other")
    assert contents(tmp_path / "store") == contents(tmp_path / "other")
