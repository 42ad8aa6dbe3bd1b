"""Broken samples are counted and listed, and a run that has too many of them ends."""

import json

import pytest

from atoken.data.mixing import Broken
from atoken.errors import MediaError
from atoken.train.tally import Tally
from tests.train.flow import Points

BROKEN = Broken(3, "photos", "a.png", "damaged")


def micro_batch(samples, broken=0):
    return Points("ring", None, (BROKEN,) * broken, samples)


def counted(tally, samples, broken, step=0, last=False):
    """A step of one micro-batch, on one rank."""
    return tally.count(*tally.listed(step, [micro_batch(samples, broken)]), last=last)


def test_broken_samples_are_counted_and_listed(tmp_path):
    tally = Tally(tmp_path / "broken.jsonl")
    assert counted(tally, 20, 0) == {"drawn": 20, "broken": 0}
    assert not tally.path.exists()
    assert counted(tally, 30, 2, step=7) == {"drawn": 50, "broken": 2}
    lines = [json.loads(line) for line in tally.path.read_text().splitlines()]
    assert lines == [{"step": 7, "at": 3, "source": "photos", "key": "a.png", "reason": "damaged"}] * 2
    counted(tally, 30, 1, step=9)
    assert [json.loads(line)["step"] for line in tally.path.read_text().splitlines()] == [7, 7, 9]


@pytest.mark.parametrize(("every", "most"), [(0, 0.0), (20, 0.1), (12, 0.1), (3, 0.1), (4, 0.25), (3, 0.3)])
def test_a_run_stops_as_soon_as_more_than_the_share_is_broken(every, most, tmp_path):
    """Of the samples tried, every so many is broken."""
    tally, tried, broken, stopped = Tally(tmp_path / "broken.jsonl", most), 0, 0, False
    for number in range(300):
        now = int(every > 0 and number % every == 0)
        tried, broken = tried + 1 + now, broken + now
        if tried >= 100 and broken / tried > most:
            with pytest.raises(MediaError, match=rf"^{broken} of {tried} samples are broken.*broken\.jsonl lists\.$"):
                counted(tally, 1, now)
            stopped = True
            break
        counted(tally, 1, now)
    assert stopped == (every > 0 and 1 / (every + 1) > most)


@pytest.mark.parametrize(("samples", "broken"), [(1, 1), (10, 2), (40, 20), (0, 0), (9, 1), (90, 10)])
def test_a_run_of_few_samples_stops_at_its_end(samples, broken, tmp_path):
    tally = Tally(tmp_path / "broken.jsonl", 0.1)
    counted(tally, samples, broken)
    tried = samples + broken
    if broken > 0.1 * tried:
        with pytest.raises(MediaError, match=f"{broken} of {tried} samples are broken, over the limit of 10%"):
            counted(tally, 0, 0, last=True)
    else:
        assert counted(tally, 0, 0, last=True) == {"drawn": samples, "broken": broken}


def test_ranks_list_their_own_and_stop_together_and_a_resumed_run_goes_on_counting(tmp_path):
    tallies = [Tally(tmp_path / f"broken-{rank}.jsonl", most=0.0, at_least=200, drawn=7) for rank in range(2)]
    found = [tally.listed(5, [micro_batch(20, rank), micro_batch(30)]) for rank, tally in enumerate(tallies)]
    assert found == [(50, 0), (50, 1)]
    total = [sum(counts) for counts in zip(*found, strict=True)]
    assert [tally.count(*total) for tally in tallies] == [{"drawn": 107, "broken": 1}] * 2
    for tally in tallies:
        with pytest.raises(MediaError, match="2 of 209 samples are broken"):
            tally.count(*total)
    assert not tallies[0].path.exists()
    assert len(tallies[1].path.read_text().splitlines()) == 1


def test_a_list_that_cannot_be_written_gets_one_sentence(tmp_path):
    with pytest.raises(MediaError, match="Cannot write the list"):
        counted(Tally(tmp_path), 1, 1)
